//! Random workloads by several processes, in all journal modes, then everything must agree.

use std::path::Path;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rusqlite::{Connection, ErrorCode};

use crate::harness::{Cluster, Worker, env_number, rng, seed};

#[test]
fn fuse_random_workloads_leave_all_nodes_equal() {
    let seed = seed();
    let cluster = Cluster::with(crate::harness::Options {
        nodes: 2,
        seconds_max: 3000,
        ..Default::default()
    });
    for round in 0..env_number("WEIR_TEST_ROUNDS", 12) {
        let seed = seed + round;
        let mut rng = rng(seed);
        let name = format!("model{seed}.db");
        println!("round {round}: WEIR_TEST_SEED={seed} WEIR_TEST_ROUNDS=1");
        create(&cluster.path(&name), &mut rng);
        let writers = rng.random_range(1..=3);
        let steps = rng.random_range(20..80);
        let mut workers: Vec<Worker> = (0..writers).map(|_| Worker::spawn()).collect();
        for (index, worker) in workers.iter_mut().enumerate() {
            worker.start_model(&cluster.path(&name), seed * 10 + index as u64, steps);
        }
        // Who has pages in its cache on the replica sees sound states, and in the end the last one.
        cluster.level(&name);
        let replica = cluster.replicas()[0].path(&name);
        let mut readers: Vec<Worker> = (0..2).map(|_| Worker::on(&replica)).collect();
        readers[1].ok("PRAGMA mmap_size=4194304");
        for _ in 0..rng.random_range(5..40) {
            let reader = &mut readers[rng.random_range(0..2)];
            let sound = reader.value("PRAGMA integrity_check");
            assert_eq!(sound, "ok", "seed {seed}: on the replica");
        }
        let answers: Vec<_> =
            workers.iter_mut().map(|worker| worker.finish(Duration::from_secs(150))).collect();
        for answer in answers {
            answer.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        }
        drop(workers);
        cluster.converge(&name);
        let sums = "SELECT count(*), total(id), total(a), total(length(b)), max(hex(substr(b, 1, 9))) FROM t";
        let expected = Worker::on(&cluster.path(&name)).ok(sums);
        for (which, reader) in readers.iter_mut().enumerate() {
            assert_eq!(reader.ok(sums), expected, "seed {seed}: reader {which} on the replica");
        }
    }
}

#[test]
fn the_workload_itself_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..6 {
        let path = dir.path().join(format!("{round}.db"));
        create(&path, &mut rng(round));
        workload(&path, round, 60).unwrap();
    }
}

fn create(path: &Path, rng: &mut StdRng) {
    let db = Connection::open(path).unwrap();
    let page_size = 512 << rng.random_range(0..8);
    let auto_vacuum = ["NONE", "NONE", "FULL", "INCREMENTAL"].choose(rng).unwrap();
    db.execute_batch(&format!(
        "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode={};
         CREATE TABLE t(id INTEGER PRIMARY KEY, a, b); CREATE INDEX i ON t(a);",
        ["delete", "wal"].choose(rng).unwrap()
    ))
    .unwrap();
}

/// One process of the workload: `steps` random steps on one connection, which it reopens at times.
/// "Busy" is an answer like any other; every other error ends it.
pub(crate) fn workload(path: &Path, seed: u64, steps: u32) -> rusqlite::Result<()> {
    let mut rng = rng(seed);
    let mut db = connect(path, &mut rng)?;
    for step in 0..steps {
        let sql = step_sql(&mut rng);
        match db.execute_batch(&sql) {
            Ok(()) => (),
            Err(error) if is_conflict(&error) => (),
            Err(error) => {
                eprintln!("seed {seed}, step {step}: {sql}: {error}");
                return Err(error);
            }
        }
        if !db.is_autocommit() && (rng.random_bool(0.4) || sql.contains("BEGIN")) {
            let end = *["COMMIT", "COMMIT", "COMMIT", "ROLLBACK"].choose(&mut rng).unwrap();
            if db.execute_batch(end).is_err() && !db.is_autocommit() {
                db.execute_batch("ROLLBACK")?;
            }
        }
        if rng.random_ratio(1, 25) {
            drop(db);
            db = connect(path, &mut rng)?;
        }
    }
    Ok(())
}

