//! Page sizes, VACUUM, auto-vacuum, several databases in one transaction, drop and re-create.

use crate::harness::{Cluster, Worker, sqlite3_ok};

const FILL: &str = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 300) \
                    INSERT INTO t(b) SELECT randomblob(i % 7 * 300) FROM n;";

#[test]
fn fuse_every_page_size_in_both_kinds_of_journal() {
    let cluster = Cluster::start(2);
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        for mode in ["wal", "delete"] {
            let name = format!("{mode}{page_size}.db");
            let mut db = Worker::on(&cluster.path(&name));
            db.ok(&format!("PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}"));
            db.ok("CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
            db.ok(FILL);
            db.ok("DELETE FROM t WHERE id % 3 = 0");
            assert_eq!(db.value("PRAGMA page_size"), page_size.to_string());
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_vacuum_and_vacuum_with_a_new_page_size() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
    for mode in ["wal", "delete", "truncate", "persist"] {
        db.ok(&format!("PRAGMA journal_mode={mode}"));
        db.ok(FILL);
        db.ok("DELETE FROM t WHERE id % 2 = 0");
        db.ok("VACUUM");
        cluster.converge("x.db");
    }
    let mut reader = Worker::on(&cluster.replicas()[0].path("x.db"));
    for page_size in [1024, 65536, 512, 8192, 4096] {
        db.ok(&format!("PRAGMA journal_mode=DELETE; PRAGMA page_size={page_size}; VACUUM"));
        assert_eq!(db.value("PRAGMA page_size"), page_size.to_string());
        db.ok("INSERT INTO t(b) VALUES (randomblob(5000))");
        cluster.converge("x.db");
        assert_eq!(reader.value("SELECT count(*) FROM t"), db.value("SELECT count(*) FROM t"));
        db.ok("PRAGMA journal_mode=WAL");
        db.ok(FILL);
        cluster.converge("x.db");
    }
}

#[test]
fn fuse_auto_vacuum_full_and_incremental() {
    let cluster = Cluster::start(2);
    for kind in ["FULL", "INCREMENTAL"] {
        for mode in ["wal", "delete", "persist"] {
            let name = format!("{kind}-{mode}.db");
            let mut db = Worker::on(&cluster.path(&name));
            db.ok(&format!("PRAGMA auto_vacuum={kind}; PRAGMA journal_mode={mode}"));
            db.ok("CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
            for round in 0..3 {
                db.ok(FILL);
                db.ok(&format!("DELETE FROM t WHERE id % 4 <> {round}"));
                cluster.converge(&name);
                db.ok("PRAGMA incremental_vacuum(10)");
                db.ok("PRAGMA incremental_vacuum");
                cluster.converge(&name);
            }
            db.ok("DROP TABLE t; CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_a_database_grows_again_after_a_shrink() {
    // A page beyond the shrunk size may still have an old image in the WAL or in the file.
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let mut db = Worker::on(&cluster.path(&name));
        db.ok(&format!(
            "PRAGMA auto_vacuum=FULL; PRAGMA journal_mode={mode}; PRAGMA secure_delete=0"
        ));
        db.ok("CREATE TABLE t(id INTEGER PRIMARY KEY, b); CREATE TABLE u(a)");
        for _ in 0..4 {
            db.ok(FILL);
            db.ok("DELETE FROM t");
            db.ok(&format!("BEGIN; {FILL} INSERT INTO u VALUES (1); DELETE FROM t; COMMIT"));
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_a_transaction_over_attached_databases() {
    let cluster = Cluster::start(2);
    for mode in ["delete", "truncate", "persist", "wal"] {
        let names = ["one", "two", "three"].map(|stem| format!("{mode}-{stem}.db"));
        let mut db = Worker::on(&cluster.path(&names[0]));
        for (schema, name) in ["two", "three"].iter().zip(&names[1..]) {
            db.ok(&format!("ATTACH '{}' AS {schema}", cluster.path(name).display()));
        }
        for schema in ["main", "two", "three"] {
            db.ok(&format!("PRAGMA {schema}.journal_mode={mode}"));
            db.ok(&format!("CREATE TABLE {schema}.t(a)"));
        }
        for round in 0..5 {
            db.ok(&format!(
                "BEGIN; INSERT INTO main.t VALUES ({round}); INSERT INTO two.t VALUES ({round}); \
                 INSERT INTO three.t VALUES ({round}); COMMIT"
            ));
        }
        for name in &names {
            cluster.converge(name);
            let replica = cluster.replicas()[0].path(name);
            assert_eq!(sqlite3_ok(&replica, "SELECT count(*) FROM t;"), "5", "{name}");
        }
        let leftover: Vec<_> = std::fs::read_dir(&cluster.nodes[0].mount)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("-mj"))
            .collect();
        assert!(leftover.is_empty(), "{leftover:?}");
    }
}

#[test]
fn fuse_drop_and_recreate() {
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete"] {
        for round in 0..4 {
            let page_size = [4096, 1024, 4096, 65536][round];
            let mut db = Worker::on(&cluster.path("x.db"));
            db.ok(&format!("PRAGMA page_size={page_size}; PRAGMA journal_mode={mode}"));
            db.ok("CREATE TABLE t(id INTEGER PRIMARY KEY, b)");
            for _ in 0..=round {
                db.ok(FILL);
            }
            if round % 2 == 0 {
                cluster.converge("x.db");
            }
            drop(db);
            std::fs::remove_file(cluster.path("x.db")).unwrap();
            if round == 3 {
                cluster.gone("x.db");
            }
        }
    }
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE last(a);");
    cluster.converge("x.db");
}

#[test]
fn fuse_a_replica_reader_survives_drop_and_recreate() {
    let cluster = Cluster::start(2);
    sqlite3_ok(
        &cluster.path("x.db"),
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1);",
    );
    cluster.converge("x.db");
    let mut reader = Worker::on(&cluster.replicas()[0].path("x.db"));
    reader.ok("BEGIN; SELECT * FROM t");
    std::fs::remove_file(cluster.path("x.db")).unwrap();
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a); INSERT INTO t VALUES (2);");
    assert_eq!(reader.value("SELECT a FROM t"), "1", "it goes on with the file it opened");
    cluster.converge("x.db");
    drop(reader);
    assert_eq!(sqlite3_ok(&cluster.replicas()[0].path("x.db"), "SELECT a FROM t;"), "2");
}

#[test]
fn fuse_full_text_and_blob_io() {
    let cluster = Cluster::start(2);
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let mut db = Worker::on(&cluster.path(&name));
        db.ok(&format!("PRAGMA journal_mode={mode}; CREATE VIRTUAL TABLE f USING fts5(text)"));
        for round in 0..10 {
            db.ok(&format!(
                "BEGIN; WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 100) \
                 INSERT INTO f SELECT hex(randomblob(40)) || ' word' || (i * {round}) FROM n; COMMIT"
            ));
        }
        db.ok("INSERT INTO f(f) VALUES ('optimize'); DELETE FROM f WHERE rowid % 3 = 0");
        cluster.converge(&name);
    }
}
