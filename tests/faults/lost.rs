//! What the daemon keeps beside a database is lost or damaged: page sums while it runs, records of the log while it is
//! stopped, pages of the database itself.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::harness::{Cluster, Node, connect, keys, sql, until};

const DB: &str = "x.db";

/// Rows of one page each, more pages than a block of sums covers.
fn fill(cluster: &Cluster, mode: &str) {
    sql(
        &cluster.a.path(DB),
        &format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 700)
             INSERT INTO t SELECT i, randomblob(3000) FROM n"
        ),
    );
}

fn log_dir(node: &Node, db: &str) -> PathBuf {
    let id = node.status(db)["id"].as_str().unwrap().to_owned();
    node.data.join("log").join(id)
}

/// Files of a directory that hold records.
fn segments(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect();
    found.sort();
    found
}

/// After an orderly stop the daemon opens log and sums only when a transaction needs them.
fn restart(node: &mut Node) {
    assert!(node.stop().unwrap().success());
    node.start();
}

type Harm = fn(&std::path::Path);

const HARMS: [(&str, Harm); 4] = [
    ("all bits of a block flipped", |sums| {
        let file = File::options().read(true).write(true).open(sums).unwrap();
        let mut block = [0; 4096];
        file.read_exact_at(&mut block, 8192).unwrap();
        file.write_all_at(&block.map(|byte| !byte), 8192).unwrap();
    }),
    ("cut to its header", |sums| {
        File::options().write(true).open(sums).unwrap().set_len(8192).unwrap();
    }),
    ("cut to nothing", |sums| File::options().write(true).open(sums).unwrap().set_len(0).unwrap()),
    ("removed", |sums| fs::remove_file(sums).unwrap()),
];

/// A transaction of each kind after the sums are lost: some rows of many, free pages, growth, shrinking.
const WORK: [&str; 5] = [
    "UPDATE t SET b = randomblob(3000) WHERE a % 50 = 7",
    "DELETE FROM t WHERE a BETWEEN 100 AND 200",
    "INSERT INTO t SELECT a + 5000, randomblob(3000) FROM t WHERE a < 150",
    "DELETE FROM t WHERE a > 400; VACUUM",
    "INSERT INTO t VALUES (9000, 1)",
];

#[test]
fn fuse_page_sums_lost_while_the_daemon_runs_are_computed_anew() {
    let mut cluster = Cluster::start();
    for mode in ["wal", "delete", "persist"] {
        println!("{mode}");
        drop(fs::remove_file(cluster.a.path(DB)));
        fill(&cluster, mode);
        for (what, harm) in HARMS {
            for work in WORK {
                // In the WAL, not yet in the file.
                let other = connect(&cluster.a.path(DB));
                other.execute_batch("UPDATE t SET b = randomblob(2999) WHERE a = 3").unwrap();
                drop(other);
                cluster.converge(DB);
                restart(&mut cluster.a);
                harm(&log_dir(&cluster.a, DB).join("sums"));
                let (first, second) = work.split_once("; ").unwrap_or((work, ""));
                let db = connect(&cluster.a.path(DB));
                for statement in [first, second] {
                    db.execute_batch(statement)
                        .unwrap_or_else(|error| panic!("{mode}, {what}: {statement}: {error}"));
                }
                drop(db);
                cluster.converge(DB);
                assert_eq!(cluster.a.quarantine(DB), None, "{mode}, {what}");
            }
            sql(
                &cluster.a.path(DB),
                "DELETE FROM t; WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 700)
                 INSERT INTO t SELECT i, randomblob(3000) FROM n",
            );
        }
    }
    assert!(cluster.a.log().contains("page sums were lost: computed anew"));
    cluster.a.restart();
    cluster.converge(DB);
}

#[test]
fn fuse_page_sums_lost_on_a_replica_are_a_fresh_copy() {
    let mut cluster = Cluster::start();
    fill(&cluster, "wal");
    cluster.converge(DB);
    restart(&mut cluster.b);
    fs::remove_file(log_dir(&cluster.b, DB).join("sums")).unwrap();
    sql(&cluster.a.path(DB), WORK[0]);
    cluster.converge(DB);
    until("the replica is well", || cluster.b.quarantine(DB).is_none().then_some(()));
    sql(&cluster.a.path(DB), WORK[1]);
    cluster.converge(DB);
}

