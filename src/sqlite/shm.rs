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
//! The memory is shared with other processes, so every access is atomic and nothing read from it is trusted to be in
//! range. Only the holder of WRITE appends. Source: SQLite walformat, wal.c.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::wal::{Salts, WalByteOrder, WalChecksum};
use crate::types::{PageNo, PageSize};

/// Length of a block in bytes: the unit in which `-shm` is mapped.
pub const BLOCK_SIZE: usize = 32 * 1024;
/// Length of a block in words.
pub const BLOCK_WORDS: usize = BLOCK_SIZE / 4;
/// Number of read marks.
pub const READ_MARKS: u32 = 5;
/// Value of a read mark that no reader uses.
pub const READ_MARK_FREE: u32 = u32::MAX;

const VERSION: u32 = 3_007_000;
/// Words of one header.
const HEADER_WORDS: usize = 12;
/// Words of the header that its checksum covers.
const SUMMED_WORDS: usize = 10;
const BACKFILL: usize = 2 * HEADER_WORDS;
const READ_MARK: usize = BACKFILL + 1;
const BACKFILL_ATTEMPTED: usize = READ_MARK + READ_MARKS as usize + 2;
/// Words of block 0 before its page numbers.
const PREFIX_WORDS: usize = BACKFILL_ATTEMPTED + 2;

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

/// One block of a wal-index in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    words: &'a [AtomicU32; BLOCK_WORDS],
    index: u32,
}

impl<'a> Block<'a> {
    /// Block number `index` of a wal-index.
    #[must_use]
    pub fn new(index: u32, words: &'a [AtomicU32; BLOCK_WORDS]) -> Self {
        Self { words, index }
    }

    /// The block that lists a frame; frames count from 1.
    #[must_use]
    pub fn containing(frame: u32) -> u32 {
        match frame.checked_sub(FRAMES_IN_FIRST_BLOCK + 1) {
            None => 0,
            Some(beyond) => beyond / FRAMES_PER_BLOCK + 1,
        }
    }

    /// Frames before this block.
    fn frames_before(self) -> u32 {
        match self.index.checked_sub(1) {
            None => 0,
            Some(whole) => FRAMES_IN_FIRST_BLOCK + whole * FRAMES_PER_BLOCK,
        }
    }

    /// Words before the page numbers.
    fn prefix(self) -> usize {
        if self.index == 0 { PREFIX_WORDS } else { 0 }
    }

