//! The wal-index: shared memory (`-shm`) in which SQLite keeps the end of the WAL and finds pages in it.
//!
//! ```text
//! block 0, 32 KiB                               block n, 32 KiB
//!     0  header, 48 bytes                           0  page numbers of 4096 frames (u32)
//!    48  header again                           16384  hash table, 8192 slots (u16)
//!    96  frames copied back ("backfill")
//!   100  read marks 0..5 (u32)                  header
//!   120  lock bytes 0..8                            0  version 3007000     20  pages of the database
//!   128  backfill attempted, 132 unused             4  unused              24  chain of the last frame
//!   136  page numbers of 4062 frames                8  change counter      32  salts, as in the WAL
//! 16384  hash table, 8192 slots (u16)              12  initialised, big-   40  checksum of bytes 0..40
//!                                                      endian (u8), page size (u16)
//!                                                  16  frames of the WAL ("mxFrame")
//! ```
//! Numbers are in the machine's own byte order. A slot holds a frame's position in its block, counted from 1; 0 is free.
//! The memory is shared with other processes, so nothing in it is trusted to be in range. Only the holder of WRITE
//! appends. Source: SQLite walformat, wal.c.

use std::ops::Range;

use super::wal::{Salts, WalByteOrder, WalChecksum};
use crate::types::{PageNo, PageSize};

/// Length of a block in bytes.
pub const BLOCK_SIZE: usize = 32 * 1024;
/// Number of read marks.
pub const READ_MARKS: u32 = 5;
/// Value of a read mark that no reader uses.
pub const READ_MARK_FREE: u32 = u32::MAX;

/// Length of both copies of the header.
pub const HEADERS_SIZE: usize = 2 * HEADER_SIZE;
/// Where the number of frames copied back is.
pub const BACKFILL_AT: u64 = 96;
/// Where the number of frames about to be copied back is.
pub const BACKFILL_ATTEMPTED_AT: u64 = 128;
/// Length of what block 0 has before its page numbers.
pub const PREFIX_SIZE: usize = 136;

/// Where a read mark is.
#[must_use]
pub const fn read_mark_at(mark: u32) -> u64 {
    BACKFILL_AT + 4 + 4 * mark as u64
}

const BLOCK_WORDS: usize = BLOCK_SIZE / 4;
const HEADER_SIZE: usize = 4 * HEADER_WORDS;
const VERSION: u32 = 3_007_000;
/// Words of one header.
const HEADER_WORDS: usize = 12;
/// Words of the header that its checksum covers.
const SUMMED_WORDS: usize = 10;
/// Words of block 0 before its page numbers.
const PREFIX_WORDS: usize = PREFIX_SIZE / 4;

const FRAMES_PER_BLOCK: u32 = 4096;
#[allow(clippy::cast_possible_truncation, reason = "34 words")]
const FRAMES_IN_FIRST_BLOCK: u32 = FRAMES_PER_BLOCK - PREFIX_WORDS as u32;
const SLOTS: u32 = 2 * FRAMES_PER_BLOCK;
const FIRST_SLOT_WORD: usize = FRAMES_PER_BLOCK as usize;

/// The words of a wal-index contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the wal-index is damaged at frame {frame}")]
pub struct IndexDamaged {
    /// Where.
    pub frame: u32,
}

/// The header of a wal-index: the committed end of the WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexHeader {
    /// Rises with each transaction.
    pub change: u32,
    /// Byte order of the WAL's checksums, as in the WAL's header; native while the WAL is empty.
    pub big_endian: bool,
    /// Page size; `None` before the first transaction of an empty WAL.
    pub page_size: Option<PageSize>,
    /// Committed frames of the WAL.
    pub frames: u32,
    /// Size of the database in pages.
    pub pages: u32,
    /// Checksum of the last committed frame.
    pub chain: WalChecksum,
    /// Salts of the WAL.
    pub salts: Salts,
}

impl IndexHeader {
    /// Byte order of the WAL's checksums.
    #[must_use]
    pub fn order(&self) -> WalByteOrder {
        if self.big_endian { WalByteOrder::Big } else { WalByteOrder::Little }
    }

