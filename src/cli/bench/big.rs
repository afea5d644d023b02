//! Whether a commit costs more in a large database.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rusqlite::Connection;

use super::super::playground::Interrupt;
use super::measure::{Pace, Percentiles};
use super::report::Row;
use super::workload::remove_database;

const PAGE: u64 = 4096;
/// Leaves that one trunk page of the free list can name.
const LEAVES: u64 = PAGE / 4 - 2;

/// One-row commits in a database of 10 MB and in one of `megabytes`, in turns.
///
/// # Errors
/// SQLite failed, or the user interrupts.
pub(super) fn commit_cost(
    mount: &Path,
    megabytes: u32,
    pace: Pace,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let sizes = [10 << 20, u64::from(megabytes) << 20];
    let mut databases = Vec::new();
    for (name, bytes) in ["bench-small.db", "bench-large.db"].into_iter().zip(sizes) {
        let path = mount.join(name);
        remove_database(&path)?;
        make(&path, bytes).with_context(|| format!("make {}", path.display()))?;
        let db = Connection::open(&path).with_context(|| format!("open {}", path.display()))?;
        db.busy_timeout(Duration::from_secs(30))?;
        db.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")?;
        databases.push((path, db, Vec::new()));
    }
    for _ in 0..pace.rounds {
        for (_, db, taken) in &mut databases {
            interrupt.check()?;
            let start = Instant::now();
            while start.elapsed() < pace.round {
                let before = Instant::now();
                db.prepare_cached("INSERT INTO t VALUES (zeroblob(100))")?.execute([])?;
                taken.push(before.elapsed());
            }
        }
    }
    let mut medians = Vec::new();
    for (path, db, taken) in databases {
        drop(db);
        remove_database(&path)?;
        medians.push(Percentiles::of(taken).context("nothing was committed")?.p50);
    }
    let large = match megabytes {
        1024.. => format!("{} GB", megabytes / 1024),
        _ => format!("{megabytes} MB"),
    };
    Ok(Row::cost(format!("commit, 10 MB and {large} database"), medians[0], medians[1]))
}

/// Makes a database of a size fast: one table, and free pages that are never written (holes).
fn make(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let db = Connection::open(path)?;
    db.execute_batch(&format!(
        "PRAGMA page_size={PAGE}; PRAGMA journal_mode=DELETE; CREATE TABLE t(a)"
    ))?;
    drop(db);
    let file = File::options().read(true).write(true).open(path)?;
    let used = file.metadata()?.len() / PAGE;
    let pages = bytes / PAGE;
    let mut header = [0; 100];
    file.read_exact_at(&mut header, 0)?;
    // SQLite file format, sections 1.3 and 1.5. Trunk pages come first, then all their leaves; the page
    // with byte 2^30 belongs to nobody.
    let lock_page = 0x4000_0000 / PAGE + 1;
    let mut free: Vec<u64> = (used + 1..=pages).filter(|page| *page != lock_page).collect();
    let count = u32::try_from(free.len())?;
    let leaves = free.split_off(free.len().div_ceil(usize::try_from(LEAVES)? + 1));
    let mut groups = leaves.chunks(usize::try_from(LEAVES)?);
    for (index, trunk) in free.iter().enumerate() {
        let group = groups.next().unwrap_or(&[]);
        let next = free.get(index + 1).copied().unwrap_or(0);
        let mut page = Vec::new();
        page.extend(u32::try_from(next)?.to_be_bytes());
        page.extend(u32::try_from(group.len())?.to_be_bytes());
        for leaf in group {
            page.extend(u32::try_from(*leaf)?.to_be_bytes());
        }
        file.write_all_at(&page, (trunk - 1) * PAGE)?;
    }
    file.set_len(pages * PAGE)?;
    header[28..32].copy_from_slice(&u32::try_from(pages)?.to_be_bytes());
    header[32..36]
        .copy_from_slice(&u32::try_from(free.first().copied().unwrap_or(0))?.to_be_bytes());
    header[36..40].copy_from_slice(&count.to_be_bytes());
    file.write_all_at(&header, 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_database_is_a_sound_one() {
        let path = std::env::temp_dir().join(format!("weir-big-{}.db", std::process::id()));
        make(&path, 1100 << 20).unwrap();
        let db = Connection::open(&path).unwrap();
        let answer: String = db.query_row("PRAGMA quick_check", [], |row| row.get(0)).unwrap();
        drop(db);
        remove_database(&path).unwrap();
        assert_eq!(answer, "ok");
    }
}
