//! Names that race, clash, or are taken by something else on the replica.

use std::fs;

use weir::database::Origin;

use crate::fakes::pb::follow_event::Event;
use crate::fakes::{FakePrimary, Script, named, pb};
use crate::world::{Primary, Replica, eventually, name};

fn has(replica: &Replica, file: &str) -> bool {
    replica.store.by_name(&name(file)).is_some()
}

async fn follow(
    dir: &std::path::Path,
    catalog: Vec<(u64, &'static [u8])>,
) -> (FakePrimary, Replica) {
    let primary = FakePrimary::start(Script { catalog, ..Script::default() }).await;
    let replica = Replica::start(dir, 2, &primary.url);
    (primary, replica)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_named_is_said_and_the_others_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let catalog: Vec<(u64, &[u8])> = vec![
        (1, b"a"),
        (2, b"a"),
        (3, b"a/b"),
        (4, b".lag"),
        (5, b"x-pos"),
        (6, b"x"),
        (7, b"fine/y"),
    ];
    let (primary, replica) = follow(dir.path(), catalog).await;
    eventually("those that can be are there", || {
        ["a", "x", "fine/y"].iter().all(|file| has(&replica, file))
    })
    .await;
    eventually("the others are said to be aside", || replica.status().aside.len() == 4).await;
    for (file, needle) in [
        ("a", "this name too"),
        ("a/b", "a needs a file where this one needs a directory"),
        (".lag", "reserved"),
        ("x-pos", "would belong to x"),
    ] {
        let reason = replica.aside(file).unwrap();
        assert!(reason.contains(needle), "{file}: {reason}");
        assert!(reason.contains("primary"), "{file} has a remedy: {reason}");
    }
    let link = replica.status().link.unwrap();
    // What was in the way goes: one after the other comes.
    primary.say(Event::Dropped(pb::Dropped { database: 1 }));
    eventually("the other one has the name", || {
        replica.store.by_name(&name("a")).and_then(|db| db.id()).is_some_and(|id| id.get() == 2)
    })
    .await;
    primary.say(Event::Named(named(2, b"z")));
    primary.say(Event::Named(named(6, b"a/c")));
    eventually("all but one are there", || {
        ["z", "a/b", "a/c", "x-pos"].iter().all(|file| has(&replica, file))
            && replica.status().aside.len() == 1
    })
    .await;
    assert_eq!(replica.status().link.map(|now| now.since_ms), Some(link.since_ms), "one session");
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_names_change_places() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let data = dir.path().join("b");
    // As long as they may be with the companions that a database has.
    let (one, two) = ("1".repeat(247), "2".repeat(247));
    let mut writers: Vec<_> = [&one, &two].iter().map(|file| primary.writer(file)).collect();
    writers[0].insert(10);
    writers[1].insert(10);
    writers[1].insert(10);
    let replica = Replica::start(&data, 2, &primary.url());
    replica.reaches(&primary, &one).await;
    replica.reaches(&primary, &two).await;
    let files = primary.store.files().to_owned();
    for (from, to) in [(one.as_str(), "t"), (two.as_str(), one.as_str()), ("t", two.as_str())] {
        #[allow(clippy::disallowed_methods, reason = "what the mount does")]
        let mut work = || fs::rename(files.join(from), files.join(to));
        primary.store.rename(&name(from), &name(to), Origin::Application, &mut work).unwrap();
    }
    let rows = |file: &str| replica.query(file, "SELECT count(*) FROM t");
    let id = |file: &str| primary.store.by_name(&name(file)).unwrap().id();
    eventually("they have changed places", || {
        [&one, &two]
            .iter()
            .all(|file| replica.store.by_name(&name(file)).is_some_and(|db| db.id() == id(file)))
    })
    .await;
    assert_eq!((rows(&one), rows(&two)), (2, 1));
    assert!(replica.status().aside.is_empty());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_file_or_directory_in_the_way_goes_to_lost_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("dir.db/inner")).unwrap();
    fs::create_dir_all(files.join("empty.db/inner")).unwrap();
    fs::write(files.join("dir.db/inner/note"), "kept").unwrap();
    fs::write(files.join("plain"), "kept").unwrap();
    let catalog: Vec<(u64, &[u8])> = vec![(1, b"dir.db"), (2, b"plain/x.db"), (3, b"empty.db")];
    let (_primary, replica) = follow(dir.path(), catalog).await;
    eventually("all are there", || {
        ["dir.db", "plain/x.db", "empty.db"].iter().all(|file| has(&replica, file))
    })
    .await;
    let kept: Vec<_> = fs::read_dir(dir.path().join("lost+found")).unwrap().flatten().collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for entry in kept {
        let path = entry.path();
        let file = if path.is_dir() { path.join("inner/note") } else { path };
        assert_eq!(fs::read_to_string(file).unwrap(), "kept");
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_made_is_tried_again_when_the_obstacle_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    // The log of this database cannot be made: its directory is a file.
    let log = dir.path().join("log");
    fs::create_dir_all(&log).unwrap();
    let obstacle = log.join("0000000000000001");
    fs::write(&obstacle, "").unwrap();
    let (primary, replica) = follow(dir.path(), vec![(1, b"x.db"), (2, b"y.db")]).await;
    eventually("the other one is there", || has(&replica, "y.db")).await;
    eventually("it is said why", || {
        replica.aside("x.db").is_some_and(|reason| reason.contains("0000000000000001"))
    })
    .await;
    primary.say(Event::Named(named(2, b"z.db")));
    eventually("names still change", || has(&replica, "z.db")).await;
    fs::remove_file(&obstacle).unwrap();
    eventually("it is made", || has(&replica, "x.db") && replica.status().aside.is_empty()).await;
    assert!(replica.status().link.is_some());
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_file_has_one_name_from_the_first_on() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let changes = primary.store.subscribe();
    let temporary = format!("sub/{}1", weir::types::DbName::IMPORT);
    let mut writer = primary.writer(&temporary);
    writer.insert(10);
    assert!(primary.store.databases().is_empty(), "it is no database yet");
    let files = primary.store.files().to_owned();
    // As SQLite leaves it when the last connection closes.
    drop(writer);
    let scratch = dir.path().join("scratch.db");
    let conn = rusqlite::Connection::open(&scratch).unwrap();
    conn.execute_batch("CREATE TABLE t(v); INSERT INTO t VALUES (1), (2);").unwrap();
    drop(conn);
    fs::copy(&scratch, files.join(&temporary)).unwrap();
    let (from, to) = (name(&temporary), name("sub/x.db"));
    #[allow(clippy::disallowed_methods, reason = "what the mount does")]
    let mut work = || fs::rename(files.join(from.as_path()), files.join(to.as_path()));
    primary.store.rename(&from, &to, Origin::Application, &mut work).unwrap();
    let replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    replica.reaches(&primary, "sub/x.db").await;
    assert_eq!(replica.query("sub/x.db", "SELECT count(*) FROM t"), 2);
    let heard = changes.next().await;
    let id = primary.store.by_name(&to).unwrap().id().unwrap();
    assert_eq!(heard.catalog, [weir::store::CatalogChange::Named { id, name: to }]);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_database_is_forgotten_however_it_comes_while_a_replica_connects() {
    let dir = tempfile::tempdir().unwrap();
    let primary = Primary::start(&dir.path().join("a")).await;
    let mut replica = Replica::start(&dir.path().join("b"), 2, &primary.url());
    let mut writers = Vec::new();
    for round in 0..15 {
        let url = primary.url();
        if round % 2 == 0 {
            replica.unfollow().await;
            replica.follow(2, &url, &[], Some(crate::world::CLUSTER));
        }
        for n in 0..4 {
            let mut writer = primary.writer(&format!("d{n}/{round}.db"));
            writer.insert(10);
            writers.push(writer);
        }
        if round % 3 == 0 {
            let files = primary.store.files().to_owned();
            let (from, to) = (format!("d0/{round}.db"), format!("moved-{round}.db"));
            #[allow(clippy::disallowed_methods, reason = "what the mount does")]
            let mut work = || fs::rename(files.join(&from), files.join(&to));
            primary.store.rename(&name(&from), &name(&to), Origin::Application, &mut work).unwrap();
        }
    }
    for db in primary.store.databases() {
        replica.reaches(&primary, &db.name().to_string()).await;
    }
    assert_eq!(replica.store.databases().len(), primary.store.databases().len());
    replica.stop().await;
}
