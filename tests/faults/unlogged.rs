//! Crashes while a database is written outside every journal, and right before or after a start.

use std::fs::{self, File};
use std::io::Write as _;

use rand::Rng as _;

use crate::harness::{
    Cluster, Plan, Writer, connect, keys, pause, rng, rounds, seed, sql, sqlite3,
};

const DB: &str = "x.db";

/// Level, and log, file and replica hold the same bytes, whatever SQLite thinks of them.
fn equal(cluster: &Cluster, what: &str) {
    let pos = cluster.level(DB);
    let image = cluster.a.image(DB);
    cluster.b.image(DB).assert_same(&image, what);
    let sum = format!("{:016x}", image.checksum().get());
    assert_eq!(pos.split('/').nth(1), Some(&*sum), "{what}: position and bytes");
}

#[test]
fn fuse_killing_the_daemon_while_a_writer_has_no_journal_leaves_all_nodes_equal() {
    let seed = seed();
    let mut cluster = Cluster::start();
    let path = cluster.a.path(DB);
    for round in 0..rounds(4) {
        let mut rng = rng(seed, round);
        let what = format!("round {round}, seed {seed}");
        drop(fs::remove_file(&path));
        sql(&path, "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (-1, 1)");
        let mode = ["OFF", "MEMORY"][usize::try_from(round).unwrap() % 2];
        let plan = Plan { bytes: 20_000, ..Plan::endless(mode, "OFF", 0) };
        let mut writer = Writer::start(&path, &plan);
        writer.wait(rng.random_range(1..30));
        pause(&mut rng, 30);
        if rng.random() {
            writer.kill9();
        }
        cluster.a.kill9();
        writer.kill9();
        cluster.a.start();
        assert_eq!(cluster.a.quarantine(DB), None, "{what}");
        // A read may roll nothing back, but it opens what there is.
        drop(sqlite3(&path, "SELECT count(*) FROM t"));
        equal(&cluster, &what);
    }
}

#[test]
fn fuse_killing_the_daemon_while_a_file_is_copied_over_a_database_leaves_all_nodes_equal() {
    let seed = seed();
    let mut cluster = Cluster::start();
    let path = cluster.a.path(DB);
    sql(
        &path,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, zeroblob(3000000))",
    );
    cluster.converge(DB);
    let old = fs::read(cluster.a.backing(DB)).unwrap();
    sql(
        &path,
        "DELETE FROM t; INSERT INTO t VALUES (2, randomblob(3000000)), (3, randomblob(999))",
    );
    cluster.converge(DB);
    let new = fs::read(cluster.a.backing(DB)).unwrap();
    for round in 0..rounds(4) {
        let mut rng = rng(seed, round);
        let what = format!("round {round}, seed {seed}");
        let copy = if round % 2 == 0 { &old } else { &new };
        let end = rng.random_range(1..copy.len() / 4096) * 4096;
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all(&copy[..end]).unwrap();
        cluster.a.kill9();
        drop(file);
        cluster.a.start();
        assert_eq!(cluster.a.quarantine(DB), None, "{what}");
        equal(&cluster, &what);
        // The copy again, to its end.
        fs::write(&path, copy).unwrap();
        cluster.converge(DB);
        assert!(fs::read(cluster.a.backing(DB)).unwrap() == *copy, "{what}");
    }
}

#[test]
fn fuse_daemons_killed_before_they_are_ready_leave_nothing_in_the_way_of_the_next() {
    let seed = seed();
    let mut cluster = Cluster::start();
    let path = cluster.a.path(DB);
    let mut rng = rng(seed, 0);
    for round in 0..rounds(4) {
        let first = i64::try_from(round).unwrap() * 1_000_000;
        let mut writer = Writer::start(&path, &Plan::endless("wal", "NORMAL", first));
        writer.wait(5);
        cluster.a.kill9();
        writer.finish();
        for _ in 0..2 {
            cluster.a.spawn("");
            pause(&mut rng, 150);
            cluster.a.kill9();
        }
        cluster.a.start();
        let there = keys(&path);
        let lost: Vec<_> = writer.acked.iter().filter(|key| !there.contains(key)).collect();
        assert!(lost.is_empty(), "round {round}, seed {seed}: {lost:?}");
        cluster.converge(DB);
    }
}

#[test]
fn fuse_an_application_that_waits_for_locks_sees_no_error_while_the_primary_starts() {
    let mut cluster = Cluster::prepare();
    cluster.a.start();
    for mode in ["wal", "delete"] {
        let db = format!("{mode}.db");
        let path = cluster.a.path(&db);
        sql(&path, &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY)"));
        for key in 0..4 {
            if key % 2 == 0 {
                assert!(cluster.a.stop().unwrap().success());
            } else {
                cluster.a.kill9();
            }
            cluster.a.spawn("");
            // As early as the file is there, before the node says that it is ready. A dead mount shows it, but opens nothing.
            crate::harness::until("the file is there", || File::open(&path).ok().map(drop));
            let written = connect(&path).execute("INSERT INTO t VALUES (?1)", [key]);
            assert_eq!(written, Ok(1), "{mode}, start {key}");
        }
        assert_eq!(keys(&path), (0..4).collect(), "{mode}");
    }
}
