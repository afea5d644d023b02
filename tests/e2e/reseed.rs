//! A replica whose position is no longer in the primary's log takes a copy of the pages, while applications read.

use crate::harness::{Cluster, Node, Options, PATIENCE, Worker, signal, sqlite3_ok, until};

/// As little log as possible is kept: whole segments of 16 MiB.
const SHORT_LOG: &str =
    "[log]\nretention_age = \"1s\"\nretention_bytes = \"1MiB\"\nretention_bytes_max = \"1MiB\"";

/// Every transaction keeps the sum and writes as many pages as one writer can.
const SETUP: &str = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER, fill); \
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 400) \
    INSERT INTO account SELECT i, 1000, randomblob(3000) FROM n; \
    CREATE TABLE counter(n); INSERT INTO counter VALUES (0);";
const STEP: &str = "UPDATE account SET balance = balance + CASE WHEN id <= 200 THEN -1 ELSE 1 END, \
    fill = randomblob(3000); UPDATE counter SET n = n + 1;";

/// The counter that a reader sees, after checking that everything else belongs to it.
fn look(reader: &mut Worker, what: &str) -> i64 {
    let row = &reader
        .ok("SELECT (SELECT n FROM counter), min(balance), max(balance), sum(balance), \
        count(*) FROM account")[0];
    let number = |index: usize| row[index].parse::<i64>().unwrap();
    let n = number(0);
    let expected = [n, 1000 - n, 1000 + n, 400_000, 400];
    assert_eq!((0..5).map(number).collect::<Vec<_>>(), expected, "{what}: a mix of two states");
    n
}

fn log_bytes(node: &Node, db: &str) -> u64 {
    let status = node.status().expect("the daemon answers");
    let databases = status["databases"].as_array().unwrap();
    databases.iter().find(|one| one["name"] == db).unwrap()["log_bytes"].as_u64().unwrap()
}

fn copies(node: &Node, db: &str) -> usize {
    let (what, name) = ("copy of pages is installed", format!("db={db} "));
    node.log_text().lines().filter(|line| line.contains(what) && line.contains(&name)).count()
}

/// Commits until the log that a frozen or stopped replica would need is gone. Returns how many steps there were.
fn outrun(cluster: &Cluster, dbs: &[String]) -> i64 {
    for db in dbs {
        let mut writer = Worker::on(&cluster.path(db));
        for _ in 0..30 {
            writer.ok(&format!("BEGIN; {STEP} COMMIT"));
        }
    }
    for db in dbs {
        until("the old log is gone", PATIENCE, || {
            (log_bytes(cluster.primary(), db) < 20 << 20).then_some(())
        });
    }
    30
}

