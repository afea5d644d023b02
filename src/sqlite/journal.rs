//! The rollback journal: the pages of a database as they were before the transaction in progress.
//!
//! ```text
//! segment header, padded to a sector     record                        end of a journal of several databases
//!   0  magic, 8 bytes                      0  page number                0  number of the lock page
//!   8  records (u32)                       4  page                       4  name of the super-journal, N bytes
//!  12  nonce of the checksums              +  checksum: nonce + every    +  N, sum of the name's bytes (u32 each)
//!  16  pages before the transaction           200th byte from the end    +  magic, 8 bytes
//!  20  sector size, 24 page size
//! ```
//! A journal has a segment for each time it was synced; each starts at a multiple of the sector size. All
//! numbers are big endian. Source: SQLite file format, section 3; pager.c, `pager_playback`.

use super::be::get_u32;
use crate::types::{PageNo, PageSize};

const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

const RECORDS: usize = MAGIC.len();
const NONCE: usize = RECORDS + 4;
const PAGES: usize = NONCE + 4;
const SECTOR_SIZE: usize = PAGES + 4;
const PAGE_SIZE: usize = SECTOR_SIZE + 4;

/// Records of a segment whose number was never written because nothing is ever synced.
const TO_THE_END: u32 = u32::MAX;
/// SQLite reads no journal shorter than the smallest sector it writes.
const SECTOR_MIN: u64 = 512;

/// The header of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalHeader {
    /// Records in the segment; 0 before it is synced, `u32::MAX` if it never is.
    pub records: u32,
    /// Start of each record's checksum.
    pub nonce: u32,
    /// Size of the database in pages before the transaction.
    pub pages: u32,
    /// A segment begins at a multiple of this.
    pub sector_size: u32,
    /// Size of a page; `None` in journals of SQLite before 3.5.8, which do not say.
    pub page_size: Option<PageSize>,
}

impl JournalHeader {
    /// How a segment begins.
    #[cfg(any(test, fuzzing))]
    pub(super) const MAGIC: [u8; 8] = MAGIC;
    /// Length of the header in bytes, without its padding.
    pub const SIZE: usize = PAGE_SIZE + 4;

    /// Reads a header; `None` if the bytes are no valid header, which ends a journal.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < Self::SIZE || !bytes.starts_with(&MAGIC) {
            return None;
        }
        let sector_size = get_u32(bytes, SECTOR_SIZE);
        if !sector_size.is_power_of_two() || !(32..=65536).contains(&sector_size) {
            return None;
        }
        let page_size = match get_u32(bytes, PAGE_SIZE) {
            0 => None,
            size => Some(PageSize::new(size)?),
        };
        Some(Self {
            records: get_u32(bytes, RECORDS),
            nonce: get_u32(bytes, NONCE),
            pages: get_u32(bytes, PAGES),
            sector_size,
            page_size,
        })
    }

    /// Whether the first bytes of a journal can belong to a transaction that must be rolled back: a journal that is
    /// empty or starts with a zero byte (`journal_mode=PERSIST` after a commit) cannot.
    ///
    /// The journal is hot if, besides, no process holds RESERVED and the database is not empty, and if it names a
    /// [`super_journal`], that file exists. SQLite pager.c, `hasHotJournal`.
    #[must_use]
    pub fn may_be_hot(first_bytes: &[u8]) -> bool {
        first_bytes.first().is_some_and(|byte| *byte != 0)
    }
}

/// When a journal is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// After a crash: records that were never synced do not count, the database was not touched before.
    AfterCrash,
    /// While its writer runs: a segment without a number of records goes on to the end of the file.
    Live,
}

/// One page of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalRecord {
    /// Which page.
    pub page: PageNo,
    /// Byte offset of the page's image in the journal.
    pub offset: u64,
}

