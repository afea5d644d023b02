//! Records of any size without holding them in memory: written and read piece by piece.
//!
//! A record that is written in pieces counts from the moment its header is in the file, which comes last; until
//! then its bytes are a torn tail. A small one never touches the file before it is whole: [`Log::append`] writes it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::journal::Log;
use super::record::{self, HEADER_BYTES, Header};
use super::segment::SegmentId;
use super::state::Shared;
use super::{LogError, RecordInfo};
use crate::disk::write_all_at;

/// Bytes of a record that are gathered before they go to the file.
const PIECE_BYTES: usize = 2 << 20;
/// A record up to this is read into memory by whoever reads it.
pub(super) const SMALL_BYTES: u64 = 2 << 20;
/// Bytes read at once while a record is checked.
const CHECK_BYTES: usize = 256 << 10;

/// Writes one record whose length need not be known before. Dropped without [`Appender::finish`] it leaves nothing.
/// Nothing else is to be written to the log meanwhile.
#[derive(Debug)]
pub struct Appender<'a> {
    shared: Arc<Shared>,
    file: Arc<File>,
    segment: SegmentId,
    /// Where the record begins.
    at: u64,
    file_bytes: u64,
    buffer: &'a mut Vec<u8>,
    spilled: Option<Spilled>,
    error: Option<LogError>,
}

/// What of a record is in the file already.
#[derive(Debug)]
struct Spilled {
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Log {
    /// Begins a record: its LTX file is written into what this returns. `buffer` is memory to use, `bytes_about` a
    /// guess of the length: a record that would not fit begins a segment of its own.
    ///
    /// # Errors
    /// [`LogError::Failed`], or the disk refused.
    pub fn appender<'a>(
        &mut self,
        buffer: &'a mut Vec<u8>,
        bytes_about: u64,
    ) -> Result<Appender<'a>, LogError> {
        self.check_usable()?;
        buffer.clear();
        let is_large = bytes_about > PIECE_BYTES as u64;
        if is_large && self.end.at.saturating_add(bytes_about) > self.options.segment_bytes {
            self.roll()?;
        }
        Ok(Appender {
            shared: Arc::clone(&self.shared),
            file: Arc::clone(&self.end.file),
            segment: self.end.segment,
            at: self.end.at,
            file_bytes: self.end.file_bytes,
            buffer,
            spilled: None,
            error: None,
        })
    }
}

