//! Says when a database is in a long operation under its lock, such as the capture of a huge write: a thread that
//! serves the requests of all databases must not wait for it.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Database, Shared};

/// An operation on fewer pages is over before a change of threads would pay.
const LONG_PAGES: usize = 1024;

/// A long operation; over when dropped.
pub(super) struct Occupied<'a> {
    db: &'a AtomicUsize,
    any: &'a AtomicUsize,
}

impl<'a> Occupied<'a> {
    pub(super) fn new(db: &'a AtomicUsize, shared: &'a Shared) -> Self {
        let any = shared.occupied();
        any.fetch_add(1, Ordering::Release);
        db.fetch_add(1, Ordering::Release);
        Self { db, any }
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.db.fetch_sub(1, Ordering::Release);
        self.any.fetch_sub(1, Ordering::Release);
    }
}

impl Database {
    /// Whether its lock is held for long; a request had better wait on a thread of its own.
    #[must_use]
    pub fn is_occupied(&self) -> bool {
        self.occupied.load(Ordering::Acquire) > 0
    }

    /// Announces an operation on so many pages under the lock.
    pub(super) fn occupy(&self, pages: usize) -> Option<Occupied<'_>> {
        (pages > LONG_PAGES).then(|| Occupied::new(&self.occupied, &self.shared))
    }
}
