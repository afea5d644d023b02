//! One record of the log: what it says of itself.

use crate::types::{Checksum, Epoch, PageSize, Pos, Txid};

/// Which frames of the WAL a transaction came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct WalSpan {
    /// Both salts of the WAL's header.
    pub salts: (u32, u32),
    /// First frame, counted from 1.
    pub start_frame: u32,
    /// Last frame, the one with the commit size.
    pub end_frame: u32,
}

/// What the log knows about one record without decoding it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordInfo {
    /// First transaction in it.
    pub min: Txid,
    /// Last transaction in it.
    pub max: Txid,
    /// Epoch of the primary that wrote `max`.
    pub epoch: Epoch,
    /// Database checksum before `min`.
    pub pre: Checksum,
    /// Database checksum after `max`.
    pub post: Checksum,
    /// Page size after `max`.
    pub page_size: PageSize,
    /// Database size in pages after `max`.
    pub commit: u32,
    /// Number of pages in it.
    pub pages: u32,
    /// When it was committed: milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Where in the WAL it came from; `None` for all other sources.
    pub wal: Option<WalSpan>,
    /// Length of its LTX file.
    pub ltx_bytes: u32,
}

impl RecordInfo {
    /// The position after it.
    #[must_use]
    pub fn pos(&self) -> Pos {
        Pos { epoch: self.epoch, txid: Some(self.max), checksum: self.post }
    }
}
