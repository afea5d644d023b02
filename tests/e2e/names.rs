//! Names that are legal for Linux, however odd.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::harness::{Cluster, sqlite3, sqlite3_ok};

#[test]
fn fuse_odd_names_replicate() {
    let cluster = Cluster::start(2);
    let longest = vec![b'x'; 255 - "-journal".len()];
    let names: [&[u8]; 12] = [
        b"with space.db",
        b"new\nline.db",
        b"tab\tand'quote\".db",
        b"caf\xc3\xa9.db",
        b"not-utf8-\xff\xfe.db",
        b"-leading-dash.db",
        b".hidden",
        b"no-extension",
        b"x-wal.db",
        b"[glob]*?.db",
        b"percent%20.db",
        &longest,
    ];
    for name in names {
        let name = PathBuf::from(OsStr::from_bytes(name));
        sqlite3_ok(&cluster.path(&name), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
        sqlite3_ok(&cluster.path(&name), "PRAGMA journal_mode=WAL; INSERT INTO t VALUES (2);");
        cluster.converge(&name);
    }
    assert!(cluster.primary().status().is_some());
}

#[test]
fn fuse_a_name_too_long_for_a_journal_is_refused_by_sqlite_and_harms_nobody() {
    let cluster = Cluster::start(2);
    let name = "y".repeat(255);
    assert!(sqlite3(&cluster.path(&name), "CREATE TABLE t(a);").is_err());
    let error = std::fs::write(cluster.path("z".repeat(256)), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    sqlite3_ok(&cluster.path("x.db"), "CREATE TABLE t(a);");
    cluster.converge("x.db");
}

#[test]
fn fuse_files_named_like_companions_are_ordinary_without_their_database() {
    let cluster = Cluster::start(2);
    for name in ["alone-wal", "alone-journal", "alone-shm"] {
        std::fs::write(cluster.path(name), "nothing of SQLite's").unwrap();
        assert_eq!(std::fs::read_to_string(cluster.path(name)).unwrap(), "nothing of SQLite's");
        std::fs::remove_file(cluster.path(name)).unwrap();
    }
    sqlite3_ok(&cluster.path("really-wal"), "CREATE TABLE t(a); INSERT INTO t VALUES (1);");
    cluster.converge("really-wal");
}

#[test]
fn fuse_databases_deep_in_the_tree() {
    let cluster = Cluster::start(2);
    let directory: PathBuf = (0..30).map(|n| format!("level{n}")).collect();
    std::fs::create_dir_all(cluster.path(&directory)).unwrap();
    let name = directory.join("x.db");
    sqlite3_ok(&cluster.path(&name), "PRAGMA journal_mode=WAL; CREATE TABLE t(a);");
    cluster.converge(&name);
}
