//! Each step on each file of a database fails, once or for a while, in each way that SQLite commits: the n-th write,
//! sync, truncation, … of a class of files (`disk::fault`).
//!
//! Whatever fails, the application is told so or its transaction is there: afterwards, after `kill -9` and after a
//! stop. What cannot go on is quarantined with a message; other databases do not notice.
//!
//! `WEIR_TEST_ALL=1` tries all; with `WEIR_TEST_CASE="delete FULL, log.sync"` those whose name contains that.

use std::collections::BTreeSet;

use rand::Rng as _;
use rand::rngs::StdRng;
use rusqlite::Connection;

use crate::harness::{Cluster, connect, keys_of, rng, sqlite3};

const MODES: [(&str, &str); 3] = [("wal", "NORMAL"), ("wal", "FULL"), ("delete", "FULL")];

/// The steps that exist, with the classes of files that have them.
const STEPS: [&str; 26] = [
    "log.write",
    "log.half",
    "log.sync",
    "log.create",
    "log.truncate",
    "log.write=ENOSPC",
    "sums.create",
    "sums.write",
    "sums.half",
    "sums.sync",
    "sums.read",
    "meta.create",
    "meta.write=ENOSPC",
    "meta.sync",
    "meta.rename",
    "meta.dirsync",
    "main.write",
    "main.half",
    "main.sync",
    "main.truncate",
    "wal.write",
    "wal.half",
    "wal.truncate",
    "wal.remove",
    "journal.write",
    "journal.remove",
];

/// Calls of a step that are tried at most.
const NTH_MAX: u32 = 12;
/// Steps that are tried without `WEIR_TEST_ALL`.
const SAMPLE: usize = 14;

/// One transaction after another on one database, each with a key of its own.
struct Work {
    acked: BTreeSet<i64>,
    /// Failed: what an error says is that nobody knows, until the next read.
    unknown: BTreeSet<i64>,
    next: i64,
}

impl Work {
    fn transaction(&mut self, db: &Connection, bytes: u32) -> rusqlite::Result<()> {
        let key = self.next;
        self.next += 1;
        let result = db.execute("INSERT INTO t VALUES (?1, randomblob(?2))", (key, bytes));
        match &result {
            Ok(_) => self.acked.insert(key),
            Err(_) => self.unknown.insert(key),
        };
        result.map(drop)
    }

    /// Everything that touches a file: growth, a checkpoint, free pages, the last close.
    fn all(&mut self, path: &std::path::Path, mode: (&str, &str)) {
        for round in 0..2 {
            let Ok(db) = Connection::open(path) else { return };
            db.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
            // Each of these may fail: then it is an error and nothing else.
            drop(db.execute_batch(&format!(
                "PRAGMA synchronous={}; PRAGMA wal_autocheckpoint=4;",
                mode.1
            )));
            for bytes in [10, 20_000, 100] {
                drop(self.transaction(&db, bytes));
            }
            drop(db.execute_batch("UPDATE t SET b = randomblob(6000) WHERE a = 0"));
            drop(db.execute_batch("UPDATE t SET b = 1 WHERE a = 0"));
            if round == 1 {
                drop(db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())));
                drop(self.transaction(&db, 5000));
            }
        }
    }

    fn check(&self, there: &BTreeSet<i64>, when: &str) -> Result<(), String> {
        let lost: Vec<_> = self.acked.difference(there).collect();
        if !lost.is_empty() {
            return Err(format!("{when}: acknowledged and lost: {lost:?}"));
        }
        let strange: Vec<_> = there
            .iter()
            .filter(|key| !self.acked.contains(key) && !self.unknown.contains(key))
            .collect();
        if strange.is_empty() { Ok(()) } else { Err(format!("{when}: from nowhere: {strange:?}")) }
    }
}

/// How the daemon goes away after the fault.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Then {
    Killed,
    Stopped,
    /// Killed before the fault, which then meets the recovery.
    Recovers,
}

const THEN: [Then; 3] = [Then::Killed, Then::Stopped, Then::Recovers];

fn content(path: &std::path::Path) -> Result<BTreeSet<i64>, String> {
    keys_of(&connect(path)).map_err(|error| format!("a read failed: {error}"))
}