/// Walks the records of a journal that a rollback would copy back, in that order.
///
/// `R` reads from the journal: it fills the buffer from an offset on and returns the number of bytes, fewer than asked
/// for only at the end. One page is in memory at a time.
#[derive(Debug)]
pub struct Journal<R> {
    read: R,
    len: u64,
    reading: Reading,
    first: JournalHeader,
    page_size: PageSize,
    nonce: u32,
    /// Records left in the segment.
    left: u32,
    /// The next record, or the next segment's padding.
    at: u64,
    /// The record last read: page number, image, checksum.
    record: Vec<u8>,
}

impl<R, E> Journal<R>
where
    R: FnMut(u64, &mut [u8]) -> Result<usize, E>,
{
    /// Begins to read a journal of `len` bytes; `None` if it holds nothing to roll back. `page_size` is the
    /// database's, for old journals that do not name theirs.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn open(
        mut read: R,
        len: u64,
        page_size: PageSize,
        reading: Reading,
    ) -> Result<Option<Self>, E> {
        let mut bytes = [0; JournalHeader::SIZE];
        let filled = read(0, &mut bytes)?;
        let Some(first) = JournalHeader::parse(&bytes[..filled]) else { return Ok(None) };
        if len < u64::from(first.sector_size).max(SECTOR_MIN) {
            return Ok(None);
        }
        let page_size = first.page_size.unwrap_or(page_size);
        let at = u64::from(first.sector_size);
        let record = vec![0; page_size.bytes() + 8];
        let mut journal =
            Self { read, len, reading, first, page_size, nonce: 0, left: 0, at, record };
        journal.enter(first);
        Ok(Some(journal))
    }

    /// The first segment's header; its `pages` is what a rollback truncates the database to.
    pub fn header(&self) -> &JournalHeader {
        &self.first
    }

    /// Size of the pages in the journal.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The image of the record that [`Journal::next`] returned last.
    pub fn image(&self) -> &[u8] {
        &self.record[4..4 + self.page_size.bytes()]
    }

    /// The next page to copy back; `None` at the end. Pages beyond the old size are left out.
    ///
    /// # Errors
    /// Those of `read`.
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot lend its page")]
    pub fn next(&mut self) -> Result<Option<JournalRecord>, E> {
        loop {
            if self.left == 0 && !self.next_segment()? {
                return Ok(None);
            }
            let at = self.at;
            let Some(page) = self.next_record()? else {
                self.finish();
                return Ok(None);
            };
            if page.get() <= self.first.pages {
                return Ok(Some(JournalRecord { page, offset: at + 4 }));
            }
        }
    }

    /// Reads the record at `at`; `None` if it ends the journal.
    fn next_record(&mut self) -> Result<Option<PageNo>, E> {
        let filled = (self.read)(self.at, &mut self.record)?;
        if filled < self.record.len() {
            return Ok(None);
        }
        self.at += self.record.len() as u64;
        self.left = self.left.saturating_sub(1);
        let Some(page) = PageNo::new(get_u32(&self.record, 0)) else { return Ok(None) };
        let stored = get_u32(&self.record, 4 + self.page_size.bytes());
        if page == self.page_size.lock_page() || checksum(self.nonce, self.image()) != stored {
            return Ok(None);
        }
        Ok(Some(page))
    }

    /// Moves to the next segment; `false` if there is none.
    fn next_segment(&mut self) -> Result<bool, E> {
        let sector = u64::from(self.first.sector_size);
        let start = self.at.div_ceil(sector).saturating_mul(sector);
        if start.saturating_add(sector) > self.len {
            return Ok(false);
        }
        let mut bytes = [0; JournalHeader::SIZE];
        let filled = (self.read)(start, &mut bytes)?;
        let Some(header) = JournalHeader::parse(&bytes[..filled]) else { return Ok(false) };
        self.at = start + sector;
        self.enter(header);
        // A segment without records is the last: what follows was not synced.
        Ok(self.left != 0)
    }

    fn enter(&mut self, segment: JournalHeader) {
        self.nonce = segment.nonce;
        let rest = self.len.saturating_sub(self.at) / self.record.len() as u64;
        let rest = u32::try_from(rest).unwrap_or(u32::MAX);
        self.left = match (segment.records, self.reading) {
            (TO_THE_END, Reading::AfterCrash | Reading::Live) | (0, Reading::Live) => rest,
            (records, Reading::AfterCrash | Reading::Live) => records,
        };
    }

    fn finish(&mut self) {
        self.left = 0;
        self.at = self.len;
    }
}

