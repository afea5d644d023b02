//! The database header: the first 100 bytes of page 1.
//!
//! ```text
//!   0  magic "SQLite format 3\0"        24  change counter (u32)
//!  16  page size (u16, 1 = 65536)       28  size in pages (u32)
//!  18  write version (1 journal, 2 WAL) 32  first free page, 36 free pages
//!  19  read version  (1 journal, 2 WAL) 40  .. settings of the schema
//!  20  reserved bytes at a page's end   92  version-valid-for (u32)
//!  21  64, 32, 32 (payload fractions)   96  version number of the last writer (u32)
//! ```
//! Source: SQLite file format, section 1.3.

use std::ops::Range;

use super::be::get_u32;
use crate::types::PageSize;

const PAGE_SIZE: usize = 16;
const WRITE_VERSION: usize = PAGE_SIZE + 2;
const READ_VERSION: usize = WRITE_VERSION + 1;
const RESERVED: usize = READ_VERSION + 1;
const FRACTIONS: usize = RESERVED + 1;
const CHANGE_COUNTER: usize = FRACTIONS + 3;
const PAGES: usize = CHANGE_COUNTER + 4;
const VERSION_VALID_FOR: usize = 92;

/// How a database wants its transactions journaled: the read version of its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JournalFormat {
    /// A rollback journal (or none).
    Rollback,
    /// A write-ahead log.
    Wal,
}

/// Why bytes are not the header of a SQLite database.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer than 100 bytes.
    #[error("{0} bytes are too short for a database header")]
    Short(usize),
    /// Another kind of file, or an encrypted database.
    #[error("not a SQLite database")]
    Magic,
    /// No power of two from 512 to 65536.
    #[error("{0} is not a page size")]
    PageSize(u16),
    /// Fewer than 480 usable bytes in a page.
    #[error("{0} reserved bytes leave too little of a page")]
    Reserved(u8),
    /// A payload fraction other than 64, 32, 32.
    #[error("the payload fractions are not 64, 32, 32")]
    Fractions,
    /// A format that is neither journal nor WAL.
    #[error("unknown read version {0}")]
    ReadVersion(u8),
}

/// A valid database header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseHeader {
    /// Size of a page.
    pub page_size: PageSize,
    /// 1 or 2; a higher number makes the database read-only for today's SQLite.
    pub write_version: u8,
    /// How transactions are journaled.
    pub format: JournalFormat,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Rises with each transaction in rollback mode.
    pub change_counter: u32,
    /// Size in pages, if `version_valid_for` is the change counter.
    pub pages_stored: u32,
    /// The change counter when `pages_stored` was last written.
    pub version_valid_for: u32,
}

impl DatabaseHeader {
    /// Where the change counter is.
    pub const COUNTER_AT: Range<usize> = CHANGE_COUNTER..CHANGE_COUNTER + 4;
    /// Where the change counter's second copy is.
    pub const VALID_FOR_AT: Range<usize> = VERSION_VALID_FOR..VERSION_VALID_FOR + 4;

    /// The first bytes of every database.
    pub const MAGIC: &'static [u8; 16] = b"SQLite format 3\0";
    /// Length of the header in bytes.
    pub const SIZE: usize = 100;