    /// The bytes of both copies.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADERS_SIZE] {
        let mut bytes = [0; HEADERS_SIZE];
        let words = self.to_words();
        let both = bytes.as_chunks_mut::<4>().0.iter_mut().zip(words.iter().chain(&words));
        both.for_each(|(bytes, word)| *bytes = word_bytes(*word));
        bytes
    }

    #[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
    fn to_words(self) -> [u32; HEADER_WORDS] {
        // 65536 does not fit: SQLite stores its high bits at the low end.
        let size = self.page_size.map_or(0, PageSize::get);
        let stored = u16::try_from((size & 0xff00) | (size >> 16)).unwrap_or(0);
        let [size_a, size_b] = stored.to_ne_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.salts.0;
        let mut words = [
            VERSION,
            0,
            self.change,
            u32::from_ne_bytes([1, u8::from(self.big_endian), size_a, size_b]),
            self.frames,
            self.pages,
            self.chain.0,
            self.chain.1,
            u32::from_ne_bytes([s0, s1, s2, s3]),
            u32::from_ne_bytes([s4, s5, s6, s7]),
            0,
            0,
        ];
        let sum = sum(&words);
        words[SUMMED_WORDS] = sum.0;
        words[SUMMED_WORDS + 1] = sum.1;
        words
    }

    #[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
    fn from_words(words: &[u32; HEADER_WORDS]) -> Option<Self> {
        let [initialised, big_endian, size_a, size_b] = words[3].to_ne_bytes();
        if initialised == 0 || sum(words) != WalChecksum(words[10], words[11]) {
            return None;
        }
        let size = u32::from(u16::from_ne_bytes([size_a, size_b]));
        let mut salts = [0; 8];
        salts[..4].copy_from_slice(&words[8].to_ne_bytes());
        salts[4..].copy_from_slice(&words[9].to_ne_bytes());
        Some(Self {
            change: words[2],
            big_endian: big_endian != 0,
            page_size: PageSize::new((size & 0xfe00) | ((size & 1) << 16)),
            frames: words[4],
            pages: words[5],
            chain: WalChecksum(words[6], words[7]),
            salts: Salts(salts),
        })
    }
}

/// The checksum of a header: the WAL's algorithm over words in the machine's own order.
fn sum(words: &[u32; HEADER_WORDS]) -> WalChecksum {
    words[..SUMMED_WORDS].chunks_exact(2).fold(WalChecksum::default(), |sum, pair| {
        let first = sum.0.wrapping_add(pair[0]).wrapping_add(sum.1);
        WalChecksum(first, sum.1.wrapping_add(pair[1]).wrapping_add(first))
    })
}

/// What block 0 has before its page numbers, as it was at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Prefix([u32; PREFIX_WORDS]);

impl Prefix {
    /// Takes the bytes from the start of a wal-index.
    #[must_use]
    pub fn new(bytes: &[u8; PREFIX_SIZE]) -> Self {
        let words = bytes.as_chunks::<4>().0;
        Self(std::array::from_fn(|n| bytes_word(words[n])))
    }

    /// The header; `None` if it is not valid, or was being written at that moment. SQLite wal.c, `walIndexTryHdr`.
    #[must_use]
    pub fn header(&self) -> Option<IndexHeader> {
        let (copies, _) = self.0.as_chunks::<HEADER_WORDS>();
        if copies[0] == copies[1] { IndexHeader::from_words(&copies[0]) } else { None }
    }

    /// Frames that are copied back into the database.
    #[must_use]
    pub fn backfill(&self) -> u32 {
        self.0[2 * HEADER_WORDS]
    }

    /// The last frame that readers at a mark use.
    #[must_use]
    pub fn read_mark(&self, mark: u32) -> u32 {
        self.0[2 * HEADER_WORDS + 1 + mark.min(READ_MARKS - 1) as usize]
    }
}

