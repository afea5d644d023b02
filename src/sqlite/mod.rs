//! Bytes that SQLite writes: the database header, the WAL, the rollback journal, the wal-index, the locks.
//!
//! Pure: bytes in, values out, and back. Parsing validates once; a parsed value is trusted afterwards.
//! Callers: `capture` and `database` (files behind the mount), `client` (files through the mount).
//! Not here: opening, locking or mapping a file.

#![forbid(unsafe_code)]

mod be;
mod freelist;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod header;
mod journal;
mod locks;
pub mod shm;
mod wal;

pub use freelist::free_leaves;
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_database_header, fuzz_journal, fuzz_wal, fuzz_wal_index};
pub use header::{DatabaseHeader, HeaderError, JournalFormat};
pub use journal::{Journal, JournalHeader, JournalRecord, Reading, super_journal};
pub use locks::LockRange;
pub use wal::{
    FrameHeader, Salts, WalByteOrder, WalChecksum, WalEncoder, WalHeader, WalHeaderError,
};
