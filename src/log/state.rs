//! What the writer, the readers and the syncer of one log share.
//!
//! The writer changes the index after its bytes are in the file; readers and the syncer take what they
//! need under the lock and do their I/O without it. Whoever did I/O compares the index's generation
//! afterwards: if records were removed meanwhile, what it did counts for nothing.
//!
//! Lock order: the syncer's state, then the index; both are held for memory work, the index also while a
//! seal of 512 bytes is written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::RwLock;

use super::segment::{self, MARK_BYTES, Mark, Seal, SegmentId};
use super::{LogError, RecordInfo};
use crate::types::Pos;

/// How many of the newest records are found without a search.
const RECENT: usize = 64;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) index: RwLock<Index>,
    /// An `fsync` failed.
    pub(super) failed: AtomicBool,
    /// Last transaction known to be durable, 0 = none: each record says it.
    pub(super) durable_txid: AtomicU64,
    /// Counts calls of `sync`: the writer writes zeros ahead only for those who wait for the disk.
    pub(super) sync_calls: AtomicU64,
}

/// A segment that takes no more records.
#[derive(Clone, Debug)]
pub(super) struct Closed {
    pub(super) id: SegmentId,
    pub(super) seal: Seal,
    /// Size of the file.
    pub(super) bytes: u64,
    /// May be empty: a reader then walks from the first record.
    pub(super) marks: Arc<[Mark]>,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) id: SegmentId,
    pub(super) file: Arc<File>,
    pub(super) end: u64,
    /// Offset of the last record; 0 if there is none.
    pub(super) last_at: u64,
    pub(super) marks: Vec<Mark>,
    pub(super) recent: VecDeque<Mark>,
    /// `Seal::end` of the seal in the file; 0 if there is none.
    pub(super) sealed_to: u64,
}

/// A closed segment whose bytes may not be durable yet.
#[derive(Clone, Debug)]
pub(super) struct Unsynced {
    pub(super) id: SegmentId,
    pub(super) file: Arc<File>,
    pub(super) seal: Seal,
}

#[derive(Debug)]
pub(super) struct Index {
    /// Changes whenever records are removed from the end.
    pub(super) generation: u64,
    /// Oldest first.
    pub(super) closed: VecDeque<Closed>,
    pub(super) active: Active,
    pub(super) position: Pos,
    pub(super) last: Option<RecordInfo>,
    /// Counts changes of the log's end: what a sync covers.
    pub(super) sequence: u64,
    pub(super) unsynced: Vec<Unsynced>,
    /// Files were created since the directory was synced.
    pub(super) dir_is_dirty: bool,
}

impl Active {
    pub(super) fn new(id: SegmentId, file: Arc<File>) -> Self {
        Self {
            id,
            file,
            end: segment::RECORDS_AT,
            last_at: 0,
            marks: Vec::new(),
            recent: VecDeque::new(),
            sealed_to: 0,
        }
    }

    /// Notes a record that was written at the end.
    pub(super) fn push(&mut self, mark: Mark, end: u64) {
        if self.marks.last().is_none_or(|last| mark.at - last.at >= MARK_BYTES) {
            self.marks.push(mark);
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        self.last_at = mark.at;
        self.end = end;
    }
}

impl Index {
    /// The position before the oldest record.
    pub(super) fn base(&self) -> Pos {
        self.closed.front().map_or(self.active.id.base, |oldest| oldest.id.base)
    }

    /// What a seal of the active segment would say now.
    pub(super) fn seal(&self) -> Seal {
        Seal {
            end: self.active.end,
            last_at: self.active.last_at,
            position: self.position,
            timestamp_ms: self.newest_timestamp_ms(),
        }
    }

    pub(super) fn newest_timestamp_ms(&self) -> i64 {
        self.last.map_or(self.active.id.base_timestamp_ms, |last| last.timestamp_ms)
    }
}

impl Shared {
    /// Says which operation on which file failed.
    pub(super) fn disk<'a>(
        &'a self,
        step: &'static str,
        id: &'a SegmentId,
    ) -> impl FnOnce(io::Error) -> LogError + 'a {
        move |source| LogError::Disk { step, path: id.path(&self.dir), source }
    }
}

/// As [`Shared::disk`], for a path.
pub(super) fn disk(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Disk { step, path, source }
}

/// Opens a segment for reading and writing.
pub(super) fn open_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Puts a seal into a segment.
pub(super) fn write_seal(file: &File, id: &SegmentId, seal: &Seal) -> io::Result<()> {
    file.write_all_at(&seal.encode(id.seed), segment::SEAL_AT)
}
