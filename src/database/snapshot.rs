//! A copy of a database at one position while writers go on.
//!
//! The pages are copied as they are at the time ("fuzzy"). Everything up to `base` was in them before the first page
//! was read, so the log behind `base` holds the last image of every page that a transaction changed meanwhile. What
//! remains are pages that an open transaction in rollback mode wrote and took back: those are noted while the snapshot
//! lives and read again when no transaction is open.
//!
//! Of a database in WAL mode on a primary the pages are read as its connections see them, from WAL and file, so that
//! `base` is the newest position, however long ago the WAL was copied back.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::follow::merge;
use super::recover::each_page;
use super::requests::{open_regular, read_or_zeros};
use super::state::State;
use super::{Database, OpError, disk_error};
use crate::log::{LogReader, Payload};
use crate::ltx::{Compressor, Encoder, Flags, Header, IndexedFile, WalSource};
use crate::sqlite::Salts;
use crate::types::{Checksum, DbName, PageNo, PageSize, Pos, Txid};

/// How long a snapshot waits for a pause between transactions in rollback mode.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(60);
/// Bytes of pages that are read again under one hold of the database's lock.
const IMAGES_BYTES: usize = 1 << 20;
/// Bytes of log that become one change set of the completion.
const MERGE_BYTES: u64 = 16 << 20;

/// Pages that were written to the database file while a snapshot was taken, and not logged.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pages: BTreeSet<PageNo>,
}

impl Touched {
    pub(super) fn wrote(&mut self, page_size: PageSize, offset: u64, len: usize) {
        let Some(first) = PageNo::containing(offset, page_size) else { return };
        let last = PageNo::containing(offset + (len as u64).saturating_sub(1), page_size);
        let last = last.unwrap_or(first);
        self.pages.extend((first.get()..=last.get()).filter_map(PageNo::new));
    }

    pub(super) fn logged(&mut self, page: PageNo) {
        self.pages.remove(&page);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// A snapshot being taken: first a fuzzy copy of the pages, then the change sets that make it exact.
#[derive(Debug)]
pub struct Snapshot {
    db: Arc<Database>,
    base: Pos,
    page_size: PageSize,
    pages: u32,
    file: Arc<File>,
    /// Pages may be in the WAL.
    reads_wal: bool,
    /// The WAL of these salts.
    wal: Mutex<Option<(Salts, File)>>,
    reader: LogReader,
    touched: Arc<Mutex<Touched>>,
}

impl Database {
    /// Starts a snapshot. Writers go on.
    ///
    /// # Errors
    /// The database file could not be opened.
    pub fn snapshot(&self) -> Result<Snapshot, OpError> {
        self.begin_snapshot(None)?.ok_or_else(|| OpError::NotTracked(self.name()))
    }

    /// Goes on with a snapshot that began at `base` ([`Snapshot::base`]), perhaps in an earlier process.
    /// `Ok(None)` if that is not possible: the log no longer reaches back to it, or pages may have been
    /// written and taken back meanwhile.
    ///
    /// # Errors
    /// The database file could not be opened.
    pub fn resume_snapshot(&self, base: Pos) -> Result<Option<Snapshot>, OpError> {
        self.begin_snapshot(Some(base))
    }

    fn begin_snapshot(&self, base: Option<Pos>) -> Result<Option<Snapshot>, OpError> {
        let name = self.name();
        let Some(db) = self.me.upgrade() else { return Ok(None) };
        let mut state = self.state.lock();
        // What a transaction in rollback mode wrote before the copy began is in no log if it is taken back.
        let is_clean = state.rollback.is_clean();
        let dirty: BTreeSet<PageNo> = state.rollback.pages().collect();
        let in_wal_mode = state.wal.salts().is_some();
        let reads_wal = in_wal_mode && state.wal_is_known && self.shared.is_primary();
        let is_whole = reads_wal && !state.wal.has_abandoned();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(None) };
        let (page_size, pages) = tracked.size();
        let newest = if is_whole { tracked.pos } else { tracked.backfilled };
        let file = tracked.main(&self.shared, &name)?;
        let reader = tracked.files(&self.shared)?.reader.clone();
        if let Some(base) = base
            && (!is_clean || !in_wal_mode || reader.read_lazily(base, 0)?.is_gone())
        {
            return Ok(None);
        }
        let touched = Arc::new(Mutex::new(Touched { pages: dirty }));
        state.snapshots.push(Arc::downgrade(&touched));
        let base = base.unwrap_or(newest);
        let wal = Mutex::new(None);
        Ok(Some(Snapshot { db, base, page_size, pages, file, reads_wal, wal, reader, touched }))
    }
}

impl Snapshot {
    /// Page size, and number of pages to copy.
    #[must_use]
    pub fn size(&self) -> (PageSize, u32) {
        (self.page_size, self.pages)
    }

