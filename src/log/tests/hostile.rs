//! Files that no crash of ours leaves: whoever wrote them got the checksums right.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{ALL, SMALL, die, fill, read_all, segments, tempdir};
use crate::log::record::stored_bytes;
use crate::log::segment::{FRONT_BYTES, RECORDS_AT, SEAL_AT, Seal, SegmentId};
use crate::log::{Log, LogError, LogOptions};
use crate::types::Pos;

const TIB: u64 = 1 << 40;

/// Puts a seal with a right checksum into a segment.
fn forge_seal(path: &Path, seal: Seal) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut front = [0; FRONT_BYTES];
    file.read_exact_at(&mut front, 0).unwrap();
    let id = SegmentId::decode(&front, path).unwrap();
    file.write_all_at(&seal.encode(id.seed), SEAL_AT).unwrap();
}

/// Records of 1000 bytes in a closed segment.
fn records_in(path: &Path) -> usize {
    let bytes = fs::metadata(path).unwrap().len() - RECORDS_AT;
    usize::try_from(bytes / stored_bytes(1000)).unwrap()
}

// A seal that names no last record was believed, whatever it said of the segment's end.
#[test]
fn a_seal_without_a_last_record_is_one_of_an_empty_segment() {
    let dir = tempdir();
    for (end, forged) in [(RECORDS_AT, 7), (RECORDS_AT + 5000, 7), (u64::MAX, 7), (u64::MAX, 3)] {
        let path = dir.path().join(format!("{end}-{forged}"));
        let mut log = Log::create(&path, Pos::ZERO, LogOptions::default()).unwrap();
        let records = fill(&mut log, 9, 1000);
        die(log);
        let position = records[forged].0.pos();
        forge_seal(&segments(&path)[0], Seal { end, last_at: 0, position, timestamp_ms: 1 });
        let log = Log::open(&path, LogOptions::default()).unwrap();
        assert_eq!(log.position(), records[8].0.pos(), "a seal at {end}");
        assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
    }
}

#[test]
fn a_closed_segments_seal_is_believed_only_within_its_file() {
    let dir = tempdir();
    for last_at in [0, 8, RECORDS_AT, u64::MAX - 200] {
        let path = dir.path().join(format!("{last_at}"));
        let mut log = Log::create(&path, Pos::ZERO, SMALL).unwrap();
        let records = fill(&mut log, 30, 1000);
        log.syncer().sync().unwrap();
        die(log);
        let first = &segments(&path)[0];
        let position = records[records_in(first) - 1].0.pos();
        forge_seal(first, Seal { end: u64::MAX, last_at, position, timestamp_ms: 1 });
        let log = Log::open(&path, SMALL).unwrap();
        assert_eq!(log.position(), records[29].0.pos(), "a last record at {last_at}");
        assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
    }
}

// A reader took as much memory as the file was long.
#[test]
fn a_huge_segment_costs_neither_memory_nor_time() {
    let dir = tempdir();
    let path = dir.path().join("closed");
    let mut log = Log::create(&path, Pos::ZERO, SMALL).unwrap();
    let records = fill(&mut log, 30, 1000);
    log.syncer().sync().unwrap();
    die(log);
    let first = &segments(&path)[0];
    let bytes = fs::metadata(first).unwrap().len();
    let last_at = bytes - stored_bytes(1000);
    let position = records[records_in(first) - 1].0.pos();
    OpenOptions::new().write(true).open(first).unwrap().set_len(TIB).unwrap();
    forge_seal(first, Seal { end: TIB, last_at, position, timestamp_ms: 1 });
    let log = Log::open(&path, SMALL).unwrap();
    let read = log.reader().read(Pos::ZERO, ALL);
    assert!(matches!(read, Err(LogError::Damaged { offset, .. }) if offset == bytes));

    let path = dir.path().join("active");
    let mut log = Log::create(&path, Pos::ZERO, LogOptions::default()).unwrap();
    let records = fill(&mut log, 3, 1000);
    die(log);
    let file = OpenOptions::new().write(true).open(&segments(&path)[0]).unwrap();
    file.set_len(TIB).unwrap();
    // Remains of a write far behind are found beyond the hole.
    file.write_all_at(b"x", TIB - 1).unwrap();
    let log = Log::open(&path, LogOptions::default()).unwrap();
    assert!(log.cut().is_some_and(|cut| !cut.was_durable));
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
}

#[test]
fn a_long_record_is_read_whole() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let mut records = Vec::new();
    for bytes in [100, 3 << 20, (1 << 20) - 104, (1 << 20) - 103, 1 << 20, 0, 5000] {
        let salt = records.len() as u64;
        let record = super::record(log.position(), bytes, salt);
        log.append(&record.0, &record.1).unwrap();
        records.push(record);
    }
    for bytes_max in [0, 1, 100, 104, 1 << 20, 2 << 20, ALL] {
        assert_eq!(read_all(&log.reader(), Pos::ZERO, bytes_max).unwrap(), records, "{bytes_max}");
    }
}
