//! Reading the log beside its writer.

use bytes::Bytes;

use super::{LogError, RecordInfo};
use crate::types::{Pos, Txid};

/// What lies behind a position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// Records that follow it, oldest first; empty if there are none.
    Records(Vec<(RecordInfo, Bytes)>),
    /// The position is not in the log: too old, or of another history.
    Gone,
}

/// Reads a log while it is written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogReader {}

impl LogReader {
    /// Records behind `after`, at least one if there are any, then as many as fit in `bytes_max`.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or the disk refused.
    pub fn read(&self, _after: Pos, _bytes_max: usize) -> Result<Read, LogError> {
        unimplemented!()
    }

    /// The record whose last transaction is `txid`; `None` if the log has none.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub fn info_at(&self, _txid: Txid) -> Result<Option<RecordInfo>, LogError> {
        unimplemented!()
    }
}
