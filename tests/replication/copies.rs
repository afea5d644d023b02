//! Copies of pages: new replicas, interrupted ones, diverged ones.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use weir::database::{FileRole, Origin};
use weir::types::{Checksum, Pos};

use crate::world::{Primary, Replica, Writer, eventually, name, query};

/// A primary whose log does not reach back to the beginning: it was restarted with a new log.
async fn primary_without_history(dir: &std::path::Path, bytes: usize) -> (Primary, i64) {
    let data = dir.join("a");
    let scratch = dir.join("scratch.db");
    let conn = rusqlite::Connection::open(&scratch).unwrap();
    conn.execute_batch(&format!(
        "PRAGMA journal_mode=WAL; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{})
         INSERT INTO t(v) SELECT randomblob(2900) FROM n;",
        bytes / 3000
    ))
    .unwrap();
    drop(conn);
    let rows = query(&scratch, "SELECT count(*) FROM t");
    fs::create_dir_all(data.join("files")).unwrap();
    fs::copy(&scratch, data.join("files/x.db")).unwrap();
    (Primary::start(&data).await, rows)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_gets_a_large_database_as_pages() {
    let dir = tempfile::tempdir().unwrap();
    // Above 64 MiB a first transaction is not sent as one record.
    let (primary, rows) = primary_without_history(dir.path(), 80 << 20).await;
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), rows);
    let ok = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'";
    assert_eq!(replica.query("x.db", ok), 1);
    assert_eq!(fs::read_dir(replica.data.join("tmp")).unwrap().count(), 0);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_on_after_its_follower_was_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let (primary, rows) = primary_without_history(dir.path(), 200 << 20).await;
    // Nobody has the database open, so the primary cannot vouch for the old base: pages are compared.
    let data = dir.path().join("b");
    let mut replica = Replica::start(&data, 2, &primary.url());
    let settled = || -> Option<u32> {
        let files = fs::read_dir(data.join("tmp")).ok()?.map(|entry| entry.unwrap().path());
        let is_progress =
            |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "progress");
        let saved = fs::read_to_string(files.filter(is_progress).last()?).ok()?;
        let saved: serde_json::Value = serde_json::from_str(&saved).ok()?;
        Some(u32::try_from(saved["next_page"].as_u64()?).ok()? - 1)
    };
    eventually("the copy is under way", || settled().is_some_and(|pages| pages > 10_000)).await;
    replica.unfollow().await;
    let settled = settled().unwrap();
    replica.stop().await;
    let replica = Replica::start(&data, 2, &primary.url());
    let mut seen = None;
    eventually("the copy is done", || {
        seen = replica.status().copies.into_iter().next().or(seen.take());
        replica.store.by_name(&name("x.db")).is_some_and(|db| db.position() != Pos::ZERO)
    })
    .await;
    let seen = seen.unwrap();
    let expected = seen.pages_total - settled;
    assert!(seen.pages_received <= expected, "{seen:?}, {settled} pages were here");
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), rows);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_in_use_goes_on_from_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let (mut primary, rows) = primary_without_history(dir.path(), 200 << 20).await;
    let mut writer = Writer::of_existing(&primary, "x.db");
    writer.insert(10);
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    let is_half_done = || {
        let copies = replica.status().copies;
        copies.first().is_some_and(|copy| copy.pages > copy.pages_total / 3)
    };
    eventually("the copy is under way", is_half_done).await;
    primary.stop_serving().await;
    writer.insert(10);
    let store = std::sync::Arc::clone(&primary.store);
    let mut again = Primary::serve(store, primary.address).await;
    let mut first_seen = None;
    eventually("the copy goes on", || {
        first_seen = replica.status().copies.into_iter().find(|copy| copy.pages_received < 1000);
        first_seen.is_some()
    })
    .await;
    let first_seen = first_seen.unwrap();
    assert!(first_seen.pages > first_seen.pages_total / 4, "{first_seen:?}");
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), rows + 2);
    again.stop_serving().await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_replica_is_brought_back_and_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    let mut other = primary.writer("other.db");
    writer.grow(3 << 20);
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    replica.reaches(&primary, "x.db").await;

    replica.store.by_name(&name("x.db")).unwrap().quarantine("a test", true);
    other.insert(10);
    replica.reaches(&primary, "other.db").await;
    eventually("it is mended", || !replica.store.by_name(&name("x.db")).unwrap().needs_reseed())
        .await;
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_with_another_history_under_the_same_cluster_is_brought_back() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writer = primary.writer("x.db");
    writer.grow(1 << 20);
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    let id = replica.store.by_name(&name("x.db")).unwrap().id().unwrap();
    replica.stop().await;

    // The replica's file is replaced by one with other content while it is down, and it goes on from there.
    let path = data.join("files/x.db");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 100], 20_000).unwrap();
    drop(file);
    fs::remove_dir_all(data.join("log").join(id.to_string())).unwrap();
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_pages_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let path = primary.store.files().join("x.db");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("CREATE TABLE t(v)").unwrap();
    drop(conn);
    let db = primary.store.main_file(&name("x.db"));
    db.take_existing_file().unwrap();
    // Somebody cuts it so that the header is left, and no whole page.
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    db.open(FileRole::Main, Origin::Application, true, false).unwrap();
    // The number of pages in the header does not count from now on.
    db.write(FileRole::Main, Origin::Application, &file, 92, &[0xff; 4]).unwrap();
    db.set_len(FileRole::Main, Origin::Application, &file, 100).unwrap();
    db.flush(FileRole::Main, Origin::Application, 0).unwrap();
    db.release(FileRole::Main, Origin::Application, true);
    assert_eq!(db.status().unwrap().pages, 0);
    assert_eq!(db.position().checksum, Checksum::EMPTY);
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    replica.reaches(&primary, "x.db").await;
    // By log it is there; now it must come as a copy.
    let copy = replica.store.by_name(&name("x.db")).unwrap();
    copy.quarantine("a test", true);
    eventually("it is copied", || !copy.needs_reseed()).await;
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_change_while_a_large_database_is_copied() {
    let dir = tempfile::tempdir().unwrap();
    let (primary, _) = primary_without_history(dir.path(), 100 << 20).await;
    let mut writer = primary.writer("small.db");
    writer.insert(10);
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    replica.reaches(&primary, "small.db").await;
    eventually("the copy is under way", || !replica.status().copies.is_empty()).await;
    // The database that is copied is held, as an install does.
    let files = primary.store.files().to_owned();
    for round in 0..5 {
        let (from, to) =
            if round % 2 == 0 { ("small.db", "d/s.db") } else { ("d/s.db", "small.db") };
        fs::create_dir_all(files.join("d")).unwrap();
        #[allow(clippy::disallowed_methods, reason = "what the mount does")]
        let mut work = || fs::rename(files.join(from), files.join(to));
        primary.store.rename(&name(from), &name(to), Origin::Application, &mut work).unwrap();
        eventually("renamed", || replica.store.by_name(&name(to)).is_some()).await;
    }
    replica.reaches(&primary, "x.db").await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_copy_does_not_delay_another_database() {
    let dir = tempfile::tempdir().unwrap();
    // The size in MiB; large ones are for measuring.
    let size = std::env::var("WEIR_COPY_MIB").ok().and_then(|size| size.parse::<usize>().ok());
    let (primary, _) = primary_without_history(dir.path(), size.unwrap_or(300) << 20).await;
    let mut writer = primary.writer("live.db");
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    eventually("the copy is under way", || !replica.status().copies.is_empty()).await;
    let mut slowest = Duration::ZERO;
    let mut measured = 0;
    while !replica.status().copies.is_empty() && measured < 100_000 {
        writer.insert(100);
        let wanted = writer.db().position();
        let began = std::time::Instant::now();
        eventually("a live transaction", || {
            replica.store.by_name(&name("live.db")).is_some_and(|db| db.position() == wanted)
        })
        .await;
        slowest = slowest.max(began.elapsed());
        measured += 1;
    }
    assert!(measured > 5, "the copy was too short to measure: {measured}");
    // The promise is 100 ms on a quiet machine; here other tests run beside.
    eprintln!("the slowest of {measured} transactions took {slowest:?}");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_exact_although_writers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (primary, _) = primary_without_history(dir.path(), 100 << 20).await;
    let mut writer = Writer::of_existing(&primary, "x.db");
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    let mut rounds = 0;
    while replica.store.by_name(&name("x.db")).is_none_or(|db| db.position() == Pos::ZERO) {
        rounds += 1;
        writer
            .run(&format!("UPDATE t SET v = randomblob(2900) WHERE id = {}", rounds * 97 % 20_000));
        tokio::task::yield_now().await;
    }
    replica.reaches(&primary, "x.db").await;
    assert!(rounds > 20, "{rounds}");
    let position = replica.store.by_name(&name("x.db")).unwrap().position();
    assert_ne!(position.checksum, Checksum::EMPTY);
    let ok = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check='ok'";
    assert_eq!(replica.query("x.db", ok), 1);
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), writer.rows());
    replica.stop().await;
}