fn connect(path: &Path, rng: &mut StdRng) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_millis(300))?;
    let cache = [2, 5, 50, 2000].choose(rng).unwrap();
    let synchronous = ["OFF", "NORMAL", "FULL", "EXTRA"].choose(rng).unwrap();
    let secure = ["0", "1", "FAST"].choose(rng).unwrap();
    let mmap = [0, 0, 1 << 22].choose(rng).unwrap();
    let result = db.execute_batch(&format!(
        "PRAGMA cache_size={cache}; PRAGMA synchronous={synchronous}; PRAGMA secure_delete={secure}; \
         PRAGMA mmap_size={mmap}; PRAGMA wal_autocheckpoint={}; PRAGMA journal_size_limit={};",
        [1, 10, 1000].choose(rng).unwrap(),
        [-1, 0, 30_000].choose(rng).unwrap(),
    ));
    match result {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(db),
    }
}

fn is_conflict(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::ConstraintViolation)
    ) || error.to_string().contains("no such savepoint")
        || error.to_string().contains("within a transaction")
        || error.to_string().contains("into wal mode")
        || error.to_string().contains("out of wal mode")
        || error.to_string().contains("SQL statements in progress")
        || error.to_string().contains("already exists")
        || error.to_string().contains("no such table: extra")
}

fn step_sql(rng: &mut StdRng) -> String {
    let size = *[10, 200, 3000, 40_000].choose(rng).unwrap();
    let some = rng.random_range(1..2000);
    let insert = format!(
        "INSERT INTO t(a, b) VALUES ({some}, {}({}))",
        ["randomblob", "zeroblob"].choose(rng).unwrap(),
        rng.random_range(0..size)
    );
    let many = format!(
        "INSERT INTO t(a, b) WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < {}) \
         SELECT i * {some}, randomblob({}) FROM n",
        rng.random_range(2..60),
        size / 10
    );
    let delete = format!("DELETE FROM t WHERE id % {} = 0", rng.random_range(1..6));
    let update =
        format!("UPDATE t SET b = randomblob({}), a = a + 1 WHERE a % 7 = {}", size / 5, some % 7);
    match rng.random_range(0..29) {
        0..=4 => insert,
        5 | 6 => many,
        7 | 8 => delete,
        9..=11 => update,
        12..=15 => format!("BEGIN IMMEDIATE; {insert}; {many}; {update}; {delete}"),
        16 => format!("BEGIN IMMEDIATE; {many}; SAVEPOINT s; {update}; {delete}; ROLLBACK TO s; {insert}; RELEASE s"),
        17 => format!("BEGIN IMMEDIATE; SAVEPOINT s; {update}; {many}; RELEASE s; {update}; {update}"),
        18 => format!("BEGIN IMMEDIATE; {many}; {insert}; DELETE FROM t WHERE a > {some}"),
        19 => format!("BEGIN IMMEDIATE; DELETE FROM t; {many}; {many}; DELETE FROM t; INSERT INTO t(a) VALUES (1)"),
        20 => format!("PRAGMA page_size={}; VACUUM", 512 << rng.random_range(0..8)),
        21 => format!("PRAGMA incremental_vacuum({})", rng.random_range(1..40)),
        22 => format!("PRAGMA wal_checkpoint({})", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"].choose(rng).unwrap()),
        23 | 24 => format!("PRAGMA journal_mode={}", ["delete", "wal", "truncate", "persist", "wal", "memory"].choose(rng).unwrap()),
        25 => "CREATE TABLE extra(x PRIMARY KEY); INSERT INTO extra SELECT randomblob(50) FROM t LIMIT 50".to_owned(),
        26 => "DROP TABLE extra".to_owned(),
        27 => format!("PRAGMA locking_mode={}; {update}", ["EXCLUSIVE", "NORMAL"].choose(rng).unwrap()),
        _ => "SELECT count(*), sum(length(b)) FROM t; PRAGMA quick_check".to_owned(),
    }
}