/// A copy of one block's page numbers and hash table. Only the holder of WRITE changes either, so a copy that it made
/// stays right while it holds that.
#[derive(Clone, Debug)]
pub struct Block {
    index: u32,
    /// All of the block, kept as bytes so that it is written as it is.
    bytes: Vec<u8>,
    /// Words that differ from what was copied.
    changed: Option<Range<usize>>,
}

impl Block {
    /// A copy of block number `index`; bytes that are missing are zeros.
    #[must_use]
    pub fn new(index: u32, mut bytes: Vec<u8>) -> Self {
        bytes.resize(BLOCK_SIZE, 0);
        Self { index, bytes, changed: None }
    }

    /// The block that lists a frame; frames count from 1.
    #[must_use]
    pub fn containing(frame: u32) -> u32 {
        match frame.checked_sub(FRAMES_IN_FIRST_BLOCK + 1) {
            None => 0,
            Some(beyond) => beyond / FRAMES_PER_BLOCK + 1,
        }
    }

    /// Which block this is.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Frames before this block.
    fn frames_before(&self) -> u32 {
        match self.index.checked_sub(1) {
            None => 0,
            Some(whole) => FRAMES_IN_FIRST_BLOCK + whole * FRAMES_PER_BLOCK,
        }
    }

    /// Words before the page numbers.
    fn prefix(&self) -> usize {
        if self.index == 0 { PREFIX_WORDS } else { 0 }
    }

    /// The word that lists the page of the frame at a position, counted from 1.
    fn page_word(&self, position: u32) -> Option<usize> {
        let capacity = if self.index == 0 { FRAMES_IN_FIRST_BLOCK } else { FRAMES_PER_BLOCK };
        let zero_based = position.checked_sub(1).filter(|at| *at < capacity)?;
        Some(self.prefix() + zero_based as usize)
    }

    fn word(&self, at: usize) -> u32 {
        bytes_word(self.bytes.as_chunks::<4>().0[at])
    }

    fn set_word(&mut self, at: usize, value: u32) {
        self.bytes.as_chunks_mut::<4>().0[at] = word_bytes(value);
        let changed = self.changed.take().unwrap_or(at..at);
        self.changed = Some(changed.start.min(at)..changed.end.max(at + 1));
    }

    fn slot(&self, key: u32) -> u32 {
        (self.word(FIRST_SLOT_WORD + (key / 2) as usize) >> slot_shift(key)) & 0xffff
    }

    fn set_slot(&mut self, key: u32, value: u32) {
        let at = FIRST_SLOT_WORD + (key / 2) as usize;
        let rest = self.word(at) & !(0xffff << slot_shift(key));
        self.set_word(at, rest | (value << slot_shift(key)));
    }

    /// The page in a frame of this block; `None` if none is listed.
    #[must_use]
    pub fn page(&self, frame: u32) -> Option<PageNo> {
        let position = frame.checked_sub(self.frames_before())?;
        self.page_word(position).and_then(|at| PageNo::new(self.word(at)))
    }

    /// Lists a frame. `committed` is the header's number of frames: entries beyond it are left-overs of a dead writer.
    ///
    /// SQLite wal.c, `walIndexAppend`.
    ///
    /// # Errors
    /// The block does not list this frame, or is full where it must not be.
    pub fn append(&mut self, frame: u32, page: PageNo, committed: u32) -> Result<(), IndexDamaged> {
        let damaged = IndexDamaged { frame };
        let position = frame.checked_sub(self.frames_before()).ok_or(IndexDamaged { frame })?;
        let page_word = self.page_word(position).ok_or(IndexDamaged { frame })?;
        if position == 1 {
            self.clear();
        } else if self.word(page_word) != 0 {
            self.forget_beyond(committed);
        }
        let mut key = first_key(page);
        let mut steps = 0;
        while self.slot(key) != 0 {
            steps += 1;
            if steps > position {
                return Err(damaged);
            }
            key = next_key(key);
        }
        self.set_word(page_word, page.get());
        self.set_slot(key, position);
        Ok(())
    }

    fn clear(&mut self) {
        let prefix = self.prefix();
        self.bytes[4 * prefix..].fill(0);
        self.changed = Some(prefix..BLOCK_WORDS);
    }