fn with_readers(is_killed: bool) {
    // Until the copy is in the database file, the end of the daemon means another copy, which is said.
    let options =
        Options { nodes: 2, config: SHORT_LOG, errors_expected: true, ..Options::default() };
    let mut cluster = Cluster::with(options);
    let dbs = ["wal", "delete", "truncate"].map(|mode| format!("{mode}.db"));
    for db in &dbs {
        let mode = db.strip_suffix(".db").unwrap();
        sqlite3_ok(&cluster.path(db), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        cluster.level(db);
    }
    let replica = &cluster.nodes[1];
    let mut readers: Vec<Vec<Worker>> =
        dbs.iter().map(|db| (0..2).map(|_| Worker::on(&replica.path(db))).collect()).collect();
    for (db, readers) in dbs.iter().zip(&mut readers) {
        // One has its pages cached; in WAL mode the other is inside a transaction.
        readers.iter_mut().for_each(|reader| assert_eq!(look(reader, db), 0));
    }
    let mut long = Worker::on(&replica.path("wal.db"));
    long.ok("BEGIN");
    assert_eq!(look(&mut long, "the long reader"), 0);
    signal(replica.pid(), libc::SIGSTOP);
    let end = outrun(&cluster, &dbs);
    let replica = &cluster.nodes[1];
    signal(replica.pid(), libc::SIGCONT);
    let mut seen = [0; 3];
    let start = std::time::Instant::now();
    while seen != [end; 3] {
        for (which, (db, readers)) in dbs.iter().zip(&mut readers).enumerate() {
            for reader in readers {
                let now = look(reader, db);
                assert!(now >= seen[which], "{db}: back from {} to {now}", seen[which]);
                seen[which] = now;
            }
        }
        assert!(start.elapsed() < PATIENCE, "the replica is at {seen:?}");
    }
    assert_eq!(look(&mut long, "the long reader"), 0, "its snapshot holds");
    for db in &dbs {
        until("the copy is installed", PATIENCE, || (copies(replica, db) > 0).then_some(()));
    }
    // At once: what is in the WAL only must survive or come again.
    if is_killed {
        cluster.nodes[1].kill9();
    } else {
        assert!(cluster.nodes[1].stop().unwrap().success());
    }
    drop((readers, long));
    cluster.nodes[1].start();
    for db in &dbs {
        cluster.converge(db);
        let mut reader = Worker::on(&cluster.nodes[1].path(db));
        assert_eq!(look(&mut reader, db), end);
        sqlite3_ok(&cluster.path(db), STEP);
        cluster.converge(db);
    }
}

#[test]
fn fuse_readers_see_the_old_state_or_the_new_one_while_a_copy_is_installed_and_then_the_daemon_dies()
 {
    with_readers(true);
}

#[test]
fn fuse_readers_see_the_old_state_or_the_new_one_while_a_copy_is_installed_and_then_the_daemon_stops()
 {
    with_readers(false);
}

#[test]
fn fuse_a_replica_that_was_away_gets_log_as_long_as_it_is_kept_and_then_a_copy() {
    let mut cluster = Cluster::with(Options { nodes: 2, config: SHORT_LOG, ..Options::default() });
    let dbs = ["wal", "delete"].map(|mode| format!("{mode}.db"));
    for db in &dbs {
        let mode = db.strip_suffix(".db").unwrap();
        sqlite3_ok(&cluster.path(db), &format!("PRAGMA journal_mode={mode}; {SETUP}"));
        cluster.level(db);
    }
    let before = dbs.each_ref().map(|db| copies(&cluster.nodes[1], db));
    // A little: records. Many small transactions: merged. Neither is a copy.
    for steps in [3, 400] {
        assert!(cluster.nodes[1].stop().unwrap().success());
        for db in &dbs {
            let mut writer = Worker::on(&cluster.path(db));
            for _ in 0..steps {
                writer.ok(
                    "UPDATE account SET fill = randomblob(100) WHERE id = 1 + abs(random()) % 400",
                );
            }
        }
        cluster.nodes[1].start();
        for db in &dbs {
            cluster.converge(db);
        }
        assert_eq!(dbs.each_ref().map(|db| copies(&cluster.nodes[1], db)), before, "{steps} steps");
    }
    assert!(cluster.nodes[1].stop().unwrap().success());
    outrun(&cluster, &dbs);
    cluster.nodes[1].start();
    for (db, before) in dbs.iter().zip(before) {
        cluster.converge(db);
        assert_eq!(copies(&cluster.nodes[1], db), before + 1, "{db}");
    }
}

#[test]
fn fuse_log_is_kept_for_its_age_and_up_to_its_size() {
    // By age alone; by size alone. Without either it is more than 60 MB.
    for config in [
        "[log]\nretention_age = \"2s\"\nretention_bytes = \"1GiB\"",
        "[log]\nretention_age = \"24h\"\nretention_bytes = \"17MiB\"",
    ] {
        let cluster = Cluster::with(Options { nodes: 2, config, ..Options::default() });
        sqlite3_ok(&cluster.path("x.db"), &format!("PRAGMA journal_mode=WAL; {SETUP}"));
        let mut writer = Worker::on(&cluster.path("x.db"));
        for _ in 0..60 {
            writer.ok(&format!("BEGIN; {STEP} COMMIT"));
        }
        for node in &cluster.nodes {
            until("old log goes", PATIENCE, || (log_bytes(node, "x.db") <= 33 << 20).then_some(()));
        }
        cluster.converge("x.db");
    }
    let cluster = Cluster::start(1);
    sqlite3_ok(&cluster.path("x.db"), &format!("PRAGMA journal_mode=WAL; {SETUP}"));
    let mut writer = Worker::on(&cluster.path("x.db"));
    for _ in 0..60 {
        writer.ok(&format!("BEGIN; {STEP} COMMIT"));
    }
    assert!(log_bytes(cluster.primary(), "x.db") > 60 << 20, "by default it stays");
}
