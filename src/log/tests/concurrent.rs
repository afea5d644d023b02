//! Readers and syncers beside the writer.

use std::sync::Arc;
use std::sync::Barrier;
use std::thread;

use parking_lot::Mutex;

use super::{ALL, SMALL, die, fill, read_all, record};
use crate::log::{Log, LogOptions, Read};
use crate::types::Pos;

#[test]
fn readers_follow_a_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let count = 2000;
    let readers: Vec<_> = (0..3).map(|_| log.reader()).collect();
    thread::scope(|scope| {
        for (number, reader) in readers.iter().enumerate() {
            scope.spawn(move || {
                let mut after = Pos::ZERO;
                let mut records = 0;
                while records < count {
                    let Read::Records(read) = reader.read(after, 1000 << number).unwrap() else {
                        panic!("gone")
                    };
                    for (info, ltx) in read {
                        assert_eq!((info, ltx), record(after, 200, records));
                        after = info.pos();
                        records += 1;
                    }
                    thread::yield_now();
                }
            });
        }
        for salt in 0..count {
            let (info, ltx) = record(log.position(), 200, salt);
            log.append(&info, &ltx).unwrap();
        }
    });
}

#[test]
fn readers_survive_retract_trim_and_reset() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let readers: Vec<_> = (0..2).map(|_| log.reader()).collect();
    let base = Mutex::new(Pos::ZERO);
    let base = &base;
    thread::scope(|scope| {
        let running = Arc::new(());
        for reader in &readers {
            let seen = Arc::downgrade(&running);
            scope.spawn(move || {
                let mut after = Pos::ZERO;
                while seen.strong_count() > 0 {
                    match reader.read(after, 5000).unwrap() {
                        Read::Gone => after = *base.lock(),
                        Read::Records(read) => {
                            for (info, _) in read {
                                assert!(info.follows(after));
                                after = info.pos();
                            }
                        }
                    }
                }
            });
        }
        for round in 0..60_usize {
            let before = log.position();
            fill(&mut log, 20 + round % 7, 700);
            match round % 4 {
                0 => log.retract(before).unwrap(),
                1 => drop(log.trim(before.next_txid()).unwrap()),
                2 => log.reset(log.position()).unwrap(),
                _ => {}
            }
            *base.lock() = log.base();
        }
    });
}

#[test]
fn concurrent_commits_share_an_fdatasync() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::create(dir.path(), Pos::ZERO, LogOptions::default()).unwrap();
    let sync = log.syncer();
    let log = Mutex::new(log);
    let (threads, commits) = (8, 50);
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                barrier.wait();
                for salt in 0..commits {
                    let position = {
                        let mut log = log.lock();
                        let (info, ltx) = record(log.position(), 300, salt);
                        log.append(&info, &ltx).unwrap();
                        info.pos()
                    };
                    assert!(sync.sync().unwrap().txid >= position.txid);
                }
            });
        }
    });
    let total = threads as u64 * commits;
    assert_eq!(sync.durable().txid_raw(), total);
    assert!(sync.fdatasyncs() < total * 3 / 4, "{} for {total}", sync.fdatasyncs());
}

#[test]
fn sync_covers_segments_that_were_closed_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    fill(&mut log, 40, 1000);
    assert_eq!(log.syncer().durable(), Pos::ZERO, "nobody asked for durability");
    let closed = log.oldest_segments().count() as u64 - 1;
    let sync = log.syncer();
    assert_eq!(sync.sync().unwrap(), log.position());
    assert_eq!(sync.fdatasyncs(), closed + 1);
    sync.sync().unwrap();
    assert_eq!(sync.fdatasyncs(), closed + 1, "nothing new, nothing to do");
}

#[test]
fn segments_that_nobody_syncs_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    fill(&mut log, 400, 1000);
    assert!(log.syncer().durable().txid_raw() > 200);
}

#[test]
fn a_sync_beside_a_retraction_promises_nothing_that_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let sync = log.syncer();
    thread::scope(|scope| {
        let (running, sync) = (Arc::new(()), &sync);
        for _ in 0..2 {
            let seen = Arc::downgrade(&running);
            scope.spawn(move || {
                while seen.strong_count() > 0 {
                    sync.sync().unwrap();
                }
            });
        }
        for round in 0..100_usize {
            let before = log.position();
            fill(&mut log, 1 + round % 25, 700);
            if round % 3 > 0 {
                log.retract(before).unwrap();
            }
            assert_eq!(sync.sync().unwrap(), log.position());
            assert_eq!(sync.durable(), log.position());
        }
    });
    let position = log.position();
    let all = read_all(&log.reader(), Pos::ZERO, ALL).unwrap();
    die(log);
    let log = Log::open(dir.path(), SMALL).unwrap();
    assert_eq!((log.position(), log.cut()), (position, None));
    assert_eq!(read_all(&log.reader(), Pos::ZERO, ALL).unwrap(), all);
}
