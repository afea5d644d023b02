//! Daemons, writers and oracles.

mod disk;
mod image;
mod node;
mod writer;

pub(crate) use disk::Disk;
pub(crate) use image::Image;
pub(crate) use node::{Cluster, Node, binary};
pub(crate) use writer::{Plan, Writer};

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rusqlite::Connection;

/// How long a condition may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// All ways in which SQLite ends a transaction.
pub(crate) const MODES: [&str; 4] = ["wal", "delete", "truncate", "persist"];

/// Looks at a condition until it holds.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "after {PATIENCE:?} still not true: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number from the environment.
pub(crate) fn env_number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many rounds a random test makes.
pub(crate) fn rounds(default: u64) -> u64 {
    env_number("WEIR_TEST_ROUNDS").unwrap_or(default)
}

/// The seed of this run, printed.
pub(crate) fn seed() -> u64 {
    let seed = env_number("WEIR_TEST_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("seed {seed} (replay: WEIR_TEST_SEED={seed})");
    seed
}

/// A generator for one round of a seeded test.
pub(crate) fn rng(seed: u64, round: u64) -> StdRng {
    StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round))
}

/// Waits a random time.
pub(crate) fn pause(rng: &mut StdRng, milliseconds_max: u64) {
    use rand::Rng as _;
    std::thread::sleep(Duration::from_micros(rng.random_range(0..=milliseconds_max * 1000)));
}

/// A connection of this process that waits for locks.
pub(crate) fn connect(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

/// Runs statements on a connection of its own, which must succeed.
pub(crate) fn sql(path: &Path, sql: &str) {
    connect(path)
        .execute_batch(sql)
        .unwrap_or_else(|error| panic!("{}: {sql}: {error}", path.display()));
}

/// The keys in table `t`.
pub(crate) fn keys(path: &Path) -> BTreeSet<i64> {
    keys_of(&connect(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The keys in table `t` as a connection sees them.
pub(crate) fn keys_of(connection: &Connection) -> rusqlite::Result<BTreeSet<i64>> {
    let mut statement = connection.prepare("SELECT a FROM t")?;
    statement.query_map([], |row| row.get(0))?.collect()
}

/// Runs the system's `sqlite3`, a second version of SQLite; `Err` holds what it said.
pub(crate) fn sqlite3(path: &Path, sql: &str) -> Result<String, String> {
    let output = Command::new("sqlite3")
        .args(["-batch", "-bail", "-cmd", ".timeout 10000"])
        .arg(path)
        .arg(sql)
        .output()
        .expect("sqlite3 is installed (./ci.sh setup)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}
