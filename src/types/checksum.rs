//! Checksums of pages and databases as LTX defines them.

use std::fmt;

/// A CRC-64/GO-ISO sum with the top bit set, so that a valid checksum is never zero.
///
/// Source: LTX v3, `ChecksumFlag`. Page sums are combined into a database's sum by XOR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Checksum(u64);

impl Checksum {
    /// The bit every stored checksum carries.
    pub const FLAG: u64 = 1 << 63;
    /// The checksum of a database without pages.
    pub const EMPTY: Self = Self(Self::FLAG);

    /// Makes a checksum from a raw CRC; the flag bit is added.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw | Self::FLAG)
    }

    /// Takes a stored value as it is; `None` if the flag bit is missing.
    #[must_use]
    pub const fn from_stored(stored: u64) -> Option<Self> {
        if stored & Self::FLAG == 0 { None } else { Some(Self(stored)) }
    }

    /// The value as it is stored, flag bit included.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Adds or removes one page's sum: XOR is its own inverse.
    #[must_use]
    pub const fn toggle(self, page: Self) -> Self {
        Self((self.0 ^ page.0) | Self::FLAG)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toggling_twice_changes_nothing() {
        let db = Checksum::new(0x1234);
        let page = Checksum::new(0xffff_0000);
        assert_eq!(db.toggle(page).toggle(page), db);
        assert_eq!(Checksum::EMPTY.toggle(page), page);
    }

    #[test]
    fn a_stored_zero_is_not_a_checksum() {
        assert_eq!(Checksum::from_stored(0), None);
        assert_eq!(Checksum::from_stored(Checksum::FLAG), Some(Checksum::EMPTY));
    }
}
