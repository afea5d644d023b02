//! What is to be written: changed pages, in memory or where they can be read.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::types::{PageNo, PageSize};

/// What a database's pages become: the last image of each page of one or more transactions.
#[derive(Clone, Debug)]
pub struct Change {
    /// Size of a page.
    pub page_size: PageSize,
    /// Size of the database in pages, afterwards.
    pub commit: u32,
    /// Changed pages in ascending order, none beyond `commit`, never the lock page.
    pub pages: Pages,
}

/// Images that are read when they are written, so that no one holds a large change in memory. Lanes use it: it must not
/// have a descriptor of its own, see `database::images`.
pub trait Images: fmt::Debug + Send + Sync {
    /// Fills in the image of the page at `index` of the change.
    ///
    /// # Errors
    /// It could not be read.
    fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()>;
}

/// The pages of a change.
#[derive(Clone, Debug)]
pub enum Pages {
    /// With their images.
    Memory(Vec<(PageNo, Bytes)>),
    /// Their images are elsewhere.
    Stored {
        /// Which pages.
        numbers: Vec<PageNo>,
        /// Their images, in the same order.
        images: Arc<dyn Images>,
    },
}

impl Pages {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(pages) => pages.len(),
            Self::Stored { numbers, .. } => numbers.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which page is at an index.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn number(&self, index: usize) -> PageNo {
        match self {
            Self::Memory(pages) => pages[index].0,
            Self::Stored { numbers, .. } => numbers[index],
        }
    }

    /// Fills in the image of the page at an index.
    ///
    /// # Errors
    /// It could not be read.
    pub fn read(&self, index: usize, image: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(pages) => {
                image.copy_from_slice(&pages[index].1);
                Ok(())
            }
            Self::Stored { images, .. } => images.read(index, image),
        }
    }

    /// The pages in order.
    pub fn numbers(&self) -> impl Iterator<Item = PageNo> + '_ {
        (0..self.len()).map(|index| self.number(index))
    }
}

impl From<Vec<(PageNo, Bytes)>> for Pages {
    fn from(pages: Vec<(PageNo, Bytes)>) -> Self {
        Self::Memory(pages)
    }
}

impl Change {
    /// Whether pages have the right length and order.
    pub(super) fn is_valid(&self) -> bool {
        let lock_page = self.page_size.lock_page();
        let is_long = |(_, image): &(PageNo, Bytes)| image.len() == self.page_size.bytes();
        let are_long = match &self.pages {
            Pages::Memory(pages) => pages.iter().all(is_long),
            Pages::Stored { .. } => true,
        };
        let fits = |page: PageNo| page.get() <= self.commit && page != lock_page;
        are_long
            && self.pages.numbers().is_sorted_by(|a, b| a < b)
            && self.pages.numbers().all(fits)
    }

    /// Whether it holds every page of the database, so that nothing is left of what was before.
    pub(super) fn is_whole(&self) -> bool {
        let has_lock_page = self.commit >= self.page_size.lock_page().get();
        self.commit != 0
            && self.pages.len() as u64 == u64::from(self.commit - u32::from(has_lock_page))
    }

    /// The new page 1, if it changed.
    pub(super) fn first_page(&self) -> io::Result<Option<Vec<u8>>> {
        if self.pages.is_empty() || self.pages.number(0) != PageNo::FIRST {
            return Ok(None);
        }
        let mut image = vec![0; self.page_size.bytes()];
        self.pages.read(0, &mut image)?;
        Ok(Some(image))
    }
}
