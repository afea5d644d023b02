//! Beginning a log and finding it again after a stop or a crash.
//!
//! Opening reads the header of each segment and the records behind the last seal. What a crash may leave
//! is: a last segment without a header, records that were never synced half-written in any order, files
//! of an older history, files that were to be removed. Everything else is damage, and is said to be.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::RwLock;

use super::journal::{Cut, End, Log, LogOptions};
use super::record;
use super::segment::{self, RECORDS_AT, Scanned, Seal, SegmentId, Tail, Window};
use super::state::{Active, Closed, Index, Shared, Unsynced, disk, open_segment};
use super::{LogError, LogReader, LogSync, RecordInfo};
use crate::disk::{create_dir_durable, replace, sync_dir};
use crate::types::{Pos, Txid};

/// Bytes read at once while scanning.
const SCAN_BYTES: usize = 64 << 10;
/// Of a damaged segment so much is kept; one that holds a huge record is larger.
const EVIDENCE_BYTES_MAX: u64 = 64 << 20;

/// A segment as it was found.
struct Candidate {
    id: SegmentId,
    seal: Option<Seal>,
    file: File,
    bytes: u64,
    path: PathBuf,
}

pub(super) fn create(dir: &Path, base: Pos, options: LogOptions) -> Result<Log, LogError> {
    create_dir_durable(dir).map_err(disk("create log directory", dir))?;
    if !list(dir)?.is_empty() {
        return Err(LogError::Exists { path: dir.to_owned() });
    }
    recreate(dir, base, options)
}

pub(super) fn recreate(dir: &Path, base: Pos, options: LogOptions) -> Result<Log, LogError> {
    create_dir_durable(dir).map_err(disk("create log directory", dir))?;
    let newest = list(dir)?.last().map_or(0, |(history, _)| *history);
    let (id, _) = begin_history(dir, newest.saturating_add(1), base)?;
    remove_histories_before(dir, id.history)?;
    open(dir, options)
}

/// Creates the first segment of a history, durably: from here on older ones do not count.
pub(super) fn begin_history(
    dir: &Path,
    history: u32,
    base: Pos,
) -> Result<(SegmentId, File), LogError> {
    let id = SegmentId::new(history, rand::random(), base, 0);
    let seal = Seal { end: RECORDS_AT, last_at: 0, position: base, timestamp_ms: 0 };
    let mut bytes = id.encode();
    bytes[segment::SECTOR..].copy_from_slice(&seal.encode(id.seed));
    let path = id.path(dir);
    replace(&path, &bytes).map_err(disk("begin log", &path))?;
    let file = open_segment(&path).map_err(disk("open segment", &path))?;
    Ok((id, file))
}

/// Removes what older histories left.
pub(super) fn remove_histories_before(dir: &Path, history: u32) -> Result<(), LogError> {
    let mut removed = false;
    for (older, first) in list(dir)? {
        if older < history {
            let path = segment::path(dir, older, first);
            fs::remove_file(&path).map_err(disk("remove segment", &path))?;
            removed = true;
        }
    }
    if removed {
        sync_dir(dir).map_err(disk("sync log directory", dir))?;
    }
    Ok(())
}

/// The segments in a directory, in order.
fn list(dir: &Path) -> Result<Vec<(u32, Txid)>, LogError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(disk("read log directory", dir))? {
        let entry = entry.map_err(disk("read log directory", dir))?;
        names.extend(segment::parse_name(&entry.file_name()));
    }
    names.sort_unstable();
    Ok(names)
}

pub(super) fn open(dir: &Path, options: LogOptions) -> Result<Log, LogError> {
    let names = match list(dir) {
        Err(LogError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Vec::new()
        }
        names => names?,
    };
    let Some(&(history, _)) = names.last() else {
        return Err(LogError::Missing { path: dir.to_owned() });
    };
    if names[0].0 < history {
        remove_histories_before(dir, history)?;
    }
    let names = names.into_iter().filter(|name| name.0 == history);
    let mut recovery = Recovery::new(names.map(|(_, first)| segment::path(dir, history, first)))?;
    let found = recovery.chain()?;
    let cut = recovery.clean(dir, &found)?;
    Ok(found.into_log(dir, options, cut))
}

