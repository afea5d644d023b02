//! `kill -9` at random moments: of the daemon, the application, both, the replica. The death of a process
//! loses nothing that was acknowledged, not even with `synchronous=OFF`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::harness::{Cluster, MODES, Plan, Writer, keys, pause, rng, rounds, seed};

/// A killed daemon is gone, and its mount replaced, within this time; the machine may be slow.
const RESTART_MAX: Duration = Duration::from_secs(10);

fn random_plan(mode: &str, first: i64, rng: &mut StdRng) -> Plan {
    let synchronous = ["OFF", "NORMAL", "FULL"].choose(rng).unwrap();
    let mut plan = Plan::endless(mode, synchronous, first);
    let checkpoint = [5, 50, 1000].choose(rng).unwrap();
    let cache = [2, 2000].choose(rng).unwrap();
    let locking = ["NORMAL", "NORMAL", "NORMAL", "EXCLUSIVE"].choose(rng).unwrap();
    plan.pragmas = format!(
        "PRAGMA locking_mode={locking}; {} PRAGMA wal_autocheckpoint={checkpoint}; PRAGMA cache_size={cache};",
        plan.pragmas
    );
    plan.bytes = *[10, 500, 5000, 50_000].choose(rng).unwrap();
    plan
}

/// Makes rounds in all journal modes: `harm` does what it likes while a writer runs, then everything that
/// was acknowledged must be there and the nodes equal.
fn in_all_modes(rounds_default: u64, mut harm: impl FnMut(&mut Cluster, &mut Writer, &mut StdRng)) {
    let seed = seed();
    let mut cluster = Cluster::start();
    let mut acked: Vec<BTreeSet<i64>> = vec![BTreeSet::new(); MODES.len()];
    for round in 0..rounds(rounds_default) {
        let index = usize::try_from(round).unwrap() % MODES.len();
        let mode = MODES[index];
        let db = format!("{mode}.db");
        let mut rng = rng(seed, round);
        let path = cluster.a.path(&db);
        let first = i64::try_from(round).unwrap() * 1_000_000;
        let mut writer = Writer::start(&path, &random_plan(mode, first, &mut rng));
        writer.wait(rng.random_range(1..60));
        harm(&mut cluster, &mut writer, &mut rng);
        writer.kill9();
        acked[index].extend(&writer.acked);
        let there = keys(&path);
        let lost: Vec<_> = acked[index].difference(&there).collect();
        assert!(lost.is_empty(), "round {round}, {db}: acknowledged and lost: {lost:?}");
        cluster.converge(&db);
    }
}

#[test]
fn fuse_killing_the_application_loses_nothing() {
    in_all_modes(4, |_, writer, rng| {
        pause(rng, 20);
        writer.kill9();
    });
}

#[test]
fn fuse_killing_the_daemon_loses_nothing() {
    in_all_modes(4, |cluster, writer, rng| {
        pause(rng, 20);
        let start = Instant::now();
        cluster.a.kill9();
        writer.finish();
        assert!(!writer.failed.is_empty(), "the application is told");
        cluster.a.start();
        assert!(start.elapsed() < RESTART_MAX, "the restart took {:?}", start.elapsed());
    });
}

#[test]
fn fuse_killing_daemon_and_application_loses_nothing() {
    in_all_modes(4, |cluster, writer, rng| {
        pause(rng, 20);
        if rng.random() {
            cluster.a.kill9();
            // The application may live on for a while, and see its files fail.
            pause(rng, 5);
            writer.kill9();
        } else {
            writer.kill9();
            cluster.a.kill9();
        }
        cluster.a.start();
    });
}

#[test]
fn fuse_killing_the_daemon_while_the_application_goes_on_trying_loses_nothing() {
    in_all_modes(4, |cluster, _, rng| {
        pause(rng, 20);
        cluster.a.kill9();
        // The orphan still has its files open when the new daemon mounts and recovers.
        cluster.a.start();
    });
}

