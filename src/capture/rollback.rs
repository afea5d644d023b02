//! Finds commits in rollback-journal mode.
//!
//! Pure. Invariant: a page is in the set exactly if it was written since the last commit or rollback.
//! The end of a journal does not tell commit from rollback after a cache spill; the page images do:
//! `database::commit` drops pages whose sum did not change.
//! Not here: reading pages, and the pages a growing file gained without a write (`database::commit`).

use std::collections::BTreeSet;

use crate::types::{PageNo, PageSize};

/// Pages of the database file that were written outside the WAL since the last transaction.
#[derive(Debug, Default)]
pub struct RollbackCapture {
    dirty: BTreeSet<u32>,
    journal_is_live: bool,
    journal_is_synced: bool,
    database_is_synced: bool,
    spans_databases: bool,
    resized: bool,
}

impl RollbackCapture {
    /// A journal was created or got its first bytes: a transaction may change the file from now on.
    pub fn journal_started(&mut self) {
        self.journal_is_live = true;
    }

    /// The journal names a super-journal: the transaction spans several databases, and the removal of that file, not
    /// of this journal, commits it.
    pub fn super_journal_named(&mut self) {
        self.spans_databases = true;
    }

    /// Whether the removal of a super-journal commits the transaction.
    #[must_use]
    pub fn spans_databases(&self) -> bool {
        self.spans_databases
    }

    /// Whether a journal protects the current writes.
    #[must_use]
    pub fn journal_is_live(&self) -> bool {
        self.journal_is_live
    }

    /// The application synced the journal, which every `synchronous` but `OFF` does before it writes the database.
    pub fn journal_synced(&mut self) {
        self.journal_is_synced = true;
    }

    /// Whether the application synced the journal of this transaction.
    #[must_use]
    pub fn journal_is_synced(&self) -> bool {
        self.journal_is_synced
    }

    /// The database file was written. Unaligned writes count for every page they touch.
    pub fn wrote(&mut self, page_size: PageSize, offset: u64, len: usize) {
        if len == 0 {
            return;
        }
        let last = offset + len as u64 - 1;
        let first = PageNo::containing(offset, page_size).map_or(u32::MAX, PageNo::get);
        let last = PageNo::containing(last, page_size).map_or(u32::MAX, PageNo::get);
        if first == last {
            self.dirty.insert(first);
        } else {
            self.dirty.extend(first..=last);
        }
    }

    /// The database file changed its length.
    pub fn resized(&mut self) {
        self.resized = true;
    }

    /// The application synced the database file: it wants this transaction durable.
    pub fn synced(&mut self) {
        self.database_is_synced = true;
    }

    /// Whether the application synced the database file in this transaction.
    #[must_use]
    pub fn database_is_synced(&self) -> bool {
        self.database_is_synced
    }

    /// Whether anything was written since the last transaction.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && !self.resized
    }

    /// Whether a page was written.
    #[must_use]
    pub fn is_written(&self, page: PageNo) -> bool {
        self.dirty.contains(&page.get())
    }

    /// The written pages, ascending.
    pub fn pages(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.dirty.iter().filter_map(|page| PageNo::new(*page))
    }

    /// The transaction is over: committed or rolled back.
    pub fn finished(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(capture: &RollbackCapture) -> Vec<u32> {
        capture.pages().map(PageNo::get).collect()
    }

    #[test]
    fn every_page_that_a_write_touches_is_dirty_once() {
        let size = PageSize::new(1024).unwrap();
        let mut capture = RollbackCapture::default();
        capture.wrote(size, 0, 1024);
        capture.wrote(size, 0, 1024);
        capture.wrote(size, 4000, 100);
        capture.wrote(size, 2048, 0);
        assert_eq!(pages(&capture), [1, 4, 5]);
        capture.finished();
        assert!(capture.is_clean());
    }

    #[test]
    fn a_resize_alone_is_a_change() {
        let mut capture = RollbackCapture::default();
        capture.resized();
        assert!(!capture.is_clean());
    }
}
