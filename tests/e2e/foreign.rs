//! Databases that arrive or leave by other ways than SQL: cp, mv, .backup, .restore, VACUUM INTO.

use std::path::Path;
use std::process::Command;

use crate::harness::{Cluster, Worker, sqlite3_ok};

fn sh(command: &str, args: &[&Path]) {
    let output = Command::new(command).args(args).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A database outside the mount.
fn outside(cluster: &Cluster, name: &str, setup: &str) -> std::path::PathBuf {
    let path = cluster.outside().join(name);
    sqlite3_ok(&path, setup);
    path
}

const ROWS: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, b); \
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < 500) \
    INSERT INTO t(b) SELECT randomblob(500) FROM n;";

#[test]
fn fuse_cp_into_the_mount() {
    let cluster = Cluster::start(2);
    let source = outside(&cluster, "source.db", ROWS);
    sh("cp", &[&source, &cluster.path("x.db")]);
    cluster.converge("x.db");
    assert_eq!(sqlite3_ok(&cluster.replicas()[0].path("x.db"), "SELECT count(*) FROM t;"), "500");
    // And over it, with other contents, sizes and page sizes.
    for page_size in [1024, 8192] {
        let name = format!("other{page_size}.db");
        let other = outside(
            &cluster,
            &name,
            &format!(
                "PRAGMA page_size={page_size}; {ROWS} {}",
                "DELETE FROM t WHERE id > 100; VACUUM;"
            ),
        );
        sh("cp", &[&other, &cluster.path("x.db")]);
        cluster.converge("x.db");
        sqlite3_ok(&cluster.path("x.db"), "INSERT INTO t(b) VALUES (1);");
        cluster.converge("x.db");
    }
}

#[test]
fn fuse_mv_into_the_mount_and_inside_it() {
    let cluster = Cluster::start(2);
    let source = outside(&cluster, "source.db", ROWS);
    sh("mv", &[&source, &cluster.path("x.db")]);
    let before = cluster.converge("x.db");
    sh("mv", &[&cluster.path("x.db"), &cluster.path("y.db")]);
    assert_eq!(cluster.converge("y.db"), before, "a rename is no transaction");
    cluster.gone("x.db");
    sqlite3_ok(&cluster.path("y.db"), "INSERT INTO t(b) VALUES (1);");
    cluster.converge("y.db");
    // Into a directory, and a whole directory.
    std::fs::create_dir(cluster.path("dir")).unwrap();
    std::fs::rename(cluster.path("y.db"), cluster.path("dir/z.db")).unwrap();
    cluster.converge("dir/z.db");
    std::fs::rename(cluster.path("dir"), cluster.path("other")).unwrap();
    cluster.converge("other/z.db");
    cluster.gone("dir/z.db");
    sqlite3_ok(&cluster.path("other/z.db"), "INSERT INTO t(b) VALUES (2);");
    cluster.converge("other/z.db");
}

#[test]
fn fuse_a_rename_over_another_database_replaces_it() {
    let cluster = Cluster::start(2);
    sqlite3_ok(&cluster.path("live.db"), "CREATE TABLE t(a); INSERT INTO t VALUES ('old');");
    cluster.converge("live.db");
    sqlite3_ok(
        &cluster.path("new.db"),
        "PRAGMA page_size=1024; CREATE TABLE t(a); INSERT INTO t VALUES ('new');",
    );
    cluster.converge("new.db");
    std::fs::rename(cluster.path("new.db"), cluster.path("live.db")).unwrap();
    cluster.gone("new.db");
    cluster.converge("live.db");
    assert_eq!(sqlite3_ok(&cluster.replicas()[0].path("live.db"), "SELECT a FROM t;"), "new");
    // As `rsync` does it: a temporary name inside the mount, then the rename.
    let source =
        outside(&cluster, "source.db", "CREATE TABLE t(a); INSERT INTO t VALUES ('rsynced');");
    std::fs::copy(&source, cluster.path(".live.db.Xy12")).unwrap();
    std::fs::rename(cluster.path(".live.db.Xy12"), cluster.path("live.db")).unwrap();
    cluster.converge("live.db");
    assert_eq!(sqlite3_ok(&cluster.replicas()[0].path("live.db"), "SELECT a FROM t;"), "rsynced");
}

#[test]
fn fuse_a_rename_takes_the_companions_along() {
    let cluster = Cluster::start(2);
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
    db.ok(ROWS);
    // A process that dies leaves its WAL behind.
    db.kill9();
    for suffix in ["", "-wal"] {
        std::fs::rename(
            cluster.path(format!("x.db{suffix}")),
            cluster.path(format!("y.db{suffix}")),
        )
        .unwrap();
    }
    assert_eq!(sqlite3_ok(&cluster.path("y.db"), "SELECT count(*) FROM t;"), "500");
    cluster.converge("y.db");
    cluster.gone("x.db");
}

#[test]
fn fuse_backup_restore_and_vacuum_into() {
    let cluster = Cluster::start(2);
    let source = outside(&cluster, "source.db", ROWS);
    sqlite3_ok(&source, &format!(".backup '{}'", cluster.path("backup.db").display()));
    cluster.converge("backup.db");
    sqlite3_ok(&source, &format!("VACUUM INTO '{}';", cluster.path("into.db").display()));
    cluster.converge("into.db");
    sqlite3_ok(&cluster.path("restored.db"), "PRAGMA journal_mode=WAL; CREATE TABLE old(a);");
    sqlite3_ok(&cluster.path("restored.db"), &format!(".restore '{}'", source.display()));
    cluster.converge("restored.db");
    for name in ["backup.db", "into.db", "restored.db"] {
        assert_eq!(
            sqlite3_ok(&cluster.replicas()[0].path(name), "SELECT count(*) FROM t;"),
            "500",
            "{name}"
        );
    }
    // And out again, from the replica.
    let copy = cluster.outside().join("copy.db");
    sqlite3_ok(&cluster.replicas()[0].path("backup.db"), &format!(".backup '{}'", copy.display()));
    assert_eq!(sqlite3_ok(&copy, "SELECT count(*) FROM t;"), "500");
}

#[test]
fn fuse_other_files_stay_local() {
    let cluster = Cluster::start(2);
    std::fs::write(cluster.path("notes.txt"), "hello").unwrap();
    std::fs::create_dir(cluster.path("dir")).unwrap();
    std::fs::write(cluster.path("dir/deep.bin"), vec![7; 100_000]).unwrap();
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a);");
    cluster.converge("x.db");
    assert_eq!(std::fs::read_to_string(cluster.path("notes.txt")).unwrap(), "hello");
    assert_eq!(std::fs::read(cluster.path("dir/deep.bin")).unwrap(), vec![7; 100_000]);
    assert!(!cluster.replicas()[0].path("notes.txt").exists());
}
