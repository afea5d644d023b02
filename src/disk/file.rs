//! Positioned reads and writes.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::FileExt as _;

use super::fault;

/// Writes all of it at `offset`. `class` names the kind of file for fault points ([`super::fault`]).
///
/// # Errors
/// The disk refused; a part may be written.
pub fn write_all_at(class: &str, file: &File, data: &[u8], offset: u64) -> io::Result<()> {
    fault::step(class, "write")?;
    if let Err(error) = fault::step(class, "half") {
        file.write_all_at(&data[..data.len() / 2], offset)?;
        return Err(error);
    }
    file.write_all_at(data, offset)
}

/// `fdatasync`, with a fault point.
///
/// # Errors
/// The disk refused.
pub fn sync_data(class: &str, file: &File) -> io::Result<()> {
    fault::step(class, "sync")?;
    file.sync_data()
}

/// `ftruncate`, with a fault point.
///
/// # Errors
/// The disk refused.
pub fn set_len(class: &str, file: &File, len: u64) -> io::Result<()> {
    fault::step(class, "truncate")?;
    file.set_len(len)
}

/// Writes buffers one after another at `offset`, in one system call; returns the bytes written, which
/// may be fewer.
///
/// # Errors
/// The disk refused before anything was written.
pub fn write_vectored_at(file: &File, buffers: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
    loop {
        match rustix::io::pwritev(file, buffers, offset) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// Reads the first bytes of a file, wherever others read or write it.
#[derive(Debug)]
pub struct FileReader<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl<'a> FileReader<'a> {
    /// Reads up to `end`.
    #[must_use]
    pub fn new(file: &'a File, end: u64) -> Self {
        Self { file, at: 0, end }
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_written_one_after_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        let buffers = [IoSlice::new(b"one"), IoSlice::new(b""), IoSlice::new(b"two")];
        assert_eq!(write_vectored_at(&file, &buffers, 1).unwrap(), 6);
        assert_eq!(std::fs::read(&path).unwrap(), b"\0onetwo");
    }
}
