//! Full disks, failing fsyncs, damaged files.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::Rng as _;
use rusqlite::ffi::{SQLITE_BUSY, SQLITE_FULL, SQLITE_IOERR};

use crate::harness::{Cluster, Options, Worker, rng, seed, shim, sqlite3, sqlite3_ok};

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with the reason printed, if this user may not mount.
    fn new(path: &Path, megabytes: u32) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(path)
            .output()
            .unwrap();
        if mounted.status.success() {
            return Some(Self(path.to_owned()));
        }
        println!("skipped: no small disk: {}", String::from_utf8_lossy(&mounted.stderr));
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn fuse_a_full_disk_fails_the_commit_and_harms_nothing() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(&place.path().join("disk"), 60) else { return };
    let cluster = Cluster::with(Options {
        nodes: 2,
        data: Some(disk.0.join("data")),
        errors_expected: true,
        ..Options::default()
    });
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let mut db = Worker::on(&cluster.path(&name));
        db.ok(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"));
        db.ok("INSERT INTO t VALUES (-1, randomblob(1000))");
        cluster.converge(&name);
        let ballast = disk.0.join("ballast");
        let mut text = Vec::new();
        text.resize(usize::try_from(free_bytes(&disk.0)).unwrap().saturating_sub(4 << 20), 1);
        std::fs::write(&ballast, text).unwrap();
        let mut rows = 0;
        let error = loop {
            match db.run(&format!("INSERT INTO t VALUES ({rows}, randomblob(100000))")) {
                Ok(_) => rows += 1,
                Err(error) => break error,
            }
            assert!(rows < 1000, "the disk never fills");
        };
        assert!([SQLITE_FULL, SQLITE_IOERR].contains(&error.primary()), "{mode}: {error:?}");
        // It keeps failing, it keeps reading.
        for _ in 0..3 {
            assert!(db.run("INSERT INTO t VALUES (5000, randomblob(3000000))").is_err());
            assert_eq!(db.value("SELECT count(*) FROM t WHERE a >= 0"), rows.to_string(), "{mode}");
        }
        std::fs::remove_file(&ballast).unwrap();
        db.ok("INSERT INTO t VALUES (9000, randomblob(100000))");
        assert_eq!(db.value("SELECT count(*) FROM t WHERE a BETWEEN 0 AND 8999"), rows.to_string());
        cluster.converge(&name);
        db.ok("DELETE FROM t; VACUUM");
        cluster.converge(&name);
    }
    drop(cluster);
}

fn free_bytes(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[test]
fn fuse_a_full_disk_on_the_replica_does_not_stop_the_primary() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(&place.path().join("disk"), 30) else { return };
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    let mut db = Worker::on(&cluster.path("x.db"));
    db.ok("PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)");
    cluster.converge("x.db");
    // The replica's data moves to the small disk.
    cluster.nodes[1].stop();
    let data = disk.0.join("data");
    let copied = Command::new("cp").arg("-a").arg(&cluster.nodes[1].data).arg(&data).status();
    assert!(copied.unwrap().success());
    std::fs::remove_dir_all(&cluster.nodes[1].data).unwrap();
    std::os::unix::fs::symlink(&data, &cluster.nodes[1].data).unwrap();
    let ballast = disk.0.join("ballast");
    let free = usize::try_from(free_bytes(&disk.0)).unwrap();
    std::fs::write(&ballast, vec![1; free.saturating_sub(2 << 20)]).unwrap();
    cluster.nodes[1].start();
    for _ in 0..40 {
        db.ok("INSERT INTO t(b) VALUES (randomblob(100000))");
    }
    std::fs::remove_file(&ballast).unwrap();
    cluster.converge("x.db");
    drop(cluster);
}

#[test]
fn fuse_a_failed_fsync_is_a_failed_commit_and_a_restart_repairs() {
    let place = tempfile::tempdir().unwrap();
    let flag = place.path().join("fail");
    let Some(library) = shim() else { return };
    let env =
        vec![("LD_PRELOAD", library), ("FAIL_FSYNC_WHILE", flag.to_str().unwrap().to_owned())];
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, env, ..Options::default() });
    for mode in ["wal", "delete"] {
        let name = format!("{mode}.db");
        let mut db = Worker::on(&cluster.path(&name));
        db.ok(&format!("PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; CREATE TABLE t(a); INSERT INTO t VALUES (1)"));
        sqlite3_ok(&cluster.path("other.db"), "CREATE TABLE IF NOT EXISTS t(a);");
        cluster.converge(&name);
        std::fs::write(&flag, "").unwrap();
        let error = db.run("INSERT INTO t VALUES (2)").unwrap_err();
        assert_eq!(error.primary(), SQLITE_IOERR, "{mode}: {error:?}");
        std::fs::remove_file(&flag).unwrap();
        assert_eq!(db.value("SELECT count(*) FROM t"), "1", "{mode}: reads go on");
        sqlite3_ok(&cluster.path("other.db"), "INSERT INTO t VALUES (1);");
        drop(db);
        cluster.nodes[0].restart();
        assert_eq!(sqlite3_ok(&cluster.path(&name), "SELECT a FROM t WHERE a = 1;"), "1");
        sqlite3_ok(&cluster.path(&name), "INSERT INTO t VALUES (3);");
        cluster.converge(&name);
        cluster.converge("other.db");
    }
}

