//! The log of one database, as its only writer sees it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LogError, LogReader, LogSync, RecordInfo};
use crate::types::{Pos, Txid};

/// How a log is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOptions {
    /// A segment that would grow beyond this is closed and a new one begun.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20 }
    }
}

/// What [`Log::open`] removed because it was not whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The last whole record.
    pub position: Pos,
    /// The segment that was cut.
    pub path: PathBuf,
    /// Where.
    pub offset: u64,
    /// How many bytes went, those of later segments included.
    pub bytes: u64,
    /// Records that had been durable are lost: not a crash, but a damaged disk.
    pub was_durable: bool,
}

/// A segment, for deciding what to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// Its first transaction.
    pub first: Txid,
    /// Its last transaction.
    pub last: Txid,
    /// Its size on disk.
    pub bytes: u64,
    /// When its last transaction was committed: milliseconds since the Unix epoch.
    pub newest_timestamp_ms: i64,
}

/// The log of one database. One writer; readers and the syncer work beside it.
#[derive(Debug)]
pub struct Log {}

impl Log {
    /// Begins a log in a new or empty directory. `base` is the position before the first record.
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Exists`], or the disk refused.
    pub fn create(_dir: &Path, _base: Pos, _options: LogOptions) -> Result<Self, LogError> {
        unimplemented!()
    }

    /// Begins a new history in a directory whose log is damaged beyond opening.
    ///
    /// # Errors
    /// The disk refused.
    pub fn recreate(_dir: &Path, _base: Pos, _options: LogOptions) -> Result<Self, LogError> {
        unimplemented!()
    }

    /// Opens an existing log. A torn tail is cut off, see [`Log::cut`].
    ///
    /// # Errors
    /// [`LogError::Missing`], [`LogError::Damaged`], [`LogError::Version`], or the disk refused.
    pub fn open(_dir: &Path, _options: LogOptions) -> Result<Self, LogError> {
        unimplemented!()
    }

    /// What opening cut off; `None` if all was whole.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        unimplemented!()
    }

    /// The position before the first record.
    #[must_use]
    pub fn base(&self) -> Pos {
        unimplemented!()
    }

    /// The position after the last record.
    #[must_use]
    pub fn position(&self) -> Pos {
        unimplemented!()
    }

    /// The oldest record.
    #[must_use]
    pub fn first(&self) -> Option<RecordInfo> {
        unimplemented!()
    }

    /// The newest record.
    #[must_use]
    pub fn last(&self) -> Option<RecordInfo> {
        unimplemented!()
    }

    /// Size on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Appends a record, not yet durably.
    ///
    /// # Errors
    /// [`LogError::OutOfOrder`], [`LogError::Length`], [`LogError::Failed`], or the disk refused; the
    /// record is not in the log then.
    pub fn append(&mut self, _info: &RecordInfo, _ltx: &[u8]) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Removes the records after `to`, durably.
    ///
    /// # Errors
    /// [`LogError::NoSuchPosition`]; [`LogError::Failed`] if the removal may not survive a crash.
    pub fn retract(&mut self, _to: Pos) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Throws all records away and begins a new history, durably: after a crash it is all of the old
    /// one or the new one.
    ///
    /// # Errors
    /// The disk refused.
    pub fn reset(&mut self, _base: Pos) -> Result<(), LogError> {
        unimplemented!()
    }

    /// Removes whole segments whose records are all at or before `keep_after`; returns the bytes freed.
    /// The segment being written stays.
    ///
    /// # Errors
    /// The disk refused; what was removed is no longer in the log.
    pub fn trim(&mut self, _keep_after: Txid) -> Result<u64, LogError> {
        unimplemented!()
    }

    /// Closes the segment being written, so that a later [`Log::trim`] can remove it.
    ///
    /// # Errors
    /// The disk refused.
    pub fn roll(&mut self) -> Result<(), LogError> {
        unimplemented!()
    }

    /// The segments that have records, oldest first.
    pub fn oldest_segments(&self) -> impl Iterator<Item = SegmentSummary> {
        std::iter::empty()
    }

    /// The handle that makes records durable.
    #[must_use]
    pub fn syncer(&self) -> Arc<LogSync> {
        unimplemented!()
    }

    /// A handle that reads while the writer appends.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        unimplemented!()
    }
}