    /// Removes the entries of frames that were never committed. SQLite wal.c, `walCleanupHash`.
    fn forget_beyond(&mut self, committed: u32) {
        let kept = committed.saturating_sub(self.frames_before());
        for key in 0..SLOTS {
            if kept < self.slot(key) {
                self.set_slot(key, 0);
            }
        }
        let first = self.prefix() + kept as usize;
        (first..FIRST_SLOT_WORD).for_each(|at| self.set_word(at, 0));
    }

    /// The last frame of this block up to `last` that holds a page.
    ///
    /// SQLite wal.c, `walFindFrame`.
    ///
    /// # Errors
    /// The hash table has no free slot, which ends no search.
    pub fn find(&self, page: PageNo, last: u32) -> Result<Option<u32>, IndexDamaged> {
        let mut found = None;
        let mut key = first_key(page);
        for _ in 0..SLOTS {
            let position = self.slot(key);
            if position == 0 {
                return Ok(found);
            }
            let frame = self.frames_before().wrapping_add(position);
            if frame <= last && self.page(frame) == Some(page) {
                found = found.max(Some(frame));
            }
            key = next_key(key);
        }
        Err(IndexDamaged { frame: self.frames_before() })
    }

    /// What changed since the copy was made or this was last asked: where in the wal-index, and the bytes.
    #[must_use]
    pub fn take_changes(&mut self) -> Option<(u64, &[u8])> {
        let changed = self.changed.take()?;
        let offset = u64::from(self.index) * BLOCK_SIZE as u64 + 4 * changed.start as u64;
        Some((offset, &self.bytes[4 * changed.start..4 * changed.end]))
    }
}

#[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
fn word_bytes(word: u32) -> [u8; 4] {
    word.to_ne_bytes()
}

#[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
fn bytes_word(bytes: [u8; 4]) -> u32 {
    u32::from_ne_bytes(bytes)
}

fn first_key(page: PageNo) -> u32 {
    page.get().wrapping_mul(383) & (SLOTS - 1)
}

fn next_key(key: u32) -> u32 {
    (key + 1) & (SLOTS - 1)
}