    fn page_word(self, position: u32) -> Option<&'a AtomicU32> {
        let capacity = if self.index == 0 { FRAMES_IN_FIRST_BLOCK } else { FRAMES_PER_BLOCK };
        let zero_based = position.checked_sub(1).filter(|at| *at < capacity)?;
        self.words.get(self.prefix() + zero_based as usize)
    }

    fn slot(self, key: u32) -> u32 {
        let word = self.words[FIRST_SLOT_WORD + (key / 2) as usize].load(Ordering::Acquire);
        (word >> slot_shift(key)) & 0xffff
    }

    /// Only the holder of WRITE stores slots, so the other half of the word cannot change meanwhile.
    fn set_slot(self, key: u32, value: u32) {
        let word = &self.words[FIRST_SLOT_WORD + (key / 2) as usize];
        let rest = word.load(Ordering::Relaxed) & !(0xffff << slot_shift(key));
        word.store(rest | (value << slot_shift(key)), Ordering::Release);
    }

    /// The page in a frame of this block; `None` if none is listed.
    #[must_use]
    pub fn page(self, frame: u32) -> Option<PageNo> {
        let position = frame.checked_sub(self.frames_before())?;
        self.page_word(position).and_then(|word| PageNo::new(word.load(Ordering::Acquire)))
    }

    /// Lists a frame. The holder of WRITE calls this before the header says that the frame is there.
    /// `committed` is the header's number of frames: entries beyond it are left-overs of a dead writer.
    ///
    /// SQLite wal.c, `walIndexAppend`.
    ///
    /// # Errors
    /// The block does not list this frame, or is full where it must not be.
    pub fn append(self, frame: u32, page: PageNo, committed: u32) -> Result<(), IndexDamaged> {
        let damaged = IndexDamaged { frame };
        let position = frame.checked_sub(self.frames_before()).ok_or(IndexDamaged { frame })?;
        let page_word = self.page_word(position).ok_or(IndexDamaged { frame })?;
        if position == 1 {
            self.words[self.prefix()..].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        } else if page_word.load(Ordering::Relaxed) != 0 {
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
        page_word.store(page.get(), Ordering::Release);
        self.set_slot(key, position);
        Ok(())
    }

    /// Removes the entries of frames that were never committed, if this block lists the last one that was.
    ///
    /// SQLite wal.c, `walCleanupHash`.
    pub fn forget_beyond(self, committed: u32) {
        let kept = committed.saturating_sub(self.frames_before());
        for key in 0..SLOTS {
            if kept < self.slot(key) {
                self.set_slot(key, 0);
            }
        }
        let first = self.prefix() + kept as usize;
        let words = self.words.get(first..FIRST_SLOT_WORD).unwrap_or_default();
        words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// The last frame of this block up to `last` that holds a page.
    ///
    /// SQLite wal.c, `walFindFrame`.
    ///
    /// # Errors
    /// The hash table has no free slot, which ends no search.
    pub fn find(self, page: PageNo, last: u32) -> Result<Option<u32>, IndexDamaged> {
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
}

/// What block 0 has besides page numbers.
impl Block<'_> {
    fn load_header(self, copy: usize) -> [u32; HEADER_WORDS] {
        std::array::from_fn(|n| self.words[copy * HEADER_WORDS + n].load(Ordering::Relaxed))
    }

    /// Reads the header; `None` if it is not valid, or is being written just now.
    ///
    /// SQLite wal.c, `walIndexTryHdr`: the copies are read in the order opposite to the writer's.
    #[must_use]
    pub fn header(self) -> Option<IndexHeader> {
        debug_assert_eq!(self.index, 0, "only block 0 has the header");
        let first = self.load_header(0);
        fence(Ordering::SeqCst);
        let second = self.load_header(1);
        if first == second { IndexHeader::from_words(&first) } else { None }
    }

    /// Writes both copies of the header: what is listed so far becomes visible to other connections.
    ///
    /// SQLite wal.c, `walIndexWriteHdr`.
    pub fn set_header(self, header: &IndexHeader) {
        debug_assert_eq!(self.index, 0, "only block 0 has the header");
        let words = header.to_words();
        for copy in [1, 0] {
            fence(Ordering::SeqCst);
            for (n, word) in words.iter().enumerate() {
                self.words[copy * HEADER_WORDS + n].store(*word, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Frames that are copied back into the database.
    #[must_use]
    pub fn backfill(self) -> u32 {
        self.words[BACKFILL].load(Ordering::SeqCst)
    }

    /// Says how many frames are copied back.
    pub fn set_backfill(self, frames: u32) {
        self.words[BACKFILL].store(frames, Ordering::SeqCst);
    }

    /// Says how many frames are about to be copied back.
    pub fn set_backfill_attempted(self, frames: u32) {
        self.words[BACKFILL_ATTEMPTED].store(frames, Ordering::SeqCst);
    }

    /// The last frame that readers at a mark use.
    #[must_use]
    pub fn read_mark(self, mark: u32) -> u32 {
        self.words[READ_MARK + mark.min(READ_MARKS - 1) as usize].load(Ordering::SeqCst)
    }

    /// Moves a read mark; its lock must be held exclusively.
    pub fn set_read_mark(self, mark: u32, frame: u32) {
        self.words[READ_MARK + mark.min(READ_MARKS - 1) as usize].store(frame, Ordering::SeqCst);
    }
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

    fn blank() -> Box<[AtomicU32; BLOCK_WORDS]> {
        let words: Vec<AtomicU32> = (0..BLOCK_WORDS).map(|_| AtomicU32::new(0)).collect();
        words.into_boxed_slice().try_into().unwrap()
    }

    #[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
    fn blocks(shm: &[u8]) -> Vec<Box<[AtomicU32; BLOCK_WORDS]>> {
        let load = |block: &[u8]| {
            let words = blank();
            for (word, bytes) in words.iter().zip(block.as_chunks::<4>().0) {
                word.store(u32::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
            words
        };
        shm.chunks_exact(BLOCK_SIZE).map(load).collect()
    }

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
        let shm = blocks(&std::fs::read(dir.path().join("x.db-shm")).unwrap());
        let block = |n: u32| Block::new(n, &shm[n as usize]);
        let header = block(0).header().unwrap();
        let wal_header = WalHeader::parse(&wal).unwrap();
        assert_eq!(header.page_size, PageSize::new(512));
        assert_eq!((header.salts, header.order()), (wal_header.salts, wal_header.order));
        assert_eq!(header.frames, wal_header.frames(wal.len() as u64));
        assert_eq!(block(0).backfill(), 0);
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
        let ours = blank();
        Block::new(0, &ours).set_header(&header);
        let (ours, theirs) = (Block::new(0, &ours).load_header(0), block(0).load_header(1));
        assert_eq!(ours[..1], theirs[..1]);
        assert_eq!(ours[2..10], theirs[2..10]);
    }

    #[test]
    fn sqlite_reads_what_is_appended_beyond_the_first_block() {
        let shm = [blank(), blank(), blank()];
        let block = |n: u32| Block::new(n, &shm[n as usize]);
        for frame in 1..=10_000 {
            let listed = block(Block::containing(frame));
            listed.append(frame, page(frame % 3000 + 1), 0).unwrap();
        }
        assert_eq!((Block::containing(4062), Block::containing(4063)), (0, 1));
        assert_eq!((Block::containing(8158), Block::containing(8159)), (1, 2));
        assert_eq!(block(2).find(page(1001), 10_000), Ok(Some(10_000)));
        assert_eq!(block(2).find(page(1001), 9_999), Ok(None));
        assert_eq!(block(1).find(page(1001), 9_999), Ok(Some(7_000)));
    }

    #[test]
    fn a_header_is_the_same_after_writing_and_reading() {
        let words = blank();
        let block = Block::new(0, &words);
        assert_eq!(block.header(), None);
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
            block.set_header(&header);
            assert_eq!(block.header(), Some(header));
        }
        words[4].store(9, Ordering::Relaxed);
        assert_eq!(block.header(), None);
        words[HEADER_WORDS + 4].store(9, Ordering::Relaxed);
        assert_eq!(block.header(), None);
    }

    #[test]
    fn frames_of_a_dead_writer_are_forgotten() {
        let words = blank();
        let block = Block::new(0, &words);
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
        fn no_words_make_the_index_panic(
            seed in any::<u32>(), frame in any::<u32>(), n in 1u32.., committed in any::<u32>(), index in 0u32..3,
        ) {
            let words = blank();
            let mut state = seed | 1;
            for word in words.iter() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.store(state, Ordering::Relaxed);
            }
            let block = Block::new(index, &words);
            let _found = block.find(page(n), frame);
            let _page = block.page(frame);
            let _appended = block.append(frame, page(n), committed);
            let _appended = block.append(frame % 12_000, page(n), committed);
            if index == 0 {
                let _header = block.header();
            }
        }
    }
}
