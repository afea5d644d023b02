//! Faults at exact places of a commit (`disk::fault`).

use rusqlite::ffi;

use crate::harness::{
    Cluster, MODES, Plan, Writer, connect, keys, keys_of, rng, rounds, seed, sql,
};

const DB: &str = "x.db";

fn insert_one(cluster: &Cluster, mode: &str, key: i64, bytes: u32) -> Writer {
    let plan = Plan { count: 1, bytes, ..Plan::endless(mode, "NORMAL", key) };
    let mut writer = Writer::start(&cluster.a.path(DB), &plan);
    writer.finish();
    writer
}

/// The writer is killed when its commit is in log and WAL but not answered yet.
fn a_writer_dies(others_open: bool, daemon_dies_too: bool, bytes: u32) {
    let what = format!("others open: {others_open}, daemon dies: {daemon_dies_too}, {bytes} bytes");
    let mut cluster = Cluster::prepare();
    // Two commits come before, one of which makes the table.
    cluster.a.start_with_fault("kill-writer:3");
    cluster.b.start();
    let path = cluster.a.path(DB);
    let first = connect(&path);
    first
        .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, 0)")
        .unwrap();
    let other = others_open.then_some(first);
    let dead = insert_one(&cluster, "wal", 1, bytes);
    assert!(dead.acked.is_empty() && dead.failed.is_empty(), "{what}: it was not killed");
    if daemon_dies_too {
        cluster.a.kill9();
        drop(other);
        cluster.a.start();
    } else if let Some(other) = other {
        assert!(keys_of(&other).unwrap().contains(&1), "{what}: an open connection sees it");
        other.execute("INSERT INTO t VALUES (2, 2)", []).unwrap();
    }
    assert!(keys(&path).contains(&1), "{what}: it is logged, so it is there");
    cluster.converge(DB);
    let next = insert_one(&cluster, "wal", 3, bytes);
    assert_eq!(next.acked, [3], "{what}: {:?}", next.failed);
    cluster.converge(DB);
    assert!(keys(&cluster.b.path(DB)).is_superset(&[0, 1, 3].into()), "{what}");
}

#[test]
fn fuse_a_writer_that_dies_before_its_commit_is_answered_alone() {
    a_writer_dies(false, false, 200);
    a_writer_dies(false, false, 30_000);
}

#[test]
fn fuse_a_writer_that_dies_before_its_commit_is_answered_beside_others() {
    a_writer_dies(true, false, 200);
    a_writer_dies(true, false, 30_000);
}

#[test]
fn fuse_a_writer_that_dies_before_its_commit_is_answered_and_the_daemon_right_after() {
    a_writer_dies(false, true, 30_000);
    a_writer_dies(true, true, 30_000);
}

#[test]
fn fuse_writers_that_die_one_after_another_leave_all_nodes_equal() {
    let mut cluster = Cluster::prepare();
    cluster.a.start_with_fault("kill-writer:4+");
    cluster.b.start();
    let path = cluster.a.path(DB);
    sql(
        &path,
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, 0)",
    );
    let other = connect(&path);
    keys_of(&other).unwrap();
    for key in 1..5 {
        insert_one(&cluster, "wal", key, 9000);
    }
    cluster.converge(DB);
    assert_eq!(keys(&path), (0..5).collect());
    cluster.a.restart();
    drop(other);
    assert_eq!(insert_one(&cluster, "wal", 9, 9000).acked, [9]);
    cluster.converge(DB);
}

#[test]
fn fuse_a_daemon_that_dies_inside_a_commit_loses_nothing_acknowledged() {
    use rand::Rng as _;
    let seed = seed();
    for round in 0..rounds(1) {
        for mode in MODES {
            for place in ["kill-daemon-logged", "kill-daemon-written"] {
                let mut rng = rng(seed, round);
                let synchronous = ["OFF", "NORMAL", "FULL"][rng.random_range(0..3)];
                let nth = rng.random_range(1..30);
                let what = format!("{mode}, {synchronous}, {place}:{nth}");
                let mut cluster = Cluster::prepare();
                cluster.a.start_with_fault(&format!("{place}:{nth}"));
                cluster.b.start();
                let path = cluster.a.path(DB);
                let plan = Plan::endless(mode, synchronous, 0);
                let mut writer = Writer::start(&path, &plan);
                cluster.a.wait();
                writer.finish();
                assert!(!writer.failed.is_empty(), "{what}: the application is told");
                cluster.a.start();
                if nth > 1 {
                    let mut expected: std::collections::BTreeSet<i64> =
                        writer.acked.iter().copied().collect();
                    let there = keys(&path);
                    // Whether the commit that was under way counts is open.
                    expected.extend(there.get(&writer.failed[0].0));
                    assert_eq!(there, expected, "{what}");
                }
                assert_eq!(insert_one(&cluster, mode, 1000, 200).acked, [1000], "{what}");
                cluster.converge(DB);
            }
        }
    }
}

