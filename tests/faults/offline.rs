//! Applications that change the plain files while the daemon does not run: on the primary that is a transaction
//! like any other, on a replica the primary's state comes back.

use std::fs;
use std::path::Path;

use crate::harness::{Cluster, Node, Plan, Writer, connect, keys, sql, until};

/// How a daemon ends before somebody works on its files.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Stopped,
    Killed,
}

impl End {
    fn of(self, node: &mut Node) {
        match self {
            Self::Stopped => assert!(node.stop().unwrap().success()),
            Self::Killed => node.kill9(),
        }
    }
}

/// Rows of some pages, with a WAL that still holds some of them if the mode has one and `mount` stays open.
fn fill(path: &Path, mode: &str) {
    sql(
        path,
        &format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
             WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 99)
             INSERT INTO t SELECT i, randomblob(1000) FROM n"
        ),
    );
}

type Change = fn(&Path);

/// What somebody does to the plain file; afterwards key 1000 is there.
const CHANGES: [(&str, Change); 6] = [
    ("an insert", |file| sql(file, "INSERT INTO t VALUES (1000, randomblob(3000))")),
    ("an update in place", |file| {
        sql(
            file,
            "UPDATE t SET a = 1000 WHERE a = 99; UPDATE t SET b = randomblob(1000) WHERE a = 50",
        );
    }),
    ("a WAL that is left", |file| {
        let plan = Plan { bytes: 3000, ..Plan::endless("wal", "NORMAL", 1000) };
        let mut writer = Writer::start(file, &plan);
        writer.wait(10);
        writer.kill9();
    }),
    ("a hot journal that is left", |file| {
        sql(file, "PRAGMA journal_mode=delete; INSERT INTO t VALUES (1000, 0)");
        let pragmas = "PRAGMA cache_size=2; BEGIN; UPDATE t SET b = randomblob(1000);
             CREATE TABLE u(x); WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)
             INSERT INTO u SELECT randomblob(10000) FROM n";
        let plan = Plan { pragmas: pragmas.to_owned(), ..Plan::endless("delete", "NORMAL", 2000) };
        let mut writer = Writer::start(file, &plan);
        until("the transaction spills", || (file.metadata().ok()?.len() > 1 << 20).then_some(()));
        writer.kill9();
    }),
    ("a new page size and another mode", |file| {
        sql(
            file,
            "PRAGMA journal_mode=delete; PRAGMA page_size=1024; INSERT INTO t VALUES (1000, 0); VACUUM",
        );
    }),
    ("another database in its place", |file| {
        let other = file.with_extension("other");
        sql(
            &other,
            "CREATE TABLE t(a INTEGER PRIMARY KEY, b); INSERT INTO t VALUES (1000, 'other')",
        );
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut name = file.as_os_str().to_owned();
            name.push(suffix);
            drop(fs::remove_file(name));
        }
        fs::copy(&other, file).unwrap();
        fs::remove_file(&other).unwrap();
    }),
];

fn changed_on_the_primary(mode: &str, end: End) {
    let mut cluster = Cluster::start();
    for (what, change) in CHANGES {
        let db = format!("{}.db", what.replace(' ', "-"));
        let what = format!("{what}, {mode}, {end:?}");
        let path = cluster.a.path(&db);
        fill(&path, mode);
        // With a connection open the WAL stays; it goes to the end of this round.
        let open = (end == End::Killed).then(|| connect(&path));
        cluster.converge(&db);
        let before = cluster.level(&db);
        end.of(&mut cluster.a);
        drop(open);
        change(&cluster.a.backing(&db));
        cluster.a.start();
        assert_eq!(cluster.a.quarantine(&db), None, "{what}");
        assert!(keys(&path).contains(&1000), "{what}");
        cluster.converge(&db);
        assert_ne!(cluster.level(&db), before, "{what}");
        assert!(keys(&cluster.b.path(&db)).contains(&1000), "{what}");
        sql(&path, "INSERT INTO t VALUES (5000, 1)");
        cluster.converge(&db);
    }
}

#[test]
fn fuse_changes_while_the_primary_is_stopped_become_a_transaction() {
    changed_on_the_primary("delete", End::Stopped);
    changed_on_the_primary("wal", End::Stopped);
}

#[test]
fn fuse_changes_after_the_primary_was_killed_become_a_transaction() {
    changed_on_the_primary("delete", End::Killed);
    changed_on_the_primary("wal", End::Killed);
}

#[test]
fn fuse_databases_that_come_and_go_while_the_primary_is_stopped() {
    let mut cluster = Cluster::start();
    for end in [End::Stopped, End::Killed] {
        fill(&cluster.a.path("gone.db"), "wal");
        fill(&cluster.a.path("moved.db"), "wal");
        cluster.converge("gone.db");
        cluster.converge("moved.db");
        end.of(&mut cluster.a);
        let file = |name| cluster.a.backing(name);
        fs::remove_file(file("gone.db")).unwrap();
        sql(&file("moved.db"), "PRAGMA wal_checkpoint(TRUNCATE)");
        #[allow(clippy::disallowed_methods, reason = "a user moves a file")]
        fs::rename(file("moved.db"), file("here.db")).unwrap();
        fs::create_dir_all(file("sub")).unwrap();
        fill(&file("sub/new.db"), "delete");
        cluster.a.start();
        cluster.converge("here.db");
        cluster.converge("sub/new.db");
        until("the removed databases are gone on the replica", || {
            let there = |name| cluster.b.path(name).exists();
            (!there("gone.db") && !there("moved.db")).then_some(())
        });
        for name in ["here.db", "sub/new.db"] {
            fs::remove_file(cluster.a.path(name)).unwrap();
        }
    }
}

#[test]
fn fuse_changes_while_a_replica_is_down_are_replaced_by_the_primarys_state() {
    let mut cluster = Cluster::start();
    for end in [End::Stopped, End::Killed] {
        for (mode, (what, change)) in ["wal", "delete"].iter().cycle().zip(CHANGES) {
            let db = format!("{}.db", what.replace(' ', "-"));
            let path = cluster.a.path(&db);
            drop(fs::remove_file(&path));
            fill(&path, mode);
            cluster.converge(&db);
            end.of(&mut cluster.b);
            change(&cluster.b.backing(&db));
            cluster.b.start();
            sql(&path, "INSERT INTO t VALUES (5000, 1)");
            cluster.converge(&db);
            assert!(!keys(&cluster.b.path(&db)).contains(&1000), "{what}, {mode}, {end:?}");
        }
    }
}
