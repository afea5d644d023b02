//! Finds commits in a write-ahead log while it is written.
//!
//! SQLite writes a frame in two pieces (24 bytes of header, then the page), overwrites frames of the open
//! transaction in place, and may rewrite their headers last (`walRewriteChecksums`). So the trigger is not "a
//! commit frame was written" but "the checksum chain is now valid through a commit frame".
//!
//! Pure. Invariant: frames `1..=captured` are committed and known to the log; `chain` describes the valid frames
//! after them. Bytes of the uncommitted tail are kept in memory up to a bound, beyond it read back from the file.
//! Not here: what a transaction changes in the database (`database::commit`).
//!
//! Sources: SQLite file format section 4 "The Write-Ahead Log", wal.c `sqlite3WalFrames`, `walRewriteChecksums`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;

use crate::sqlite::{FrameHeader, Salts, WalChecksum, WalHeader};
use crate::types::{PageNo, PageSize};

/// Bytes of an uncommitted transaction that stay in memory.
const TAIL_BYTES_MAX: usize = 4 << 20;

/// Reads back bytes of the WAL that were written before; fills the buffer or fails.
pub type ReadBack<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// What a write to the WAL meant.
#[derive(Debug, PartialEq, Eq)]
pub enum WalEvent {
    /// Nothing ended.
    None,
    /// A new generation began: every frame of the old one is in the database file.
    Restarted,
    /// The write completes a transaction. Call [`WalCapture::committed`] or [`WalCapture::refused`].
    Commit(WalCommit),
}

/// A committed transaction that is not captured yet.
#[derive(Debug, PartialEq, Eq)]
pub struct WalCommit {
    /// First frame that belongs to it.
    pub start_frame: u32,
    /// Its commit frame.
    pub end_frame: u32,
    /// Size of the database after it, in pages.
    pub commit: u32,
    /// Each page once with the frame of its last image, ascending; pages beyond `commit` are left out.
    pub pages: Vec<(PageNo, u32)>,
    /// Pages of an abandoned transaction that must be part of this one with their current images.
    pub abandoned: Vec<PageNo>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    page: PageNo,
    commit: u32,
    checksum: WalChecksum,
}

/// State of one WAL file as its writes go by.
#[derive(Debug, Default)]
pub struct WalCapture {
    header: Option<WalHeader>,
    header_bytes: [u8; WalHeader::SIZE],
    captured: u32,
    captured_checksum: WalChecksum,
    /// Last frame of each page among the captured ones: what SQLite would read.
    frame_of: HashMap<PageNo, u32>,
    chain: Vec<Frame>,
    tail: Vec<u8>,
    /// End of the bytes written beyond the captured frames, as an offset in the file.
    written_to: u64,
    /// The last write, kept while bytes that memory lacks may have to be read: the file may not have it yet.
    pending: Option<(u64, Vec<u8>)>,
    abandoned: BTreeSet<PageNo>,
}

impl WalCapture {
    /// The page size of the current generation; `None` before a header was written.
    #[must_use]
    pub fn page_size(&self) -> Option<PageSize> {
        self.header.as_ref().map(|header| header.page_size)
    }

    /// Salts of the current generation.
    #[must_use]
    pub fn salts(&self) -> Option<Salts> {
        self.header.as_ref().map(|header| header.salts)
    }

    /// Number of captured frames.
    #[must_use]
    pub fn captured(&self) -> u32 {
        self.captured
    }

    /// The captured frame SQLite would read a page from; `None` if it is in the database file.
    #[must_use]
    pub fn frame_of(&self, page: PageNo) -> Option<u32> {
        self.frame_of.get(&page).copied()
    }

    /// Offset of a frame's page image in the file.
    #[must_use]
    pub fn image_offset(page_size: PageSize, frame: u32) -> u64 {
        FrameHeader::offset(page_size, frame) + FrameHeader::SIZE as u64
    }

    /// Whether the current generation has frames that no transaction has taken yet.
    #[must_use]
    pub fn has_tail(&self) -> bool {
        !self.chain.is_empty()
    }

    /// Pages of a commit that no connection saw: they join the next transaction with their current images.
    pub fn abandon(&mut self, pages: impl IntoIterator<Item = PageNo>) {
        self.abandoned.extend(pages);
    }

