//! Weir as a SQLite client of its own mount.
//!
//! The kernel keeps the locks of files under the mount, so whoever wants to hold one, or to write where applications
//! read, must be a process like any other: open the files *through the mount*, lock as SQLite locks, and keep to
//! SQLite's protocol. That is done here, on threads of its own ("lanes"), and nowhere else.
//!
//! Always: locks are open-file-description locks, never POSIX ones, which would drop with any other descriptor of the
//! file. A lane waits for no lock; it asks again, so that a busy database delays no other. While a session is open it
//! holds SHARED on the database file, so the journal mode cannot change behind its back.
//!
//! Callers: `database` and `store`. Never call from a thread that serves kernel requests: the answer needs one.
//! Not here: what to write and when (`database`), and the log that makes writes durable: nothing is synced here.

mod api;
mod change;
mod checkpoint;
mod files;
mod index;
mod lane;
mod lock;
mod pool;
mod publish;
mod rollback;
mod session;
mod slot;
mod wal;

pub use api::{Abandoned, Answer, ClientError, FileState, Request, WalState};
pub use change::{Change, Images, Pages};
pub use lock::Holder;
pub use pool::{Pool, Timing};

#[cfg(test)]
mod tests;
