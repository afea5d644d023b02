//! `kill -9` of the daemon, of the application, of both, at random moments. What was acknowledged must
//! be there afterwards: the death of a process loses nothing, even with `synchronous=OFF`.

use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::harness::{Acks, Cluster, Options, Worker, env_number, rng, seed, shim, sqlite3_ok};

const MODES: [&str; 4] = ["wal", "delete", "truncate", "persist"];

fn rounds() -> u64 {
    env_number("WEIR_TEST_ROUNDS", 8)
}

fn crash_cluster(nodes: usize) -> Cluster {
    Cluster::with(Options { nodes, errors_expected: true, seconds_max: 3000, ..Options::default() })
}

/// An application that inserts `first`, `first + 1`, … into `t`, one transaction each.
fn inserter(cluster: &Cluster, name: &str, mode: &str, first: i64, rng: &mut StdRng) -> Acks {
    let mut worker = Worker::on(&cluster.path(name));
    let synchronous = ["OFF", "NORMAL", "FULL"].choose(rng).unwrap();
    let checkpoint = [5, 50, 1000].choose(rng).unwrap();
    worker.ok(&format!(
        "PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint={checkpoint}; \
         CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)"
    ));
    let size = [10, 500, 5000, 50_000].choose(rng).unwrap();
    worker.count(&format!("INSERT INTO t VALUES (?1, randomblob({size}))"), first, 1_000_000)
}

/// Checks that everything acknowledged is there, in `rows`; returns the next free number.
fn check_rows(rows: &str, acked: &[i64], what: &str) -> i64 {
    let present: std::collections::HashSet<i64> =
        rows.lines().map(|line| line.parse().unwrap()).collect();
    let lost: Vec<i64> = acked.iter().copied().filter(|a| !present.contains(a)).collect();
    assert!(lost.is_empty(), "{what}: acknowledged and lost: {lost:?}");
    present.iter().max().map_or(0, |max| max + 1)
}

fn pause(rng: &mut StdRng, milliseconds_max: u64) {
    std::thread::sleep(Duration::from_micros(rng.random_range(0..milliseconds_max * 1000)));
}

