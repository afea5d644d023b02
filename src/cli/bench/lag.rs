//! How long a replica's readers wait for a commit.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rusqlite::Connection;

use super::super::playground::{Interrupt, Node};
use super::measure::Percentiles;
use super::workload::remove_database;

const FILE: &str = "bench-lag.db";

/// Commits `commits` rows on the primary at `rate` per second while a reader on the replica asks for the newest
/// row all the time: from the return of a COMMIT to the moment that reader has seen its row.
///
/// # Errors
/// SQLite failed, a row never arrives, or the user interrupts.
pub(crate) fn measure_lag(
    primary: &Node,
    replica: &Node,
    interrupt: &Arc<Interrupt>,
    commits: u32,
    rate: u32,
) -> anyhow::Result<Percentiles> {
    let path = primary.path(FILE);
    remove_database(&path)?;
    let db = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
    db.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t(a INTEGER PRIMARY KEY)",
    )?;
    let position = primary.position(FILE).context("the primary shows no position")?;
    replica.wait_position(FILE, &position)?;

    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| -> anyhow::Result<_> {
        let (copy, stop) = (replica.path(FILE), &stop);
        let reader = scope.spawn(move || watch(&copy, i64::from(commits), stop));
        let written = write(&db, commits, rate, interrupt);
        if written.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        let seen = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        Ok((written?, seen?))
    });
    drop(db);
    remove_database(&path)?;
    let (written, seen) = seen?;
    // Row n was seen at the first look that showed n rows or more.
    let mut lags = Vec::new();
    let mut looks = seen.iter().peekable();
    for (row, committed) in (1_i64..).zip(&written) {
        while looks.next_if(|(count, _)| *count < row).is_some() {}
        let Some((_, at)) = looks.peek() else { bail!("row {row} never arrived") };
        lags.push(at.saturating_duration_since(*committed));
    }
    Percentiles::of(lags).context("nothing was committed")
}

/// Commits at an even pace; when each COMMIT returned.
fn write(
    db: &Connection,
    commits: u32,
    rate: u32,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Instant>> {
    let step = Duration::from_secs(1) / rate;
    let mut written = Vec::new();
    let start = Instant::now();
    for number in 0..commits {
        if let Some(early) = (step * number).checked_sub(start.elapsed()) {
            interrupt.wait(early)?;
        }
        db.prepare_cached("INSERT INTO t DEFAULT VALUES")?.execute([])?;
        written.push(Instant::now());
    }
    Ok(written)
}

/// Looks at the newest row until the last one is there; each change with its time.
fn watch(path: &Path, last: i64, stop: &AtomicBool) -> anyhow::Result<Vec<(i64, Instant)>> {
    let db = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    db.busy_timeout(Duration::from_secs(5))?;
    let mut seen = Vec::new();
    let mut newest = 0;
    let mut changed = Instant::now();
    while newest < last && !stop.load(Ordering::Relaxed) {
        let mut statement = db.prepare_cached("SELECT coalesce(max(a), 0) FROM t")?;
        let now = statement.query_row([], |row| row.get(0))?;
        if now > newest {
            newest = now;
            changed = Instant::now();
            seen.push((now, changed));
        } else if changed.elapsed() > Duration::from_secs(20) {
            bail!("the replica shows {newest} of {last} rows and stands still");
        } else {
            // Leave the processor to the daemons between looks.
            std::thread::park_timeout(Duration::from_micros(50));
        }
    }
    Ok(seen)
}
