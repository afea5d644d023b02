//! The mount against the real kernel: each test mounts in a temporary directory.
//!
//! They need /dev/fuse and root (or fusermount3), and say so when they are skipped.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "tests may panic, print and rename"
)]

mod files;
mod model;
mod mounting;
mod serve;
mod special;
mod sqlite;