    /// What was in the database when the copy began: every page read holds at least this state, so the
    /// log behind it makes the copy exact. The log keeps it while the snapshot lives.
    #[must_use]
    pub fn base(&self) -> Pos {
        self.base
    }

    /// Raw bytes of up to `count` pages from `first` on, as they are now; pages that the file
    /// lacks read as zeros.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn read(&self, first: PageNo, count: u32) -> Result<Vec<u8>, OpError> {
        let count = count.min((self.pages + 1).saturating_sub(first.get()));
        let mut bytes = vec![0; count as usize * self.page_size.bytes()];
        let before = self.db.state.lock().wal.salts();
        self.read_file(first, &mut bytes)?;
        if !self.reads_wal {
            return Ok(bytes);
        }
        let state = self.db.state.lock();
        if state.wal.salts() != before {
            // What was in the WAL is in the file by now, though perhaps not when it was read.
            self.read_file(first, &mut bytes)?;
        }
        let pages = (first.get()..).filter_map(PageNo::new);
        for (page, image) in pages.zip(bytes.chunks_exact_mut(self.page_size.bytes())) {
            self.read_frame(&state, page, image)?;
        }
        Ok(bytes)
    }

    fn read_file(&self, first: PageNo, bytes: &mut [u8]) -> Result<(), OpError> {
        read_or_zeros(&self.file, first, self.page_size, bytes)
            .map_err(disk_error("read database", self.db.name().as_path()))
    }

    /// Reads the image of a page that is in the WAL; others stay as they are.
    fn read_frame(&self, state: &State, page: PageNo, image: &mut [u8]) -> Result<(), OpError> {
        let (Some(frame), Some(salts)) = (state.wal.frame_of(page), state.wal.salts()) else {
            return Ok(());
        };
        if state.wal.page_size() != Some(self.page_size) {
            return Ok(());
        }
        let name = self.db.name();
        let fail = disk_error("read WAL", name.as_path());
        let mut wal = self.wal.lock();
        if wal.as_ref().is_none_or(|(of, _)| *of != salts) {
            let path = name.with_suffix("-wal").map(|wal| self.db.shared.files.join(wal.as_path()));
            let file = path.map_or(Ok(None), |path| open_regular(&path, false)).map_err(&fail)?;
            let file = file.ok_or_else(|| fail(std::io::ErrorKind::NotFound.into()))?;
            *wal = Some((salts, file));
        }
        let (_, file) = wal.as_ref().expect("BUG: just opened");
        let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
        state.wal.read_image(frame, image, &read).map_err(&fail)
    }

    /// What makes the copied pages exact, however long ago they were copied.
    #[must_use]
    pub fn finish(self) -> Completion {
        Completion { snapshot: self, log: None }
    }
}

/// The change sets that turn the copied pages into the state at one position. They are applied in order; each is of
/// bounded size, or one record of the log as it is there.
#[derive(Debug)]
pub struct Completion {
    snapshot: Snapshot,
    /// Where in the log it is, and where it will end; known when all images are read.
    log: Option<(Pos, Pos)>,
}

/// What [`Completion::pages`] hands out.
#[derive(Debug)]
pub enum Exact<'a> {
    /// The copy has this size from now on; with another page size than before nothing of it counts any more.
    Size {
        /// Size of a page.
        page_size: PageSize,
        /// Size in pages.
        pages: u32,
    },
    /// A page has this image.
    Page(PageNo, &'a [u8]),
}

impl Completion {
    /// The next change set, at least one in all; `None` when the copy is at [`Completion::pos`].
    ///
    /// # Errors
    /// The log could not be read, or no pause between transactions was found.
    pub fn next_change(&mut self) -> Result<Option<Payload>, OpError> {
        let Some((from, end)) = self.log else { return self.images().map(Some) };
        if from == end {
            return Ok(None);
        }
        let name = self.snapshot.db.name();
        let record = merge(&name, &self.snapshot.reader, from, end, MERGE_BYTES)?;
        let record = record.ok_or(OpError::NotTracked(name))?;
        self.log = Some((record.pos, end));
        Ok(Some(record.ltx))
    }

