//! `weir verify`: what it finds, what becomes of it, and that it finds nothing where nothing is.

use std::fs::{File, FileTimes};
use std::os::unix::fs::FileExt as _;

use serde_json::Value;

use crate::harness::{Cluster, Node, Options, PATIENCE, Worker, sqlite3_ok, until};

const SOME_ROWS: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b); \
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 300) \
    INSERT INTO t SELECT i, randomblob(900) FROM n;";

/// Runs `weir verify --json`: whether it says that all is well, and what it says of each database.
fn verify(node: &Node, db: &str) -> (bool, Value) {
    let output = node.weir(&["verify", "--json", db]);
    let text = String::from_utf8_lossy(&output.stdout);
    let Ok(found) = serde_json::from_str::<Value>(text.trim()) else {
        panic!("{text}{}", String::from_utf8_lossy(&output.stderr));
    };
    assert_eq!(found["ok"].as_bool(), Some(output.status.success()), "{found:#}");
    (output.status.success(), found)
}

/// Changes a byte of a page in the plain file, as a disk would: the file looks untouched.
fn damage(node: &Node, db: &str, page: u64) {
    let file = File::options().read(true).write(true).open(node.backing(db)).unwrap();
    let before = file.metadata().unwrap();
    let offset = (page - 1) * 4096 + 3000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap());
    file.set_times(times).unwrap();
}

/// Pages that travelled when the copy was installed that is the newest in a node's log.
fn pages_received(node: &Node) -> u64 {
    let text = node.log_text();
    let line =
        text.lines().rfind(|line| line.contains("copy of pages is installed")).expect("a copy");
    let received = line.split("received=").nth(1).expect("how many pages").trim();
    received.split_whitespace().next().unwrap().parse().unwrap()
}

fn is_mended(cluster: &Cluster, db: &str) {
    let replica = &cluster.replicas()[0];
    until("the database is mended", PATIENCE, || {
        let status = replica.status()?;
        let all = status["databases"].as_array()?.clone();
        let one = all.into_iter().find(|one| one["name"] == db)?;
        (one["state"] == "ok").then_some(())
    });
    let (is_well, found) = verify(replica, db);
    assert!(is_well, "{found:#}");
    assert_eq!(found["primary"]["result"], "equal");
    cluster.converge(db);
}

#[test]
fn fuse_verify_on_a_replica_mends_a_page_that_its_disk_changed() {
    let cluster = Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    let replica = &cluster.replicas()[0];
    for (mode, is_open) in [("wal", false), ("wal", true), ("delete", false), ("delete", true)] {
        let db = format!("{mode}-{is_open}.db");
        sqlite3_ok(&cluster.path(&db), &format!("PRAGMA journal_mode={mode}; {SOME_ROWS}"));
        cluster.converge(&db);
        let mut reader = is_open.then(|| Worker::on(&replica.path(&db)));
        if let Some(reader) = &mut reader {
            assert_eq!(reader.value("SELECT count(*) FROM t"), "300");
        }
        for node in &cluster.nodes {
            let (is_well, found) = verify(node, &db);
            assert!(is_well, "{db}: {found:#}");
            assert_eq!(found["primary"]["compared"].as_bool(), (node.name == "b").then_some(true));
        }
        damage(replica, &db, 33);
        let (is_well, found) = verify(replica, &db);
        assert!(!is_well, "{db}: {found:#}");
        assert_eq!(found["differing_pages"], serde_json::json!([33]), "{db}: {found:#}");
        assert_eq!(found["primary"]["differing_pages"], serde_json::json!([33]), "{db}: {found:#}");
        is_mended(&cluster, &db);
        assert!(pages_received(replica) <= 2, "{db}: only what differs travels");
        if let Some(reader) = &mut reader {
            assert_eq!(reader.value("SELECT count(*) FROM t"), "300", "{db}");
            assert_eq!(reader.value("PRAGMA integrity_check"), "ok", "{db}");
        }
        sqlite3_ok(&cluster.path(&db), "INSERT INTO t VALUES (1000, 1);");
        cluster.converge(&db);
    }
}

