//! Names that are legal for Linux, however odd.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::harness::{Cluster, Worker, sqlite3, sqlite3_ok};

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

/// Makes a database that says who it is.
fn make(cluster: &Cluster, db: &str, who: &str) {
    let mode = if who.len().is_multiple_of(2) { "wal" } else { "delete" };
    let setup = format!(
        "PRAGMA journal_mode={mode}; CREATE TABLE who(a); INSERT INTO who VALUES ('{who}');"
    );
    sqlite3_ok(&cluster.path(db), &setup);
}

/// Every node has these databases, and nothing else; they are who they should be, and go on.
fn are(cluster: &Cluster, expected: &[(&str, &str)]) {
    for (db, who) in expected {
        cluster.converge(db);
        sqlite3_ok(
            &cluster.path(db),
            "CREATE TABLE IF NOT EXISTS more(a); INSERT INTO more VALUES (1);",
        );
        cluster.converge(db);
        for node in &cluster.nodes {
            assert_eq!(
                sqlite3_ok(&node.path(db), "SELECT a FROM who;"),
                *who,
                "{db} on {}",
                node.name
            );
        }
    }
    for node in &cluster.nodes {
        let status = node.status().unwrap();
        let names = status["databases"].as_array().unwrap().iter();
        let mut names: Vec<_> = names.map(|db| db["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        let mut wanted: Vec<_> = expected.iter().map(|(db, _)| (*db).to_owned()).collect();
        wanted.sort();
        assert_eq!(names, wanted, "databases of {}", node.name);
    }
}

fn rename(cluster: &Cluster, from: &str, to: &str) {
    std::fs::rename(cluster.path(from), cluster.path(to)).unwrap();
}

/// What is done to names, with the replica there or away.
fn change_names(cluster: &Cluster) -> Vec<(&'static str, &'static str)> {
    // Two swap their names.
    rename(cluster, "a.db", "swap.tmp");
    rename(cluster, "b.db", "a.db");
    rename(cluster, "swap.tmp", "b.db");
    // Three in a circle.
    rename(cluster, "one.db", "circle.tmp");
    rename(cluster, "three.db", "one.db");
    rename(cluster, "two.db", "three.db");
    rename(cluster, "circle.tmp", "two.db");
    // A name gets another database; another name loses its database and gets a new one.
    rename(cluster, "old.db", "kept.db");
    make(cluster, "old.db", "new at old.db");
    std::fs::remove_file(cluster.path("gone.db")).unwrap();
    make(cluster, "gone.db", "new at gone.db");
    // A directory moves with what is in it, and its name is used again.
    rename(cluster, "dir", "moved");
    std::fs::create_dir_all(cluster.path("dir/sub")).unwrap();
    make(cluster, "dir/sub/x.db", "new in dir");
    // Two directories swap their names.
    rename(cluster, "left", "swap");
    rename(cluster, "right", "left");
    rename(cluster, "swap", "right");
    // What was a database is a directory now, and the other way round.
    rename(cluster, "file", "was-file.db");
    std::fs::create_dir(cluster.path("file")).unwrap();
    make(cluster, "file/x.db", "below file");
    rename(cluster, "place/x.db", "was-below-place.db");
    std::fs::remove_dir(cluster.path("place")).unwrap();
    make(cluster, "place", "at place");
    vec![
        ("a.db", "b"),
        ("b.db", "a"),
        ("one.db", "three"),
        ("two.db", "one"),
        ("three.db", "two"),
        ("kept.db", "old"),
        ("old.db", "new at old.db"),
        ("gone.db", "new at gone.db"),
        ("moved/sub/x.db", "dir x"),
        ("moved/y.db", "dir y"),
        ("dir/sub/x.db", "new in dir"),
        ("left/x.db", "right"),
        ("right/x.db", "left"),
        ("was-file.db", "file"),
        ("file/x.db", "below file"),
        ("was-below-place.db", "place"),
        ("place", "at place"),
    ]
}

fn names_change(is_away: bool) {
    let mut cluster = Cluster::start(2);
    for dir in ["dir/sub", "left", "right", "place"] {
        std::fs::create_dir_all(cluster.path(dir)).unwrap();
    }
    let before = [
        ("a.db", "a"),
        ("b.db", "b"),
        ("one.db", "one"),
        ("two.db", "two"),
        ("three.db", "three"),
        ("old.db", "old"),
        ("gone.db", "gone"),
        ("dir/sub/x.db", "dir x"),
        ("dir/y.db", "dir y"),
        ("left/x.db", "left"),
        ("right/x.db", "right"),
        ("file", "file"),
        ("place/x.db", "place"),
    ];
    for (db, who) in before {
        make(&cluster, db, who);
    }
    are(&cluster, &before);
    if is_away {
        cluster.nodes[1].kill9();
        let after = change_names(&cluster);
        cluster.nodes[1].start();
        are(&cluster, &after);
    } else {
        // Somebody reads each of them on the replica.
        let mut reader = Worker::spawn();
        for (n, (db, who)) in (0..).zip(before) {
            reader.open(n, &cluster.replicas()[0].path(db)).unwrap();
            assert_eq!(reader.run_on(n, "SELECT a FROM who").unwrap()[0][0], who);
        }
        let after = change_names(&cluster);
        are(&cluster, &after);
        for (n, (db, who)) in (0..).zip(before) {
            // Who has a file open has that file, whatever its name is; a removed one may be refused.
            if db != "gone.db" {
                assert_eq!(reader.run_on(n, "SELECT a FROM who").unwrap()[0][0], who, "{db}");
            }
        }
        drop(reader);
        are(&cluster, &after);
    }
    cluster.nodes[0].restart();
    sqlite3_ok(&cluster.path("a.db"), "INSERT INTO who VALUES ('last');");
    cluster.converge("a.db");
    cluster.converge("moved/sub/x.db");
}

#[test]
fn fuse_names_are_swapped_moved_and_used_again_before_the_eyes_of_a_replica() {
    names_change(false);
}

#[test]
fn fuse_names_are_swapped_moved_and_used_again_while_a_replica_is_away() {
    names_change(true);
}

#[test]
fn fuse_a_database_that_is_renamed_without_its_wal_is_what_its_file_holds() {
    let cluster = Cluster::start(2);
    for is_reused in [false, true] {
        let (x, y) = (format!("x{is_reused}.db"), format!("y{is_reused}.db"));
        let mut db = Worker::on(&cluster.path(&x));
        db.ok("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        db.ok("PRAGMA wal_checkpoint(TRUNCATE)");
        for n in 0..200 {
            db.ok(&format!("INSERT INTO t VALUES ({n})"));
        }
        cluster.level(&x);
        // It dies and leaves its WAL.
        db.kill9();
        rename(&cluster, &x, &y);
        if is_reused {
            // SQLite removes a WAL that lies beside an empty database.
            sqlite3_ok(&cluster.path(&x), "CREATE TABLE other(a);");
            cluster.converge(&x);
        }
        assert_eq!(sqlite3_ok(&cluster.path(&y), "SELECT count(*) FROM t;"), "1");
        sqlite3_ok(&cluster.path(&y), "INSERT INTO t VALUES (1000);");
        cluster.converge(&y);
        let replica = cluster.replicas()[0].path(&y);
        assert_eq!(sqlite3_ok(&replica, "SELECT count(*) FROM t;"), "2");
        assert!(is_reused || !cluster.path(&x).exists());
    }
}
