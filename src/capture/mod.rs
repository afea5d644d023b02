//! Writes in, committed transactions out.
//!
//! Pure: no clock, no file, no lock. `database` reports every write to a WAL, a journal or a database file
//! and hands in a way to read back what it wrote; this room says where a transaction ended and which
//! pages belong to it.
//! Not here: page images' checksums and the change set (`database::commit`), recovery (`database::recover`).

#![forbid(unsafe_code)]

mod rollback;
mod wal;

#[cfg(test)]
mod tests;

pub use rollback::RollbackCapture;
pub use wal::{ReadBack, WalCapture, WalCommit, WalEvent};
