//! CRC-64/GO-ISO over pages, databases and files.
//!
//! Always true: every sum that leaves here carries [`Checksum::FLAG`].

use crc_fast::{CrcAlgorithm, Digest};

use crate::types::{Checksum, PageNo, PageSize};

/// Sum of one page: its number, big endian, then its whole content.
///
/// The lock page has no sum; callers leave it out.
#[must_use]
pub fn page_sum(page: PageNo, data: &[u8]) -> Checksum {
    let mut crc = FileCrc::new();
    crc.update(&page.get().to_be_bytes());
    crc.update(data);
    crc.sum()
}

/// Running sum over a file's bytes (pages count uncompressed).
#[derive(Clone, Debug)]
pub(super) struct FileCrc(Digest);

impl FileCrc {
    pub(super) fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn sum(&self) -> Checksum {
        Checksum::new(self.0.finalize())
    }
}

/// The checksum of a database, fed page by page in any order.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseSum {
    sum: Checksum,
    lock_page: PageNo,
}

impl DatabaseSum {
    /// Starts with no pages.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        Self { sum: Checksum::EMPTY, lock_page: page_size.lock_page() }
    }

    /// Adds a page that was not there, or takes one out that was. The lock page changes nothing.
    pub fn toggle(&mut self, page: PageNo, data: &[u8]) {
        if page != self.lock_page {
            self.sum = self.sum.toggle(page_sum(page, data));
        }
    }

    /// The checksum over the pages so far.
    #[must_use]
    pub fn checksum(self) -> Checksum {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(no: u32) -> PageNo {
        PageNo::new(no).unwrap()
    }

    #[test]
    fn the_crc_has_the_published_check_value() {
        assert_eq!(
            crc_fast::checksum(CrcAlgorithm::Crc64GoIso, b"123456789"),
            0xb909_56c7_75a4_1001
        );
    }

    #[test]
    fn the_crc_agrees_with_a_bit_by_bit_one_at_every_length() {
        let bytes: Vec<u8> = (0..700u32).map(|i| (i * i / 8 % 251) as u8).collect();
        for len in 0..bytes.len() {
            let mut crc = !0u64;
            for byte in &bytes[..len] {
                crc ^= u64::from(*byte);
                for _ in 0..8 {
                    crc = if crc & 1 == 1 { crc >> 1 ^ 0xd800_0000_0000_0000 } else { crc >> 1 };
                }
            }
            assert_eq!(
                crc_fast::checksum(CrcAlgorithm::Crc64GoIso, &bytes[..len]),
                !crc,
                "length {len}"
            );
        }
    }

    #[test]
    fn page_sums_match_the_reference() {
        assert_eq!(page_sum(page(1), &[0; 512]).get(), 0xefb1_f44f_ecd9_9000);
        assert_eq!(page_sum(page(1), &[b'1'; 512]).get(), 0xeb1a_9992_3104_4ddd);
    }

    #[test]
    fn database_sums_match_the_reference() {
        let mut db = DatabaseSum::new(PageSize::new(1024).unwrap());
        db.toggle(page(1), &[b'2'; 1024]);
        db.toggle(page(2), &[b'3'; 1024]);
        assert_eq!(db.checksum().get(), 0xe189_9b6d_587a_aaaa);
    }

    #[test]
    fn the_lock_page_is_not_in_the_sum() {
        let size = PageSize::new(4096).unwrap();
        let mut db = DatabaseSum::new(size);
        for no in 1..=size.lock_page().get() + 10 {
            db.toggle(page(no), &[b'x'; 4096]);
        }
        assert_eq!(db.checksum().get(), 0xc19b_668c_3766_62c7);
    }

    #[test]
    fn a_database_without_pages_has_the_empty_sum() {
        assert_eq!(DatabaseSum::new(PageSize::MIN).checksum(), Checksum::EMPTY);
    }
}
