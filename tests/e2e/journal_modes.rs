//! Capture in every journal mode, and the ways from one to another.

use crate::harness::{Cluster, Worker, sqlite3_ok};

/// Statements that touch most kinds of pages: overflow, index, delete, update, freelist.
fn exercise(db: &mut Worker, rounds: u32) {
    db.ok("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX IF NOT EXISTS i ON t(a)");
    for round in 0..rounds {
        db.ok(&format!("INSERT INTO t(a, b) VALUES ({round}, randomblob(200))"));
        db.ok(&format!(
            "BEGIN; INSERT INTO t(a, b) SELECT {round}, randomblob(3000) FROM t LIMIT 20; \
             DELETE FROM t WHERE id % 3 = {}; UPDATE t SET a = a + 1 WHERE id % 5 = 1; COMMIT",
            round % 3
        ));
        db.ok("BEGIN; DELETE FROM t; ROLLBACK");
    }
}

fn check(mode: &str) {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    assert_eq!(db.value(&format!("PRAGMA journal_mode={mode}")), mode);
    for synchronous in ["OFF", "NORMAL", "FULL", "EXTRA"] {
        db.ok(&format!("PRAGMA synchronous={synchronous}"));
        exercise(&mut db, 4);
        cluster.converge("x.db");
    }
    // A second version of SQLite writes to the same file.
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t(a) VALUES ('from the other version');");
    exercise(&mut db, 2);
    drop(db);
    cluster.converge("x.db");
}

#[test]
fn fuse_wal() {
    check("wal");
}

#[test]
fn fuse_delete() {
    check("delete");
}

#[test]
fn fuse_truncate() {
    check("truncate");
}

#[test]
fn fuse_persist() {
    check("persist");
}

#[test]
fn fuse_memory_is_replicated_at_unlock_or_close() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    assert_eq!(db.value("PRAGMA journal_mode=memory"), "memory");
    exercise(&mut db, 3);
    drop(db);
    cluster.converge("x.db");
}

#[test]
fn fuse_off_is_replicated_at_unlock_or_close() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    assert_eq!(db.value("PRAGMA journal_mode=off"), "off");
    db.ok("CREATE TABLE t(a, b)");
    for round in 0..5 {
        db.ok(&format!("INSERT INTO t SELECT {round}, randomblob(5000)"));
        db.ok("DELETE FROM t WHERE rowid % 2 = 0");
    }
    drop(db);
    cluster.converge("x.db");
}

#[test]
fn fuse_wal_with_exclusive_locking_has_no_shm() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    assert_eq!(db.value("PRAGMA locking_mode=EXCLUSIVE"), "exclusive");
    assert_eq!(db.value("PRAGMA journal_mode=WAL"), "wal");
    exercise(&mut db, 4);
    assert!(!cluster.path("x.db-shm").exists());
    cluster.level("x.db");
    let replica = cluster.replicas()[0].path("x.db");
    assert_ne!(sqlite3_ok(&replica, "SELECT count(*) FROM t;"), "0");
    // SQLite leaves this state only together with WAL mode.
    assert_eq!(db.value("PRAGMA journal_mode=DELETE"), "delete");
    assert_eq!(db.value("PRAGMA locking_mode=NORMAL"), "normal");
    exercise(&mut db, 2);
    cluster.converge("x.db");
}

#[test]
fn fuse_delete_with_exclusive_locking() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    assert_eq!(db.value("PRAGMA locking_mode=EXCLUSIVE"), "exclusive");
    exercise(&mut db, 4);
    cluster.level("x.db");
    drop(db);
    cluster.converge("x.db");
}

#[test]
fn fuse_switches_between_wal_and_delete_both_ways() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    for round in 0..4 {
        assert_eq!(db.value("PRAGMA journal_mode=WAL"), "wal");
        exercise(&mut db, 2);
        if round % 2 == 0 {
            cluster.converge("x.db");
        }
        let mode = ["delete", "truncate", "persist", "delete"][round];
        assert_eq!(db.value(&format!("PRAGMA journal_mode={mode}")), mode);
        exercise(&mut db, 2);
        cluster.converge("x.db");
    }
}

#[test]
fn fuse_switches_while_other_connections_are_open() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    let mut other = Worker::on(&cluster.path("x.db"));
    db.ok("CREATE TABLE t(a); INSERT INTO t VALUES (1)");
    other.ok("SELECT * FROM t");
    for mode in ["wal", "delete", "wal", "truncate", "wal", "persist"] {
        // To leave WAL, SQLite needs the file alone: the other connection closes and comes back.
        if mode != "wal" {
            other.close(0);
        }
        assert_eq!(db.value(&format!("PRAGMA journal_mode={mode}")), mode);
        if mode != "wal" {
            other.open(0, &cluster.path("x.db")).unwrap();
        }
        other.ok(&format!("INSERT INTO t VALUES ('{mode}')"));
        db.ok(&format!("INSERT INTO t SELECT '{mode}' || a FROM t LIMIT 50"));
        cluster.converge("x.db");
    }
    // A reader on the replica is open across the switches.
    let mut reader = Worker::on(&cluster.replicas()[0].path("x.db"));
    let before: u64 = reader.value("SELECT count(*) FROM t").parse().unwrap();
    other.close(0);
    for mode in ["wal", "delete", "wal", "delete"] {
        assert_eq!(db.value(&format!("PRAGMA journal_mode={mode}")), mode);
        db.ok("INSERT INTO t VALUES (0)");
        cluster.level("x.db");
        reader.ok("SELECT count(*) FROM t");
    }
    cluster.converge("x.db");
    assert_eq!(reader.value("SELECT count(*) FROM t"), (before + 4).to_string());
}