/// Where a slot lies in its word.
fn slot_shift(key: u32) -> u32 {
    let upper = if cfg!(target_endian = "big") { 0 } else { 1 };
    if key & 1 == upper { 16 } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sqlite::{FrameHeader, WalHeader};

    fn page(n: u32) -> PageNo {
        PageNo::new(n).unwrap()
    }

    #[test]
    fn a_wal_index_written_by_sqlite_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "pragma page_size=512; pragma journal_mode=wal; pragma wal_autocheckpoint=0;
             create table t(a, b);
             with recursive n(i) as (select 1 union all select i+1 from n where i<3000)
             insert into t select i, randomblob(1000) from n;
             update t set b=randomblob(1000) where a%5=0;",
        )
        .unwrap();
        let wal = std::fs::read(dir.path().join("x.db-wal")).unwrap();
        let shm = std::fs::read(dir.path().join("x.db-shm")).unwrap();
        let blocks: Vec<Block> = shm
            .chunks(BLOCK_SIZE)
            .zip(0..)
            .map(|(bytes, n)| Block::new(n, bytes.to_vec()))
            .collect();
        let block = |n: u32| &blocks[n as usize];
        let prefix = Prefix::new(shm[..PREFIX_SIZE].try_into().unwrap());
        let header = prefix.header().unwrap();
        let wal_header = WalHeader::parse(&wal).unwrap();
        assert_eq!(header.page_size, PageSize::new(512));
        assert_eq!((header.salts, header.order()), (wal_header.salts, wal_header.order));
        assert_eq!(header.frames, wal_header.frames(wal.len() as u64));
        assert_eq!((prefix.backfill(), prefix.read_mark(0)), (0, 0));
        let mut latest = BTreeMap::new();
        for frame in 1..=header.frames {
            let at = usize::try_from(wal_header.frame_offset(frame)).unwrap();
            let in_wal = FrameHeader::parse(&wal[at..]).unwrap();
            assert_eq!(block(Block::containing(frame)).page(frame), Some(in_wal.page));
            latest.insert(in_wal.page, frame);
            if frame == header.frames {
                assert_eq!((in_wal.checksum, in_wal.commit), (header.chain, header.pages));
            }
        }
        for (page, frame) in latest {
            let found = block(Block::containing(frame)).find(page, header.frames).unwrap();
            assert_eq!(found, Some(frame), "{page}");
        }
        // What we would write is what SQLite wrote.
        assert_eq!(header.encode(), shm[..HEADERS_SIZE]);
        let mut ours = Block::new(0, Vec::new());
        for frame in 1..=4062 {
            ours.append(frame, block(0).page(frame).unwrap(), 0).unwrap();
        }
        let (offset, bytes) = ours.take_changes().unwrap();
        assert_eq!(offset, PREFIX_SIZE as u64);
        assert!(*bytes == shm[PREFIX_SIZE..BLOCK_SIZE]);
        assert_eq!(ours.take_changes(), None);
    }

    #[test]
    fn frames_beyond_the_first_block_are_found() {
        let mut blocks = [0, 1, 2].map(|n| Block::new(n, Vec::new()));
        for frame in 1..=10_000 {
            let listed = &mut blocks[Block::containing(frame) as usize];
            listed.append(frame, page(frame % 3000 + 1), 0).unwrap();
        }
        assert_eq!((Block::containing(4062), Block::containing(4063)), (0, 1));
        assert_eq!((Block::containing(8158), Block::containing(8159)), (1, 2));
        assert_eq!(blocks[2].find(page(1001), 10_000), Ok(Some(10_000)));
        assert_eq!(blocks[2].find(page(1001), 9_999), Ok(None));
        assert_eq!(blocks[1].find(page(1001), 9_999), Ok(Some(7_000)));
    }

    #[test]
    fn a_header_is_the_same_after_writing_and_reading() {
        let mut bytes = [0; PREFIX_SIZE];
        assert_eq!(Prefix::new(&bytes).header(), None);
        for size in [None, PageSize::new(512), PageSize::new(32768), Some(PageSize::MAX)] {
            let header = IndexHeader {
                change: 3,
                big_endian: true,
                page_size: size,
                frames: 4,
                pages: 5,
                chain: WalChecksum(6, 7),
                salts: Salts([8; 8]),
            };
            bytes[..HEADERS_SIZE].copy_from_slice(&header.encode());
            assert_eq!(Prefix::new(&bytes).header(), Some(header));
        }
        bytes[16] = 9;
        assert_eq!(Prefix::new(&bytes).header(), None, "the copies differ");
        bytes[48 + 16] = 9;
        assert_eq!(Prefix::new(&bytes).header(), None, "the checksum does not match");
    }

    #[test]
    fn frames_of_a_dead_writer_are_forgotten() {
        let mut block = Block::new(0, Vec::new());
        for frame in 1..=10 {
            block.append(frame, page(frame), 0).unwrap();
        }
        // Only 4 were committed; the next writer begins at 5 with other pages.
        block.append(5, page(77), 4).unwrap();
        assert_eq!(block.find(page(77), 5), Ok(Some(5)));
        assert_eq!(block.find(page(5), 10), Ok(None));
        assert_eq!(block.find(page(4), 10), Ok(Some(4)));
        assert_eq!(block.page(6), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_index_panic(
            seed in any::<u32>(), frame in any::<u32>(), n in 1u32.., committed in any::<u32>(), index in 0u32..3,
        ) {
            let mut state = seed | 1;
            let garbage = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            });
            let bytes: Vec<u8> = garbage.take(BLOCK_SIZE).collect();
            let mut block = Block::new(index, bytes.clone());
            let _found = block.find(page(n), frame);
            let _page = block.page(frame);
            let _appended = block.append(frame, page(n), committed);
            let _appended = block.append(frame % 12_000, page(n), committed);
            let _changes = block.take_changes();
            let _header = Prefix::new(bytes[..PREFIX_SIZE].try_into().unwrap()).header();
        }
    }
}
