//! Tests of the log as a whole, from outside.

mod concurrent;
mod crash;
mod full_disk;
mod hostile;
mod model;
mod pieces;
mod sums;

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{Log, LogError, LogOptions, LogReader, Read, RecordInfo, WalSpan};
use crate::types::{Checksum, Epoch, PageSize, Pos, Txid};

pub(super) type Record = (RecordInfo, Bytes);

pub(super) const SMALL: LogOptions = LogOptions { segment_bytes: 8 << 10 };
pub(super) const ALL: usize = usize::MAX;

/// A directory in memory where there is one: most tests need no disk, only files.
pub(super) fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A record that follows `after`, its content and checksum made from `salt`.
pub(super) fn record(after: Pos, ltx_bytes: usize, salt: u64) -> Record {
    let min = after.next_txid();
    let mut state = salt ^ 0x9e37_79b9_7f4a_7c15;
    let mut ltx = Vec::with_capacity(ltx_bytes);
    while ltx.len() < ltx_bytes {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ltx.push(state.to_be_bytes()[0]);
    }
    let span = WalSpan { salts: (1, 2), start_frame: 3, end_frame: 4 };
    let info = RecordInfo {
        min,
        max: min,
        epoch: Epoch::new(after.epoch.get().max(1)),
        pre: after.checksum,
        post: Checksum::new(state),
        page_size: PageSize::new(4096).unwrap(),
        commit: 10,
        pages: 1,
        timestamp_ms: i64::try_from(min.get()).unwrap() * 1000,
        wal: salt.is_multiple_of(2).then_some(span),
        ltx_bytes: u32::try_from(ltx_bytes).unwrap(),
    };
    (info, ltx.into())
}

/// Appends `count` records and returns them.
pub(super) fn fill(log: &mut Log, count: usize, ltx_bytes: usize) -> Vec<Record> {
    (0..count)
        .map(|n| {
            let record = record(log.position(), ltx_bytes, n as u64);
            log.append(&record.0, &record.1).unwrap();
            record
        })
        .collect()
}

/// Everything behind a position, in steps of `bytes_max`; `None` if it is not in the log.
pub(super) fn read_all(
    reader: &LogReader,
    mut after: Pos,
    bytes_max: usize,
) -> Option<Vec<Record>> {
    let mut all = Vec::new();
    loop {
        match reader.read(after, bytes_max).unwrap() {
            Read::Gone => return None,
            Read::Records(records) => match records.last() {
                None => return Some(all),
                Some((last, _)) => {
                    after = last.pos();
                    all.extend(records);
                }
            },
        }
    }
}

pub(super) fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect();
    paths.sort();
    paths
}

/// Leaves a log as a process that dies does: nothing is written on the way out.
pub(super) fn die(log: Log) {
    // The handles would be closed by the system; here they stay open until the test ends.
    Box::leak(Box::new(log));
}

#[test]
fn a_new_log_holds_nothing_and_is_durable() {
    let dir = tempdir();
    let path = dir.path().join("a/log");
    let base = Pos { epoch: Epoch::new(3), txid: Txid::new(9), checksum: Checksum::new(7) };
    let log = Log::create(&path, base, SMALL).unwrap();
    assert_eq!((log.base(), log.position()), (base, base));
    assert_eq!((log.first(), log.last()), (None, None));
    assert_eq!(log.syncer().durable(), base);
    assert_eq!(log.syncer().sync().unwrap(), base);
    assert_eq!(log.syncer().fdatasyncs(), 0);
    assert_eq!(log.oldest_segments().count(), 0);
    assert!(matches!(Log::create(&path, base, SMALL), Err(LogError::Exists { .. })));
    drop(log);
    let log = Log::open(&path, SMALL).unwrap();
    assert_eq!((log.base(), log.position(), log.cut()), (base, base, None));
    assert!(matches!(Log::open(dir.path(), SMALL), Err(LogError::Missing { .. })));
    assert!(matches!(Log::open(&dir.path().join("no"), SMALL), Err(LogError::Missing { .. })));
}