    /// The position that the copy is at in the end.
    #[must_use]
    pub fn pos(&self) -> Pos {
        self.log.map_or(self.snapshot.base, |(_, end)| end)
    }

    /// Hands out all of it page by page; returns the position.
    ///
    /// # Errors
    /// As for [`Completion::next_change`], or what `each` says.
    pub fn pages<E: From<OpError>>(
        mut self,
        mut each: impl FnMut(Exact<'_>) -> Result<(), E>,
    ) -> Result<Pos, E> {
        let name = self.snapshot.db.name();
        while let Some(ltx) = self.next_change()? {
            let file = IndexedFile::open(ltx.len(), |at, buffer| ltx.read_at(at, buffer))
                .map_err(|source| OpError::Decode { db: name.clone(), source })?;
            let Header { page_size, commit: pages, .. } = *file.header();
            drop(file);
            each(Exact::Size { page_size, pages })?;
            each_page(&name, &ltx, |page, image| each(Exact::Page(page, image)))?;
        }
        Ok(self.pos())
    }

    /// Reads pages again that were written and perhaps taken back, some at a time. With the last of them it is known
    /// where the log is to be read to.
    fn images(&mut self) -> Result<Payload, OpError> {
        let Snapshot { db, base, page_size, pages, .. } = &self.snapshot;
        let (name, page_size) = (db.name(), *page_size);
        let mut state = db.state.lock();
        let deadline = Instant::now() + QUIET_WAIT_MAX;
        while !state.rollback.is_clean() {
            if db.quiet.wait_until(&mut state, deadline).timed_out() {
                return Err(OpError::Timeout {
                    db: name,
                    step: "wait for a pause between transactions",
                    seconds: QUIET_WAIT_MAX.as_secs(),
                });
            }
        }
        let Some(tracked) = state.tracked.as_ref() else { return Err(OpError::NotTracked(name)) };
        let (end, timestamp_ms) = (tracked.pos, tracked.timestamp_ms);
        let is_resized = tracked.page_size != page_size;
        let commit = if is_resized { *pages } else { tracked.pages };
        let (wanted, is_last) = {
            let mut touched = self.snapshot.touched.lock();
            if is_resized {
                // The log holds every page.
                touched.pages.clear();
            }
            let step = IMAGES_BYTES / page_size.bytes();
            let wanted: Vec<PageNo> =
                std::iter::from_fn(|| touched.pages.pop_first()).take(step).collect();
            (wanted, touched.is_empty())
        };
        // Under the lock, while no transaction is open: these images are committed ones.
        let mut images = Vec::new();
        for page in wanted {
            if page.get() > commit || page == page_size.lock_page() {
                continue;
            }
            let mut image = vec![0; page_size.bytes()];
            self.snapshot.read_file(page, &mut image)?;
            self.snapshot.read_frame(&state, page, &mut image)?;
            images.push((page, image));
        }
        drop(state);
        // The number is only a label. It must not be 1, which would promise every page.
        let label = end.txid.unwrap_or(Txid::FIRST).max(Txid::FIRST.next());
        let header = Header {
            flags: Flags::NONE,
            page_size,
            commit,
            min_txid: label,
            max_txid: label,
            timestamp_ms,
            pre_apply: Some(base.checksum),
            wal: WalSource::default(),
            node_id: db.shared.node,
        };
        if is_last {
            self.log = Some((*base, end));
        }
        encode(&name, header, &images, end.checksum)
    }
}

fn encode(
    name: &DbName,
    header: Header,
    images: &[(PageNo, Vec<u8>)],
    checksum: Checksum,
) -> Result<Payload, OpError> {
    let encode = |source| OpError::Encode { db: name.clone(), source };
    let mut out = Vec::new();
    let mut compressor = Compressor::default();
    let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).map_err(encode)?;
    for (page, image) in images {
        encoder.page(*page, image).map_err(encode)?;
    }
    let checksum = if header.commit == 0 { Checksum::EMPTY } else { checksum };
    encoder.finish(checksum).map_err(encode)?;
    Ok(Payload::Memory(out.into()))
}
