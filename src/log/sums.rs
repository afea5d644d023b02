//! The sums of a database's pages, kept beside its log.

use std::path::Path;

use super::SumsError;
use crate::types::{Checksum, PageNo, PageSize, Pos};

/// The page sums of one database.
///
/// A sum is unknown (`None`) if it was never set or its block is damaged; the caller then computes it
/// from the page. The file is complete for [`PageSums::as_of`]; after a crash blocks may be newer, which
/// replaying the log over them makes right.
#[derive(Debug)]
pub struct PageSums {}

impl PageSums {
    /// Creates an empty file, as of [`Pos::ZERO`]; an existing one is replaced.
    ///
    /// # Errors
    /// The disk refused.
    pub fn create(_path: &Path, _page_size: PageSize) -> Result<Self, SumsError> {
        unimplemented!()
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// [`SumsError::NoHeader`], or the disk refused.
    pub fn open(_path: &Path) -> Result<Self, SumsError> {
        unimplemented!()
    }

    /// The position of the last [`PageSums::flush`].
    #[must_use]
    pub fn as_of(&self) -> Pos {
        unimplemented!()
    }

    /// Size of the database's pages.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        unimplemented!()
    }

    /// Size of the database in pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        unimplemented!()
    }

    /// The sum of a page; `None` if unknown: never set, beyond the end, the lock page, or in a damaged block.
    ///
    /// # Errors
    /// The block could not be read.
    pub fn get(&mut self, _page: PageNo) -> Result<Option<Checksum>, SumsError> {
        unimplemented!()
    }

    /// Sets the sum of a page; the database grows to hold it.
    pub fn set(&mut self, _page: PageNo, _sum: Checksum) {
        unimplemented!()
    }

    /// Sets the size of the database: pages beyond it are forgotten, new ones are unknown.
    pub fn truncate(&mut self, _pages: u32) {
        unimplemented!()
    }

    /// Writes what changed, durably, and notes that the file is complete for `as_of`.
    ///
    /// # Errors
    /// The disk refused; the file is still good for the earlier position.
    pub fn flush(&mut self, _as_of: Pos) -> Result<(), SumsError> {
        unimplemented!()
    }

    /// Number of blocks that wait for [`PageSums::flush`], 4 KiB of memory each.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        unimplemented!()
    }

    /// Number of damaged blocks met since the file was opened.
    #[must_use]
    pub fn damaged_blocks(&self) -> u64 {
        unimplemented!()
    }
}