#[test]
fn fuse_pages_that_sqlite_never_writes_are_replicated() {
    // LiteFS forgets pages that are allocated and freed inside one transaction: SQLite extends the
    // file and leaves holes. Debian's build hides it (secure_delete), the bundled one does not.
    let fill = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 100) \
                INSERT INTO t(b) SELECT randomblob(3000) FROM n;";
    let cases = [
        format!("{fill} INSERT INTO u VALUES (1); DELETE FROM t;"),
        format!("{fill} INSERT INTO u VALUES (1); DELETE FROM t WHERE id > 0;"),
        "INSERT INTO t(b) VALUES (randomblob(200000)); INSERT INTO u VALUES (1); UPDATE t SET b = NULL;"
            .to_owned(),
        (0..60).fold(String::new(), |text, round| {
            text + &format!("INSERT OR REPLACE INTO t(id, b) VALUES (1, randomblob({}));", 120_000 - round * 2000)
        }),
    ];
    let cluster = Cluster::start(2);
    for mode in ["delete", "truncate", "persist", "wal", "memory"] {
        for (index, case) in cases.iter().enumerate() {
            for in_first_transaction in [false, true] {
                let name = format!("{mode}-{index}-{in_first_transaction}.db");
                let mut db = Worker::on(&cluster.path(&name));
                db.ok(&format!(
                    "PRAGMA journal_mode={mode}; PRAGMA secure_delete=0; PRAGMA page_size=4096"
                ));
                let tables = "CREATE TABLE t(id INTEGER PRIMARY KEY, b); CREATE TABLE u(a);";
                if in_first_transaction {
                    db.ok(&format!("BEGIN; {tables} {case} COMMIT;"));
                } else {
                    db.ok(tables);
                    db.ok(&format!("BEGIN; {case} COMMIT;"));
                }
                if mode == "memory" {
                    drop(db);
                    cluster.converge(&name);
                    continue;
                }
                cluster.converge(&name);
                db.ok(fill);
                cluster.converge(&name);
            }
        }
    }
}

#[test]
fn fuse_a_rolled_back_transaction_that_spilled_is_none() {
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete", "truncate", "persist"] {
        let name = format!("{mode}.db");
        let mut db = Worker::on(&cluster.path(&name));
        db.ok(&format!("PRAGMA journal_mode={mode}; PRAGMA cache_size=5; CREATE TABLE t(id INTEGER PRIMARY KEY, b)"));
        db.ok("INSERT INTO t(b) VALUES (randomblob(100000))");
        let before = cluster.converge(&name);
        db.ok("BEGIN");
        for _ in 0..50 {
            db.ok("INSERT INTO t(b) VALUES (randomblob(10000))");
        }
        db.ok("UPDATE t SET b = randomblob(50000)");
        assert_eq!(cluster.primary().pos(&name).as_ref(), Some(&before), "{mode}: spilled");
        db.ok("ROLLBACK");
        let after = cluster.converge(&name);
        assert_eq!(before, after, "{mode}: a rollback is no transaction");
        db.ok("INSERT INTO t(b) VALUES (1)");
        cluster.converge(&name);
        assert_eq!(db.value("SELECT count(*) FROM t"), "2");
    }
}

#[test]
fn fuse_frames_rewritten_inside_a_transaction_are_captured_as_they_end() {
    // With a spilled cache SQLite overwrites frames of the open transaction and recomputes the
    // checksums of all later frames at the end (walRewriteChecksums).
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok(
        "PRAGMA journal_mode=WAL; PRAGMA cache_size=5; CREATE TABLE t(id INTEGER PRIMARY KEY, b)",
    );
    db.ok("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 200) \
           INSERT INTO t(b) SELECT randomblob(2000) FROM n");
    for round in 0..6 {
        db.ok("BEGIN; SAVEPOINT one");
        for step in 0..4 {
            db.ok("UPDATE t SET b = randomblob(2000) WHERE id % 2 = 0");
            db.ok("SAVEPOINT two; UPDATE t SET b = randomblob(1900) WHERE id % 3 = 0");
            if (round + step) % 2 == 0 {
                db.ok("ROLLBACK TO two");
            }
            db.ok("RELEASE two; UPDATE t SET b = randomblob(2000) WHERE id < 20");
        }
        if round % 3 == 2 {
            db.ok("ROLLBACK TO one");
        }
        db.ok("RELEASE one; COMMIT");
        cluster.converge("x.db");
        if round == 3 {
            db.ok("PRAGMA wal_checkpoint(TRUNCATE)");
        }
    }
}

#[test]
fn fuse_checkpoints_and_wal_limits_lose_nothing() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; PRAGMA journal_size_limit=20000; PRAGMA wal_autocheckpoint=20");
    exercise(&mut db, 10);
    cluster.converge("x.db");
    for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
        db.ok(&format!("PRAGMA wal_checkpoint({mode})"));
        cluster.converge("x.db");
        exercise(&mut db, 2);
        cluster.converge("x.db");
    }
    drop(db);
    assert!(!cluster.path("x.db-wal").exists(), "the last close removes the WAL");
    cluster.converge("x.db");
    sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t(a) VALUES (1);");
    cluster.converge("x.db");
}
