//! Records that are written and read piece by piece.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

use super::*;
use crate::log::{Appender, Payload};

/// Beyond what is gathered before it goes to the file, and no multiple of it.
const LARGE: usize = (5 << 20) + 3;

fn begin<'a>(log: &mut Log, buffer: &'a mut Vec<u8>, ltx: &[u8]) -> Appender<'a> {
    let mut appender = log.appender(buffer, ltx.len() as u64).unwrap();
    for piece in ltx.chunks(100_003) {
        appender.write_all(piece).unwrap();
    }
    appender
}

fn append(log: &mut Log, record: &Record) {
    let mut buffer = Vec::new();
    begin(log, &mut buffer, &record.1).finish(log, &record.0).unwrap();
}

#[test]
fn a_record_in_pieces_is_like_any_other() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let mut records = Vec::new();
    for (n, bytes) in [100, LARGE, 100, LARGE - 8, 1].into_iter().enumerate() {
        let record = record(log.position(), bytes, n as u64);
        append(&mut log, &record);
        records.push(record);
    }
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
    log.syncer().sync().unwrap();
    die(log);
    let log = Log::open(dir.path(), LogOptions::default()).unwrap();
    assert_eq!(log.cut(), None);
    assert_eq!(read_all(&log.reader(), Pos::ZERO, 1000).unwrap(), records);
}

#[test]
fn a_record_that_is_given_up_leaves_nothing() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let mut records = fill(&mut log, 3, 50);
    let given_up = record(log.position(), LARGE, 9);
    let before = segments(dir.path()).last().unwrap().metadata().unwrap().len();
    let mut buffer = Vec::new();
    drop(begin(&mut log, &mut buffer, &given_up.1));
    assert_eq!(segments(dir.path()).last().unwrap().metadata().unwrap().len(), before);
    records.extend(fill(&mut log, 2, 70));
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
}

#[test]
fn a_crash_in_the_middle_of_a_record_leaves_those_before_it() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let records = fill(&mut log, 3, 50);
    log.syncer().sync().unwrap();
    let cut_short = record(log.position(), LARGE, 9);
    let buffer = Box::leak(Box::default());
    let appender = begin(&mut log, buffer, &cut_short.1);
    assert!(segments(dir.path()).last().unwrap().metadata().unwrap().len() > 2 << 20);
    Box::leak(Box::new(appender));
    die(log);
    let mut log = Log::open(dir.path(), LogOptions::default()).unwrap();
    assert!(log.cut().is_some_and(|cut| !cut.was_durable));
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), records);
    append(&mut log, &cut_short);
    assert_eq!(log.last(), Some(cut_short.0));
}

#[test]
fn a_large_record_is_read_lazily_and_checked() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let small = fill(&mut log, 2, 50);
    let large = record(log.position(), LARGE, 9);
    append(&mut log, &large);
    let last = fill(&mut log, 1, 50);
    let reader = log.reader();
    let lazily = |after: Pos| match reader.read_lazily(after, 1000).unwrap() {
        Read::Records(records) => records,
        Read::Gone => panic!("gone"),
    };
    assert_eq!(lazily(Pos::ZERO).len(), 2, "the large one is not read with others");
    assert_eq!(lazily(large.0.pos())[0].0, last[0].0);
    let found = lazily(small[1].0.pos());
    assert_eq!(found.len(), 1);
    let (info, payload) = &found[0];
    assert_eq!(*info, large.0);
    assert!(matches!(payload, Payload::Stored(_)));
    payload.check().unwrap();
    let mut bytes = Vec::new();
    payload.reader().read_to_end(&mut bytes).unwrap();
    assert!(bytes == large.1);
    let mut piece = [0; 10];
    payload.read_at(LARGE as u64 - 10, &mut piece).unwrap();
    assert_eq!(piece, large.1[LARGE - 10..]);
    payload.read_at(LARGE as u64 - 9, &mut piece).unwrap_err();

    let file = std::fs::File::options().write(true).open(segments(dir.path()).last().unwrap());
    file.unwrap().write_all_at(&[!large.1[4 << 20]], (4 << 20) + 1024 + 2 * 160 + 104).unwrap();
    assert!(matches!(payload.check(), Err(LogError::Damaged { .. })));
}