#[test]
fn fuse_killing_the_replica_under_load_leaves_it_able_to_catch_up() {
    in_all_modes(4, |cluster, writer, rng| {
        for _ in 0..rng.random_range(1..3) {
            pause(rng, 40);
            cluster.b.kill9();
            writer.wait(rng.random_range(0..50));
            cluster.b.start();
        }
    });
}

#[test]
fn fuse_killing_a_replica_while_it_copies_leaves_it_able_to_copy() {
    let seed = seed();
    let mut cluster = Cluster::prepare();
    cluster.a.start();
    let path = cluster.a.path("big.db");
    crate::harness::sql(
        &path,
        "PRAGMA journal_mode=WAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b);
         WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO t SELECT i, randomblob(10000) FROM n",
    );
    for round in 0..rounds(3) {
        let mut rng = rng(seed, round);
        // Without its log and file it must copy.
        for directory in ["files", "log"] {
            drop(std::fs::remove_dir_all(cluster.b.data.join(directory)));
        }
        let first = 1_000_000 * (i64::try_from(round).unwrap() + 1);
        let mut writer = Writer::start(&path, &random_plan("wal", first, &mut rng));
        for _ in 0..rng.random_range(1..4) {
            cluster.b.start();
            pause(&mut rng, 300);
            cluster.b.kill9();
        }
        cluster.b.start();
        writer.wait(20);
        writer.kill9();
        cluster.converge("big.db");
        cluster.b.kill9();
    }
}

#[test]
fn fuse_killing_everything_loses_nothing() {
    in_all_modes(4, |cluster, writer, rng| {
        pause(rng, 20);
        match rng.random_range(0..3) {
            0 => {
                cluster.a.kill9();
                cluster.b.kill9();
                writer.kill9();
            }
            1 => {
                cluster.b.kill9();
                writer.kill9();
                cluster.a.kill9();
            }
            _ => {
                writer.kill9();
                cluster.a.kill9();
                cluster.b.kill9();
            }
        }
        cluster.a.start();
        cluster.b.start();
    });
}

#[test]
fn fuse_killing_a_transaction_that_spills_leaves_no_trace() {
    let seed = seed();
    let mut cluster = Cluster::start();
    for round in 0..rounds(4) {
        let mode = MODES[usize::try_from(round).unwrap() % MODES.len()];
        let db = format!("{mode}.db");
        let mut rng = rng(seed, round);
        let path = cluster.a.path(&db);
        crate::harness::sql(
            &path,
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b);
                 REPLACE INTO t VALUES (1, zeroblob(50000)), (2, zeroblob(50000))"
            ),
        );
        // One statement of many pages in a tiny cache: killed somewhere inside it.
        let plan = Plan {
            pragmas: format!(
                "PRAGMA journal_mode={mode}; PRAGMA cache_size=2; CREATE TABLE IF NOT EXISTS u(x);
                 BEGIN; UPDATE t SET b = randomblob(50000);
                 WITH RECURSIVE n(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
                 INSERT INTO u SELECT randomblob(10000) FROM n; COMMIT"
            ),
            ..Plan::endless(mode, "NORMAL", 10)
        };
        let mut writer = Writer::start(&path, &plan);
        pause(&mut rng, 400);
        let daemon_too = rng.random();
        if daemon_too {
            cluster.a.kill9();
        }
        writer.kill9();
        assert!(writer.acked.is_empty(), "the transaction is too large to end so soon");
        if daemon_too {
            cluster.a.start();
        }
        assert_eq!(keys(&path), [1, 2].into(), "round {round}, {db}");
        let rows =
            crate::harness::sqlite3(&path, "SELECT count(*) FROM t WHERE b = zeroblob(50000)");
        assert_eq!(rows.as_deref(), Ok("2"), "round {round}, {db}");
        crate::harness::sql(&path, "UPDATE t SET b = b");
        cluster.converge(&db);
    }
}
