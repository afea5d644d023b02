//! Replicas: readers, refused writers, late joiners, interruptions.

use rusqlite::ffi::{SQLITE_BUSY, SQLITE_READONLY};

use crate::harness::{Cluster, Options, PATIENCE, Worker, signal, sqlite3, sqlite3_ok, until};

#[test]
fn fuse_a_writer_on_a_replica_is_told_busy_and_readers_go_on() {
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete", "truncate"] {
        let name = format!("{mode}.db");
        let mut primary = Worker::on(&cluster.path(&name));
        primary.ok(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES (1)"
        ));
        cluster.converge(&name);
        let mut local = Worker::on(&cluster.replicas()[0].path(&name));
        local.ok("PRAGMA busy_timeout=50");
        for _ in 0..3 {
            assert_eq!(
                local.value("SELECT count(*) FROM t"),
                primary.value("SELECT count(*) FROM t")
            );
            for statement in ["INSERT INTO t VALUES (2)", "BEGIN IMMEDIATE", "CREATE TABLE u(a)"] {
                let error = local.run(statement).unwrap_err();
                assert_eq!(error.primary(), SQLITE_BUSY, "{mode}: {statement}: {error:?}");
            }
            primary.ok("INSERT INTO t VALUES (3)");
            cluster.level(&name);
        }
        let error =
            sqlite3(&cluster.replicas()[0].path(&name), ".timeout 50\nINSERT INTO t VALUES (4);");
        assert!(error.clone().unwrap_err().contains("database is locked"), "{mode}: {error:?}");
        cluster.converge(&name);
    }
}

#[test]
fn fuse_a_readonly_replica_says_so_at_once() {
    let cluster = Cluster::with(Options {
        nodes: 2,
        config: "[replica]\nwrites = \"readonly\"",
        ..Options::default()
    });
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        sqlite3_ok(
            &cluster.path(&name),
            &format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a); INSERT INTO t VALUES (1);"),
        );
        cluster.converge(&name);
        let mut local = Worker::on(&cluster.replicas()[0].path(&name));
        assert_eq!(local.value("SELECT a FROM t"), "1");
        let error = local.run("INSERT INTO t VALUES (2)").unwrap_err();
        assert_eq!(error.primary(), SQLITE_READONLY, "{mode}: {error:?}");
    }
}

#[test]
fn fuse_no_database_can_be_created_on_a_replica() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a);");
    cluster.converge("x.db");
    let phantom = cluster.replicas()[0].path("phantom.db");
    let answer = sqlite3(&phantom, "CREATE TABLE t(a);");
    assert!(answer.is_err(), "{answer:?}");
    assert!(!answer.unwrap_err().contains("disk I/O error"));
    // The primary makes a database of that name: the replica takes it.
    sqlite3_ok(&cluster.path("phantom.db"), "CREATE TABLE real(a);");
    cluster.converge("phantom.db");
}

#[test]
fn fuse_a_long_reader_on_the_replica_keeps_its_snapshot_while_2000_transactions_pass() {
    let cluster = Cluster::start(2);
    let replica = cluster.replicas()[0].path("x.db");
    let mut primary = Worker::on(&cluster.path("x.db"));
    primary.ok("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a, b); INSERT INTO t VALUES (-1, 0)");
    cluster.converge("x.db");
    let mut long = Worker::on(&replica);
    long.ok("BEGIN; SELECT * FROM t");
    let mut writer = primary.count("INSERT INTO t VALUES (?1, randomblob(300))", 0, 2000);
    let mut short = Worker::on(&replica);
    let mut last = 0;
    while last < 500 {
        writer.wait(writer.acked.len() + 50);
        let now: i64 = short.value("SELECT count(*) FROM t").parse().unwrap();
        assert!(now >= last, "a reader goes back in time");
        last = now;
    }
    writer.finish();
    assert_eq!(writer.acked.len(), 2000, "{:?}", writer.error);
    cluster.level("x.db");
    assert_eq!(long.value("SELECT count(*) FROM t"), "1", "the snapshot holds");
    assert_eq!(short.value("SELECT count(*) FROM t"), "2001");
    long.ok("COMMIT");
    assert_eq!(long.value("SELECT count(*) FROM t"), "2001");
    cluster.converge("x.db");
}

#[test]
fn fuse_readers_of_a_rollback_database_on_a_replica_see_every_step() {
    let cluster = Cluster::start(2);
    let replica = cluster.replicas()[0].path("x.db");
    let mut primary = Worker::on(&cluster.path("x.db"));
    primary.ok("CREATE TABLE t(a, b)");
    cluster.converge("x.db");
    let mut writer = primary.count("INSERT INTO t VALUES (?1, randomblob(3000))", 0, 300);
    let mut reader = Worker::on(&replica);
    let mut last = 0;
    while last < 300 {
        // Each row appears whole, and the count never falls.
        let row =
            reader.ok("SELECT count(*), coalesce(max(a), -1), coalesce(sum(length(b)), 0) FROM t");
        let number = |i: usize| row[0][i].parse::<i64>().unwrap();
        assert_eq!(number(1), number(0) - 1);
        assert_eq!(number(2), number(0) * 3000);
        assert!(number(0) >= last);
        last = number(0);
    }
    writer.finish();
    cluster.converge("x.db");
}

