//! Disks that are really full.

use std::collections::BTreeSet;
use std::fs;

use rusqlite::{Connection, ffi};

use crate::harness::{Cluster, Disk, MODES, connect, keys, keys_of, sql, until};

fn insert(db: &Connection, key: i64, bytes: u32) -> rusqlite::Result<usize> {
    db.execute("INSERT INTO t VALUES (?1, randomblob(?2))", (key, bytes))
}

/// Inserts until the disk is full; returns the keys that are in and what SQLite said to the next.
fn insert_until_full(db: &Connection, first: i64, bytes: u32) -> (BTreeSet<i64>, rusqlite::Error) {
    for key in first.. {
        if let Err(error) = insert(db, key, bytes) {
            return ((first..key).collect(), error);
        }
        assert!(key < first + 10_000, "the disk never fills");
    }
    unreachable!("keys are endless");
}

fn the_primary_runs_full(disk: &Disk, cluster: &Cluster, mode: &str) {
    let db = format!("{mode}.db");
    let path = cluster.a.path(&db);
    let connection = connect(&path);
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             INSERT INTO t VALUES (-1, randomblob(1000))"
        ))
        .unwrap();
    cluster.converge(&db);
    let ballast = disk.fill(1 << 20);
    let (mut expected, error) = insert_until_full(&connection, 0, 20_000);
    expected.insert(-1);
    let code = error.sqlite_error().unwrap().extended_code;
    println!("{mode}: {error} ({code})");
    assert!([ffi::SQLITE_FULL, ffi::SQLITE_IOERR].contains(&(code & 0xff)), "{mode}: {error}");
    // It stays full, and reads go on.
    for _ in 0..3 {
        assert!(insert(&connection, 5000, 3_000_000).is_err(), "{mode}");
        assert_eq!(keys_of(&connection).unwrap(), expected, "{mode}");
        assert_eq!(keys(&path), expected, "{mode}: another connection");
    }
    fs::remove_file(ballast).unwrap();
    insert(&connection, 9000, 20_000).unwrap_or_else(|error| panic!("{mode}: {error}"));
    expected.insert(9000);
    assert_eq!(keys(&path), expected, "{mode}");
    assert_eq!(cluster.a.quarantine(&db), None, "{mode}");
    cluster.converge(&db);
    sql(&path, "DELETE FROM t; VACUUM");
    cluster.converge(&db);
}

#[test]
fn fuse_a_full_disk_fails_commits_and_harms_nothing() {
    let mut cluster = Cluster::prepare();
    let Some(disk) = Disk::tmpfs(&cluster.outside().join("disk"), 24) else { return };
    cluster.a.data_is_on(&disk);
    cluster.a.start();
    cluster.b.start();
    for mode in MODES {
        the_primary_runs_full(&disk, &cluster, mode);
    }
    cluster.a.restart();
    for mode in MODES {
        cluster.converge(&format!("{mode}.db"));
    }
    // The mounts go before the disk does.
    drop(cluster);
}

#[test]
fn fuse_a_full_ext4_survives_a_restart_while_it_is_full() {
    let mut cluster = Cluster::prepare();
    let Some(disk) = Disk::ext4(&cluster.outside().join("disk"), 24) else { return };
    cluster.a.data_is_on(&disk);
    cluster.a.start();
    cluster.b.start();
    let path = cluster.a.path("x.db");
    sql(&path, "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    cluster.converge("x.db");
    let ballast = disk.fill(1 << 20);
    let (expected, error) = insert_until_full(&connect(&path), 0, 10_000);
    println!("{error}");
    let rest = disk.path.join("rest");
    drop(fs::write(&rest, vec![1; 1 << 20]));
    // Nothing is free, and the daemon must come up all the same.
    cluster.a.kill9();
    cluster.a.start();
    assert_eq!(keys(&path), expected);
    fs::remove_file(rest).unwrap();
    fs::remove_file(ballast).unwrap();
    until("the database takes writes", || {
        let db = Connection::open(&path).ok()?;
        insert(&db, 9000, 10).ok()
    });
    assert_eq!(cluster.a.quarantine("x.db"), None);
    cluster.converge("x.db");
    drop(cluster);
}

#[test]
fn fuse_a_replica_on_a_full_disk_does_not_stop_the_primary_and_catches_up() {
    let mut cluster = Cluster::prepare();
    let Some(disk) = Disk::tmpfs(&cluster.outside().join("disk"), 16) else { return };
    cluster.b.data_is_on(&disk);
    cluster.a.start();
    cluster.b.start();
    for mode in ["wal", "delete"] {
        let db = format!("{mode}.db");
        let path = cluster.a.path(&db);
        let connection = connect(&path);
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"
            ))
            .unwrap();
        cluster.converge(&db);
        let ballast = disk.fill(256 << 10);
        for key in 0..60 {
            insert(&connection, key, 20_000).unwrap();
        }
        // It has been tried, in vain, and the replica still serves what it has.
        until("the replica's disk is full", || {
            cluster.b.log().contains("No space left on device").then_some(())
        });
        assert!(keys(&cluster.b.path(&db)).len() < 60);
        fs::remove_file(ballast).unwrap();
        insert(&connection, 100, 20_000).unwrap();
        cluster.converge(&db);
        assert_eq!(keys(&cluster.b.path(&db)).len(), 61);
        sql(&path, "DELETE FROM t; VACUUM");
        cluster.converge(&db);
    }
    // A new database does not fit either: the copy waits for space.
    let ballast = disk.fill(64 << 10);
    sql(
        &cluster.a.path("new.db"),
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1, randomblob(500000))",
    );
    fs::remove_file(ballast).unwrap();
    cluster.converge("new.db");
    drop(cluster);
}
