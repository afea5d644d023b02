//! What must hold for any files at all; fuzz targets and the property tests below call it.
//!
//! The input is a script: what is written, then what happens to the files. Checksums are put right again in
//! some of the damage, so that what lies behind them is reached.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::record::{self, HEADER_BYTES};
use super::segment::{FRONT_BYTES, SECTOR, SegmentId};
use super::{Log, LogOptions, PageSums, Read, RecordInfo};
use crate::types::{Checksum, Epoch, PageNo, PageSize, Pos};

const OPTIONS: LogOptions = LogOptions { segment_bytes: 2 << 10 };
/// Longer than any file may be taken into memory.
const HUGE: u64 = 1 << 40;

/// The input, byte by byte; zeros behind its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn number(&mut self, below: usize) -> usize {
        usize::from(u16::from_be_bytes([self.next(), self.next()])) % below.max(1)
    }

    /// A number with few or with all bits set: those are where arithmetic ends.
    fn extreme(&mut self) -> u64 {
        let value = u64::from(self.next());
        match self.next() % 4 {
            0 => value,
            1 => u64::MAX - value,
            2 => value << 56,
            _ => 1024 + value * 8,
        }
    }
}

/// A directory in memory that goes with its owner.
struct Room(PathBuf);

impl Room {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let shm = Path::new("/dev/shm");
        let parent = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let path = parent.join(format!("weir-fuzz-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory for the files");
        Self(path)
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("the directory is there");
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Opens a log whose files were damaged.
///
/// # Panics
/// If a record is handed out that was never written (unless its checksums were put right), or the log does not hold
/// what it takes afterwards: a bug.
pub fn fuzz_log(data: &[u8]) {
    let mut script = Script(data);
    let room = Room::new();
    let written = write(&mut script, &room);
    let mut is_forged = false;
    for _ in 0..=script.next() % 4 {
        is_forged |= damage(&mut script, &room.files());
    }
    let Ok(log) = Log::open(&room.0, OPTIONS) else { return };
    let step = [0, 100, 5000, usize::MAX][usize::from(script.next() % 4)];
    let Some(read) = read_all(&log, step, is_forged) else { return };
    assert_eq!(read.last().map_or(log.base(), |(info, _)| info.pos()), log.position());
    if !is_forged {
        let from = written.iter().position(|record| Some(record) == read.first()).unwrap_or(0);
        assert!(
            written.get(from..from + read.len()).is_some_and(|whole| whole == read),
            "BUG: other records than were written"
        );
    }
    goes_on(log, &room, &read);
}

/// A log must go on from whatever it was opened as.
fn goes_on(mut log: Log, room: &Room, read: &[(RecordInfo, Bytes)]) {
    let record = record(log.position(), 50, 7);
    if log.append(&record.0, &record.1).is_err() {
        return;
    }
    log.syncer().sync().expect("BUG: no sync");
    let end = log.position();
    drop(log);
    let log = Log::open(&room.0, OPTIONS).expect("BUG: it was open a moment ago");
    assert_eq!((log.position(), log.cut()), (end, None), "BUG: not what was left");
    let again = read_all(&log, usize::MAX, false).expect("BUG: damaged only now");
    assert_eq!(again.split_last(), Some((&record, read)), "BUG: not what was left");
}

fn write(script: &mut Script<'_>, room: &Room) -> Vec<(RecordInfo, Bytes)> {
    let mut log = Log::create(&room.0, Pos::ZERO, OPTIONS).expect("BUG: no log");
    let mut written = Vec::new();
    for _ in 0..script.next() % 16 {
        let (kind, length) = (script.next(), script.next());
        let record = record(log.position(), usize::from(length) * 4, kind);
        log.append(&record.0, &record.1).expect("BUG: a record that follows is refused");
        written.push(record);
        match kind % 8 {
            0 => drop(log.syncer().sync().expect("BUG: no sync")),
            1 => log.roll().expect("BUG: no new segment"),
            2 => {
                let oldest = log.oldest_segments().next().map(|segment| segment.last);
                oldest.map(|last| log.trim(last).expect("BUG: not trimmed"));
            }
            3 => {
                let keep = usize::from(kind >> 3) % written.len();
                let to = written[keep].0.pos();
                if log.retract(to).is_ok() {
                    written.truncate(keep + 1);
                }
            }
            _ => {}
        }
    }
    let base = log.base();
    written.retain(|(info, _)| info.max.get() > base.txid_raw());
    written
}

fn record(after: Pos, ltx_bytes: usize, salt: u8) -> (RecordInfo, Bytes) {
    let min = after.next_txid();
    let info = RecordInfo {
        min,
        max: min,
        epoch: Epoch::new(after.epoch.get().max(1)),
        pre: after.checksum,
        post: Checksum::new(after.checksum.get() ^ u64::from(salt) << 8 ^ min.get()),
        page_size: PageSize::MIN,
        commit: 1,
        pages: 1,
        timestamp_ms: 1,
        wal: None,
        ltx_bytes: u32::try_from(ltx_bytes).unwrap_or(0),
    };
    (info, vec![salt; ltx_bytes].into())
}

/// All records, each checked to follow the one before; `None` if some are damaged.
fn read_all(log: &Log, step: usize, is_forged: bool) -> Option<Vec<(RecordInfo, Bytes)>> {
    let mut all = Vec::new();
    let mut after = log.base();
    loop {
        let Read::Records(records) = log.reader().read(after, step).ok()? else {
            assert!(is_forged, "BUG: {after} is between two records of this log");
            return None;
        };
        if records.is_empty() {
            return Some(all);
        }
        for record in records {
            // Before the last seal only the way there is checked when a log is opened.
            if !record.0.follows(after) {
                return None;
            }
            after = record.0.pos();
            all.push(record);
        }
    }
}

/// Damages a file; whether its checksums were put right again.
fn damage(script: &mut Script<'_>, files: &[PathBuf]) -> bool {
    let Some(path) = files.get(script.number(files.len())) else { return false };
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    let bytes = file.metadata().map_or(0, |meta| meta.len());
    // A file that was made huge is damaged at its beginning, where something is.
    let inside = usize::try_from(bytes.min(8 << 10)).unwrap_or(0);
    let kind = script.next() % 8;
    match kind {
        0 => drop(fs::remove_file(path)),
        1 => drop(file.set_len(script.number(inside + 1) as u64)),
        2 => drop(file.set_len(HUGE)),
        3 => drop(file.write_all_at(&[0; 600], script.number(inside) as u64)),
        4 => {
            let at = script.number(inside) as u64;
            drop(file.write_all_at(&[script.next(), script.next()], at));
        }
        5..=7 => forge(script, path, &file, kind),
        _ => unreachable!("BUG: a number below 8"),
    }
    kind >= 5
}

/// Changes a field and puts the checksum over it right.
fn forge(script: &mut Script<'_>, path: &Path, file: &fs::File, kind: u8) {
    let mut bytes = vec![0; 16 << 10];
    let filled = super::segment::read_up_to(file, &mut bytes, 0).unwrap_or(0);
    bytes.truncate(filled);
    let Some(front) = bytes.first_chunk::<FRONT_BYTES>() else { return };
    let Ok(id) = SegmentId::decode(front, path) else { return };
    let value = script.extreme().to_be_bytes();
    let field = script.number(12) * 8;
    let (at, len, seed) = match kind {
        5 => (0, SECTOR, 0),
        6 => (SECTOR, SECTOR, id.seed),
        _ => {
            let starts = (FRONT_BYTES..bytes.len().saturating_sub(HEADER_BYTES))
                .step_by(record::ALIGN)
                .filter(|at| bytes[*at..].starts_with(&record::MAGIC));
            let starts: Vec<usize> = starts.collect();
            let Some(at) = starts.get(script.number(starts.len())) else { return };
            (*at, HEADER_BYTES, id.seed)
        }
    };
    // The first eight bytes of all of them say what it is.
    let field = at + 8 + field.min(len - 8 - 4 - 8);
    bytes[field..field + 8].copy_from_slice(&value);
    let crc = record::payload_crc(seed, &bytes[at..at + len - 4], &[]);
    bytes[at + len - 4..at + len].copy_from_slice(&crc.to_be_bytes());
    drop(file.write_all_at(&bytes[at..at + len], at as u64));
}

/// Opens page sums whose file was damaged.
///
/// # Panics
/// If they do not hold what they take afterwards, or show sums that nobody set: a bug.
pub fn fuzz_page_sums(data: &[u8]) {
    let mut script = Script(data);
    let room = Room::new();
    let path = room.0.join("sums");
    let mut sums = PageSums::create(&path, PageSize::MIN).expect("BUG: no page sums");
    change(&mut script, &mut sums);
    drop(sums);
    let mut is_forged = false;
    for _ in 0..=script.next() % 3 {
        is_forged |= damage_sums(&mut script, &path);
    }
    let Ok(mut sums) = PageSums::open(&path) else { return };
    let pages = sums.pages();
    for number in [1, 2, 511, 512, 1022, 1023, pages, pages.saturating_add(1), u32::MAX] {
        let Some(page) = PageNo::new(number) else { continue };
        let sum = sums.get(page).expect("BUG: a damaged block is no error");
        assert!(sum.is_none() || number <= pages, "BUG: page {number} of {pages}");
        assert!(is_forged || sum.is_none_or(|sum| sum.get() << 1 >> 9 == 0), "BUG: {sum:?}");
    }
    change(&mut script, &mut sums);
    let as_of = Pos { epoch: Epoch::new(9), ..sums.as_of() };
    sums.flush(as_of).expect("BUG: not flushed");
    let mut again = PageSums::open(&path).expect("BUG: it was open a moment ago");
    assert_eq!((again.pages(), again.page_size()), (sums.pages(), sums.page_size()));
    assert_eq!(again.as_of(), as_of);
    for number in [1, 2, 3, 510, 511, 512, 513, sums.pages()] {
        let Some(page) = PageNo::new(number) else { continue };
        let (one, other) = (sums.get(page).ok(), again.get(page).ok());
        assert_eq!(one, other, "BUG: page {number} of {}", sums.pages());
    }
}

fn change(script: &mut Script<'_>, sums: &mut PageSums) {
    for _ in 0..script.next() % 16 {
        let kind = script.next();
        let number =
            u32::try_from(script.number(if kind & 8 == 0 { 4 } else { 1500 })).unwrap_or(0);
        match (kind % 8, PageNo::new(number)) {
            (0, _) => sums.truncate(number),
            (1, _) => sums.reset(if kind & 8 == 0 { PageSize::MIN } else { PageSize::MAX }),
            (2, _) => sums.flush(sums.as_of()).expect("BUG: not flushed"),
            (_, Some(page)) => sums.set(page, Checksum::new(u64::from(kind))),
            (_, None) => {}
        }
    }
}

fn damage_sums(script: &mut Script<'_>, path: &Path) -> bool {
    const BLOCK: u64 = 4096;
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
    let bytes = file.metadata().map_or(0, |meta| meta.len());
    let inside = usize::try_from(bytes.min(20 << 10)).unwrap_or(0);
    match script.next() % 5 {
        0 => drop(file.set_len(script.number(inside + 1) as u64)),
        1 => drop(file.set_len(HUGE)),
        2 => drop(file.write_all_at(&[0; 600], script.number(inside) as u64)),
        3 => drop(file.write_all_at(&[script.next()], script.number(inside) as u64)),
        _ => {
            let slot = u64::from(script.next() % 2) * BLOCK;
            let mut header = [0; SECTOR];
            if file.read_exact_at(&mut header, slot).is_ok() {
                let field = 8 + script.number(6) * 8;
                header[field..field + 8].copy_from_slice(&script.extreme().to_be_bytes());
                let crc = crc32fast::hash(&header[..SECTOR - 4]).to_be_bytes();
                header[SECTOR - 4..].copy_from_slice(&crc);
                drop(file.write_all_at(&header, slot));
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn logs(script in prop::collection::vec(any::<u8>(), 0..120)) {
            fuzz_log(&script);
        }

        #[test]
        fn page_sums(script in prop::collection::vec(any::<u8>(), 0..120)) {
            fuzz_page_sums(&script);
        }
    }
}
