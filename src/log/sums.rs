//! The sums of a database's pages, kept beside its log.
//!
//! ```text
//! block 0  header, slot 0       a header:  0    8  "WEIRSUMS"
//! block 1  header, slot 1                  8    2  format version
//! block 2  sums of pages 1..=511          10    2  0
//! block 3  sums of pages 512..=1022       12    4  page size
//! ...                                     16    4  size of the database in pages
//!                                         20    4  0
//! a block of sums: 511 sums, 0 =          24    8  generation: the higher of two counts
//! unknown, then its checksum: its         32   24  position: epoch, txid, checksum
//! number in the high half, the            56       zeros
//! CRC-32 of the sums in the low half     508    4  CRC-32 of 0..508
//! ```
//! Blocks have 4096 bytes, all numbers are big endian. A block of zeros was never written.
//!
//! Redo: a flush writes blocks, syncs, then writes the header that is not in force. A crash in between
//! leaves blocks that are newer than the header; the caller replays the log behind
//! [`PageSums::as_of`] over them. Sums of pages beyond the header's size are void, whatever the file holds.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};

use super::SumsError;
use super::segment::read_up_to;
use crate::disk::{fault, replace, sync_data, write_all_at};
use crate::types::{Checksum, PageNo, PageSize, Pos};

const BLOCK_BYTES: usize = 4096;
/// Sums in a block.
const SUMS: usize = BLOCK_BYTES / 8 - 1;
const HEADER_BLOCKS: u64 = 2;
const HEADER_BYTES: usize = 512;
const CRC_AT: usize = HEADER_BYTES - 4;
const MAGIC: [u8; 8] = *b"WEIRSUMS";
const VERSION: u16 = 1;
/// Clean blocks that are kept while a database is in use: 4 MiB, which covers 2 GB of database at 4 KiB a page.
/// A commit that touches random pages reads none of them twice then.
const CLEAN_MAX: usize = 1024;

/// The page sums of one database.
///
/// A sum is unknown (`None`) if it was never set or its block is damaged; the caller then computes it
/// from the page. The file is complete for [`PageSums::as_of`]; after a crash blocks may be newer, which
/// replaying the log over them makes right.
#[derive(Debug)]
pub struct PageSums {
    path: PathBuf,
    file: File,
    page_size: PageSize,
    pages: u32,
    /// The header in force: what the file says.
    stored: Header,
    /// Sums of pages beyond this are not in the file, whatever it holds there: the least size since
    /// the last flush.
    floor: u32,
    blocks: HashMap<u32, Block>,
    dirty: usize,
    /// Blocks that were clean when they came in, oldest first; some have become dirty since.
    clean: VecDeque<u32>,
    damaged: u64,
}

#[derive(Debug)]
struct Block {
    /// 0 = unknown, or, before the block is loaded, as in the file.
    sums: Box<[u64; SUMS]>,
    loaded: bool,
    dirty: bool,
}

impl Block {
    fn new(loaded: bool) -> Self {
        Self { sums: Box::new([0; SUMS]), loaded, dirty: false }
    }
}

/// Block and place in it of a page.
fn place(page: u32) -> (u32, usize) {
    let index = page as usize - 1;
    (u32::try_from(index / SUMS).unwrap_or(u32::MAX), index % SUMS)
}

/// The first page of a block.
fn first_page(block: u32) -> u64 {
    u64::from(block) * SUMS as u64 + 1
}

fn offset(block: u32) -> u64 {
    (HEADER_BLOCKS + u64::from(block)) * BLOCK_BYTES as u64
}

