//! Positioned writes of several buffers.

use std::fs::File;
use std::io::{self, IoSlice};

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