/// The way from files to a log.
struct Recovery {
    candidates: Vec<Candidate>,
    /// Files that cannot be part of the log.
    useless: Vec<PathBuf>,
    /// Bytes that had been durable are gone.
    damaged: bool,
}

/// What the files hold.
struct Found {
    closed: Vec<(Closed, Arc<File>)>,
    /// How many of the closed segments, from the oldest on, are known to be durable.
    durable: usize,
    active: Candidate,
    scanned: Scanned,
    tail: Tail,
    last: Option<(u64, RecordInfo)>,
    newest_timestamp_ms: i64,
}

impl Recovery {
    /// Reads the headers. The newest segment may lack one: the crash came before it was on the disk.
    fn new(paths: impl Iterator<Item = PathBuf>) -> Result<Self, LogError> {
        let mut this = Self { candidates: Vec::new(), useless: Vec::new(), damaged: false };
        let mut paths = paths.peekable();
        while let Some(path) = paths.next() {
            match candidate(&path) {
                Ok(candidate) => this.candidates.push(candidate),
                Err(error @ LogError::Damaged { .. }) if paths.peek().is_none() => {
                    if this.candidates.is_empty() {
                        return Err(error);
                    }
                    this.damaged |= !begins_with_zeros(&path);
                    this.useless.push(path);
                }
                // What is before an unreadable segment cannot be reached from what is behind it.
                Err(LogError::Damaged { .. }) => {
                    this.damaged = true;
                    this.useless.extend(this.candidates.drain(..).map(|c| c.path));
                    this.useless.push(path);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(this)
    }

    /// Follows the records from segment to segment to the last one that follows.
    fn chain(&mut self) -> Result<Found, LogError> {
        let mut closed: Vec<(Closed, Arc<File>)> = Vec::new();
        let mut durable = 0;
        let mut candidates = std::mem::take(&mut self.candidates).into_iter().peekable();
        loop {
            let active = candidates.next().expect("BUG: a log without segments");
            let next = candidates.peek().map(|next| next.id.base);
            if let Some(seal) = active.seal.filter(|seal| Some(seal.position) == next)
                && active.has_room_for(&seal)
            {
                if durable == closed.len() {
                    durable += 1;
                }
                closed.push(active.close(seal, &[]));
                continue;
            }
            let (scanned, tail) = self.scan(&active)?;
            let last = match (scanned.last, &active.seal, closed.last()) {
                (Some(last), ..) => Some(last),
                (None, Some(seal), _) if seal.last_at != 0 && scanned.end == seal.end => {
                    active.record_at(seal.last_at)?
                }
                (None, _, Some((before, file))) => {
                    // The newest record is in the segment before; its offset there is not one here.
                    let info = record_at(file, &before.id, before.seal.last_at, before.seal.end);
                    let info = info.map_err(disk("read segment", &active.path))?;
                    info.map(|(_, info)| (0, info))
                }
                (None, _, None) => None,
            };
            let newest_timestamp_ms =
                last.map_or(active.id.base_timestamp_ms, |(_, info)| info.timestamp_ms);
            if Some(scanned.position) == next && tail == Tail::Clean {
                let last_at = last.map_or(0, |(at, _)| at);
                let Scanned { end, position, .. } = scanned;
                let seal = Seal { end, last_at, position, timestamp_ms: newest_timestamp_ms };
                closed.push(active.close(seal, &scanned.marks));
                continue;
            }
            // The log ends here. Later segments were never durable, unless one of them says so.
            for later in candidates {
                let mut window = Window::new(&later.file, later.bytes, SCAN_BYTES);
                let tail = segment::tail(&mut window, later.id.seed, RECORDS_AT, scanned.position);
                self.damaged |= tail.map_err(disk("read segment", &later.path))? == Tail::Damaged;
                self.damaged |= later.seal.is_some();
                self.useless.push(later.path);
            }
            return Ok(Found { closed, durable, active, scanned, tail, last, newest_timestamp_ms });
        }
    }

    /// Scans a segment from its seal on, or from the beginning if the seal does not hold.
    fn scan(&mut self, segment: &Candidate) -> Result<(Scanned, Tail), LogError> {
        let disk = || disk("scan segment", &segment.path);
        let mut window = Window::new(&segment.file, segment.bytes, SCAN_BYTES);
        let mut from = (RECORDS_AT, segment.id.base);
        if let Some(seal) = segment.seal {
            let holds = segment.has_room_for(&seal)
                && (seal.last_at == 0
                    || segment.record_at(seal.last_at)?.is_some_and(|(at, info)| {
                        info.pos() == seal.position
                            && at + record::stored_bytes(info.ltx_bytes) == seal.end
                    }));
            if holds {
                from = (seal.end, seal.position);
            }
        }
        let seed = segment.id.seed;
        let scanned = segment::scan(&mut window, seed, from.0, from.1).map_err(disk())?;
        self.damaged |= segment.seal.is_some_and(|seal| seal.end > scanned.end);
        let tail =
            segment::tail(&mut window, seed, scanned.end, scanned.position).map_err(disk())?;
        self.damaged |= tail == Tail::Damaged;
        Ok((scanned, tail))
    }

    /// Removes what is not part of the log, so that it cannot come back behind new records.
    fn clean(&self, dir: &Path, found: &Found) -> Result<Option<Cut>, LogError> {
        let Found { active, scanned, tail, .. } = found;
        let shrinks = *tail != Tail::Clean;
        let seal_is_wrong = active.seal.is_some_and(|seal| seal.end > scanned.end);
        if !shrinks && !seal_is_wrong && self.useless.is_empty() {
            return Ok(None);
        }
        if self.damaged && shrinks {
            keep_evidence(active);
        }
        let mut bytes = if shrinks { active.bytes - scanned.end } else { 0 };
        for path in &self.useless {
            bytes += fs::metadata(path).map_or(0, |meta| meta.len());
            #[allow(clippy::disallowed_methods, reason = "the directory is synced below")]
            let kept = self.damaged && fs::rename(path, evidence(path)).is_ok();
            if !kept {
                fs::remove_file(path).map_err(disk("remove segment", path))?;
            }
        }
        sync_dir(dir).map_err(disk("sync log directory", dir))?;
        let disk = || disk("cut segment", &active.path);
        if seal_is_wrong {
            let seal = Seal {
                end: scanned.end,
                last_at: scanned.last.map_or(0, |(at, _)| at),
                position: scanned.position,
                timestamp_ms: found.newest_timestamp_ms,
            };
            super::state::write_seal(&active.file, &active.id, &seal).map_err(disk())?;
        }
        active.file.set_len(scanned.end).map_err(disk())?;
        active.file.sync_all().map_err(disk())?;
        Ok(Some(Cut {
            position: scanned.position,
            path: active.path.clone(),
            offset: scanned.end,
            bytes,
            was_durable: self.damaged,
        }))
    }
}

impl Candidate {
    fn close(self, seal: Seal, marks: &[segment::Mark]) -> (Closed, Arc<File>) {
        let Self { id, bytes, file, .. } = self;
        (Closed { id, seal, bytes, marks: marks.into() }, Arc::new(file))
    }

    /// Whether a seal can be of this file: it promises no more than is there, and that there is no record exactly if
    /// it ends where the first one would begin.
    fn has_room_for(&self, seal: &Seal) -> bool {
        if seal.last_at == 0 {
            return seal.end == RECORDS_AT && seal.position == self.id.base;
        }
        seal.last_at >= RECORDS_AT && seal.last_at < seal.end && seal.end <= self.bytes
    }

    fn record_at(&self, at: u64) -> Result<Option<(u64, RecordInfo)>, LogError> {
        record_at(&self.file, &self.id, at, self.bytes).map_err(disk("read segment", &self.path))
    }
}

impl Found {
    fn into_log(self, dir: &Path, options: LogOptions, cut: Option<Cut>) -> Log {
        let Self { closed, durable, active: candidate, scanned, last, .. } = self;
        let id = candidate.id;
        let all_closed_durable = durable == closed.len();
        let durable_pos = match candidate.seal {
            Some(seal) if all_closed_durable && seal.end <= scanned.end => seal.position,
            _ if durable > 0 => closed[durable - 1].0.seal.position,
            _ => closed.first().map_or(id.base, |(first, _)| first.id.base),
        };
        let settled = durable_pos == scanned.position;
        let mut unsynced = Vec::new();
        for (closed, file) in &closed[durable..] {
            let file = Arc::clone(file);
            unsynced.push(Unsynced { id: closed.id, file, seal: closed.seal });
        }
        let mut active = Active::new(id, Arc::new(candidate.file));
        active.end = scanned.end;
        active.last_at = last.map_or(0, |(at, _)| at);
        active.marks = scanned.marks;
        active.sealed_to = candidate.seal.map_or(0, |seal| seal.end).min(scanned.end);
        let file_bytes = if cut.is_some() { scanned.end } else { candidate.bytes };
        let end = End {
            at: scanned.end,
            file_bytes,
            ..End::new(id, Arc::clone(&active.file), scanned.position)
        };
        let index = Index {
            generation: 0,
            closed: closed.into_iter().map(|(closed, _)| closed).collect(),
            active,
            position: scanned.position,
            last: last.map(|(_, info)| info),
            sequence: 1,
            unsynced,
            dir_is_dirty: !settled,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            index: RwLock::new(index),
            failed: AtomicBool::new(false),
            durable_txid: AtomicU64::new(0),
            sync_calls: AtomicU64::new(0),
        });
        let sync = LogSync::new(Arc::clone(&shared), durable_pos, u64::from(settled));
        let reader = LogReader::new(Arc::clone(&shared));
        Log { shared, sync: Arc::new(sync), reader, options, cut, end }
    }
}

fn candidate(path: &Path) -> Result<Candidate, LogError> {
    let disk = || disk("open segment", path);
    let file = open_segment(path).map_err(disk())?;
    let bytes = file.metadata().map_err(disk())?.len();
    let mut begin = [0; segment::FRONT_BYTES];
    let filled = segment::read_up_to(&file, &mut begin, 0).map_err(disk())?;
    let id = SegmentId::decode(&begin[..filled], path)?;
    let seal = Seal::decode(id.seed, &begin[..filled]);
    Ok(Candidate { id, seal, file, bytes: bytes.max(RECORDS_AT), path: path.to_owned() })
}

fn record_at(
    file: &File,
    id: &SegmentId,
    at: u64,
    limit: u64,
) -> io::Result<Option<(u64, RecordInfo)>> {
    let header = Window::new(file, limit, 0).header(id.seed, at)?;
    Ok(header.map(|header| (at, header.info)))
}

/// Whether a segment's header never reached the disk.
fn begins_with_zeros(path: &Path) -> bool {
    let mut begin = [0; segment::SECTOR];
    let filled = File::open(path).and_then(|file| segment::read_up_to(&file, &mut begin, 0));
    filled.is_ok_and(|filled| filled < begin.len() || begin.iter().all(|byte| *byte == 0))
}

/// Where a damaged segment is kept for a person to look at. The log does not need it.
fn evidence(path: &Path) -> PathBuf {
    path.with_extension("damaged")
}

/// Copies a segment that is about to be cut, but not more of it than a segment has: its length may be part of the
/// damage.
fn keep_evidence(segment: &Candidate) {
    let copy = || {
        let source = File::open(&segment.path)?;
        let mut target = File::create(evidence(&segment.path))?;
        io::copy(&mut source.take(EVIDENCE_BYTES_MAX), &mut target)
    };
    drop(copy());
}