#[test]
fn only_the_next_record_is_taken() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let good = record(Pos::ZERO, 10, 1);
    log.append(&good.0, &good.1).unwrap();
    let position = log.position();
    let (next, ltx) = record(position, 10, 2);
    let wrong = [
        RecordInfo { min: Txid::FIRST, ..next },
        RecordInfo { min: next.min.next(), max: next.min.next(), ..next },
        RecordInfo { max: Txid::FIRST, ..next },
        RecordInfo { pre: Checksum::new(0), ..next },
        RecordInfo { epoch: Epoch::ZERO, ..next },
    ];
    for info in wrong {
        assert!(matches!(log.append(&info, &ltx), Err(LogError::OutOfOrder { .. })), "{info:?}");
    }
    assert!(matches!(log.append(&next, &ltx[1..]), Err(LogError::Length { .. })));
    assert_eq!(log.position(), position);
    log.append(&next, &ltx).unwrap();
    assert_eq!(log.position(), next.pos());
}

#[test]
fn a_record_of_many_transactions_is_one_step() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let (mut info, ltx) = record(Pos::ZERO, 10, 1);
    info.max = Txid::new(5).unwrap();
    log.append(&info, &ltx).unwrap();
    fill(&mut log, 3, 10);
    let reader = log.reader();
    assert_eq!(reader.info_at(info.max).unwrap(), Some(info));
    assert_eq!(reader.info_at(Txid::new(3).unwrap()).unwrap(), None);
    let inside = Pos { txid: Txid::new(3), ..info.pos() };
    assert_eq!(reader.read(inside, ALL).unwrap(), Read::Gone);
    assert_eq!(read_all(&reader, info.pos(), ALL).unwrap().len(), 3);
}

#[test]
fn other_histories_and_the_future_are_gone() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let records = fill(&mut log, 50, 500);
    let reader = log.reader();
    for (info, _) in &records {
        let other = Pos { checksum: Checksum::new(12345), ..info.pos() };
        assert_eq!(reader.read(other, ALL).unwrap(), Read::Gone);
        let other = Pos { epoch: Epoch::new(77), ..info.pos() };
        assert_eq!(reader.read(other, ALL).unwrap(), Read::Gone);
        assert_eq!(reader.info_at(info.max).unwrap(), Some(*info));
    }
    let future = Pos { txid: Txid::new(51), ..log.position() };
    assert_eq!(reader.read(future, ALL).unwrap(), Read::Gone);
    assert_eq!(reader.info_at(Txid::new(51).unwrap()).unwrap(), None);
}

#[test]
fn the_first_record_is_read_whole_however_long() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let long = record(Pos::ZERO, 100_000, 1);
    log.append(&long.0, &long.1).unwrap();
    let short = fill(&mut log, 4, 100);
    let reader = log.reader();
    assert_eq!(reader.read(Pos::ZERO, 0).unwrap(), Read::Records(vec![long.clone()]));
    let after = long.0.pos();
    assert_eq!(reader.read(after, 250).unwrap(), Read::Records(short[..2].to_vec()));
    assert_eq!(reader.read(after, ALL).unwrap(), Read::Records(short.clone()));
    // A reader without a memory of where it was finds the same.
    assert_eq!(
        log.reader.clone().read(short[1].0.pos(), ALL).unwrap(),
        Read::Records(short[2..].to_vec())
    );
}

#[test]
fn trim_removes_whole_old_segments_only() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let records = fill(&mut log, 40, 1000);
    let summaries: Vec<_> = log.oldest_segments().collect();
    assert!(summaries.len() > 3);
    assert_eq!(summaries[0].first, Txid::FIRST);
    for pair in summaries.windows(2) {
        assert_eq!(pair[0].last.next(), pair[1].first);
        assert_eq!(pair[0].newest_timestamp_ms, i64::try_from(pair[0].last.get()).unwrap() * 1000);
    }
    let sizes: u64 = segments(dir.path()).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert_eq!(log.bytes(), sizes);

    let reader = log.reader();
    assert_eq!(reader.read(Pos::ZERO, 1).unwrap(), Read::Records(records[..1].to_vec()));
    // One short of the end of the second segment: only the first one goes.
    let keep = Txid::new(summaries[1].last.get() - 1).unwrap();
    assert_eq!(log.trim(keep).unwrap(), summaries[0].bytes);
    assert_eq!(log.base().txid, Some(summaries[0].last));
    assert_eq!(log.first().unwrap().min, summaries[1].first);
    assert_eq!(reader.read(Pos::ZERO, 1).unwrap(), Read::Gone);
    assert_eq!(reader.read(records[0].0.pos(), 1).unwrap(), Read::Gone);
    let rest = read_all(&reader, log.base(), 3000).unwrap();
    assert_eq!(rest, records[usize::try_from(summaries[0].last.get()).unwrap()..]);

    log.trim(Txid::new(1000).unwrap()).unwrap();
    assert_eq!(log.oldest_segments().count(), 1);
    log.roll().unwrap();
    log.roll().unwrap();
    log.trim(Txid::new(1000).unwrap()).unwrap();
    assert_eq!((log.base(), log.first()), (log.position(), None));
    assert_eq!(segments(dir.path()).len(), 1);
    let position = log.position();
    fill(&mut log, 1, 10);
    drop(log);
    assert_eq!(Log::open(dir.path(), SMALL).unwrap().base(), position);
}

