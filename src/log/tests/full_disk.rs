//! The disk is full.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{ALL, fill, read_all, record};
use crate::log::{Log, LogError, LogOptions, PageSums, SumsError};
use crate::types::{Checksum, PageNo, PageSize, Pos, Txid};

/// A file system of 1 MiB.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, after saying so, where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(dir.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(dir));
        }
        eprintln!("left out: mounting a small tmpfs needs root");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(self.path()).status().unwrap().success());
    }
}

/// Appends until the disk refuses; returns the position then.
fn fill_up(log: &mut Log, ltx_bytes: usize) -> Pos {
    loop {
        let position = log.position();
        let (info, ltx) = record(position, ltx_bytes, 5);
        match log.append(&info, &ltx) {
            Ok(()) => {}
            Err(LogError::Disk { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::ENOSPC));
                assert_eq!(log.position(), position);
                return position;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_full_disk_leaves_the_log_usable_where_it_was() {
    let Some(disk) = SmallDisk::mount() else { return };
    for (round, segment_bytes) in [16 << 20, 100_000].into_iter().enumerate() {
        let dir = disk.path().join(format!("{round}"));
        let options = LogOptions { segment_bytes };
        let mut log = Log::create(&dir, Pos::ZERO, options).unwrap();
        if round == 1 {
            // With zeros written ahead as well.
            fill(&mut log, 1, 5000);
            log.syncer().sync().unwrap();
        }
        let mut position = fill_up(&mut log, 5000);
        position = fill_up(&mut log, 500).max_by_txid(position);
        assert_eq!(log.syncer().sync().unwrap(), position);
        let all = read_all(&log.reader(), Pos::ZERO, ALL).unwrap();
        assert_eq!(all.last().unwrap().0.pos(), position);
        drop(log);

        let mut log = Log::open(&dir, options).unwrap();
        assert_eq!((log.position(), log.cut()), (position, None));
        let back = Txid::new(position.txid_raw() / 2).unwrap();
        let to = log.reader().info_at(back).unwrap().unwrap().pos();
        log.retract(to).unwrap();
        fill(&mut log, 3, 400);
        log.syncer().sync().unwrap();
        drop(log);
        fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn page_sums_on_a_full_disk_can_be_flushed_later() {
    let Some(disk) = SmallDisk::mount() else { return };
    let page = |number| PageNo::new(number).unwrap();
    let path = disk.path().join("sums");
    let mut sums = PageSums::create(&path, PageSize::new(4096).unwrap()).unwrap();
    sums.set(page(1), Checksum::new(1));
    let flushed = Pos { txid: Some(Txid::FIRST), ..Pos::ZERO };
    sums.flush(flushed).unwrap();
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 900 << 10]).unwrap();
    for number in 1..=100 * 511 {
        sums.set(page(number), Checksum::new(u64::from(number) + 1));
    }
    let later = Pos { txid: Txid::new(2), ..Pos::ZERO };
    assert!(matches!(sums.flush(later), Err(SumsError::Disk { .. })));
    assert_eq!(sums.as_of(), flushed);
    assert_eq!(PageSums::open(&path).unwrap().as_of(), flushed);
    fs::remove_file(&ballast).unwrap();
    sums.flush(later).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.as_of(), later);
    for number in 1..=100 * 511 {
        let expected = Some(Checksum::new(u64::from(number) + 1));
        assert_eq!(sums.get(page(number)).unwrap(), expected);
    }
}

impl Pos {
    fn max_by_txid(self, other: Self) -> Self {
        if self.txid > other.txid { self } else { other }
    }
}