    /// Whether pages wait for the next transaction because no connection saw their commit.
    #[must_use]
    pub fn has_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// The file was emptied or removed.
    pub fn removed(&mut self) {
        let abandoned = std::mem::take(&mut self.abandoned);
        *self = Self { abandoned, ..Self::default() };
    }

    /// The file was cut at `len`. `false` if that cut captured frames, which SQLite never does: nothing is known of the
    /// file then.
    pub fn truncated(&mut self, len: u64) -> bool {
        let Some(page_size) = self.page_size() else { return true };
        if len < FrameHeader::offset(page_size, self.captured + 1) {
            self.removed();
            return false;
        }
        self.written_to = self.written_to.min(len);
        let base = FrameHeader::offset(page_size, self.captured + 1);
        self.tail.truncate(usize::try_from(len - base).unwrap_or(usize::MAX));
        let frame_size = FrameHeader::frame_size(page_size);
        self.chain.truncate(usize::try_from((len - base) / frame_size).unwrap_or(usize::MAX));
        true
    }

    /// Takes over a WAL file that exists already: frames up to `captured` are in the log, the rest, up to
    /// the last valid commit, is reported as one transaction.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn resume(&mut self, captured: u32, len: u64, read: ReadBack<'_>) -> io::Result<WalEvent> {
        *self = Self::default();
        if len < WalHeader::SIZE as u64 {
            return Ok(WalEvent::None);
        }
        let mut bytes = [0; WalHeader::SIZE];
        read(0, &mut bytes)?;
        self.header_bytes = bytes;
        self.take_header();
        let Some(header) = self.header else { return Ok(WalEvent::None) };
        self.written_to = len;
        self.advance(read)?;
        let known = usize::try_from(captured).unwrap_or(usize::MAX).min(self.chain.len());
        let rest = self.chain.split_off(known);
        if let Some(last) = self.chain.last() {
            self.captured_checksum = last.checksum;
            self.captured = u32::try_from(known).unwrap_or(u32::MAX);
        }
        for (index, frame) in self.chain.drain(..).enumerate() {
            self.frame_of.insert(frame.page, u32::try_from(index).unwrap_or(u32::MAX) + 1);
        }
        self.chain = rest;
        if self.captured == 0 {
            self.captured_checksum = header.checksum;
        }
        Ok(self.commit_in_chain())
    }

    /// Takes a write of the WAL file. The file need not have these bytes yet; everything written before it must.
    ///
    /// # Errors
    /// An earlier frame could not be read back.
    pub fn write(&mut self, offset: u64, data: &[u8], read: ReadBack<'_>) -> io::Result<WalEvent> {
        if offset < WalHeader::SIZE as u64 {
            let event = self.write_header(offset, data);
            let in_header = WalHeader::SIZE - usize::try_from(offset).unwrap_or(0);
            return match data.get(in_header..) {
                Some(frames) if !frames.is_empty() => {
                    self.write(WalHeader::SIZE as u64, frames, read)
                }
                Some(_) | None => Ok(event),
            };
        }
        let Some(page_size) = self.page_size() else { return Ok(WalEvent::None) };
        let base = FrameHeader::offset(page_size, self.captured + 1);
        if offset < base {
            self.rewind(frame_at(page_size, offset), read)?;
        }
        self.record(page_size, offset, data);
        self.pending = self.tail_is_short().then(|| (offset, data.to_vec()));
        self.advance(read)?;
        Ok(self.commit_in_chain())
    }

    /// Bytes of a page image in the tail if they are in memory.
    #[must_use]
    pub fn tail_image(&self, frame: u32) -> Option<&[u8]> {
        let page_size = self.page_size()?;
        let base = FrameHeader::offset(page_size, self.captured + 1);
        let start = Self::image_offset(page_size, frame).checked_sub(base)?;
        let start = usize::try_from(start).ok()?;
        self.tail.get(start..start + page_size.bytes())
    }

    /// Reads the image of a frame that is not in memory any more.
    ///
    /// # Errors
    /// The file could not be read.
    pub fn read_image(&self, frame: u32, image: &mut [u8], read: ReadBack<'_>) -> io::Result<()> {
        let Some(page_size) = self.page_size() else { return Ok(()) };
        self.read_over(Self::image_offset(page_size, frame), image, read)
    }

    /// The transaction is in the log and its last bytes are in the file.
    pub fn committed(&mut self, commit: &WalCommit) {
        let taken = (commit.end_frame - self.captured) as usize;
        let Some(page_size) = self.page_size() else { return };
        let rest = self.chain.split_off(taken);
        for (frame, number) in self.chain.iter().zip(commit.start_frame..) {
            self.frame_of.insert(frame.page, number);
        }
        if let Some(last) = self.chain.last() {
            self.captured_checksum = last.checksum;
        }
        self.chain = rest;
        let bytes =
            taken * usize::try_from(FrameHeader::frame_size(page_size)).unwrap_or(usize::MAX);
        if bytes >= self.tail.len() {
            self.tail.clear();
            self.tail.shrink_to(TAIL_BYTES_MAX / 16);
        } else {
            self.tail.drain(..bytes);
        }
        self.captured = commit.end_frame;
        self.pending = None;
        self.abandoned.clear();
    }

    /// The transaction could not be logged; the write that completed it, at `offset`, did not happen.
    pub fn refused(&mut self, offset: u64) {
        self.pending = None;
        self.chain.clear();
        // A header that failed to reach the file stays: SQLite writes the same one again.
        if offset >= WalHeader::SIZE as u64 {
            let cut_the_tail_only = self.truncated(offset);
            debug_assert!(cut_the_tail_only, "a refused write lies behind the captured frames");
        }
    }

    fn write_header(&mut self, offset: u64, data: &[u8]) -> WalEvent {
        let start = usize::try_from(offset).unwrap_or(WalHeader::SIZE);
        let end = (start + data.len()).min(WalHeader::SIZE);
        self.header_bytes[start..end].copy_from_slice(&data[..end - start]);
        let before = self.salts();
        self.take_header();
        if self.header.is_some() && self.salts() == before {
            return WalEvent::None;
        }
        if before.is_some() { WalEvent::Restarted } else { WalEvent::None }
    }

    /// Parses the header bytes; a valid header with other salts starts a new generation.
    fn take_header(&mut self) {
        let Ok(header) = WalHeader::parse(&self.header_bytes) else { return };
        if self.header.as_ref().is_some_and(|old| old.salts == header.salts) {
            return;
        }
        let header_bytes = self.header_bytes;
        let abandoned = std::mem::take(&mut self.abandoned);
        *self = Self { header_bytes, abandoned, ..Self::default() };
        self.captured_checksum = header.checksum;
        self.written_to = WalHeader::SIZE as u64;
        self.header = Some(header);
    }

    /// Keeps the bytes of a write to the tail, in memory while they fit.
    fn record(&mut self, page_size: PageSize, offset: u64, data: &[u8]) {
        let base = FrameHeader::offset(page_size, self.captured + 1);
        let first = usize::try_from((offset - base) / FrameHeader::frame_size(page_size))
            .unwrap_or(usize::MAX);
        self.chain.truncate(first);
        let end = offset + data.len() as u64;
        // A gap before the write is old bytes of the file: they are behind `tail`, so it stops there.
        let start = usize::try_from(offset - base).unwrap_or(usize::MAX);
        if start <= self.tail.len() && start + data.len() <= TAIL_BYTES_MAX {
            let overlap = (self.tail.len() - start).min(data.len());
            self.tail[start..start + overlap].copy_from_slice(&data[..overlap]);
            self.tail.extend_from_slice(&data[overlap..]);
        } else if start < self.tail.len() {
            self.tail.truncate(start);
        }
        self.written_to = self.written_to.max(end);
    }

    /// Whether the frame being completed lies beyond the bytes kept in memory.
    fn tail_is_short(&self) -> bool {
        let Some(page_size) = self.page_size() else { return false };
        let base = FrameHeader::offset(page_size, self.captured + 1);
        base + (self.tail.len() as u64) < self.written_to
    }

    /// Extends the chain of valid frames over everything that is written.
    fn advance(&mut self, read: ReadBack<'_>) -> io::Result<()> {
        let Some(header) = self.header else { return Ok(()) };
        let size = header.frame_size();
        let base = FrameHeader::offset(header.page_size, self.captured + 1);
        let mut checksum = self.chain.last().map_or(self.captured_checksum, |f| f.checksum);
        let mut buffer = Vec::new();
        loop {
            let start = base + self.chain.len() as u64 * size;
            if start + size > self.written_to {
                return Ok(());
            }
            let in_tail = usize::try_from(start - base).unwrap_or(usize::MAX);
            let len = usize::try_from(size).unwrap_or(usize::MAX);
            let bytes = match self.tail.get(in_tail..in_tail.saturating_add(len)) {
                Some(bytes) => bytes,
                None => {
                    buffer.resize(len, 0);
                    self.read_over(start, &mut buffer, read)?;
                    &buffer
                }
            };
            let Some(frame) = valid_frame(&header, bytes, checksum) else { return Ok(()) };
            checksum = frame.checksum;
            self.chain.push(frame);
        }
    }

    /// Reads from the file, with the bytes of the write in progress over it.
    fn read_over(&self, start: u64, buffer: &mut [u8], read: ReadBack<'_>) -> io::Result<()> {
        let end = start + buffer.len() as u64;
        // What no write has reached yet reads as zeros, which are no frame.
        let read = |at: u64, buffer: &mut [u8]| match read(at, buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                buffer.fill(0);
                Ok(())
            }
            result => result,
        };
        let Some((offset, data)) = &self.pending else { return read(start, buffer) };
        let data_end = offset + data.len() as u64;
        if *offset >= end || data_end <= start {
            return read(start, buffer);
        }
        let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX);
        let from = (*offset).max(start);
        let to = data_end.min(end);
        if from > start {
            read(start, &mut buffer[..index(from - start)])?;
        }
        buffer[index(from - start)..index(to - start)]
            .copy_from_slice(&data[index(from - offset)..index(to - offset)]);
        if to < end {
            read(to, &mut buffer[index(to - start)..])?;
        }
        Ok(())
    }

    /// A write below the captured frames without a restart: the transactions from `frame` on were logged, but
    /// their writer died before anybody saw them. Their pages join the next transaction.
    fn rewind(&mut self, frame: u32, read: ReadBack<'_>) -> io::Result<()> {
        let Some(header) = self.header else { return Ok(()) };
        let keep = frame.saturating_sub(1);
        let mut frame_of = HashMap::new();
        let mut checksum = header.checksum;
        for number in 1..=self.captured {
            let mut bytes = [0; FrameHeader::SIZE];
            read(FrameHeader::offset(header.page_size, number), &mut bytes)?;
            let Some(FrameHeader { page, checksum: after, .. }) = FrameHeader::parse(&bytes) else {
                continue;
            };
            if number <= keep {
                checksum = after;
                frame_of.insert(page, number);
            } else {
                self.abandoned.insert(page);
            }
        }
        self.frame_of = frame_of;
        self.captured = keep;
        self.captured_checksum = checksum;
        self.chain.clear();
        self.tail.clear();
        self.written_to = FrameHeader::offset(header.page_size, keep + 1);
        Ok(())
    }

    /// The last commit in the chain as a transaction.
    fn commit_in_chain(&self) -> WalEvent {
        let Some(last) = self.chain.iter().rposition(|frame| frame.commit != 0) else {
            return WalEvent::None;
        };
        let commit = self.chain[last].commit;
        let start_frame = self.captured + 1;
        let mut pages = BTreeMap::new();
        for (frame, number) in self.chain[..=last].iter().zip(start_frame..) {
            if frame.page.get() <= commit {
                pages.insert(frame.page, number);
            }
        }
        let fits = |page: &PageNo| page.get() <= commit && !pages.contains_key(page);
        let abandoned = self.abandoned.iter().copied().filter(fits).collect();
        WalEvent::Commit(WalCommit {
            start_frame,
            end_frame: self.captured + u32::try_from(last).unwrap_or(u32::MAX) + 1,
            commit,
            pages: pages.into_iter().collect(),
            abandoned,
        })
    }
}

fn frame_at(page_size: PageSize, offset: u64) -> u32 {
    let index = offset.saturating_sub(WalHeader::SIZE as u64) / FrameHeader::frame_size(page_size);
    u32::try_from(index).unwrap_or(u32::MAX - 1) + 1
}

/// Checks one frame against the chain before it.
fn valid_frame(header: &WalHeader, bytes: &[u8], before: WalChecksum) -> Option<Frame> {
    let (head, image) = bytes.split_at(FrameHeader::SIZE);
    let (frame, checksum) = header.verify(before, head, image)?;
    Some(Frame { page: frame.page, commit: frame.commit, checksum })
}