/// A step of one commit fails; returns what SQLite said.
fn a_step_fails(mode: &str, synchronous: &str, place: &str) -> (i32, String) {
    let what = format!("{mode}, {place}");
    let mut cluster = Cluster::prepare();
    // The kernel cuts a write to the WAL at pages, so SQLite tries the rest of a failed one again.
    let tries = if mode == "wal" { 2 } else { 1 };
    let faults: Vec<String> = (4..4 + tries).map(|nth| format!("{place}:{nth}")).collect();
    cluster.a.start_with_fault(&faults.join(","));
    cluster.b.start();
    let path = cluster.a.path(DB);
    let plan = Plan { count: 8, bytes: 3000, goes_on: true, ..Plan::endless(mode, synchronous, 0) };
    let mut writer = Writer::start(&path, &plan);
    writer.finish();
    assert_eq!((writer.acked.len(), writer.failed.len()), (7, 1), "{what}: {:?}", writer.failed);
    let acked: std::collections::BTreeSet<i64> = writer.acked.iter().copied().collect();
    assert_eq!(keys(&path), acked, "{what}");
    cluster.converge(DB);
    assert_eq!(keys(&cluster.b.path(DB)), acked, "{what}, replica");
    cluster.a.restart();
    assert_eq!(keys(&path), acked, "{what}, after a restart");
    assert_eq!(insert_one(&cluster, mode, 100, 200).acked, [100], "{what}");
    cluster.converge(DB);
    let (_, code, message) = writer.failed.remove(0);
    (code, message)
}

#[test]
fn fuse_a_log_without_space_is_a_full_disk_for_the_application() {
    for mode in MODES {
        let (code, message) = a_step_fails(mode, "NORMAL", "log-append");
        // The unlink or truncate that commits has no way to say "full".
        let expected = match mode {
            "delete" => ffi::SQLITE_IOERR_DELETE,
            "truncate" => ffi::SQLITE_IOERR_TRUNCATE,
            _ => ffi::SQLITE_FULL,
        };
        assert_eq!(code, expected, "{mode}: {message}");
        println!("{mode}: {message}");
    }
}

#[test]
fn fuse_a_wal_write_that_fails_is_a_failed_commit_and_nothing_else() {
    for synchronous in ["NORMAL", "FULL"] {
        let (code, message) = a_step_fails("wal", synchronous, "wal-write");
        assert_eq!(code, ffi::SQLITE_IOERR_WRITE, "{message}");
    }
}

#[test]
fn fuse_a_log_that_cannot_be_synced_stops_writes_until_a_restart() {
    for mode in MODES {
        let mut cluster = Cluster::prepare();
        cluster.a.start_with_fault("log-sync:4");
        cluster.b.start();
        let path = cluster.a.path(DB);
        let plan = Plan { count: 9, bytes: 3000, goes_on: true, ..Plan::endless(mode, "FULL", 0) };
        let mut writer = Writer::start(&path, &plan);
        writer.finish();
        assert!(writer.acked.len() < 5, "{mode}: {:?}", writer.failed);
        println!("{mode}: {:?}", writer.failed);
        let reason = cluster.a.quarantine(DB).unwrap();
        assert!(reason.contains("sync") && reason.contains("restart the daemon"), "{reason}");
        let acked: std::collections::BTreeSet<i64> = writer.acked.iter().copied().collect();
        let there = keys(&path);
        let unknown: std::collections::BTreeSet<i64> =
            acked.iter().copied().chain([writer.failed[0].0]).collect();
        assert!(there.is_superset(&acked) && there.is_subset(&unknown), "{mode}: {there:?}");
        sql(&cluster.a.path("other.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        cluster.a.restart();
        let there = keys(&path);
        assert!(there.is_superset(&acked) && there.is_subset(&unknown), "{mode}: {there:?}");
        assert_eq!(insert_one(&cluster, mode, 100, 200).acked, [100], "{mode}");
        cluster.converge(DB);
        cluster.converge("other.db");
    }
}
