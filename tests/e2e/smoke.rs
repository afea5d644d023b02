//! The shortest way through everything.

use crate::harness::{Cluster, PATIENCE, sqlite3_ok, until};

#[test]
fn fuse_rows_inserted_on_the_primary_are_read_on_the_replicas() {
    let cluster = Cluster::start(3);
    let db = cluster.path("app.db");
    sqlite3_ok(
        &db,
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1),(2),(3);",
    );
    cluster.converge("app.db");
    for node in &cluster.nodes {
        assert_eq!(sqlite3_ok(&node.path("app.db"), "SELECT sum(a) FROM t;"), "6", "{}", node.name);
    }
}

#[test]
fn fuse_a_single_node_serves_and_survives_a_clean_restart() {
    let mut cluster = Cluster::start(1);
    let db = cluster.path("dir/app.db");
    std::fs::create_dir(cluster.path("dir")).unwrap();
    sqlite3_ok(&db, "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    let before = cluster.converge("dir/app.db");
    assert!(cluster.nodes[0].stop().unwrap().success());
    cluster.nodes[0].start();
    assert_eq!(cluster.converge("dir/app.db"), before, "a restart is no transaction");
    sqlite3_ok(&db, "INSERT INTO t VALUES (2);");
    assert!(cluster.converge("dir/app.db") > before);
}

#[test]
fn fuse_each_transaction_takes_one_number() {
    let cluster = Cluster::start(2);
    let db = cluster.path("app.db");
    sqlite3_ok(&db, "CREATE TABLE t(a);");
    cluster.converge("app.db");
    let before = cluster.primary().txid("app.db");
    for number in 0..5 {
        sqlite3_ok(&db, &format!("INSERT INTO t VALUES ({number});"));
    }
    cluster.converge("app.db");
    assert_eq!(cluster.primary().txid("app.db"), before + 5);
    sqlite3_ok(&db, "SELECT * FROM t; BEGIN; INSERT INTO t VALUES (9); ROLLBACK;");
    assert_eq!(cluster.primary().txid("app.db"), before + 5, "a rollback is no transaction");
}

#[test]
fn fuse_special_files_have_the_contents_that_litefs_gives_them() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("app.db"), "CREATE TABLE t(a);");
    cluster.converge("app.db");
    let (primary, replica) = (&cluster.nodes[0], &cluster.nodes[1]);
    assert!(!primary.path(".primary").exists(), "only a replica has .primary");
    let named = until("the replica knows its primary", PATIENCE, || {
        std::fs::read_to_string(replica.path(".primary")).ok()
    });
    assert_eq!(named, "a\n");
    assert_eq!(std::fs::read_to_string(primary.path(".lag")).unwrap(), "+000000000\n");
    let lag = std::fs::read_to_string(replica.path(".lag")).unwrap();
    assert!(lag.len() == 11 && lag.starts_with('+') && lag.ends_with('\n'), "{lag:?}");
    let pos = std::fs::read_to_string(primary.path("app.db-pos")).unwrap();
    assert_eq!(pos.len(), 34, "{pos:?}");
    assert_eq!(&pos[16..17], "/");
}