/// Lets one call fail. `Ok(false)` if it was never reached.
fn case(
    cluster: &mut Cluster,
    db: &str,
    mode: (&str, &str),
    fault: &str,
    then: Then,
) -> Result<bool, String> {
    let path = cluster.a.path(db);
    let other = cluster.a.path("other.db");
    let mut work = Work { acked: BTreeSet::new(), unknown: BTreeSet::new(), next: 0 };
    {
        let fresh = connect(&path);
        let make =
            format!("PRAGMA journal_mode={}; CREATE TABLE t(a INTEGER PRIMARY KEY, b)", mode.0);
        fresh.execute_batch(&make).map_err(|error| format!("create: {error}"))?;
        work.transaction(&fresh, 9000).map_err(|error| format!("first insert: {error}"))?;
    }
    if then != Then::Recovers {
        cluster.a.arm(fault);
    }
    work.all(&path, mode);
    if then == Then::Recovers {
        // Its open transaction has spilled: a hot journal for the recovery.
        let open = connect(&path);
        drop(open.execute_batch("PRAGMA cache_size=2; BEGIN; UPDATE t SET b = randomblob(30000)"));
        cluster.a.kill9();
        drop(open);
        cluster.a.arm(fault);
        cluster.a.start();
    }
    if !cluster.a.is_alive() {
        return Err("the daemon died".to_owned());
    }
    let mut hit = cluster.a.was_hit();
    // At a start the fault may meet another database's recovery.
    if hit && !fault.ends_with('+') && cluster.a.quarantine("other.db").is_none() {
        // Other databases do not notice.
        let written = connect(&other).execute("INSERT INTO t VALUES (1)", []);
        written.map_err(|error| format!("another database: {error}"))?;
    }
    if then == Then::Stopped {
        cluster.a.stop();
        hit |= cluster.a.was_hit();
        cluster.a.arm("");
        cluster.a.start();
    }
    cluster.a.arm("");
    let quarantine = cluster.a.quarantine(db);
    work.check(&content(&path)?, "when the fault is gone")?;
    match &quarantine {
        None => {
            let next = work.transaction(&connect(&path), 300);
            if let (Err(error), None) = (next, cluster.a.quarantine(db)) {
                return Err(format!("no transaction when the fault is gone: {error}"));
            }
        }
        Some(reason) if !reason.contains("restart") && !reason.contains("room on the disk") => {
            return Err(format!("quarantined without a remedy: {reason}"));
        }
        Some(_) => (),
    }
    cluster.a.restart();
    if let Some(reason) = cluster.a.quarantine(db) {
        return Err(format!("still quarantined after a restart: {reason}"));
    }
    work.check(&content(&path)?, "after a restart")?;
    work.transaction(&connect(&path), 300).map_err(|error| format!("after a restart: {error}"))?;
    work.check(&content(&path)?, "at the end")?;
    let integrity = sqlite3(&path, "PRAGMA integrity_check;");
    if integrity.as_deref() != Ok("ok") {
        return Err(format!("integrity: {integrity:?}"));
    }
    let sum = format!("{:016x}", cluster.a.image(db).checksum().get());
    let pos = cluster.a.pos(db).unwrap_or_default();
    if pos.split('/').nth(1) != Some(&*sum) {
        return Err(format!("the position is {pos}, the bytes have {sum}"));
    }
    Ok(hit)
}

/// Runs cases on one node; returns what went wrong.
struct Matrix {
    cluster: Cluster,
    number: u32,
    problems: Vec<String>,
}

impl Matrix {
    fn new() -> Self {
        let mut cluster = Cluster::prepare();
        cluster.a.arm("");
        cluster.a.start();
        connect(&cluster.a.path("other.db")).execute_batch("CREATE TABLE t(a)").unwrap();
        Self { cluster, number: 0, problems: Vec::new() }
    }

    fn run(&mut self, mode: (&str, &str), fault: &str, then: Then) -> bool {
        let what = format!("{} {}, {fault}, {then:?}", mode.0, mode.1);
        if std::env::var("WEIR_TEST_CASE").is_ok_and(|wanted| !what.contains(&wanted)) {
            return true;
        }
        self.number += 1;
        let db = format!("{}.db", self.number);
        let result = case(&mut self.cluster, &db, mode, fault, then);
        self.cluster.a.arm("");
        match result {
            Ok(hit) => {
                println!("{what}: {}", if hit { "well" } else { "not reached" });
                drop(std::fs::remove_file(self.cluster.a.path(&db)));
                hit
            }
            Err(problem) => {
                println!("{what} ({db}): {problem}");
                self.problems.push(format!("{what} ({db}): {problem}"));
                if !self.cluster.a.is_alive() {
                    self.cluster.a.kill9();
                    self.cluster.a.start();
                }
                true
            }
        }
    }
}

fn sample(matrix: &mut Matrix, rng: &mut StdRng) {
    let start = rng.random_range(0..STEPS.len());
    for index in 0..SAMPLE {
        // Every step comes up within two runs with other seeds; modes and ends change with each.
        let step = STEPS[(start + index * 5) % STEPS.len()];
        let mode = match step.split('.').next() {
            Some("wal") => MODES[index % 2],
            Some("journal") => MODES[2],
            _ => MODES[index % 3],
        };
        let nth = rng.random_range(1..4);
        let stays = if rng.random_ratio(1, 4) { "+" } else { "" };
        matrix.run(mode, &format!("{step}:{nth}{stays}"), THEN[rng.random_range(0..3)]);
    }
}

#[test]
fn fuse_each_step_on_each_file_may_fail() {
    let mut matrix = Matrix::new();
    if std::env::var_os("WEIR_TEST_ALL").is_some() {
        for mode in MODES {
            for step in STEPS {
                for then in THEN {
                    matrix.run(mode, &format!("{step}:1+"), then);
                    let reached = |nth: &u32| matrix.run(mode, &format!("{step}:{nth}"), then);
                    let _calls = (1..=NTH_MAX).take_while(reached).count();
                }
            }
        }
    } else {
        let seed = crate::harness::env_number("WEIR_TEST_SEED").unwrap_or(7);
        println!(
            "seed {seed} (another: WEIR_TEST_SEED, all: WEIR_TEST_ALL=1, some of them: WEIR_TEST_CASE)"
        );
        sample(&mut matrix, &mut rng(seed, 0));
    }
    let Matrix { cluster, number, problems } = matrix;
    drop(cluster);
    assert!(problems.is_empty(), "{} of {number}:\n{}", problems.len(), problems.join("\n"));
}

/// Its hot journal stayed, and readers of the quarantined database were refused its rollback.
#[test]
fn fuse_a_recovery_that_fails_behind_a_hot_journal_lets_readers_in() {
    let mut matrix = Matrix::new();
    for fault in ["log.sync:1", "log.sync:1+"] {
        matrix.run(MODES[2], fault, Then::Recovers);
    }
    let Matrix { cluster, problems, .. } = matrix;
    drop(cluster);
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
