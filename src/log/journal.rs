//! The log of one database, as its only writer sees it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::record::{self, Header};
use super::segment::{Mark, RECORDS_AT, SegmentId};
use super::state::{Active, Closed, Shared, Unsynced, write_seal};
use super::{LogError, LogReader, LogSync, RecordInfo};
use crate::disk::{fault, write_vectored_at};
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

/// Zeros written ahead of the records, by those who wait for the disk; see the table in `log`.
const AHEAD_BYTES_MIN: u64 = 32 << 10;
const AHEAD_BYTES_MAX: u64 = 4 * ZEROS.len() as u64;
/// Closed segments that wait for a sync keep a descriptor each; beyond this the writer syncs them itself.
const UNSYNCED_MAX: usize = 16;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The log of one database. One writer; readers and the syncer work beside it.
#[derive(Debug)]
pub struct Log {
    pub(super) shared: Arc<Shared>,
    pub(super) sync: Arc<LogSync>,
    pub(super) reader: LogReader,
    pub(super) options: LogOptions,
    pub(super) cut: Option<Cut>,
    pub(super) end: End,
}

/// The writer's own copy of the end of the log: appending takes the lock only once, for publishing.
#[derive(Debug)]
pub(super) struct End {
    pub(super) segment: SegmentId,
    pub(super) file: Arc<File>,
    /// Where the next record goes.
    pub(super) at: u64,
    /// Length of the file: up to here there are zeros written ahead.
    pub(super) file_bytes: u64,
    pub(super) position: Pos,
    /// `Shared::sync_calls` when zeros were last written.
    pub(super) sync_calls: u64,
}

