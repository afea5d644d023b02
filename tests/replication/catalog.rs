//! Creations, renames and removals of databases, and what a filter leaves out.

use std::fs;
use std::path::Path;

use weir::database::Origin;

use crate::world::{CLUSTER, Primary, Replica, eventually, name};

fn remove(primary: &Primary, file: &str) {
    let path = primary.store.files().join(file);
    primary.store.unlink(&name(file), Origin::Application, &mut || fs::remove_file(&path)).unwrap();
}

fn rename(primary: &Primary, from: &str, to: &str) {
    let files = primary.store.files();
    let (source, target) = (files.join(from), files.join(to));
    #[allow(clippy::disallowed_methods, reason = "what the mount does")]
    let mut work = || fs::rename(&source, &target);
    primary.store.rename(&name(from), &name(to), Origin::Application, &mut work).unwrap();
}

fn exists(replica: &Replica, file: &str) -> bool {
    replica.store.files().join(Path::new(file)).exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_appear_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    let mut writer = primary.writer("x.db");
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    writer.insert(10);
    replica.reaches(&primary, "x.db").await;
    assert_eq!(replica.query("x.db", "SELECT count(*) FROM t"), 2);
    remove(&primary, "x.db");
    eventually("the database is gone", || {
        replica.store.databases().is_empty() && !exists(&replica, "x.db")
    })
    .await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_a_replica_was_away_is_made_up_for() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut writers: Vec<_> =
        ["a.db", "b.db", "gone.db"].iter().map(|file| primary.writer(file)).collect();
    for (n, writer) in writers.iter_mut().enumerate() {
        for _ in 0..=n {
            writer.insert(10);
        }
    }
    let data = dir.path().join("b");
    let replica = Replica::start(&data, 2, &primary.url());
    for file in ["a.db", "b.db", "gone.db"] {
        replica.reaches(&primary, file).await;
    }
    replica.stop().await;
    remove(&primary, "gone.db");
    // A database that is removed and made again is another one.
    remove(&primary, "b.db");
    fs::remove_file(primary.store.files().join("b.db-wal")).unwrap();
    let mut again = primary.writer("b.db");
    again.insert(10);
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, "a.db").await;
    replica.reaches(&primary, "b.db").await;
    assert_eq!(replica.query("a.db", "SELECT count(*) FROM t"), 1);
    assert_eq!(replica.query("b.db", "SELECT count(*) FROM t"), 1);
    eventually("what the primary does not have is gone", || !exists(&replica, "gone.db")).await;
    let lost = fs::read_dir(data.join("lost+found")).unwrap().count();
    assert_eq!(lost, 0, "what the primary removed is no loss");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_leaves_databases_out() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut wanted = primary.writer("in/x.db");
    let mut other = primary.writer("out/y.db");
    let data = dir.path().join("b");
    let replica = Replica::start_with(&data, 2, &primary.url(), &["in/**"], Some(CLUSTER));
    wanted.insert(10);
    other.insert(10);
    replica.reaches(&primary, "in/x.db").await;
    assert_eq!(replica.store.databases().len(), 1);
    eventually("the lag counts wanted databases only", || primary.lag() == Some(0)).await;
    fs::create_dir_all(primary.store.files().join("in")).unwrap();
    rename(&primary, "out/y.db", "in/y.db");
    replica.reaches(&primary, "in/y.db").await;
    rename(&primary, "in/x.db", "out/x.db");
    eventually("what is not wanted any more goes", || !exists(&replica, "in/x.db")).await;
    replica.stop().await;
}