impl Appender<'_> {
    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64 + self.spilled.as_ref().map_or(0, |spilled| spilled.bytes)
    }

    /// Why a write failed, in the log's words.
    pub fn take_error(&mut self) -> Option<LogError> {
        self.error.take()
    }

    /// Appends the record, not yet durably.
    ///
    /// # Errors
    /// As for [`Log::append`].
    pub fn finish(mut self, log: &mut Log, info: &RecordInfo) -> Result<(), LogError> {
        if self.spilled.is_none() {
            return log.append(info, self.buffer);
        }
        log.check_next(info)?;
        let bytes = self.bytes();
        let is_at_the_end = log.end.segment == self.segment && log.end.at == self.at;
        if bytes != u64::from(info.ltx_bytes) || !is_at_the_end {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            return Err(LogError::Length { bytes, said: info.ltx_bytes });
        }
        self.buffer.extend_from_slice(record::padding(info.ltx_bytes));
        self.put()?;
        let header = Header {
            info: *info,
            durable_txid: self.shared.durable_txid.load(Ordering::Relaxed),
            payload_crc: self.spilled.as_ref().map_or(0, |s| s.crc.clone().finalize()),
        };
        let header = header.encode(self.segment.seed);
        let written = write_all_at("log", &self.file, &header, self.at);
        written.map_err(self.shared.disk("append to segment", &self.segment))?;
        self.spilled = None;
        let stored = record::stored_bytes(info.ltx_bytes);
        log.end.file_bytes = log.end.file_bytes.max(self.at + stored);
        log.appended(info, stored);
        Ok(())
    }

    /// Moves the buffer to the file.
    fn put(&mut self) -> Result<(), LogError> {
        let crc = || crc32fast::Hasher::new_with_initial(self.segment.seed);
        let spilled = self.spilled.get_or_insert_with(|| Spilled { crc: crc(), bytes: 0 });
        let at = self.at + HEADER_BYTES as u64 + spilled.bytes;
        let written = write_all_at("log", &self.file, self.buffer, at);
        written.map_err(self.shared.disk("append to segment", &self.segment))?;
        spilled.crc.update(self.buffer);
        spilled.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE_BYTES
            && let Err(error) = self.put()
        {
            self.error = Some(error);
            return Err(io::Error::other("the log took no more of a record"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Appender<'_> {
    /// Gives back what was written of a record that is not wanted. If that fails the next record overwrites it.
    fn drop(&mut self) {
        if self.spilled.is_some() && self.file.set_len(self.at).is_ok() {
            // Zeros that were written ahead.
            drop(self.file.set_len(self.file_bytes.max(self.at)));
        }
    }
}

/// The LTX file of a record: in memory, or, if it is large, where it is in the log.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Checked.
    Memory(Bytes),
    /// To be checked by [`Payload::check`].
    Stored(StoredRecord),
}

/// Where a record's LTX file is. Stays readable when the log drops the record.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    file: Arc<File>,
    path: Arc<PathBuf>,
    /// Of the LTX file.
    at: u64,
    header: Header,
    seed: u32,
}

impl StoredRecord {
    pub(super) fn new(
        file: Arc<File>,
        path: PathBuf,
        record_at: u64,
        header: Header,
        seed: u32,
    ) -> Self {
        let at = record_at + HEADER_BYTES as u64;
        Self { file, path: Arc::new(path), at, header, seed }
    }

    fn check(&self) -> Result<(), LogError> {
        let mut crc = crc32fast::Hasher::new_with_initial(self.seed);
        let mut buffer = vec![0; CHECK_BYTES];
        let end = self.at + record::stored_bytes(self.header.info.ltx_bytes) - HEADER_BYTES as u64;
        let mut at = self.at;
        while at < end {
            let piece = usize::try_from(end - at).unwrap_or(usize::MAX).min(CHECK_BYTES);
            let buffer = &mut buffer[..piece];
            self.file
                .read_exact_at(buffer, at)
                .map_err(super::state::disk("read segment", &self.path))?;
            crc.update(buffer);
            at += piece as u64;
        }
        if crc.finalize() == self.header.payload_crc {
            return Ok(());
        }
        let path = self.path.to_path_buf();
        let what = "the checksum of a record's content does not fit";
        Err(LogError::Damaged { path, offset: self.at, what })
    }
}

#[allow(clippy::len_without_is_empty, reason = "no LTX file is empty")]
impl Payload {
    /// Length of the LTX file.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Stored(stored) => u64::from(stored.header.info.ltx_bytes),
        }
    }

    /// The bytes, if they are in memory.
    #[must_use]
    pub fn memory(&self) -> Option<&Bytes> {
        match self {
            Self::Memory(bytes) => Some(bytes),
            Self::Stored(_) => None,
        }
    }

    /// Reads all of it once against the log's checksum, if it is not in memory.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or the disk refused.
    pub fn check(&self) -> Result<(), LogError> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Stored(stored) => stored.check(),
        }
    }

    /// Fills the buffer with the LTX file's bytes from `offset` on.
    ///
    /// # Errors
    /// They could not be read, or the file ends before.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.len());
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        match self {
            Self::Memory(bytes) => {
                let place = |at: u64| usize::try_from(at).map_err(io::Error::other);
                buffer.copy_from_slice(&bytes[place(offset)?..place(end)?]);
                Ok(())
            }
            Self::Stored(stored) => stored.file.read_exact_at(buffer, stored.at + offset),
        }
    }

    /// Reads it from its beginning.
    #[must_use]
    pub fn reader(&self) -> PayloadReader<'_> {
        PayloadReader { payload: self, at: 0 }
    }
}

/// Reads a [`Payload`] from its beginning to its end; to be buffered.
#[derive(Debug)]
pub struct PayloadReader<'a> {
    payload: &'a Payload,
    at: u64,
}

impl Read for PayloadReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.payload.len() - self.at;
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.payload.read_at(self.at, &mut buffer[..wanted])?;
        self.at += wanted as u64;
        Ok(wanted)
    }
}
