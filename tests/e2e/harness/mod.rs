//! Daemons, workers and oracles for the end-to-end tests.

mod cluster;
mod image;
mod shim;
mod sql;
mod worker;

pub(crate) use cluster::{Cluster, Node, Options, is_mounted, signal};
pub(crate) use image::Image;
pub(crate) use shim::shim;
pub(crate) use sql::{sqlite3, sqlite3_ok};
pub(crate) use worker::{Acks, Worker};

use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// How long a condition may take before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks at a condition until it holds; panics with `what` after `patience`.
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(start.elapsed() < patience, "after {patience:?} still not true: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// A number from the environment.
pub(crate) fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The seed of this run: printed, and taken from `WEIR_TEST_SEED` to replay one.
pub(crate) fn seed() -> u64 {
    let seed = env_number("WEIR_TEST_SEED", rand::random::<u32>().into());
    println!("seed {seed} (replay: WEIR_TEST_SEED={seed})");
    seed
}

/// A generator for one part of a seeded test.
pub(crate) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
