//! Page numbers and page sizes.

use std::fmt;
use std::num::NonZeroU32;

/// Number of a page within a database. The first page is 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNo(NonZeroU32);

impl PageNo {
    /// Page 1, which holds the database header.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0, which is no page.
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The raw number, at least 1.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Byte offset of the page in the database file.
    #[must_use]
    pub fn offset(self, page_size: PageSize) -> u64 {
        u64::from(self.get() - 1) * u64::from(page_size.get())
    }

    /// The page that holds a byte of the database file; `None` beyond the last possible page.
    #[must_use]
    pub fn containing(offset: u64, page_size: PageSize) -> Option<Self> {
        u32::try_from(offset / u64::from(page_size.get())).ok()?.checked_add(1).and_then(Self::new)
    }
}

impl fmt::Display for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PageNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Size of a database's pages in bytes: a power of two from 512 to 65536.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// The largest page size.
    pub const MAX: Self = Self(65536);
    /// The smallest page size.
    pub const MIN: Self = Self(512);

    /// `None` if the number is not a page size.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 65536 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for lengths and indices.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// The page SQLite never writes: the one holding byte 2^30, where its locks live.
    ///
    /// SQLite file format, section 1.4 "The Lock-Byte Page".
    #[must_use]
    pub const fn lock_page(self) -> PageNo {
        PageNo(NonZeroU32::MIN.saturating_add(0x4000_0000 / self.0))
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_page_of_every_page_size() {
        let expected = [
            (512, 2_097_153),
            (1024, 1_048_577),
            (2048, 524_289),
            (4096, 262_145),
            (8192, 131_073),
            (16384, 65_537),
            (32768, 32_769),
            (65536, 16_385),
        ];
        for (size, page) in expected {
            assert_eq!(PageSize::new(size).unwrap().lock_page().get(), page, "page size {size}");
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        for size in [0, 1, 256, 511, 513, 4095, 131_072] {
            assert_eq!(PageSize::new(size), None, "page size {size}");
        }
    }

    #[test]
    fn offsets_and_pages_agree() {
        let size = PageSize::new(4096).unwrap();
        let page = PageNo::new(3).unwrap();
        assert_eq!(page.offset(size), 8192);
        assert_eq!(PageNo::containing(8192, size), Some(page));
        assert_eq!(PageNo::containing(12_287, size), Some(page));
        assert_eq!(PageNo::containing(u64::MAX, size), None);
    }
}
