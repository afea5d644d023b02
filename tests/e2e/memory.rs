//! What the daemons need of memory does not grow with the transaction.

use std::time::Duration;

use crate::harness::{Cluster, Node, Options, Worker};

/// A daemon that held what is written below would be beyond this.
const PEAK_MB_MAX: u64 = 100;

/// The most memory that a node's daemon ever had.
fn peak_mb(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn assert_small(cluster: &Cluster, what: &str) {
    for node in &cluster.nodes {
        let peak = peak_mb(node);
        println!("{what}: {} needed {peak} MB", node.name);
        assert!(peak < PEAK_MB_MAX, "{what}: {} needed {peak} MB", node.name);
    }
}

/// Loads incompressible rows in one transaction.
fn load(db: &mut Worker, table: &str, megabytes: u64) {
    db.ok(&format!("CREATE TABLE {table}(id INTEGER PRIMARY KEY, b)"));
    let rows = megabytes * 256;
    db.start(&format!(
        "WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {rows})
         INSERT INTO {table}(b) SELECT randomblob(3900) FROM i"
    ));
    db.finish(Duration::from_secs(150)).unwrap();
}

fn level_and_same(cluster: &Cluster, file: &str) {
    let pos = cluster.level(file);
    let primary = cluster.primary().image(file);
    assert_eq!(format!("{:016x}", primary.checksum()), pos.split('/').nth(1).unwrap());
    cluster.replicas()[0].image(file).assert_same(&primary, file);
}

#[test]
fn fuse_a_large_transaction_is_never_in_memory() {
    let cluster = Cluster::with(Options { nodes: 2, seconds_max: 600, ..Options::default() });
    let mut db = Worker::on(&cluster.path("x.db"));
    for (table, mode, megabytes) in [("a", "wal", 60), ("b", "delete", 120)] {
        db.ok(&format!("PRAGMA journal_mode={mode}"));
        load(&mut db, table, megabytes);
        level_and_same(&cluster, "x.db");
        assert_small(&cluster, mode);
    }
    drop(db);
    std::fs::copy(cluster.path("x.db"), cluster.path("y.db")).unwrap();
    level_and_same(&cluster, "y.db");
    assert_small(&cluster, "cp");
}

/// The log is the way to a replica for a change that is small beside the database.
#[test]
fn fuse_a_replica_takes_a_large_record_of_the_log_in_pieces() {
    let mut cluster = Cluster::with(Options { nodes: 2, seconds_max: 600, ..Options::default() });
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
    cluster.level("x.db");
    cluster.nodes[1].kill9();
    // 40 MB: beyond what is read into memory, below what is copied as pages.
    db.ok("WITH RECURSIVE i(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < 10000)
         INSERT INTO t(b) SELECT randomblob(3900) FROM i");
    db.ok("INSERT INTO t(b) VALUES (1)");
    cluster.nodes[1].start();
    cluster.converge("x.db");
}
