//! Real SQLite processes on real mounts.
//!
//! Each test starts its own daemons (`harness::Cluster`), drives them with separate processes (the
//! system's `sqlite3`, and `harness::Worker` with the bundled SQLite) and ends with
//! `Cluster::converge`: every node at the same position with the same bytes, and the position's
//! checksum equal to one computed from the file by code of this test.
//!
//! Environment: `WEIR_TEST_SEED` replays a printed seed, `WEIR_TEST_ROUNDS` sets the number of
//! rounds of the crash and model tests, `WEIR_TEST_KEEP=1` keeps the directories,
//! `WEIR_TEST_LOG` is the daemons' log level.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_debug_implementations,
    reason = "a failed test panics; tests poll other processes, so they pause between looks"
)]

mod harness;

mod crash;
mod faults;
mod foreign;
mod journal_modes;
mod memory;
mod model;
mod names;
mod readers;
mod replica;
mod reseed;
mod scale;
mod shapes;
mod smoke;
mod tools;
mod verify;