/// A record's checksum: weak on purpose, it finds torn sectors. SQLite pager.c, `pager_cksum`.
fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len().saturating_sub(200);
    while at > 0 {
        sum = sum.wrapping_add(u32::from(page[at]));
        at = at.saturating_sub(200);
    }
    sum
}

/// The name of the super-journal at the end of a journal, if its transaction spans several databases. The transaction
/// is committed once that file is gone.
///
/// `read` fills a buffer from an offset of the journal, which has `len` bytes.
///
/// # Errors
/// Those of `read`.
pub fn super_journal<E>(
    mut read: impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
    len: u64,
) -> Result<Option<Vec<u8>>, E> {
    const TAIL: usize = 16;
    const NAME_MAX: u32 = 4096;
    let Some(tail_at) = len.checked_sub(TAIL as u64) else { return Ok(None) };
    let mut tail = [0; TAIL];
    if read(tail_at, &mut tail)? < TAIL || tail[8..] != MAGIC {
        return Ok(None);
    }
    let name_len = get_u32(&tail, 0);
    let Some(name_at) = tail_at.checked_sub(u64::from(name_len)) else { return Ok(None) };
    if name_len == 0 || name_len > NAME_MAX {
        return Ok(None);
    }
    let mut name = vec![0; name_len as usize];
    if read(name_at, &mut name)? < name.len() {
        return Ok(None);
    }
    // SQLite adds up C chars: signed on some machines, unsigned on others.
    let unsigned = name.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let high = name.iter().filter(|byte| **byte >= 0x80).count();
    let signed = unsigned.wrapping_sub(u32::try_from(high).unwrap_or(0).wrapping_mul(256));
    let stored = get_u32(&tail, 4);
    let valid = (stored == unsigned || stored == signed) && !name.contains(&0);
    Ok(valid.then_some(name))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn reader(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> Result<usize, Infallible> {
        move |at, buffer| {
            let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
            let n = buffer.len().min(bytes.len() - at);
            buffer[..n].copy_from_slice(&bytes[at..at + n]);
            Ok(n)
        }
    }

    fn pages(bytes: &[u8], reading: Reading) -> Vec<(u32, u8)> {
        let size = PageSize::new(512).unwrap();
        let Some(mut journal) =
            Journal::open(reader(bytes), bytes.len() as u64, size, reading).unwrap()
        else {
            return Vec::new();
        };
        let mut found = Vec::new();
        while let Some(record) = journal.next().unwrap() {
            let at = usize::try_from(record.offset).unwrap();
            assert_eq!(journal.image(), &bytes[at..at + journal.page_size().bytes()]);
            found.push((record.page.get(), journal.image()[0]));
        }
        found
    }

    fn segment(records: u32, written: &[(u32, u8)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for field in [records, 77, 10, 512, 512] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.resize(512, 0);
        for (page, fill) in written {
            bytes.extend(page.to_be_bytes());
            bytes.extend([*fill; 512]);
            bytes.extend((77 + 2 * u32::from(*fill)).to_be_bytes());
        }
        bytes
    }

    #[test]
    fn segments_are_read_one_after_another() {
        let mut bytes = segment(2, &[(3, 1), (4, 2)]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(segment(1, &[(5, 3), (6, 4)]));
        assert_eq!(pages(&bytes, Reading::AfterCrash), [(3, 1), (4, 2), (5, 3)]);
    }

    #[test]
    fn records_that_were_never_synced_count_only_while_the_writer_runs() {
        let bytes = segment(0, &[(3, 1), (4, 2)]);
        assert_eq!(pages(&bytes, Reading::AfterCrash), []);
        assert_eq!(pages(&bytes, Reading::Live), [(3, 1), (4, 2)]);
        let bytes = segment(TO_THE_END, &[(3, 1), (4, 2)]);
        assert_eq!(pages(&bytes, Reading::AfterCrash), [(3, 1), (4, 2)]);
    }

    #[test]
    fn a_torn_record_ends_the_journal_and_new_pages_are_left_out() {
        let mut bytes = segment(4, &[(3, 1), (11, 9), (4, 2), (5, 3)]);
        assert_eq!(pages(&bytes, Reading::AfterCrash), [(3, 1), (4, 2), (5, 3)]);
        bytes[512 + 2 * 520 + 4 + 112] ^= 1;
        assert_eq!(pages(&bytes, Reading::AfterCrash), [(3, 1)]);
    }

    #[test]
    fn a_journal_cut_by_a_crash_is_not_read_beyond_its_end() {
        let bytes = segment(2, &[(3, 1), (4, 2)]);
        assert_eq!(pages(&bytes[..bytes.len() - 1], Reading::AfterCrash), [(3, 1)]);
        assert_eq!(pages(&bytes[..511], Reading::AfterCrash), []);
        assert_eq!(pages(&[], Reading::AfterCrash), []);
    }

    #[test]
    fn a_journal_written_by_sqlite_restores_the_pages_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "pragma journal_mode=delete; pragma cache_size=4; create table t(a, b);
             with recursive n(i) as (select 1 union all select i+1 from n where i<500)
             insert into t select i, randomblob(300) from n;",
        )
        .unwrap();
        let before = std::fs::read(&path).unwrap();
        // A cache of four pages spills: the journal is synced more than once.
        db.execute_batch("begin; update t set b=randomblob(300); delete from t where a%3=0;")
            .unwrap();
        let bytes = std::fs::read(dir.path().join("x.db-journal")).unwrap();
        assert!(JournalHeader::may_be_hot(&bytes));
        let mut after = std::fs::read(&path).unwrap();
        assert!(before != after);
        let size = PageSize::new(4096).unwrap();
        let mut journal =
            Journal::open(reader(&bytes), bytes.len() as u64, size, Reading::AfterCrash)
                .unwrap()
                .unwrap();
        while let Some(record) = journal.next().unwrap() {
            let at = usize::try_from(record.page.offset(size)).unwrap();
            after[at..at + 4096].copy_from_slice(journal.image());
        }
        after.truncate(journal.header().pages as usize * 4096);
        assert!(before == after);
    }

    #[test]
    fn the_super_journal_is_found_at_the_end() {
        let name = b"/mnt/\xc3\xa4-mj01";
        let signed: u32 =
            name.iter().fold(0, |sum, byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())));
        let mut bytes = segment(1, &[(3, 1)]);
        bytes.extend(PageSize::MIN.lock_page().get().to_be_bytes());
        bytes.extend(name);
        bytes.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        bytes.extend(signed.to_be_bytes());
        bytes.extend(MAGIC);
        let find = |bytes: &[u8]| super_journal(reader(bytes), bytes.len() as u64).unwrap();
        assert_eq!(find(&bytes).as_deref(), Some(&name[..]));
        let at = bytes.len() - 9;
        bytes[at] ^= 1;
        assert_eq!(find(&bytes), None);
        assert_eq!(find(&segment(0, &[])), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            records in prop_oneof![0u32..5, Just(u32::MAX), any::<u32>()],
            tail in prop::collection::vec(any::<u8>(), 0..4000),
            at in 0usize..40, value in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = segment(records, &[(3, 1), (4, 2)]);
            bytes.extend(tail);
            bytes[at] = value;
            bytes.truncate(cut.index(bytes.len() + 1));
            pages(&bytes, Reading::AfterCrash);
            pages(&bytes, Reading::Live);
            super_journal(reader(&bytes), bytes.len() as u64).unwrap();
        }
    }
}
