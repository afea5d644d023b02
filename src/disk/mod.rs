//! Durable file operations and clocks: the unsafe and the fsyncs, done once.
//!
//! Called by every room that touches the disk. Nothing here knows SQLite or replication.

pub mod clock;
mod durable;
pub mod fault;
mod file;
pub mod memory;

pub use durable::{Dir, create_dir_durable, replace, sync_dir};
pub use file::{FileReader, set_len, sync_data, write_all_at, write_vectored_at};