/// One round: `break_it` does the harm while the inserter runs.
fn rounds_of(
    what: &str,
    nodes: usize,
    mut break_it: impl FnMut(&mut Cluster, &mut Acks, &mut StdRng),
) {
    let seed = seed();
    let mut cluster = crash_cluster(nodes);
    for mode in MODES {
        let name = format!("{mode}.db");
        let mut acked = Vec::new();
        let mut next = 0;
        for round in 0..rounds().div_ceil(4) {
            let mut rng = rng(seed.wrapping_mul(1000) + round * 4 + mode.len() as u64);
            let mut acks = inserter(&cluster, &name, mode, next, &mut rng);
            acks.wait(rng.random_range(1..40));
            break_it(&mut cluster, &mut acks, &mut rng);
            acks.kill9();
            acked.append(&mut acks.acked);
            let rows = sqlite3_ok(&cluster.path(&name), "SELECT a FROM t;");
            next =
                check_rows(&rows, &acked, &format!("{what}, {mode}, round {round}, seed {seed}"));
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_killing_the_application_loses_nothing() {
    rounds_of("application killed", 2, |_, acks, rng| {
        pause(rng, 20);
        acks.kill9();
    });
}

#[test]
fn fuse_killing_the_daemon_loses_nothing() {
    rounds_of("daemon killed", 2, |cluster, acks, rng| {
        pause(rng, 20);
        cluster.nodes[0].kill9();
        acks.finish();
        assert!(acks.error.is_some(), "the application is told");
        cluster.nodes[0].start();
    });
}

#[test]
fn fuse_killing_daemon_and_application_at_once_loses_nothing() {
    rounds_of("both killed", 2, |cluster, acks, rng| {
        pause(rng, 20);
        if rng.random() {
            cluster.nodes[0].kill9();
            acks.kill9();
        } else {
            acks.kill9();
            cluster.nodes[0].kill9();
        }
        cluster.nodes[0].start();
    });
}

#[test]
fn fuse_killing_a_replica_leaves_it_able_to_catch_up() {
    rounds_of("replica killed", 2, |cluster, acks, rng| {
        pause(rng, 20);
        cluster.nodes[1].kill9();
        acks.wait(acks.acked.len() + rng.random_range(0..30));
        cluster.nodes[1].start();
        acks.wait(acks.acked.len() + rng.random_range(0..30));
    });
}

#[test]
fn fuse_killing_everything_loses_nothing() {
    rounds_of("all killed", 2, |cluster, acks, rng| {
        pause(rng, 20);
        let mut order = [0, 1];
        if rng.random() {
            order.reverse();
        }
        for index in order {
            cluster.nodes[index].kill9();
        }
        acks.kill9();
        for index in order {
            cluster.nodes[index].start();
        }
    });
}

#[test]
fn fuse_killing_one_of_several_writers_leaves_the_others_going() {
    let seed = seed();
    let cluster = crash_cluster(2);
    for mode in MODES {
        let name = format!("{mode}.db");
        let mut setup = Worker::on(&cluster.path(&name));
        setup.ok(&format!("PRAGMA journal_mode={mode}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)"));
        let mut acked = Vec::new();
        for round in 0..rounds().div_ceil(4) {
            let mut rng = rng(seed.wrapping_mul(1000) + round);
            let base = i64::try_from(round).unwrap() * 3_000_000;
            let mut writers: Vec<Acks> = (0..3)
                .map(|n| inserter(&cluster, &name, mode, base + n * 1_000_000, &mut rng))
                .collect();
            for writer in &mut writers {
                writer.wait(rng.random_range(1..20));
            }
            for writer in &mut writers {
                pause(&mut rng, 15);
                writer.kill9();
                acked.append(&mut writer.acked);
            }
            let rows = sqlite3_ok(&cluster.path(&name), "SELECT a FROM t;");
            check_rows(&rows, &acked, &format!("{mode}, round {round}, seed {seed}"));
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_killing_a_spilling_transaction_leaves_no_trace() {
    let seed = seed();
    let mut cluster = crash_cluster(2);
    for mode in MODES {
        let name = format!("{mode}.db");
        sqlite3_ok(
            &cluster.path(&name),
            &format!(
                "PRAGMA journal_mode={mode}; CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 1);"
            ),
        );
        cluster.converge(&name);
        for round in 0..rounds().div_ceil(4) {
            let mut rng = rng(seed.wrapping_mul(1000) + round);
            let mut worker = Worker::on(&cluster.path(&name));
            worker.ok("PRAGMA cache_size=3; BEGIN; UPDATE t SET b = 2");
            for _ in 0..rng.random_range(1..30) {
                worker.ok("INSERT INTO t VALUES (2, randomblob(20000))");
            }
            let daemon_too = round % 2 == 1;
            if daemon_too {
                cluster.nodes[0].kill9();
            }
            worker.kill9();
            if daemon_too {
                cluster.nodes[0].start();
            }
            assert_eq!(sqlite3_ok(&cluster.path(&name), "SELECT a, b FROM t;"), "1|1", "{mode}");
            sqlite3_ok(&cluster.path(&name), "UPDATE t SET b = b;");
            cluster.converge(&name);
        }
    }
}

#[test]
fn fuse_a_writer_that_dies_before_it_shows_its_commit_leaves_all_nodes_equal() {
    // The commit write was answered, so the log and the replicas have the transaction; the writer dies
    // before it updates the wal-index, so no connection would see it and the next would overwrite it.
    let Some(library) = shim() else { return };
    let cluster = crash_cluster(2);
    for moment in ["write", "fsync"] {
        for others_open in [false, true] {
            let name = format!("{moment}-{others_open}.db");
            sqlite3_ok(
                &cluster.path(&name),
                "PRAGMA journal_mode=WAL; CREATE TABLE t(a, b); INSERT INTO t VALUES (0, 0);",
            );
            let mut other = Worker::spawn();
            if others_open {
                other.open(0, &cluster.path(&name)).unwrap();
                other.ok("SELECT * FROM t");
            }
            for round in 1..=5 {
                let status = std::process::Command::new("sqlite3")
                    .env("LD_PRELOAD", &library)
                    .env("DIE_AFTER", moment)
                    .arg(cluster.path(&name))
                    .arg(format!(
                        "PRAGMA synchronous=FULL; INSERT INTO t VALUES ({round}, randomblob(5000))"
                    ))
                    .stdout(std::process::Stdio::null())
                    .status()
                    .unwrap();
                assert!(!status.success(), "{name}: the writer should have died");
                if round % 2 == 0 {
                    cluster.converge(&name);
                }
                if !others_open {
                    other.open(0, &cluster.path(&name)).unwrap();
                }
                other.ok("INSERT INTO t VALUES (100, randomblob(100))");
                if !others_open {
                    other.close(0);
                }
                cluster.converge(&name);
            }
        }
    }
}
