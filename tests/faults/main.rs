//! Faults on real nodes: processes killed at exact and at random moments, errors at each step of a
//! commit, full disks, power loss, damaged files, files changed while the daemon is stopped.
//!
//! Each test starts its own daemons on real mounts and drives them with processes of its own. At the
//! end all nodes are level: same position, same bytes, and the position's checksum is the one of the
//! bytes.
//!
//! Environment:
//! `WEIR_TEST_SEED` replays a printed seed; `WEIR_TEST_ROUNDS` sets the number of rounds of the random
//! tests (power loss, kill -9, damage; some dozen seconds per ten rounds); `WEIR_TEST_KEEP=1` keeps the
//! directories; `WEIR_TEST_LOG` is the daemons' log level (default `info`);
//! `WEIR_TEST_ALL=1` lets each step on each file fail at each of its calls, instead of a sample (minutes);
//! `WEIR_TEST_BINARY` is the program to test instead of the one just built.
//! Full disks and power loss need root, for a small file system of their own; without it they say that
//! they are left out.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_debug_implementations,
    reason = "a failed test panics; tests poll other processes, so they pause between looks"
)]

mod harness;

mod busy;
mod crashes;
mod full_disk;
mod lost;
mod matrix;
mod offline;
mod points;
mod power;
mod unlogged;
mod user;
