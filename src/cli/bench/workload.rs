//! What an application does with a database, one step at a time.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rusqlite::Connection;

use super::super::playground::Interrupt;
use super::measure::{Pace, median};
use super::report::Row;

/// One workload.
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// Statements that make the database.
    setup: String,
    /// Statements for every connection.
    connection: &'static str,
    /// One operation, with ?1 = a number that rises and ?2 = a random number below `keys`.
    step: &'static str,
    keys: u32,
    /// It can run on a replica too.
    pub(super) is_read: bool,
    pub(super) is_in_demo: bool,
}

const ROW_BYTES: u32 = 100;

/// All workloads that are measured as a rate.
pub(super) fn all(update_megabytes: u32) -> Vec<Workload> {
    let table = |journal: &str, rows: u32, bytes: u32| {
        format!(
            "PRAGMA journal_mode={journal}; PRAGMA synchronous=OFF; \
             CREATE TABLE t(a INTEGER PRIMARY KEY, b); \
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i < {rows}) \
             INSERT INTO t SELECT i, randomblob({bytes}) FROM n; "
        )
    };
    let insert = |name, journal, connection| Workload {
        name,
        setup: table(journal, 10, ROW_BYTES),
        connection,
        step: "INSERT INTO t(b) SELECT zeroblob(100) WHERE ?1 <> ?2 + 1e18",
        keys: 1,
        is_read: false,
        is_in_demo: true,
    };
    let update_rows = update_megabytes * 1000;
    vec![
        Workload {
            name: "SELECT by key, warm",
            setup: table("WAL", 10_000, ROW_BYTES),
            connection: "PRAGMA synchronous=NORMAL",
            step: "SELECT b FROM t WHERE a = ?2 + 1 AND ?1 >= 0",
            keys: 10_000,
            is_read: true,
            is_in_demo: true,
        },
        insert("INSERT, WAL, NORMAL", "WAL", "PRAGMA synchronous=NORMAL"),
        insert("INSERT, WAL, FULL", "WAL", "PRAGMA synchronous=FULL"),
        insert("INSERT, DELETE, FULL", "DELETE", "PRAGMA synchronous=FULL"),
        Workload {
            name: "random UPDATE, WAL, NORMAL",
            setup: table("WAL", update_rows, 950),
            connection: "PRAGMA synchronous=NORMAL",
            step: "UPDATE t SET b = zeroblob(950) WHERE a = ?2 + 1 AND ?1 >= 0",
            keys: update_rows,
            is_read: false,
            is_in_demo: false,
        },
    ]
}

/// A workload in one directory.
pub(super) struct Place {
    path: PathBuf,
    db: Connection,
    step: &'static str,
    keys: u32,
    number: i64,
    random: u64,
}

impl Place {
    /// Makes the database.
    ///
    /// # Errors
    /// SQLite failed.
    pub(super) fn new(directory: &Path, workload: &Workload) -> anyhow::Result<Self> {
        let path = file(directory, workload);
        remove_database(&path)?;
        let db = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
        db.execute_batch(&workload.setup).with_context(|| format!("set up {}", path.display()))?;
        Self::on(path, db, workload)
    }

    /// Waits for the database that the primary made.
    ///
    /// # Errors
    /// It does not come, or SQLite failed.
    pub(super) fn existing(
        directory: &Path,
        workload: &Workload,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        let path = file(directory, workload);
        let count = format!("SELECT count(*) = {} FROM t", workload.keys);
        let start = Instant::now();
        loop {
            let complete =
                Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
                    .and_then(|db| db.query_row(&count, [], |row| row.get::<_, bool>(0)));
            if complete == Ok(true) {
                break;
            }
            anyhow::ensure!(
                start.elapsed() < Duration::from_secs(60),
                "{} does not arrive on the replica",
                path.display()
            );
            interrupt.wait(Duration::from_millis(20))?;
        }
        let db = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
        Self::on(path, db, workload)
    }

    fn on(path: PathBuf, db: Connection, workload: &Workload) -> anyhow::Result<Self> {
        db.execute_batch(workload.connection)?;
        db.busy_timeout(Duration::from_secs(5))?;
        let (step, keys) = (workload.step, workload.keys);
        Ok(Self { path, db, step, keys, number: 0, random: 0x9e37_79b9_7f4a_7c15 })
    }

    /// One operation.
    ///
    /// # Errors
    /// SQLite failed.
    pub(super) fn step(&mut self) -> anyhow::Result<()> {
        self.number += 1;
        // xorshift64: the same keys in the same order on every side.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let key = self.random % u64::from(self.keys);
        let mut statement = self.db.prepare_cached(self.step)?;
        let mut rows = statement.query(rusqlite::params![self.number, key.cast_signed()])?;
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Removes the database.
    ///
    /// # Errors
    /// A file could not be removed.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        drop(self.db);
        remove_database(&self.path)
    }
}

fn file(directory: &Path, workload: &Workload) -> PathBuf {
    let stem: String =
        workload.name.chars().filter(char::is_ascii_alphanumeric).collect::<String>();
    directory.join(format!("bench-{stem}.db"))
}

/// Removes a database with its companions, if it is there.
pub(super) fn remove_database(path: &Path) -> anyhow::Result<()> {
    for suffix in ["-wal", "-shm", "-journal", ""] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("remove {}", Path::new(&name).display()));
            }
            _ => (),
        }
    }
    Ok(())
}

/// Loads a database in transactions of 1 MB, in turns; megabytes per second.
///
/// # Errors
/// SQLite failed, or the user interrupts.
pub(super) fn bulk(
    plain: &Path,
    mount: &Path,
    megabytes: u32,
    pace: Pace,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..pace.rounds.min(3) {
        for (directory, rates) in [plain, mount].into_iter().zip(&mut rates) {
            rates.push(load(&directory.join("bench-bulk.db"), megabytes, interrupt)?);
        }
    }
    let [plain, weir] = rates.map(median);
    Ok(Row::ratio(format!("bulk load, {megabytes} MB"), "MB/s", plain, weir))
}

fn load(path: &Path, megabytes: u32, interrupt: &Interrupt) -> anyhow::Result<f64> {
    remove_database(path)?;
    let db = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY, b)")?;
    let start = Instant::now();
    for _ in 0..megabytes {
        interrupt.check()?;
        db.execute_batch("BEGIN")?;
        {
            let mut statement = db.prepare_cached("INSERT INTO t(b) VALUES (randomblob(1000))")?;
            for _ in 0..1000 {
                statement.execute([])?;
            }
        }
        db.execute_batch("COMMIT")?;
    }
    drop(db);
    let rate = f64::from(megabytes) / start.elapsed().as_secs_f64();
    remove_database(path)?;
    Ok(rate)
}
