//! What a node has beyond its primary is kept before it is given up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::world::{Primary, Replica, Writer, eventually, name, query};

fn kept(data: &Path, database: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("lost+found").join(database));
    let mut files: Vec<_> = entries.into_iter().flatten().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn weir(arguments: &[&str], file: &Path) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_weir")).args(arguments).arg(file).output().unwrap();
    assert!(done.status.success(), "{arguments:?} {file:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Two nodes that were level; then `extra` transactions on the second alone and `theirs` on the first alone, and
/// the second follows the first again.
async fn part(extra: usize, theirs: usize, expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("sub/x.db");
    writer.insert(10);
    writer.insert(10);
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "sub/x.db").await;
    replica.stop().await;
    // Another configuration makes the second node the primary.
    let other = Primary::of_node(&data, 2).await;
    let mut lonely = Writer::of_existing(&other, "sub/x.db");
    for n in 0..extra {
        lonely.run(&format!("INSERT INTO t(v) VALUES ('only here {n}')"));
    }
    drop(lonely);
    other.stop().await;
    for _ in 0..theirs {
        writer.insert(20);
    }
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "sub/x.db").await;
    assert_eq!(replica.query("sub/x.db", "SELECT count(*) FROM t"), writer.rows());
    let ok = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'";
    assert_eq!(replica.query("sub/x.db", ok), 1);
    let files = kept(&data, "sub%2fx.db");
    let names: Vec<_> =
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, expected);
    assert_eq!(replica.store.lost_files(&name("sub/x.db")), expected.len());
    for file in &files {
        weir(&["ltx", "verify"], file);
        assert!(weir(&["ltx", "dump"], file).contains("0000000000000002"), "node 2 wrote it");
    }
    // It goes on as a replica, and nothing more is kept.
    writer.insert(10);
    replica.reaches(&primary, "sub/x.db").await;
    assert_eq!(kept(&data, "sub%2fx.db").len(), expected.len());
    replica.stop().await;
}

const FOURTH: &str = "0000000000000004-0000000000000004.ltx";
const FIFTH: &str = "0000000000000005-0000000000000005.ltx";
const SIXTH: &str = "0000000000000006-0000000000000006.ltx";

#[tokio::test(flavor = "multi_thread")]
async fn a_node_ahead_of_its_primary_keeps_its_transactions() {
    part(3, 0, &[FOURTH, FIFTH, SIXTH]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_at_the_same_number_with_other_content_keeps_its_transactions() {
    part(2, 2, &[FOURTH, FIFTH]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_parted_and_is_behind_keeps_its_transactions() {
    part(1, 5, &[FOURTH]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_only_behind_keeps_nothing() {
    part(0, 5, &[]).await;
}

/// As [`part`], and the second node's log is lost before it follows.
async fn lose_log(extra: usize, theirs: usize) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    writer.insert(10);
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
    let other = Primary::of_node(&data, 2).await;
    let mut lonely = Writer::of_existing(&other, "x.db");
    for n in 0..extra {
        lonely.run(&format!("INSERT INTO t(v) VALUES ('only here {n}')"));
    }
    let id = lonely.db().id().unwrap().to_string();
    drop(lonely);
    other.stop().await;
    for file in fs::read_dir(data.join("log").join(id)).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "seg") {
            fs::File::options().write(true).open(path).unwrap().set_len(1024).unwrap();
        }
    }
    for _ in 0..theirs {
        writer.insert(20);
    }
    let replica = Replica::start(&data, 2, &primary.url());
    let db = replica.store.by_name(&name("x.db")).unwrap();
    assert!(db.quarantined().unwrap().reason.contains("log ends"), "{:?}", db.quarantined());
    replica.reaches(&primary, "x.db").await;
    assert_eq!(db.quarantined(), None);
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
    let files = kept(&data, "x.db");
    (dir, files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_log_keeps_the_file_with_its_own_transactions() {
    for theirs in [0, 3] {
        let (_dir, files) = lose_log(2, theirs).await;
        assert_eq!(files[0].file_name().unwrap(), "without-log.db", "{files:?}");
        let own = "SELECT count(*) FROM t WHERE v LIKE 'only here%'";
        assert_eq!(query(&files[0], own), 2, "{files:?}");
        assert!(!files.iter().any(|file| file.ends_with("without-log-2.db")), "{files:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lost_its_log_and_only_received_keeps_no_file() {
    let (_dir, files) = lose_log(0, 3).await;
    assert!(files.is_empty(), "{files:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_that_is_yet_to_be_applied_is_a_fresh_copy() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    writer.insert(10);
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    let db = replica.store.by_name(&name("x.db")).unwrap();
    // Nothing is applied, and what was received is forgotten.
    db.begin_install().unwrap();
    writer.insert(3000);
    let wanted = primary.store.by_name(&name("x.db")).unwrap().position();
    eventually("it is received", || db.position() == wanted).await;
    for file in fs::read_dir(data.join("log").join(db.id().unwrap().to_string())).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "seg") {
            harm_last_record(&path);
        }
    }
    db.begin_install().unwrap();
    db.end_install();
    replica.store.mounted(std::sync::Arc::new(|_| ()));
    replica.reaches(&primary, "x.db").await;
    assert_eq!(db.quarantined(), None);
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    assert!(kept(&data, "x.db").is_empty());
    replica.stop().await;
}

fn harm_last_record(segment: &Path) {
    let bytes = fs::read(segment).unwrap();
    let at = bytes.windows(4).rposition(|window| window == b"WREC").unwrap() + 104 + 200;
    let file = fs::File::options().write(true).open(segment).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[!bytes[at]], at as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_only_this_node_had_is_kept_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("b");
    let other = Primary::of_node(&data, 2).await;
    let mut lonely = other.writer("own.db");
    lonely.insert(10);
    lonely.insert(10);
    drop(lonely);
    other.stop().await;
    let primary = Primary::start(&dir.path().join("a")).await;
    let replica = Replica::start(&data, 2, &primary.url());
    eventually("it is gone", || replica.store.databases().is_empty()).await;
    eventually("it is kept", || !kept(&data, "own.db").is_empty()).await;
    let files = kept(&data, "own.db");
    assert_eq!(query(&files[0], "SELECT count(*) FROM t"), 2, "{files:?}");
    replica.stop().await;
}
