//! Which page may come next in a file.

use crate::types::PageNo;

use super::Header;

/// Why a page may not come here.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OrderError {
    /// Pages must ascend, each once.
    #[error("page {page} comes after page {previous}")]
    NotAscending {
        /// The page.
        page: PageNo,
        /// The one before it.
        previous: u32,
    },
    /// The database ends before the page.
    #[error("page {page} is beyond the end of the database, which has {commit} pages")]
    BeyondCommit {
        /// The page.
        page: PageNo,
        /// Size of the database in pages.
        commit: u32,
    },
    /// The page that holds SQLite's locks is never stored.
    #[error("page {0} is the lock page, which is never stored")]
    LockPage(PageNo),
    /// A snapshot holds every page.
    #[error("the snapshot lacks page {0}")]
    Missing(u32),
}

/// Watches the order of pages; the same rules for writing and reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageOrder {
    is_snapshot: bool,
    commit: u32,
    lock_page: PageNo,
    previous: u32,
}

impl PageOrder {
    pub(super) fn new(header: &Header) -> Self {
        Self {
            is_snapshot: header.is_snapshot(),
            commit: header.commit,
            lock_page: header.page_size.lock_page(),
            previous: 0,
        }
    }

    /// Accepts a page or says why it may not come now.
    pub(super) fn next(&mut self, page: PageNo) -> Result<(), OrderError> {
        if page.get() <= self.previous {
            return Err(OrderError::NotAscending { page, previous: self.previous });
        }
        if page.get() > self.commit {
            return Err(OrderError::BeyondCommit { page, commit: self.commit });
        }
        if page == self.lock_page {
            return Err(OrderError::LockPage(page));
        }
        if self.is_snapshot && page.get() != self.following() {
            return Err(OrderError::Missing(self.following()));
        }
        self.previous = page.get();
        Ok(())
    }

    /// Accepts the end of the pages or says which one is missing.
    pub(super) fn end(&self) -> Result<(), OrderError> {
        let following = self.following();
        if self.is_snapshot && self.previous < self.commit && following <= self.commit {
            return Err(OrderError::Missing(following));
        }
        Ok(())
    }

    fn following(&self) -> u32 {
        let next = self.previous.saturating_add(1);
        if next == self.lock_page.get() { next + 1 } else { next }
    }
}
