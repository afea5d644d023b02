//! One database that is busy for long, or whose daemon is dead: everything else goes on, nothing hangs.

use std::fs;
use std::sync::mpsc::channel;
use std::time::Instant;

use rusqlite::Connection;

use crate::harness::{Cluster, Node, PATIENCE, Plan, Writer, connect, keys, sql, until};

/// Disarms a node's faults also when the test fails, so that nobody waits for ever.
struct Disarm<'a>(&'a Node);

impl Drop for Disarm<'_> {
    fn drop(&mut self) {
        self.0.arm("");
    }
}

#[test]
fn fuse_a_database_in_a_long_operation_holds_up_no_other() {
    let cluster = Cluster::start();
    let big = cluster.a.path("big.db");
    let other = cluster.a.path("other.db");
    sql(
        &big,
        "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (0, zeroblob(8000000))",
    );
    sql(&other, "CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    cluster.converge("big.db");
    let copy = fs::read(cluster.a.backing("big.db")).unwrap();
    let (done, ended) = channel();
    let disarm = Disarm(&cluster.a);
    // A copy over it: captured as a whole when the file is closed.
    cluster.a.arm("pause-occupied:1+");
    let mut threads = Vec::new();
    let (big_copy, copied) = (big.clone(), done.clone());
    threads.push(std::thread::spawn(move || {
        copied.send(fs::write(&big_copy, copy).map_err(|error| error.to_string())).ok();
    }));
    until("the copy is being captured", || cluster.a.was_hit().then_some(()));
    // More than there are threads for requests, on the database that is busy.
    for key in 1..=24 {
        let (big, done) = (big.clone(), done.clone());
        threads.push(std::thread::spawn(move || {
            let insert = || -> rusqlite::Result<()> {
                let db = Connection::open(&big)?;
                db.busy_timeout(PATIENCE)?;
                db.query_row("SELECT count(*) FROM t", [], |_| Ok(()))?;
                db.execute("INSERT INTO t VALUES (?1, 1)", [key]).map(drop)
            };
            done.send(insert().map_err(|error| error.to_string())).ok();
        }));
    }
    let (committed, commits) = channel();
    threads.push(std::thread::spawn(move || {
        for key in 0..30 {
            let result = Connection::open(&other)
                .and_then(|db| db.execute("INSERT INTO t VALUES (?1, 1)", [key]));
            if committed.send(result.map_err(|error| error.to_string())).is_err() {
                return;
            }
        }
    }));
    for key in 0..30 {
        let commit = commits.recv_timeout(PATIENCE / 2);
        assert_eq!(commit, Ok(Ok(1)), "commit {key} of another database");
    }
    assert!(ended.try_recv().is_err(), "the first database is still busy");
    drop(disarm);
    for _ in 0..25 {
        assert_eq!(ended.recv_timeout(PATIENCE), Ok(Ok(())));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(keys(&big), (0..=24).collect());
    cluster.converge("big.db");
    cluster.converge("other.db");
}

/// A killed daemon once hung for minutes in its own mount; applications hung with it.
#[test]
fn fuse_a_killed_daemon_that_nobody_restarts_is_an_error_for_applications() {
    let mut cluster = Cluster::prepare();
    cluster.a.start();
    for mode in ["wal", "delete"] {
        let db = format!("{mode}.db");
        let path = cluster.a.path(&db);
        sql(
            &path,
            &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"),
        );
        // A writer at work, an idle connection that has mapped the wal-index, one inside a transaction.
        let mut writer = Writer::start(&path, &Plan::endless(mode, "FULL", 100));
        let mut idle = Writer::start(&path, &Plan { count: 1, ..Plan::endless(mode, "NORMAL", 1) });
        writer.wait(20);
        idle.finish();
        let open = connect(&path);
        open.execute_batch("PRAGMA mmap_size=10000000; BEGIN; SELECT count(*) FROM t").unwrap();
        let start = Instant::now();
        cluster.a.kill9();
        writer.finish();
        let told = start.elapsed();
        assert_eq!(writer.failed.len(), 1, "{mode}: the writer is told");
        let (answer, answered) = channel();
        let opener = path.clone();
        let thread = std::thread::spawn(move || {
            let commit = open.execute_batch("INSERT INTO t VALUES (-1, 1); COMMIT");
            let opened = Connection::open(&opener)
                .and_then(|db| db.execute("INSERT INTO t VALUES (-2, 1)", []));
            drop(open);
            answer.send((commit.is_err(), opened.is_err())).ok();
        });
        assert_eq!(answered.recv_timeout(PATIENCE), Ok((true, true)), "{mode}");
        thread.join().unwrap();
        println!(
            "{mode}: the writer was told after {told:?}, all were after {:?}",
            start.elapsed()
        );
        // The dead mount is replaced.
        cluster.a.start();
        let there = keys(&path);
        assert!(writer.acked.iter().all(|key| there.contains(key)), "{mode}");
        sql(&path, "INSERT INTO t VALUES (-3, 1)");
    }
}