#[test]
fn fuse_verify_finds_what_changed_while_the_daemon_did_not_run() {
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    for mode in ["wal", "delete"] {
        for is_killed in [false, true] {
            let db = format!("{mode}-{is_killed}.db");
            sqlite3_ok(&cluster.path(&db), &format!("PRAGMA journal_mode={mode}; {SOME_ROWS}"));
            cluster.converge(&db);
            let replica = &mut cluster.nodes[1];
            if is_killed {
                replica.kill9();
            } else {
                assert!(replica.stop().unwrap().success());
            }
            damage(replica, &db, 44);
            replica.start();
            // What the start noticed is being mended already; else it is found now.
            let (is_well, found) = verify(&cluster.nodes[1], &db);
            let is_named = cluster.nodes[1].log_text().contains("quarantined");
            assert!(!is_well || is_named, "{db}: {found:#}");
            is_mended(&cluster, &db);
        }
    }
}

#[test]
fn fuse_verify_finds_nothing_while_a_writer_goes_on() {
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete", "persist"] {
        let db = format!("{mode}.db");
        let mut writer = Worker::on(&cluster.path(&db));
        writer.ok(&format!(
            "PRAGMA journal_mode={mode}; PRAGMA synchronous=NORMAL; PRAGMA auto_vacuum=FULL; {SOME_ROWS}"
        ));
        let mut writer = writer.count(
            "REPLACE INTO t VALUES (?1 * 7919 % 500, randomblob(?1 * 31 % 9000))",
            0,
            1_000_000,
        );
        writer.wait(10);
        cluster.replicas()[0].weir(&["status", "--wait"]);
        let mut compared = 0;
        for _ in 0..8 {
            for node in &cluster.nodes {
                let (is_well, found) = verify(node, &db);
                assert!(is_well, "{mode}: {found:#}");
                compared += u32::from(found["primary"]["compared"].as_bool() == Some(true));
            }
            writer.wait(writer.acked.len() + 20);
        }
        assert!(compared > 0, "{mode}: never compared with the primary");
        writer.kill9();
        // It may have left a hot journal: whoever reads first rolls it back.
        sqlite3_ok(&cluster.path(&db), "SELECT count(*) FROM t;");
        cluster.converge(&db);
    }
}

#[test]
fn fuse_verify_without_a_primary_says_that_it_compared_less() {
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    sqlite3_ok(&cluster.path("x.db"), SOME_ROWS);
    cluster.converge("x.db");
    cluster.nodes[0].stop();
    until("the replica notices", PATIENCE, || {
        (!cluster.nodes[1].path(".primary").exists()).then_some(())
    });
    let (is_well, found) = verify(&cluster.nodes[1], "x.db");
    assert!(is_well, "{found:#}");
    assert_eq!(found["primary"]["compared"].as_bool(), Some(false), "{found:#}");
    // Its own sums tell of damage without the primary.
    damage(&cluster.nodes[1], "x.db", 20);
    let (is_well, found) = verify(&cluster.nodes[1], "x.db");
    assert!(!is_well, "{found:#}");
    cluster.nodes[0].start();
    is_mended(&cluster, "x.db");
}

#[test]
fn fuse_verify_on_the_primary_names_the_pages_and_leaves_the_rest_to_people() {
    let cluster = Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    sqlite3_ok(&cluster.path("x.db"), SOME_ROWS);
    cluster.converge("x.db");
    damage(cluster.primary(), "x.db", 9);
    let (is_well, found) = verify(cluster.primary(), "x.db");
    assert!(!is_well, "{found:#}");
    assert_eq!(found["differing_pages"], serde_json::json!([9]));
    let output = cluster.primary().weir(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("x.db: DIFFERS") && said.contains("weir export"), "{said}");
}