impl PageSums {
    /// Creates an empty file, as of [`Pos::ZERO`]; an existing one is replaced.
    ///
    /// # Errors
    /// The disk refused.
    pub fn create(path: &Path, page_size: PageSize) -> Result<Self, SumsError> {
        let mut bytes = [0; BLOCK_BYTES * 2];
        let header = Header { page_size, pages: 0, generation: 1, as_of: Pos::ZERO };
        bytes[BLOCK_BYTES..BLOCK_BYTES + HEADER_BYTES].copy_from_slice(&header.encode());
        replace(path, &bytes).map_err(disk("create page sums", path))?;
        Self::open(path)
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// [`SumsError::NoHeader`], [`SumsError::Version`], or the disk refused.
    pub fn open(path: &Path) -> Result<Self, SumsError> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(disk("open page sums", path))?;
        let mut bytes = [0; BLOCK_BYTES * 2];
        let filled = read_up_to(&file, &mut bytes, 0).map_err(disk("read page sums", path))?;
        let slots = bytes[..filled].chunks(BLOCK_BYTES).filter_map(Header::decode);
        let newest = slots.max_by_key(|slot| slot.as_ref().map_or(u64::MAX, |h| h.generation));
        let header = match newest {
            Some(Ok(header)) => header,
            Some(Err(found)) => {
                return Err(SumsError::Version { path: path.to_owned(), found, known: VERSION });
            }
            None => return Err(SumsError::NoHeader { path: path.to_owned() }),
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            page_size: header.page_size,
            pages: header.pages,
            stored: header,
            floor: header.pages,
            blocks: HashMap::new(),
            dirty: 0,
            clean: VecDeque::new(),
            damaged: 0,
        })
    }

    /// The position of the last [`PageSums::flush`].
    #[must_use]
    pub fn as_of(&self) -> Pos {
        self.stored.as_of
    }

    /// Size of the database's pages.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size of the database in pages.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The sum of a page; `None` if unknown: never set, beyond the end, the lock page, or in a damaged block.
    ///
    /// # Errors
    /// The block could not be read.
    pub fn get(&mut self, page: PageNo) -> Result<Option<Checksum>, SumsError> {
        if page.get() > self.pages {
            return Ok(None);
        }
        let (number, index) = place(page.get());
        if let Some(block) = self.blocks.get(&number)
            && (block.loaded || block.sums[index] != 0)
        {
            return Ok(Checksum::from_stored(block.sums[index]));
        }
        if first_page(number) > u64::from(self.floor) {
            return Ok(None);
        }
        self.load(number)?;
        let sum = self.blocks.get(&number).map_or(0, |block| block.sums[index]);
        self.evict();
        Ok(Checksum::from_stored(sum))
    }

    /// Sets the sum of a page; the database grows to hold it.
    pub fn set(&mut self, page: PageNo, sum: Checksum) {
        let (number, index) = place(page.get());
        self.pages = self.pages.max(page.get());
        let is_new = first_page(number) > u64::from(self.floor);
        let block = self.blocks.entry(number).or_insert_with(|| Block::new(is_new));
        block.sums[index] = sum.get();
        if !block.dirty {
            block.dirty = true;
            self.dirty += 1;
        }
    }

    /// Forgets every sum: the database has another page size from now on.
    pub fn reset(&mut self, page_size: PageSize) {
        self.truncate(0);
        self.page_size = page_size;
    }

    /// Sets the size of the database: pages beyond it are forgotten, new ones are unknown.
    pub fn truncate(&mut self, pages: u32) {
        if pages < self.pages {
            self.floor = self.floor.min(pages);
            self.blocks.retain(|number, block| {
                let first = first_page(*number);
                let stays = first <= u64::from(pages);
                if stays {
                    let kept = usize::try_from(u64::from(pages) + 1 - first).unwrap_or(usize::MAX);
                    block.sums.iter_mut().skip(kept).for_each(|sum| *sum = 0);
                } else if block.dirty {
                    self.dirty -= 1;
                }
                stays
            });
        }
        self.pages = pages;
    }

    /// Writes what changed, durably, and notes that the file is complete for `as_of`.
    ///
    /// # Errors
    /// The disk refused; the file is still good for the earlier position. A later call writes all of it
    /// again, so even after a failed `fsync` it is right.
    pub fn flush(&mut self, as_of: Pos) -> Result<(), SumsError> {
        let Self { page_size, pages, .. } = *self;
        let header = Header { page_size, pages, as_of, generation: self.stored.generation + 1 };
        // The floor too: a size that shrank and grew again leaves void sums in the file.
        let is_as_stored = Header { generation: self.stored.generation, ..header } == self.stored;
        if self.dirty == 0 && is_as_stored && self.floor == pages {
            return Ok(());
        }
        if self.pages > self.floor {
            self.void_tail()?;
        }
        let dirty = self.blocks.iter().filter(|(_, block)| block.dirty);
        let mut dirty: Vec<u32> = dirty.map(|(number, _)| *number).collect();
        dirty.sort_unstable();
        for number in &dirty {
            self.load(*number)?;
            if let Some(block) = self.blocks.get(number) {
                let bytes = encode_block(*number, &block.sums);
                let written = write_all_at("sums", &self.file, &bytes, offset(*number));
                written.map_err(disk("write page sums", &self.path))?;
            }
        }
        let sync =
            |file: &File| sync_data("sums", file).map_err(disk("sync page sums", &self.path));
        sync(&self.file)?;
        let slot = (header.generation % HEADER_BLOCKS) * BLOCK_BYTES as u64;
        let written = write_all_at("sums", &self.file, &header.encode(), slot);
        written.map_err(disk("write page sums header", &self.path))?;
        sync(&self.file)?;
        self.stored = header;
        self.floor = self.pages;
        self.dirty = 0;
        for number in dirty {
            if let Some(block) = self.blocks.get_mut(&number) {
                block.dirty = false;
                self.clean.push_back(number);
            }
        }
        self.evict();
        Ok(())
    }

    /// Number of blocks that wait for [`PageSums::flush`], 4 KiB of memory each.
    #[must_use]
    pub fn dirty_blocks(&self) -> usize {
        self.dirty
    }

    /// Number of damaged blocks met since the file was opened.
    #[must_use]
    pub fn damaged_blocks(&self) -> u64 {
        self.damaged
    }

    #[cfg(test)]
    pub(super) fn blocks_in_memory(&self) -> usize {
        self.blocks.len()
    }

    /// Before the database grows over void sums: removes them from the file.
    fn void_tail(&mut self) -> Result<(), SumsError> {
        let (number, index) = place(self.floor + 1);
        // In the block where they begin, by writing it again; it is loaded without them.
        let keeps_block = index > 0;
        if keeps_block {
            let block = self.blocks.entry(number).or_insert_with(|| Block::new(false));
            if !block.dirty {
                block.dirty = true;
                self.dirty += 1;
            }
        }
        let end = offset(number) + if keeps_block { BLOCK_BYTES as u64 } else { 0 };
        let bytes = self.file.metadata().map_err(disk("read size of page sums", &self.path))?.len();
        if bytes > end {
            self.file.set_len(end).map_err(disk("cut page sums", &self.path))?;
        }
        Ok(())
    }

    /// Brings a block in from the file, under what was set meanwhile.
    fn load(&mut self, number: u32) -> Result<(), SumsError> {
        if self.blocks.get(&number).is_some_and(|block| block.loaded) {
            return Ok(());
        }
        let mut bytes = [0; BLOCK_BYTES];
        // A block that cannot be read is as good as a damaged one: the pages tell its sums.
        let read = fault::step("sums", "read")
            .and_then(|()| read_up_to(&self.file, &mut bytes, offset(number)));
        let stored = read.ok().and_then(|_| decode_block(number, &bytes));
        self.damaged += u64::from(stored.is_none());
        let valid = (u64::from(self.floor) + 1).saturating_sub(first_page(number));
        let valid = usize::try_from(valid).unwrap_or(usize::MAX);
        let is_new = !self.blocks.contains_key(&number);
        let block = self.blocks.entry(number).or_insert_with(|| Block::new(false));
        block.loaded = true;
        let stored = stored.unwrap_or([0; SUMS]);
        for (sum, stored) in block.sums.iter_mut().zip(stored).take(valid) {
            if *sum == 0 {
                *sum = stored;
            }
        }
        if is_new {
            self.clean.push_back(number);
        }
        Ok(())
    }

    /// Forgets the oldest clean blocks if there are too many.
    fn evict(&mut self) {
        while self.clean.len() > CLEAN_MAX {
            let Some(number) = self.clean.pop_front() else { return };
            if self.blocks.get(&number).is_some_and(|block| !block.dirty) {
                self.blocks.remove(&number);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Header {
    page_size: PageSize,
    pages: u32,
    generation: u64,
    as_of: Pos,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_u32(self.page_size.get());
        out.put_u32(self.pages);
        out.put_u32(0);
        out.put_u64(self.generation);
        out.put_u64(self.as_of.epoch.get());
        out.put_u64(self.as_of.txid_raw());
        out.put_u64(self.as_of.checksum.get());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// `None` if it is not whole; the version if it is one that is not known.
    fn decode(bytes: &[u8]) -> Option<Result<Self, u16>> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        if bytes[..8] != MAGIC || bytes[CRC_AT..] != crc32fast::hash(&bytes[..CRC_AT]).to_be_bytes()
        {
            return None;
        }
        let mut fields = &bytes[8..];
        let version = fields.get_u16();
        if version != VERSION {
            return Some(Err(version));
        }
        fields.advance(2);
        let page_size = PageSize::new(fields.get_u32())?;
        let pages = fields.get_u32();
        fields.advance(4);
        let generation = fields.get_u64();
        let (epoch, txid, checksum) = (fields.get_u64(), fields.get_u64(), fields.get_u64());
        let as_of = Pos::from_stored(epoch, txid, checksum)?;
        // Half of the numbers are none: those that count flushes never end.
        (generation < u64::MAX / 2).then_some(Ok(Self { page_size, pages, generation, as_of }))
    }
}

fn block_checksum(number: u32, sums: &[u8]) -> u64 {
    u64::from(number) << 32 | u64::from(crc32fast::hash(sums))
}

fn encode_block(number: u32, sums: &[u64; SUMS]) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    let mut out = &mut bytes[..];
    for sum in sums {
        out.put_u64(*sum);
    }
    let checksum = block_checksum(number, &bytes[..SUMS * 8]);
    bytes[SUMS * 8..].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// `None` if the block is damaged.
fn decode_block(number: u32, bytes: &[u8; BLOCK_BYTES]) -> Option<[u64; SUMS]> {
    let mut sums = [0; SUMS];
    if bytes.iter().all(|byte| *byte == 0) {
        return Some(sums);
    }
    let (stored, checksum) = bytes.split_at(SUMS * 8);
    if checksum != block_checksum(number, stored).to_be_bytes() {
        return None;
    }
    let mut fields = stored;
    sums.iter_mut().for_each(|sum| *sum = fields.get_u64());
    Some(sums)
}

fn disk(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SumsError {
    let path = path.to_owned();
    move |source| SumsError::Disk { step, path, source }
}
