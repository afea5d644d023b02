//! Weir: a FUSE file system that replicates SQLite.
//!
//! The rooms, from the bottom up; a lower one may use a higher one, never the reverse.
//! `types`, `sqlite`, `ltx`, `capture`, `cluster` are pure: no file, socket, clock or thread.
//! ARCHITECTURE.md has the map and the path of a write.

pub mod types;

pub mod sqlite;

pub mod ltx;

pub mod capture;

pub mod cluster;

pub mod disk;

pub mod log;

pub mod client;

pub mod database;

pub mod store;

pub mod mount;

pub mod replication;

pub mod lease;

pub mod telemetry;

pub mod config;

pub mod node;

pub mod cli;
