//! What a crash or a damaged disk leaves.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{ALL, SMALL, die, fill, read_all, segments, tempdir};
use crate::log::record::stored_bytes;
use crate::log::segment::{RECORDS_AT, SECTOR};
use crate::log::{Log, LogError, LogOptions, Read};
use crate::types::{Pos, Txid};

const BIG: LogOptions = LogOptions { segment_bytes: 16 << 20 };

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for path in segments(from) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn flip(path: &Path, bit: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_off() {
    let dir = tempdir();
    let source = dir.path().join("source");
    let mut log = Log::create(&source, Pos::ZERO, BIG).unwrap();
    let records = fill(&mut log, 3, 75);
    die(log);
    let path = &segments(&source)[0];
    let whole = fs::read(path).unwrap();
    let stored = usize::try_from(stored_bytes(75)).unwrap();
    let last_at = whole.len() - stored;
    for (cut_short, zeros_behind) in [(true, 0), (false, 0), (false, 5000)] {
        for torn in last_at..whole.len() {
            let target = dir.path().join("target");
            fs::create_dir_all(&target).unwrap();
            let mut bytes = whole.clone();
            if cut_short {
                bytes.truncate(torn);
            } else {
                bytes[torn..].fill(0);
            }
            bytes.resize(bytes.len() + zeros_behind, 0);
            // Where the content ends with zeros nothing was lost.
            let is_whole = bytes.starts_with(&whole);
            fs::write(target.join(path.file_name().unwrap()), bytes).unwrap();

            let mut log = Log::open(&target, BIG).unwrap();
            let kept = if is_whole { 3 } else { 2 };
            assert_eq!(log.position(), records[kept - 1].0.pos(), "torn at {torn}");
            let has_remains = !is_whole && torn > last_at;
            assert_eq!(log.cut().is_some(), has_remains, "torn at {torn}");
            if let Some(cut) = log.cut() {
                assert_eq!((cut.position, cut.offset), (log.position(), last_at as u64));
                assert!(!cut.was_durable);
            }
            let new = fill(&mut log, 1, 30);
            die(log);
            let log = Log::open(&target, BIG).unwrap();
            assert_eq!(log.cut(), None, "torn at {torn}");
            let all = read_all(&log.reader(), Pos::ZERO, ALL).unwrap();
            assert_eq!(all, [&records[..kept], &new[..]].concat());
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn a_later_record_does_not_come_back_behind_a_torn_one() {
    // The disk wrote the third record but not the second; a new second record of the same
    // length and content would make the third follow again.
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, BIG).unwrap();
    let records = fill(&mut log, 3, 200);
    die(log);
    let path = &segments(dir.path())[0];
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let second_at = RECORDS_AT + stored_bytes(200);
    file.write_all_at(&vec![0; usize::try_from(stored_bytes(200)).unwrap()], second_at).unwrap();
    let mut log = Log::open(dir.path(), BIG).unwrap();
    assert_eq!(log.cut().unwrap().position, records[0].0.pos());
    log.append(&records[1].0, &records[1].1).unwrap();
    die(log);
    let log = Log::open(dir.path(), BIG).unwrap();
    assert_eq!(log.position(), records[1].0.pos());
}

#[test]
fn a_flipped_bit_anywhere_is_never_read_as_a_record() {
    let dir = tempdir();
    let source = dir.path().join("source");
    let mut log = Log::create(&source, Pos::ZERO, LogOptions { segment_bytes: 1800 }).unwrap();
    let records = fill(&mut log, 5, 123);
    log.syncer().sync().unwrap();
    drop(log);
    let files = segments(&source);
    assert_eq!(files.len(), 2);
    for file in &files {
        let bytes = fs::metadata(file).unwrap().len();
        for bit in (0..bytes * 8).step_by(3) {
            let target = dir.path().join("target");
            copy(&source, &target);
            let damaged = target.join(file.file_name().unwrap());
            flip(&damaged, bit);
            let in_seal = (bit / 8) >= SECTOR as u64 && (bit / 8) < RECORDS_AT;
            match Log::open(&target, SMALL) {
                Err(LogError::Damaged { .. }) => {}
                Err(other) => panic!("bit {bit}: {other}"),
                Ok(log) => {
                    let base = log.base();
                    let from = usize::try_from(base.txid_raw()).unwrap();
                    let reader = log.reader();
                    let mut after = base;
                    let mut read = Vec::new();
                    let mut found = log.cut().is_some();
                    loop {
                        match reader.read(after, ALL) {
                            Ok(Read::Records(more)) => match more.last() {
                                None => break,
                                Some((last, _)) => {
                                    after = last.pos();
                                    read.extend(more);
                                }
                            },
                            Ok(Read::Gone) => panic!("bit {bit}: gone"),
                            Err(LogError::Damaged { path, .. }) => {
                                assert_eq!(path, damaged);
                                found = true;
                                break;
                            }
                            Err(other) => panic!("bit {bit}: {other}"),
                        }
                    }
                    assert_eq!(read, records[from..from + read.len()], "bit {bit}");
                    let lost = from > 0 || read.len() < records.len();
                    assert!(found || !lost || from > 0, "bit {bit}");
                    assert!(!in_seal || !lost, "bit {bit}: a seal is only a shortcut");
                    assert!(log.cut().is_none_or(|cut| cut.was_durable || !lost), "bit {bit}");
                }
            }
            fs::remove_dir_all(&target).unwrap();
        }
    }
}

#[test]
fn damage_below_durable_records_is_told_from_a_torn_tail() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, BIG).unwrap();
    fill(&mut log, 2, 100);
    log.syncer().sync().unwrap();
    fill(&mut log, 2, 100);
    die(log);
    let path = segments(dir.path())[0].clone();
    flip(&path, (RECORDS_AT + stored_bytes(100) + 150) * 8);
    let log = Log::open(dir.path(), BIG).unwrap();
    let cut = log.cut().unwrap();
    assert_eq!(cut.position.txid, Txid::new(1));
    assert!(cut.was_durable);
    assert!(path.with_extension("damaged").exists());
}

#[test]
fn a_power_loss_keeps_what_was_synced() {
    let dir = tempdir();
    let source = dir.path().join("source");
    let mut log = Log::create(&source, Pos::ZERO, SMALL).unwrap();
    let mut records = Vec::new();
    for round in 0..12_usize {
        records.extend(fill(&mut log, 3, 900));
        log.syncer().sync().unwrap();
        let durable = records.len();
        let synced = dir.path().join("synced");
        copy(&source, &synced);
        let unsynced = fill(&mut log, 5 + round % 4, 700);
        // The files as they are, but of what was never synced some blocks are lost: at each one.
        for path in segments(&source) {
            let name = path.file_name().unwrap();
            let bytes = fs::read(&path).unwrap();
            let before = fs::read(synced.join(name)).unwrap_or_default();
            for lost in (0..bytes.len()).step_by(512) {
                let target = dir.path().join("target");
                copy(&source, &target);
                let mut crashed = bytes.clone();
                let end = (lost + 512).min(bytes.len());
                for (at, byte) in crashed[lost..end].iter_mut().enumerate() {
                    *byte = before.get(lost + at).copied().unwrap_or(0);
                }
                fs::write(target.join(name), crashed).unwrap();
                let log = Log::open(&target, SMALL).unwrap();
                let read = read_all(&log.reader(), Pos::ZERO, ALL).unwrap();
                assert!(read.len() >= durable, "round {round}, {name:?} at {lost}");
                let all = [&records[..], &unsynced[..]].concat();
                assert_eq!(read, all[..read.len()]);
                assert!(log.cut().is_none_or(|cut| !cut.was_durable), "round {round} {lost}");
                fs::remove_dir_all(&target).unwrap();
            }
        }
        // Files that were created since may be missing as a whole.
        for path in segments(&source) {
            let name = path.file_name().unwrap();
            if !synced.join(name).exists() {
                for kept in [0, 100, RECORDS_AT] {
                    let target = dir.path().join("target");
                    copy(&source, &target);
                    let file = OpenOptions::new().write(true).open(target.join(name)).unwrap();
                    file.set_len(kept).unwrap();
                    let log = Log::open(&target, SMALL).unwrap();
                    let read = read_all(&log.reader(), Pos::ZERO, ALL).unwrap();
                    assert!(read.len() >= durable);
                    fs::remove_dir_all(&target).unwrap();
                }
            }
        }
        fs::remove_dir_all(&synced).unwrap();
        records.extend(unsynced);
    }
}

#[test]
fn an_interrupted_reset_leaves_one_history() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    fill(&mut log, 20, 1000);
    log.syncer().sync().unwrap();
    let base = log.position();
    let old = dir.path().join("old");
    copy(dir.path(), &old);
    log.reset(base).unwrap();
    drop(log);
    // The old files were not removed yet.
    for path in segments(&old) {
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let log = Log::open(dir.path(), SMALL).unwrap();
    assert_eq!((log.base(), log.position()), (base, base));
    assert_eq!(segments(dir.path()).len(), 1);
}

#[test]
fn records_of_another_segment_are_never_taken_for_this_ones() {
    // The same transactions, the same offsets, another segment: only the seed differs.
    let dir = tempdir();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut log = Log::create(&one, Pos::ZERO, BIG).unwrap();
    let records = fill(&mut log, 4, 300);
    die(log);
    let mut log = Log::create(&two, Pos::ZERO, BIG).unwrap();
    log.append(&records[0].0, &records[0].1).unwrap();
    die(log);
    let old = fs::read(&segments(&one)[0]).unwrap();
    let at = RECORDS_AT + stored_bytes(300);
    let file = OpenOptions::new().write(true).open(&segments(&two)[0]).unwrap();
    file.write_all_at(&old[usize::try_from(at).unwrap()..], at).unwrap();
    let log = Log::open(&two, BIG).unwrap();
    assert_eq!(log.position(), records[0].0.pos());
    assert!(!log.cut().unwrap().was_durable);
}

#[test]
fn an_unreadable_middle_segment_costs_only_what_is_before_it() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    let records = fill(&mut log, 40, 1000);
    log.syncer().sync().unwrap();
    drop(log);
    let files = segments(dir.path());
    flip(&files[2], 100);
    let log = Log::open(dir.path(), SMALL).unwrap();
    let cut = log.cut().unwrap();
    assert!(cut.was_durable);
    assert_eq!(log.position(), records[39].0.pos());
    let from = usize::try_from(log.base().txid_raw()).unwrap();
    assert!(from > 0);
    assert_eq!(read_all(&log.reader(), log.base(), ALL).unwrap(), records[from..]);
    drop(log);
    assert_eq!(Log::open(dir.path(), SMALL).unwrap().cut(), None);
}

#[test]
fn a_log_without_a_readable_segment_is_refused_and_can_be_begun_again() {
    let dir = tempdir();
    let mut log = Log::create(dir.path(), Pos::ZERO, SMALL).unwrap();
    fill(&mut log, 1, 10);
    drop(log);
    flip(&segments(dir.path())[0], 3);
    assert!(matches!(Log::open(dir.path(), SMALL), Err(LogError::Damaged { .. })));
    let log = Log::recreate(dir.path(), Pos::ZERO, SMALL).unwrap();
    assert_eq!(log.position(), Pos::ZERO);
    assert_eq!(segments(dir.path()).len(), 1);
}