impl Log {
    /// Begins a log in a directory without one. `base` is the position before the first record.
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`LogError::Exists`], or the disk refused.
    pub fn create(dir: &Path, base: Pos, options: LogOptions) -> Result<Self, LogError> {
        super::open::create(dir, base, options)
    }

    /// Begins a new history in a directory whose log is damaged beyond opening, or where there is none.
    ///
    /// # Errors
    /// The disk refused.
    pub fn recreate(dir: &Path, base: Pos, options: LogOptions) -> Result<Self, LogError> {
        super::open::recreate(dir, base, options)
    }

    /// Opens an existing log. A torn tail is cut off, see [`Log::cut`].
    ///
    /// # Errors
    /// [`LogError::Missing`], [`LogError::Damaged`], [`LogError::Version`], or the disk refused.
    pub fn open(dir: &Path, options: LogOptions) -> Result<Self, LogError> {
        super::open::open(dir, options)
    }

    /// What opening cut off; `None` if all was whole.
    #[must_use]
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// The position before the first record.
    #[must_use]
    pub fn base(&self) -> Pos {
        self.shared.index.read().base()
    }

    /// The position after the last record.
    #[must_use]
    pub fn position(&self) -> Pos {
        self.end.position
    }

    /// The oldest record; `None` if there is none or it cannot be read.
    #[must_use]
    pub fn first(&self) -> Option<RecordInfo> {
        self.reader.first().ok().flatten()
    }

    /// The newest record.
    #[must_use]
    pub fn last(&self) -> Option<RecordInfo> {
        self.shared.index.read().last
    }

    /// Size on disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let index = self.shared.index.read();
        index.closed.iter().map(|closed| closed.bytes).sum::<u64>() + self.end.file_bytes
    }

    /// Appends a record, not yet durably.
    ///
    /// # Errors
    /// [`LogError::OutOfOrder`], [`LogError::Length`], [`LogError::Failed`], or the disk refused; the
    /// record is not in the log then.
    pub fn append(&mut self, info: &RecordInfo, ltx: &[u8]) -> Result<(), LogError> {
        self.check_next(info)?;
        if ltx.len() != info.ltx_bytes as usize {
            return Err(LogError::Length { bytes: ltx.len(), said: info.ltx_bytes });
        }
        let stored = record::stored_bytes(info.ltx_bytes);
        if self.end.at + stored > self.options.segment_bytes {
            self.roll()?;
        }
        self.write(info, ltx, stored)?;
        self.appended(info, stored);
        Ok(())
    }

    /// Whether a record may come next.
    pub(super) fn check_next(&self, info: &RecordInfo) -> Result<(), LogError> {
        self.check_usable()?;
        if info.follows(self.end.position) {
            return Ok(());
        }
        Err(LogError::OutOfOrder {
            position: self.end.position,
            min: info.min,
            max: info.max,
            epoch: info.epoch,
            pre: info.pre,
        })
    }

    /// A record that is in the file counts from now on.
    pub(super) fn appended(&mut self, info: &RecordInfo, stored: u64) {
        let at = self.end.at;
        self.end.at += stored;
        self.end.position = info.pos();
        let mut index = self.shared.index.write();
        index.active.push(Mark { max: info.max, at }, self.end.at);
        index.position = self.end.position;
        index.last = Some(*info);
        index.sequence += 1;
    }

    /// Puts a record into the file, zeros behind it where that helps; on an error the file is as before.
    fn write(&mut self, info: &RecordInfo, ltx: &[u8], stored: u64) -> Result<(), LogError> {
        let seed = self.end.segment.seed;
        let padding = record::padding(info.ltx_bytes);
        let header = Header {
            info: *info,
            durable_txid: self.shared.durable_txid.load(Ordering::Relaxed),
            payload_crc: record::payload_crc(seed, ltx, padding),
        };
        let header = header.encode(seed);
        let mut ahead = self.bytes_ahead(self.end.at + stored);
        let mut buffers = [IoSlice::new(&[]); 7];
        buffers[0] = IoSlice::new(&header);
        buffers[1] = IoSlice::new(ltx);
        buffers[2] = IoSlice::new(padding);
        for buffer in &mut buffers[3..] {
            let piece = ahead.min(ZEROS.len() as u64);
            *buffer = IoSlice::new(&ZEROS[..usize::try_from(piece).unwrap_or(0)]);
            ahead -= piece;
        }
        match write_at_least(&self.end.file, &mut buffers, stored, self.end.at) {
            Ok(written) => {
                self.end.file_bytes = self.end.file_bytes.max(self.end.at + written);
                Ok(())
            }
            Err(source) => {
                // Give back what was written of it. If even that fails the next record overwrites it.
                if self.end.file.set_len(self.end.at).is_ok() {
                    self.end.file_bytes = self.end.at;
                }
                Err(self.shared.disk("append to segment", &self.end.segment)(source))
            }
        }
    }

    /// How many zeros to write behind a record that ends at `end`.
    ///
    /// None for those who do not wait for the disk: they would pay for writing twice and gain nothing.
    fn bytes_ahead(&mut self, end: u64) -> u64 {
        if end <= self.end.file_bytes {
            return 0;
        }
        let sync_calls = self.shared.sync_calls.load(Ordering::Relaxed);
        if sync_calls == self.end.sync_calls {
            return 0;
        }
        self.end.sync_calls = sync_calls;
        let ahead = end.clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_MAX);
        let to = (end + ahead).min(self.options.segment_bytes) & !4095;
        to.saturating_sub(end)
    }

    /// Removes the records behind `to`, durably.
    ///
    /// # Errors
    /// [`LogError::NoSuchPosition`]; [`LogError::Failed`] after an earlier failure. If the disk refuses
    /// half-way the log has failed: the removal may not survive a crash.
    pub fn retract(&mut self, to: Pos) -> Result<(), LogError> {
        self.check_usable()?;
        if to == self.end.position {
            return Ok(());
        }
        super::retract::retract(self, to)
    }

    /// Throws all records away and begins a new history, durably: after a crash it is all of the old
    /// one or the new one. A log that had failed is usable again.
    ///
    /// # Errors
    /// The disk refused.
    pub fn reset(&mut self, base: Pos) -> Result<(), LogError> {
        let dir = self.shared.dir.clone();
        let history = self.end.segment.history;
        let (id, file) = super::open::begin_history(&dir, history.saturating_add(1), base)?;
        let file = Arc::new(file);
        let sequence = {
            let mut index = self.shared.index.write();
            index.generation += 1;
            index.sequence += 1;
            index.closed.clear();
            index.unsynced.clear();
            index.active = Active::new(id, Arc::clone(&file));
            index.active.sealed_to = RECORDS_AT;
            index.position = base;
            index.last = None;
            index.dir_is_dirty = false;
            index.sequence
        };
        self.end = End::new(id, file, base);
        self.sync.restarted(base, sequence);
        super::open::remove_histories_before(&dir, id.history)
    }

    /// Removes whole segments whose records are all at or before `keep_after`; returns the bytes freed.
    /// The segment being written stays.
    ///
    /// # Errors
    /// The disk refused; what was removed is no longer in the log.
    pub fn trim(&mut self, keep_after: Txid) -> Result<u64, LogError> {
        let mut freed = 0;
        loop {
            let durable = self.sync.durable();
            let oldest = {
                let mut index = self.shared.index.write();
                let may_go = |closed: &Closed| closed.seal.position.txid <= Some(keep_after);
                let Some(oldest) = index.closed.front().filter(|closed| may_go(closed)) else {
                    return Ok(freed);
                };
                // A segment that a crash brings back must be whole, or all behind it would be cut off.
                if oldest.seal.position.txid > durable.txid {
                    drop(index);
                    self.sync.sync()?;
                    continue;
                }
                index.closed.pop_front().expect("BUG: the front is gone")
            };
            // Not made durable: a segment that comes back after a crash is whole and in its place.
            fs::remove_file(oldest.id.path(&self.shared.dir))
                .map_err(self.shared.disk("remove segment", &oldest.id))?;
            freed += oldest.bytes;
        }
    }

    /// Closes the segment being written, so that a later [`Log::trim`] can remove it. One without
    /// records stays.
    ///
    /// # Errors
    /// The disk refused.
    pub fn roll(&mut self) -> Result<(), LogError> {
        self.check_usable()?;
        if self.end.at == RECORDS_AT {
            return Ok(());
        }
        let (timestamp_ms, unsynced) = {
            let index = self.shared.index.read();
            (index.newest_timestamp_ms(), index.unsynced.len())
        };
        if unsynced >= UNSYNCED_MAX {
            self.sync.sync()?;
        }
        let history = self.end.segment.history;
        let id = SegmentId::new(history, rand::random(), self.end.position, timestamp_ms);
        let path = id.path(&self.shared.dir);
        let file = fault::step("log", "create").and_then(|()| {
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)
        });
        let file = file.map_err(self.shared.disk("create segment", &id))?;
        if let Err(source) = file.write_all_at(&id.encode(), 0) {
            drop(fs::remove_file(&path));
            return Err(self.shared.disk("write segment header", &id)(source));
        }
        // Only zeros go: that they stay would cost space, nothing else.
        if self.end.file.set_len(self.end.at).is_ok() {
            self.end.file_bytes = self.end.at;
        }
        let file = Arc::new(file);
        let mut index = self.shared.index.write();
        let seal = index.seal();
        let active = std::mem::replace(&mut index.active, Active::new(id, Arc::clone(&file)));
        index.closed.push_back(Closed {
            id: active.id,
            seal,
            bytes: self.end.file_bytes,
            marks: active.marks.into(),
        });
        index.unsynced.push(Unsynced { id: active.id, file: active.file, seal });
        index.dir_is_dirty = true;
        index.sequence += 1;
        drop(index);
        self.end = End::new(id, file, self.end.position);
        Ok(())
    }

    /// The segments that have records, oldest first.
    pub fn oldest_segments(&self) -> impl Iterator<Item = SegmentSummary> {
        let index = self.shared.index.read();
        let closed = index.closed.iter().map(|closed| (closed.id, closed.seal, closed.bytes));
        let active = (index.active.id, index.seal(), self.end.file_bytes);
        let segments: Vec<_> = closed.chain([active]).collect();
        segments.into_iter().filter_map(|(id, seal, bytes)| {
            let last = seal.position.txid.filter(|_| seal.end > RECORDS_AT)?;
            let first = id.base.next_txid();
            Some(SegmentSummary { first, last, bytes, newest_timestamp_ms: seal.timestamp_ms })
        })
    }

    /// The handle that makes records durable.
    #[must_use]
    pub fn syncer(&self) -> Arc<LogSync> {
        Arc::clone(&self.sync)
    }

    /// A handle that reads while the writer appends.
    #[must_use]
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    pub(super) fn check_usable(&self) -> Result<(), LogError> {
        if self.sync.has_failed() {
            return Err(LogError::Failed { path: self.shared.dir.clone() });
        }
        Ok(())
    }
}