#[test]
fn fuse_a_reader_that_holds_back_a_database_is_named() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    cluster.converge("x.db");
    let mut reader = Worker::on(&cluster.replicas()[0].path("x.db"));
    reader.ok("BEGIN; SELECT * FROM t");
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t VALUES (2);");
    until("the replica says what it waits for", PATIENCE, || {
        let text = cluster.replicas()[0].log_text();
        let line = text.lines().find(|line| line.contains("a reader holds back"))?.to_owned();
        assert!(line.contains("x.db") && line.contains("process"), "{line}");
        Some(())
    });
    assert_eq!(reader.value("SELECT count(*) FROM t"), "1");
    reader.ok("COMMIT");
    cluster.converge("x.db");
}

#[test]
fn fuse_a_replica_that_was_away_catches_up() {
    let mut cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; CREATE TABLE t(a, b)");
    sqlite3_ok(&cluster.path("quiet.db"), "CREATE TABLE t(a);");
    cluster.converge("x.db");
    cluster.converge("quiet.db");
    for round in 0..3 {
        if round == 1 {
            cluster.nodes[1].kill9();
        } else {
            assert!(cluster.nodes[1].stop().unwrap().success());
        }
        for _ in 0..100 {
            db.ok("INSERT INTO t VALUES (1, randomblob(400))");
        }
        sqlite3_ok(&cluster.path(format!("new{round}.db")), "CREATE TABLE t(a);");
        if round == 2 {
            std::fs::remove_file(cluster.path("new0.db")).unwrap();
            std::fs::rename(cluster.path("new1.db"), cluster.path("renamed.db")).unwrap();
        }
        cluster.nodes[1].start();
        cluster.converge("x.db");
        cluster.converge(format!("new{round}.db"));
    }
    cluster.converge("renamed.db");
    cluster.gone("new0.db");
    cluster.gone("new1.db");
    cluster.converge("quiet.db");
}

#[test]
fn fuse_a_new_replica_gets_everything_while_writers_go_on() {
    let mut cluster = Cluster::start(2);
    cluster.nodes[1].stop();
    std::fs::remove_dir_all(&cluster.nodes[1].data).unwrap();
    std::fs::create_dir(&cluster.nodes[1].data).unwrap();
    let mut writers = Vec::new();
    for mode in ["wal", "delete"] {
        let mut db = Worker::on(&cluster.path(format!("{mode}.db")));
        db.ok(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL; CREATE TABLE t(a, b)"
        ));
        db.ok("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 20000) \
               INSERT INTO t SELECT i, randomblob(500) FROM n");
        writers.push(db.count("INSERT INTO t VALUES (?1, randomblob(500))", 0, 100_000));
    }
    writers.iter_mut().for_each(|writer| writer.wait(20));
    cluster.nodes[1].start();
    for mode in ["wal", "delete"] {
        until("the snapshot is there", PATIENCE, || {
            (cluster.nodes[1].txid(format!("{mode}.db")) > 20).then_some(())
        });
    }
    writers.iter_mut().for_each(|writer| writer.wait(writer.acked.len() + 50));
    writers.iter_mut().for_each(crate::harness::Acks::kill9);
    cluster.converge("wal.db");
    cluster.converge("delete.db");
}

#[test]
fn fuse_a_frozen_replica_does_not_hold_up_the_primary() {
    let cluster = Cluster::start(3);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a, b)");
    cluster.converge("x.db");
    signal(cluster.nodes[2].pid(), libc::SIGSTOP);
    for _ in 0..300 {
        db.ok("INSERT INTO t VALUES (1, randomblob(2000))");
    }
    let pos = cluster.primary().pos("x.db");
    until("the other replica follows", PATIENCE, || {
        (cluster.nodes[1].pos("x.db") == pos).then_some(())
    });
    signal(cluster.nodes[2].pid(), libc::SIGCONT);
    cluster.converge("x.db");
}

#[test]
fn fuse_a_replica_outlives_its_primary() {
    let mut cluster = Cluster::start(2);
    sqlite3_ok(
        &cluster.path("x.db"),
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);",
    );
    cluster.converge("x.db");
    cluster.nodes[0].kill9();
    let replica = cluster.nodes[1].path("x.db");
    assert_eq!(sqlite3_ok(&replica, "SELECT a FROM t;"), "1");
    assert!(sqlite3(&replica, ".timeout 20\nINSERT INTO t VALUES (2);").is_err());
    cluster.nodes[1].restart();
    assert_eq!(
        sqlite3_ok(&replica, "SELECT a FROM t;"),
        "1",
        "a replica starts without its primary"
    );
    cluster.nodes[0].start();
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t VALUES (3);");
    cluster.converge("x.db");
}