#[test]
fn retract_goes_back_over_segments_and_stays_back() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let records = fill(&mut log, 40, 1000);
    log.syncer().sync().unwrap();
    assert_eq!(read_all(&log.reader(), Pos::ZERO, 5000).unwrap(), records);
    let unknown = Pos { checksum: Checksum::new(5), ..records[3].0.pos() };
    assert!(matches!(log.retract(unknown), Err(LogError::NoSuchPosition { .. })));
    for keep in [39, 30, 21, 7, 1, 0] {
        let to = if keep == 0 { Pos::ZERO } else { records[keep - 1].0.pos() };
        let reader = log.reader();
        log.retract(to).unwrap();
        assert_eq!(log.position(), to);
        assert_eq!(log.last(), keep.checked_sub(1).map(|last| records[last].0));
        assert_eq!(log.syncer().durable(), to);
        assert_eq!(read_all(&reader, Pos::ZERO, ALL).unwrap(), records[..keep]);
        die(log);
        log = Log::open(dir.path(), SMALL).unwrap();
        assert_eq!((log.position(), log.cut()), (to, None));
        let new = fill(&mut log, 2, 700);
        assert_eq!(read_all(&log.reader(), to, ALL).unwrap(), new);
        log.retract(to).unwrap();
        let reader = log.reader();
        assert_eq!(read_all(&reader, Pos::ZERO, ALL).unwrap(), records[..keep]);
    }
}

#[test]
fn reset_begins_a_new_history_even_at_the_same_transaction() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let old = fill(&mut log, 20, 1000);
    let reader = log.reader();
    log.reset(Pos::ZERO).unwrap();
    assert_eq!(log.position(), Pos::ZERO);
    assert_eq!(segments(dir.path()).len(), 1);
    assert_eq!(reader.read(old[3].0.pos(), ALL).unwrap(), Read::Gone);
    assert_eq!(reader.read(Pos::ZERO, ALL).unwrap(), Read::Records(vec![]));
    let new = fill(&mut log, 3, 10);
    assert_eq!(read_all(&reader, Pos::ZERO, ALL).unwrap(), new);
    drop(log);
    let log = Log::open(dir.path(), SMALL).unwrap();
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), new);
}

#[test]
fn a_log_closed_in_order_is_durable_and_small_when_opened() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    fill(&mut log, 1, 100);
    log.syncer().sync().unwrap();
    fill(&mut log, 1, 100);
    log.syncer().sync().unwrap();
    let position = log.position();
    assert!(log.bytes() > 30_000, "zeros are written ahead for those who sync");
    assert!(log.bytes() < 100_000, "but not 16 MiB for a small database");
    drop(log);
    let log = Log::open(dir.path(), LogOptions::default()).unwrap();
    assert!(log.bytes() < 4096);
    assert_eq!(log.syncer().durable(), position);
    log.syncer().sync().unwrap();
    assert_eq!(log.syncer().fdatasyncs(), 0);
    assert_eq!(log.last().unwrap().pos(), position);
}

#[test]
fn a_failed_fsync_is_final() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    fill(&mut log, 1, 100);
    let sync = log.syncer();
    sync.fail_next.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(sync.sync(), Err(LogError::Disk { step: "sync segment", .. })));
    assert!(matches!(sync.sync(), Err(LogError::Failed { .. })));
    let (info, ltx) = record(log.position(), 10, 1);
    assert!(matches!(log.append(&info, &ltx), Err(LogError::Failed { .. })));
    assert!(matches!(log.retract(Pos::ZERO), Err(LogError::Failed { .. })));
    assert_eq!(sync.durable(), Pos::ZERO);
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap().len(), 1);
    drop(log);
    Log::open(dir.path(), SMALL).unwrap().append(&info, &ltx).unwrap();
}