    /// Reads the header from the first bytes of a database (or of its page 1).
    ///
    /// # Errors
    /// [`HeaderError`] says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < Self::SIZE {
            return Err(HeaderError::Short(bytes.len()));
        }
        if !bytes.starts_with(Self::MAGIC) {
            return Err(HeaderError::Magic);
        }
        let stored_size = u16::from_be_bytes([bytes[PAGE_SIZE], bytes[PAGE_SIZE + 1]]);
        let size = if stored_size == 1 { 65536 } else { u32::from(stored_size) };
        let page_size = PageSize::new(size).ok_or(HeaderError::PageSize(stored_size))?;
        let reserved = bytes[RESERVED];
        if page_size.get() - u32::from(reserved) < 480 {
            return Err(HeaderError::Reserved(reserved));
        }
        if bytes[FRACTIONS..FRACTIONS + 3] != [64, 32, 32] {
            return Err(HeaderError::Fractions);
        }
        let format = match bytes[READ_VERSION] {
            // A header of 0 is accepted as 1, as SQLite does.
            0 | 1 => JournalFormat::Rollback,
            2 => JournalFormat::Wal,
            other => return Err(HeaderError::ReadVersion(other)),
        };
        Ok(Self {
            page_size,
            write_version: bytes[WRITE_VERSION],
            format,
            reserved,
            change_counter: get_u32(bytes, CHANGE_COUNTER),
            pages_stored: get_u32(bytes, PAGES),
            version_valid_for: get_u32(bytes, VERSION_VALID_FOR),
        })
    }

    /// Whether the database is in WAL mode.
    #[must_use]
    pub fn is_wal(&self) -> bool {
        self.format == JournalFormat::Wal
    }

    /// Size of the database in pages: the stored one while it is current, else the file's.
    ///
    /// Old writers do not keep the stored size; they do raise the change counter. SQLite btree.c, `lockBtree`.
    #[must_use]
    pub fn pages(&self, file_len: u64) -> u32 {
        if self.pages_stored != 0 && self.change_counter == self.version_valid_for {
            self.pages_stored
        } else {
            u32::try_from(file_len / u64::from(self.page_size.get())).unwrap_or(u32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> [u8; 100] {
        let mut bytes = [0; 100];
        bytes[..16].copy_from_slice(DatabaseHeader::MAGIC);
        bytes[16..24].copy_from_slice(&[0x10, 0, 2, 2, 0, 64, 32, 32]);
        bytes[27] = 9;
        bytes[31] = 5;
        bytes[95] = 9;
        bytes
    }

    #[test]
    fn a_header_written_by_sqlite_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch("pragma page_size=65536; create table t(a); pragma journal_mode=wal;")
            .unwrap();
        drop(db);
        let header = DatabaseHeader::parse(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(header.page_size, PageSize::MAX);
        assert!(header.is_wal());
        assert_eq!(header.pages(2 * 65536), 2);
    }

    #[test]
    fn the_stored_size_counts_only_while_it_is_current() {
        let mut bytes = sample();
        let header = DatabaseHeader::parse(&bytes).unwrap();
        assert_eq!(header.pages(10 * 4096 + 17), 5);
        bytes[27] = 10;
        let header = DatabaseHeader::parse(&bytes).unwrap();
        assert_eq!(header.pages(10 * 4096 + 17), 10);
    }

    #[test]
    fn each_broken_field_has_its_error() {
        let cases: [(usize, u8, HeaderError); 6] = [
            (0, b's', HeaderError::Magic),
            (16, 0x11, HeaderError::PageSize(0x1100)),
            (16, 0, HeaderError::PageSize(0)),
            (19, 3, HeaderError::ReadVersion(3)),
            (21, 65, HeaderError::Fractions),
            (23, 0, HeaderError::Fractions),
        ];
        for (at, value, error) in cases {
            let mut bytes = sample();
            bytes[at] = value;
            assert_eq!(DatabaseHeader::parse(&bytes), Err(error));
        }
        assert_eq!(DatabaseHeader::parse(&sample()[..99]), Err(HeaderError::Short(99)));
        let mut small = sample();
        small[16..18].copy_from_slice(&[2, 0]);
        small[20] = 33;
        assert_eq!(DatabaseHeader::parse(&small), Err(HeaderError::Reserved(33)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(tail in prop::collection::vec(any::<u8>(), 0..120), len in any::<u64>()) {
            let mut bytes = sample().to_vec();
            bytes.truncate(16);
            bytes.extend(tail);
            if let Ok(header) = DatabaseHeader::parse(&bytes) {
                let _pages = header.pages(len);
            }
        }
    }
}
