//! Weir as a SQLite client of its own mount.

/// Threads that open, lock and map files through the mount.
#[derive(Debug)]
pub struct Pool {}
