//! Sums over a copy of a database: raw pages as they come, then those that make the copy exact.

use crate::ltx::page_sum;
use crate::types::{Checksum, PageNo, PageSize};

/// The sum of each page of a copy, 8 bytes a page.
#[derive(Clone, Debug)]
pub struct ImageSums {
    page_size: PageSize,
    sums: Vec<Checksum>,
}

impl ImageSums {
    /// Starts with no pages.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        Self { page_size, sums: Vec::new() }
    }

    /// Takes whole pages, from `first` on; later images of a page replace earlier ones.
    pub fn write(&mut self, first: PageNo, bytes: &[u8]) {
        for (index, image) in bytes.chunks_exact(self.page_size.bytes()).enumerate() {
            let at = first.get() as usize - 1 + index;
            let Some(page) = u32::try_from(at + 1).ok().and_then(PageNo::new) else { return };
            if self.sums.len() <= at {
                self.sums.resize(at + 1, Checksum::EMPTY);
            }
            let is_lock_page = page == self.page_size.lock_page();
            self.sums[at] = if is_lock_page { Checksum::EMPTY } else { page_sum(page, image) };
        }
    }

    /// Gives the copy a size. With another page size nothing of it counts any more.
    pub fn set_size(&mut self, page_size: PageSize, pages: u32) {
        if page_size != self.page_size {
            *self = Self::new(page_size);
        }
        self.sums.resize(pages as usize, Checksum::EMPTY);
    }

    /// The sums, page 1 first; the lock page's is empty.
    #[must_use]
    pub fn pages(&self) -> &[Checksum] {
        &self.sums
    }

    /// The checksum over all pages.
    #[must_use]
    pub fn total(&self) -> Checksum {
        self.sums.iter().fold(Checksum::EMPTY, |total, sum| total.toggle(*sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ltx::DatabaseSum;

    #[test]
    fn the_last_image_of_each_page_counts_within_the_final_size() {
        let size = PageSize::new(512).unwrap();
        let page = |no| PageNo::new(no).unwrap();
        let mut image = ImageSums::new(size);
        image.write(page(1), &[1; 512 * 3]);
        image.write(page(2), &[2; 512]);
        image.set_size(size, 2);
        let mut expected = DatabaseSum::new(size);
        expected.toggle(page(1), &[1; 512]);
        expected.toggle(page(2), &[2; 512]);
        assert_eq!(image.total(), expected.checksum());
        image.set_size(size, 0);
        assert_eq!(image.total(), Checksum::EMPTY);
    }

    #[test]
    fn the_lock_page_has_no_sum() {
        let size = PageSize::MAX;
        let mut image = ImageSums::new(size);
        image.write(size.lock_page(), &[7; 65536]);
        assert_eq!(image.total(), Checksum::EMPTY);
    }
}