/// Files of the data directory with bytes in them, outside `files/` or inside it.
fn data_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            data_files(&path, found);
        } else if path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
            found.push(path);
        }
    }
    found.sort();
}

#[test]
fn fuse_damaged_files_of_a_stopped_node_never_stop_it_or_the_other_databases() {
    let seed = seed();
    let mut cluster = Cluster::with(Options {
        nodes: 2,
        errors_expected: true,
        seconds_max: 600,
        ..Options::default()
    });
    sqlite3_ok(&cluster.path("good.db"), "PRAGMA journal_mode=WAL; CREATE TABLE t(a);");
    let mut rng = rng(seed);
    let mut rounds = 0;
    for round in 0..crate::harness::env_number("WEIR_TEST_ROUNDS", 12) {
        // The victim is damaged on the replica, which can be repaired from the primary.
        sqlite3_ok(
            &cluster.path("victim.db"),
            "PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS t(a, b); \
             INSERT INTO t VALUES (1, randomblob(30000)); INSERT INTO t VALUES (2, randomblob(30000));",
        );
        cluster.converge("victim.db");
        cluster.nodes[1].kill9();
        let id = victim_log(&cluster, "victim.db");
        let mut files = Vec::new();
        data_files(&cluster.nodes[1].data.join("log").join(id), &mut files);
        let path = &files[rng.random_range(0..files.len())];
        let length = path.metadata().unwrap().len();
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let at = rng.random_range(0..length);
        let what = if rng.random() {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1 << rng.random_range(0..8)], at).unwrap();
            "bit flipped"
        } else {
            file.set_len(at).unwrap();
            "truncated"
        };
        println!("round {round}, seed {seed}: {what} at {at} of {length} in {}", path.display());
        cluster.nodes[1].start();
        sqlite3_ok(&cluster.path("good.db"), &format!("INSERT INTO t VALUES ({round});"));
        cluster.converge("good.db");
        sqlite3_ok(&cluster.path("victim.db"), "INSERT INTO t VALUES (3, randomblob(100));");
        cluster.level("victim.db");
        rounds += 1;
    }
    assert!(rounds > 0);
}

/// The directory name of a database's log on the replica.
fn victim_log(cluster: &Cluster, name: &str) -> String {
    let status = cluster.primary().status().unwrap();
    let databases = status["databases"].as_array().unwrap();
    let found = databases.iter().find(|entry| entry["name"] == name).unwrap();
    found["id"].as_str().unwrap().to_owned()
}

#[test]
fn fuse_files_that_are_no_databases_get_sqlites_own_answer() {
    let cluster = Cluster::start(2);
    std::fs::write(
        cluster.path("text.db"),
        "this is not a database, but it is long enough to be looked at\n".repeat(20),
    )
    .unwrap();
    std::fs::write(cluster.path("short.db"), "SQLite format 3").unwrap();
    let mut header = b"SQLite format 3\0".to_vec();
    header.resize(4096, 0xff);
    std::fs::write(cluster.path("header.db"), header).unwrap();
    for name in ["text.db", "short.db", "header.db"] {
        let error = sqlite3(&cluster.path(name), "SELECT * FROM sqlite_schema;").unwrap_err();
        assert!(error.contains("not a database") || error.contains("malformed"), "{name}: {error}");
    }
    sqlite3_ok(&cluster.path("good.db"), "CREATE TABLE t(a);");
    cluster.converge("good.db");
    for name in ["text.db", "short.db", "header.db"] {
        std::fs::remove_file(cluster.path(name)).unwrap();
    }
}

#[test]
fn fuse_a_database_damaged_under_the_primary_is_named_and_others_serve() {
    let mut cluster =
        Cluster::with(Options { nodes: 2, errors_expected: true, ..Options::default() });
    for name in ["bad.db", "good.db"] {
        sqlite3_ok(
            &cluster.path(name),
            "CREATE TABLE t(a); INSERT INTO t VALUES (randomblob(50000));",
        );
        cluster.converge(name);
    }
    cluster.nodes[0].stop();
    std::fs::write(cluster.nodes[0].backing("bad.db"), [0; 5000]).unwrap();
    cluster.nodes[0].start();
    sqlite3_ok(&cluster.path("good.db"), "INSERT INTO t VALUES (1);");
    cluster.converge("good.db");
    let answer = sqlite3(&cluster.path("bad.db"), ".timeout 50\nINSERT INTO t VALUES (1);");
    println!("a write to the damaged database: {answer:?} (busy is {SQLITE_BUSY})");
    assert_eq!(
        sqlite3_ok(&cluster.replicas()[0].path("bad.db"), "SELECT length(a) FROM t;"),
        "50000",
        "the replica keeps the last good state"
    );
}