#[test]
fn fuse_a_page_that_contradicts_the_log_is_refused_and_named() {
    for mode in ["wal", "delete"] {
        let mut cluster = Cluster::start();
        fill(&cluster, mode);
        cluster.converge(DB);
        restart(&mut cluster.a);
        HARMS[1].1(&log_dir(&cluster.a, DB).join("sums"));
        let file = File::options().write(true).open(cluster.a.backing(DB)).unwrap();
        file.write_all_at(b"damage", 4096 * 300 + 2000).unwrap();
        let before = cluster.a.pos(DB);
        let error = connect(&cluster.a.path(DB)).execute_batch(WORK[0]).unwrap_err();
        println!("{mode}: {error}");
        let reason = cluster.a.quarantine(DB).unwrap();
        assert!(
            reason.contains("changed a page between") && reason.contains("good copy"),
            "{reason}"
        );
        assert_eq!(cluster.a.pos(DB), before, "{mode}: it must not become part of the history");
        assert_eq!(keys(&cluster.b.path(DB)).len(), 700, "{mode}");
        sql(&cluster.a.path("other.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        cluster.converge("other.db");
    }
}

#[test]
fn fuse_a_log_that_lost_durable_records_is_found_at_the_start() {
    type Loss = fn(&[PathBuf]);
    let losses: [(&str, Loss); 3] = [
        ("cut in the middle", |segments| {
            let last = File::options().write(true).open(segments.last().unwrap()).unwrap();
            let len = last.metadata().unwrap().len();
            last.set_len(len / 2).unwrap();
        }),
        ("emptied of records", |segments| {
            for segment in segments {
                File::options().write(true).open(segment).unwrap().set_len(1024).unwrap();
            }
        }),
        ("removed", |segments| {
            segments.iter().for_each(|segment| fs::remove_file(segment).unwrap());
        }),
    ];
    for mode in ["wal", "delete"] {
        for (what, lose) in losses {
            let mut cluster = Cluster::start();
            fill(&cluster, mode);
            sql(&cluster.a.path(DB), "INSERT INTO t VALUES (-1, 1); INSERT INTO t VALUES (-2, 1);");
            cluster.converge(DB);
            restart(&mut cluster.a);
            for stops in [false, true] {
                let what = format!("{mode}, {what}, stopped: {stops}");
                // On a replica: a fresh copy.
                let dir = log_dir(&cluster.b, DB);
                if stops {
                    assert!(cluster.b.stop().unwrap().success());
                } else {
                    cluster.b.kill9();
                }
                lose(&segments(&dir));
                cluster.b.start();
                cluster.converge(DB);
                until("a fresh copy", || cluster.b.quarantine(DB).is_none().then_some(()));
                println!("{what}: replica");
            }
            let dir = log_dir(&cluster.a, DB);
            let pos = cluster.b.pos(DB);
            cluster.a.kill9();
            lose(&segments(&dir));
            // It is said at every start, not only at the first.
            for _ in 0..2 {
                cluster.a.start();
                let reason = cluster.a.quarantine(DB).unwrap();
                assert!(
                    reason.contains("log") && reason.contains("remove /"),
                    "{mode}, {what}: {reason}"
                );
                println!("{reason}");
                assert_eq!(keys(&cluster.a.path(DB)).len(), 702, "{mode}, {what}: reads go on");
                let written =
                    connect(&cluster.a.path(DB)).execute_batch("INSERT INTO t VALUES (-3, 1)");
                assert!(written.is_err(), "{mode}, {what}");
                assert_eq!(cluster.b.pos(DB), pos, "{mode}, {what}: the replica keeps what it has");
                cluster.a.kill9();
            }
            // What the message says.
            fs::remove_dir_all(&dir).unwrap();
            cluster.a.start();
            sql(&cluster.a.path(DB), "INSERT INTO t VALUES (-3, 1)");
            cluster.converge(DB);
            assert_eq!(keys(&cluster.b.path(DB)).len(), 703, "{mode}, {what}");
        }
    }
}
