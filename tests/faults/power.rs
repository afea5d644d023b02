//! Power loss: what was not synced is gone. The data directory lies on an ext4 of its own, which is shut
//! down without writing anything out, at a random moment under load.
//!
//! With `synchronous=FULL` every acknowledged transaction must be there afterwards. With NORMAL the database
//! is as it was after some transaction: a prefix, and as long as the last checkpoint at least.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use crate::harness::{Cluster, Disk, Plan, Writer, keys, pause, rng, rounds, seed, sql};

const DB: &str = "x.db";

/// Cuts the power under `db` of the primary again and again.
fn power_fails_under_the_primary(mode: &str, synchronous: &str, default_rounds: u64) {
    let seed = seed();
    let mut cluster = Cluster::prepare();
    let place = cluster.outside().join("disk");
    let Some(disk) = Disk::ext4(&place, 96) else { return };
    cluster.a.data_is_on(&disk);
    cluster.a.start();
    cluster.b.start();
    let path = cluster.a.path(DB);
    let table = "CREATE TABLE t(a INTEGER PRIMARY KEY, b)";
    sql(&path, &format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; {table}"));
    let mut durable = BTreeSet::new();
    for round in 0..rounds(default_rounds) {
        let what = format!("{mode} {synchronous}, round {round}, seed {seed}");
        let mut rng = rng(seed, round);
        let first = i64::try_from(round).unwrap() * 1_000_000;
        let mut plan = Plan::endless(mode, synchronous, first);
        plan.pragmas.push_str(&format!(
            "PRAGMA wal_autocheckpoint={};",
            [3, 30, 1000].choose(&mut rng).unwrap()
        ));
        plan.bytes = *[10, 500, 5000].choose(&mut rng).unwrap();
        let mut writer = Writer::start(&path, &plan);
        writer.wait(rng.random_range(1..80));
        // Sometimes after the time when file and sums are written back.
        let wait_max = if rng.random_ratio(1, 8) { 2000 } else { 60 };
        pause(&mut rng, wait_max);
        disk.cut_power();
        cluster.a.kill9();
        writer.kill9();
        disk.power_up();
        cluster.a.start();
        let there = keys(&path);
        if synchronous == "NORMAL" {
            let last = there.range(first..).next_back().copied();
            let prefix = last.map_or(BTreeSet::new(), |last| (first..=last).collect());
            assert!(there.range(first..).eq(prefix.iter()), "{what}: not a prefix");
        } else {
            durable.extend(&writer.acked);
        }
        let lost: Vec<_> = durable.difference(&there).collect();
        assert!(lost.is_empty(), "{what}: durable and lost: {lost:?}");
        assert_eq!(cluster.a.quarantine(DB), None, "{what}");
        cluster.converge(DB);
        // Level with a replica and written by a new life: that stays.
        let plan = Plan { count: 1, ..Plan::endless(mode, "FULL", first + 999_999) };
        let mut writer = Writer::start(&path, &plan);
        writer.finish();
        assert_eq!(writer.acked.len(), 1, "{what}: {:?}", writer.failed);
        durable.extend(keys(&path));
        cluster.converge(DB);
    }
}

#[test]
fn fuse_power_loss_keeps_what_a_full_wal_acknowledged() {
    power_fails_under_the_primary("wal", "FULL", 3);
}

#[test]
fn fuse_power_loss_leaves_a_prefix_of_a_normal_wal() {
    power_fails_under_the_primary("wal", "NORMAL", 3);
}

#[test]
fn fuse_power_loss_keeps_what_rollback_journals_acknowledged() {
    power_fails_under_the_primary("delete", "FULL", 3);
    power_fails_under_the_primary("persist", "FULL", 1);
    power_fails_under_the_primary("truncate", "FULL", 1);
}

#[test]
fn fuse_power_loss_of_a_replica_lets_it_catch_up() {
    let seed = seed();
    let mut cluster = Cluster::prepare();
    let place = cluster.outside().join("disk");
    let Some(disk) = Disk::ext4(&place, 96) else { return };
    cluster.b.data_is_on(&disk);
    cluster.a.start();
    cluster.b.start();
    for round in 0..rounds(3) {
        let mut rng = rng(seed, round);
        let mode = ["wal", "delete"].choose(&mut rng).unwrap();
        let db = format!("{mode}.db");
        let first = i64::try_from(round).unwrap() * 1_000_000;
        let mut plan = Plan::endless(mode, "NORMAL", first);
        plan.bytes = *[10, 500, 5000].choose(&mut rng).unwrap();
        let mut writer = Writer::start(&cluster.a.path(&db), &plan);
        writer.wait(rng.random_range(1..80));
        let wait_max = if rng.random_ratio(1, 8) { 2000 } else { 60 };
        pause(&mut rng, wait_max);
        disk.cut_power();
        cluster.b.kill9();
        writer.wait(10);
        disk.power_up();
        cluster.b.start();
        writer.wait(10);
        writer.kill9();
        cluster.converge(&db);
    }
}

/// `synchronous=OFF` lets the file become durable before the log; after a power failure nobody may go on as if it were
/// what the log says.
#[test]
fn fuse_power_loss_with_synchronous_off_is_noticed() {
    let work = [
        ("delete", "UPDATE t SET b = randomblob(3000) WHERE a > 40"),
        ("wal", "UPDATE t SET b = randomblob(3000) WHERE a > 40; PRAGMA wal_checkpoint"),
        ("delete", "BEGIN; UPDATE t SET b = randomblob(3000)"),
    ];
    for (mode, work) in work {
        let mut cluster = Cluster::prepare();
        let Some(disk) = Disk::ext4(&cluster.outside().join("disk"), 96) else { return };
        cluster.a.data_is_on(&disk);
        cluster.a.boot = "first";
        cluster.a.start();
        cluster.b.start();
        let path = cluster.a.path(DB);
        sql(
            &path,
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
                 WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 99)
                 INSERT INTO t SELECT i, randomblob(3000) FROM n"
            ),
        );
        cluster.converge(DB);
        // Written back in order, and opened again.
        assert!(cluster.a.stop().unwrap().success());
        cluster.a.start();
        let before = cluster.a.image(DB).checksum();
        let db = crate::harness::connect(&path);
        db.execute_batch(&format!("PRAGMA synchronous=OFF; PRAGMA cache_size=2; {work}")).unwrap();
        // The kernel writes the database out, and nothing else.
        std::fs::File::open(cluster.a.backing(DB)).unwrap().sync_data().unwrap();
        disk.cut_power();
        cluster.a.kill9();
        drop(db);
        disk.power_up();
        cluster.a.boot = "second";
        cluster.a.start();
        assert_eq!(cluster.a.quarantine(DB), None, "{mode}, {work}");
        let image = cluster.a.image(DB).checksum();
        let is_ahead = cluster.a.log().contains("left the file ahead of the log");
        println!("{mode}, {work}: ahead {is_ahead}, changed {}", image != before);
        let pos = cluster.a.pos(DB).unwrap();
        let sum = format!("{:016x}", image.get());
        assert_eq!(pos.split('/').nth(1), Some(&*sum), "{mode}, {work}: log and file");
        drop(cluster);
    }
}