impl End {
    /// The end of a segment without records.
    pub(super) fn new(segment: SegmentId, file: Arc<File>, position: Pos) -> Self {
        Self { segment, file, at: RECORDS_AT, file_bytes: RECORDS_AT, position, sync_calls: 0 }
    }
}

impl Drop for Log {
    /// Leaves the file so that the next opening has nothing to scan. All of it may fail without harm.
    fn drop(&mut self) {
        if !self.sync.is_settled() {
            return;
        }
        if self.end.file_bytes > self.end.at {
            drop(self.end.file.set_len(self.end.at));
        }
        let index = self.shared.index.read();
        if index.active.sealed_to != self.end.at {
            drop(write_seal(&self.end.file, &self.end.segment, &index.seal()));
        }
    }
}

/// Writes the buffers, at least the first `needed` bytes of them; returns the bytes written.
fn write_at_least(
    file: &File,
    mut buffers: &mut [IoSlice<'_>],
    needed: u64,
    offset: u64,
) -> io::Result<u64> {
    let mut written = 0;
    fault::step("log", "write")?;
    if let (Err(error), Some(first)) = (fault::step("log", "half"), buffers.first()) {
        file.write_all_at(first, offset)?;
        return Err(error);
    }
    while written < needed {
        match write_vectored_at(file, buffers, offset + written)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => {
                written += n as u64;
                IoSlice::advance_slices(&mut buffers, n);
            }
        }
    }
    Ok(written)
}
