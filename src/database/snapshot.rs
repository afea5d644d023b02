//! A copy of a database at one position while writers go on.
//!
//! The pages are copied as they are in the file at the time ("fuzzy"). Everything up to `base` was in the file
//! before the first page was read, so the log behind `base` holds the last image of every page that a
//! transaction changed meanwhile. What remains are pages that an open transaction in rollback mode wrote and
//! took back: those are noted while the snapshot lives and read again when no transaction is open.

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::follow::{LogRecord, merge};
use super::requests::read_or_zeros;
use super::{Database, OpError, disk_error};
use crate::log::{LogReader, Read};
use crate::ltx::{Compressor, Encoder, Flags, Header, LtxFile, WalSource};
use crate::types::{DbName, PageNo, PageSize, Pos, Txid};

/// How long a snapshot waits for a pause between transactions in rollback mode.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(60);

/// Pages that were written to the database file while a snapshot was taken.
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
}

/// A snapshot being taken: first a fuzzy copy of the pages, then the change set that makes it exact.
#[derive(Debug)]
pub struct Snapshot {
    db: Arc<Database>,
    base: Pos,
    page_size: PageSize,
    pages: u32,
    file: Arc<File>,
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
        let Some(tracked) = state.tracked.as_mut() else { return Ok(None) };
        let (page_size, pages, backfilled) = (tracked.page_size, tracked.pages, tracked.backfilled);
        let file = tracked.main(&self.shared, &name)?;
        let reader = tracked.files(&self.shared)?.reader.clone();
        if let Some(base) = base
            && (!is_clean || !in_wal_mode || reader.read(base, 0)? == Read::Gone)
        {
            return Ok(None);
        }
        let touched = Arc::new(Mutex::new(Touched { pages: dirty }));
        state.snapshots.push(Arc::downgrade(&touched));
        let base = base.unwrap_or(backfilled);
        Ok(Some(Snapshot { db, base, page_size, pages, file, reader, touched }))
    }
}

impl Snapshot {
    /// Page size, and number of pages to copy.
    #[must_use]
    pub fn size(&self) -> (PageSize, u32) {
        (self.page_size, self.pages)
    }

    /// What was in the file when the copy began: every page read holds at least this state, so the
    /// log behind it makes the copy exact. The log keeps it while the snapshot lives.
    #[must_use]
    pub fn base(&self) -> Pos {
        self.base
    }

    /// Raw bytes of up to `count` pages from `first` on, as they are in the file now; pages that the file
    /// lacks read as zeros.
    ///
    /// # Errors
    /// The database file could not be read.
    pub fn read(&self, first: PageNo, count: u32) -> Result<Vec<u8>, OpError> {
        let count = count.min((self.pages + 1).saturating_sub(first.get()));
        let mut bytes = vec![0; count as usize * self.page_size.bytes()];
        read_or_zeros(&self.file, first, self.page_size, &mut bytes)
            .map_err(disk_error("read database", self.db.name().as_path()))?;
        Ok(bytes)
    }

    /// The change set that turns the copied pages into the state at the returned position
    /// (`LogRecord::pos`), however long ago they were copied.
    ///
    /// # Errors
    /// The log could not be read, or no pause between transactions was found.
    pub fn finish(self) -> Result<LogRecord, OpError> {
        let name = self.db.name();
        let mut state = self.db.state.lock();
        let deadline = Instant::now() + QUIET_WAIT_MAX;
        while !state.rollback.is_clean() {
            if self.db.quiet.wait_until(&mut state, deadline).timed_out() {
                return Err(OpError::Timeout {
                    db: name,
                    step: "wait for a pause between transactions",
                    seconds: QUIET_WAIT_MAX.as_secs(),
                });
            }
        }
        let Some(tracked) = state.tracked.as_ref() else { return Err(OpError::NotTracked(name)) };
        let (end, pages, page_size) = (tracked.pos, tracked.pages, tracked.page_size);
        let timestamp_ms = tracked.timestamp_ms;
        let touched = std::mem::take(&mut self.touched.lock().pages);
        // Under the lock, while no transaction is open: these images are committed ones.
        let images = self.read_touched(&touched, pages, page_size, end)?;
        drop(state);

        let merged = merge(&name, &self.reader, self.base, end, u64::MAX)?;
        if merged.is_none() && self.base != end {
            return Err(OpError::NotTracked(name));
        }
        if let Some(record) = &merged
            && images.is_empty()
        {
            return Ok(record.clone());
        }
        let header = Header {
            flags: Flags::NONE,
            page_size,
            commit: pages,
            // With nothing behind the base the number is only a label: it must not be 1, which
            // would promise every page.
            min_txid: self.base.next_txid(),
            max_txid: end.txid.unwrap_or(Txid::FIRST).max(self.base.next_txid()),
            timestamp_ms,
            pre_apply: self.base.txid.map(|_| self.base.checksum),
            wal: WalSource::default(),
            node_id: self.db.shared.node,
        };
        let ltx = overlay(&name, header, merged.as_ref().map(|record| &record.ltx), images, end)?;
        Ok(LogRecord { epoch: end.epoch, pos: end, ltx })
    }

    fn read_touched(
        &self,
        touched: &BTreeSet<PageNo>,
        pages: u32,
        page_size: PageSize,
        end: Pos,
    ) -> Result<Vec<(PageNo, Vec<u8>)>, OpError> {
        // A snapshot from nothing must hold every page in its change set.
        let whole = self.base.txid.is_none() && end.txid.is_some();
        let wanted: Vec<PageNo> = if whole && !touched.is_empty() {
            (1..=pages).filter_map(PageNo::new).collect()
        } else {
            touched.iter().copied().collect()
        };
        let mut images = Vec::new();
        for page in wanted {
            if page.get() > pages || page == page_size.lock_page() {
                continue;
            }
            let mut image = vec![0; page_size.bytes()];
            read_or_zeros(&self.file, page, page_size, &mut image)
                .map_err(disk_error("read database", self.db.name().as_path()))?;
            images.push((page, image));
        }
        Ok(images)
    }
}

/// The pages of a change set, and beneath them images of pages it does not have.
fn overlay(
    name: &DbName,
    header: Header,
    ltx: Option<&Bytes>,
    images: Vec<(PageNo, Vec<u8>)>,
    end: Pos,
) -> Result<Bytes, OpError> {
    let decode = |source| OpError::Decode { db: name.clone(), source };
    let encode = |source| OpError::Encode { db: name.clone(), source };
    let mut pages: std::collections::BTreeMap<PageNo, Vec<u8>> = images.into_iter().collect();
    if let Some(ltx) = ltx {
        let file = LtxFile::parse_trusted(ltx).map_err(decode)?;
        for entry in file.entries() {
            let mut image = vec![0; header.page_size.bytes()];
            file.read(*entry, &mut image).map_err(decode)?;
            pages.insert(entry.page, image);
        }
    }
    let mut out = Vec::new();
    let mut compressor = Compressor::default();
    let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).map_err(encode)?;
    for (page, image) in &pages {
        encoder.page(*page, image).map_err(encode)?;
    }
    encoder.finish(end.checksum).map_err(encode)?;
    Ok(out.into())
}
