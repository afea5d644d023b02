//! Takes transactions from the primary into the log, checked against the page sums.
//!
//! Costs O(changed pages). Applying them to the files is `apply`'s work; the decoded pages wait in memory
//! for it, up to a bound, beyond which they are read from the log again.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use bytes::Bytes;

use super::apply::InMemory;
use super::state::{Pending, State, Tracked};
use super::{Database, Event, OpError, ReceiveError};
use crate::disk::FileReader;
use crate::log::{Log, RecordInfo};
use crate::ltx::{self, Decoder, Header, LtxFile, Trailer};
use crate::types::{Checksum, Epoch, PageNo, Pos};

/// Bytes of decoded pages that wait in memory per database.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// Bytes of a received file that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Why a replica needs a fresh copy after its disk refused to keep the log.
const LOG_FAILED: &str = "the disk failed to keep its log: a fresh copy from the primary is needed";

/// Why a replica needs a fresh copy when page sums are lost: what is not applied yet is in no file.
const SUMS_LOST: &str = "its page sums were lost: a fresh copy from the primary is needed";

/// A received change set, decoded.
struct Received {
    header: Header,
    post: Checksum,
    /// `None` if they are too many to wait in memory.
    pages: Option<Vec<(PageNo, Bytes)>>,
    sums: Vec<(PageNo, Checksum)>,
}

/// The bytes of a received change set.
enum Source<'a> {
    Memory(&'a [u8]),
    File(&'a File, u64),
}

impl Database {
    /// Takes a transaction from the primary into the log (not yet durable, not yet applied).
    /// Returns the new position.
    ///
    /// # Errors
    /// See [`ReceiveError`]. A transaction that is already in the log is taken as received.
    pub fn receive(&self, epoch: Epoch, ltx: &[u8]) -> Result<Pos, ReceiveError> {
        let mut waiting = Waiting::default();
        let file = LtxFile::parse_with(ltx, |page, data| waiting.add(page, data))
            .map_err(|source| ReceiveError::Invalid { db: self.name(), source })?;
        let received = waiting.done(*file.header(), file.trailer());
        self.take(epoch, received, &Source::Memory(ltx))
    }

    /// As [`Database::receive`], for a transaction too large for memory: the first `bytes` bytes of a file.
    ///
    /// # Errors
    /// As for [`Database::receive`].
    pub fn receive_file(&self, epoch: Epoch, ltx: &File, bytes: u64) -> Result<Pos, ReceiveError> {
        let invalid = |source| ReceiveError::Invalid { db: self.name(), source };
        let source = BufReader::with_capacity(PIECE_BYTES, FileReader::new(ltx, bytes));
        let mut waiting = Waiting::default();
        let mut decoder = Decoder::new(source).map_err(invalid)?;
        let header = *decoder.header();
        while let Some(page) = decoder.next_page().map_err(invalid)? {
            waiting.add(page.page, page.data);
        }
        let received = waiting.done(header, decoder.finish().map_err(invalid)?);
        self.take(epoch, received, &Source::File(ltx, bytes))
    }

    fn take(
        &self,
        epoch: Epoch,
        received: Option<Received>,
        ltx: &Source<'_>,
    ) -> Result<Pos, ReceiveError> {
        let Some(received) = received else { return Err(ReceiveError::NoChecksums(self.name())) };
        let Received { header, post, .. } = received;
        let mut state = self.state.lock();
        if state.quarantine.is_some() {
            return Err(OpError::Quarantined(self.name()).into());
        }
        let Some(tracked) = state.tracked.as_mut() else {
            return Err(OpError::NotTracked(self.name()).into());
        };
        let before = tracked.pos;
        let info = RecordInfo {
            min: header.min_txid,
            max: header.max_txid,
            epoch,
            pre: header.pre_apply.unwrap_or(Checksum::EMPTY),
            post,
            page_size: header.page_size,
            commit: header.commit,
            pages: u32::try_from(received.sums.len()).unwrap_or(u32::MAX),
            timestamp_ms: header.timestamp_ms,
            wal: None,
            ltx_bytes: u32::try_from(ltx.len()).unwrap_or(u32::MAX),
        };
        if before == info.pos() {
            return Ok(before);
        }
        if info.min != before.next_txid() || info.pre != before.checksum || epoch < before.epoch {
            let found = Pos {
                epoch,
                txid: crate::types::Txid::new(info.min.get() - 1),
                checksum: info.pre,
            };
            return Err(ReceiveError::OutOfOrder { db: self.name(), expected: before, found });
        }
        self.put(&mut state, info, received, ltx)
    }

    fn put(
        &self,
        state: &mut State,
        info: RecordInfo,
        received: Received,
        ltx: &Source<'_>,
    ) -> Result<Pos, ReceiveError> {
        let Received { pages, sums, .. } = received;
        let name = self.name();
        let tracked = state.tracked.as_mut().expect("BUG: checked by the caller");
        let before = tracked.pos;
        let actual = match checksum_after(tracked, self, &info, &sums) {
            Err(error @ OpError::SumUnknown { .. }) => {
                state.quarantine(SUMS_LOST, true);
                return Err(error.into());
            }
            actual => actual?,
        };
        if actual != info.post {
            let error = ReceiveError::ChecksumMismatch { db: name, promised: info.post, actual };
            state.quarantine(&format!("{error}: a fresh copy from the primary is needed"), true);
            return Err(error);
        }
        // The primary has what this one follows.
        tracked.note_only_received(&self.shared, true)?;
        let resets_sums = tracked.page_size != info.page_size;
        let _occupied = self.occupy(sums.len());
        let files = tracked.files(&self.shared)?;
        if let Err(error) = ltx.append_to(&mut files.log, &info) {
            if files.syncer.has_failed() {
                state.quarantine(LOG_FAILED, true);
            }
            return Err(error.into());
        }
        if resets_sums {
            files.sums.reset(info.page_size);
        }
        files.sums.truncate(info.commit);
        for (page, sum) in sums {
            files.sums.set(page, sum);
        }
        tracked.pos = info.pos();
        tracked.page_size = info.page_size;
        tracked.pages = info.commit;
        tracked.timestamp_ms = info.timestamp_ms;
        let id = tracked.id;
        let after = tracked.pos;
        if let Some(pages) = pages
            && let bytes = pages.iter().map(|(_, data)| data.len()).sum::<usize>()
            && state.pending_bytes + bytes <= PENDING_BYTES_MAX
        {
            let change = InMemory { page_size: info.page_size, commit: info.commit, pages };
            state.pending.push_back(Pending { before, after, change, bytes });
            state.pending_bytes += bytes;
        }
        self.publish(state);
        self.shared.tell(Event::Received(id));
        Ok(after)
    }

    /// Makes the log durable; returns the durable position. Blocks on the disk.
    ///
    /// # Errors
    /// The log could not be synced.
    pub fn sync_log(&self) -> Result<Pos, OpError> {
        let syncer = {
            let mut state = self.state.lock();
            let Some(tracked) = state.tracked.as_mut() else { return Ok(Pos::ZERO) };
            tracked.files(&self.shared)?.syncer.clone()
        };
        syncer.sync().map_err(|error| {
            if syncer.has_failed() && !self.shared.is_primary() {
                self.quarantine(LOG_FAILED, true);
            }
            error.into()
        })
    }
}

impl Source<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, bytes) => *bytes,
        }
    }

    fn append_to(&self, log: &mut Log, info: &RecordInfo) -> Result<(), OpError> {
        match self {
            Self::Memory(bytes) => Ok(log.append(info, bytes)?),
            Self::File(file, bytes) => {
                let mut buffer = Vec::new();
                let mut record = log.appender(&mut buffer, *bytes)?;
                let copied = io::copy(&mut FileReader::new(file, *bytes), &mut record);
                match (copied, record.take_error()) {
                    (Err(_), Some(error)) => Err(error.into()),
                    (Err(error), None) => {
                        Err(super::disk_error("read received change set", Path::new("tmp"))(error))
                    }
                    (Ok(_), _) => Ok(record.finish(log, info)?),
                }
            }
        }
    }
}

/// Sums of the pages so far, and the pages themselves as long as they may wait in memory.
struct Waiting {
    pages: Option<Vec<(PageNo, Bytes)>>,
    bytes: usize,
    sums: Vec<(PageNo, Checksum)>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { pages: Some(Vec::new()), bytes: 0, sums: Vec::new() }
    }
}

impl Waiting {
    fn add(&mut self, page: PageNo, data: &[u8]) {
        self.sums.push((page, ltx::page_sum(page, data)));
        self.bytes += data.len();
        if self.bytes > PENDING_BYTES_MAX {
            self.pages = None;
        }
        if let Some(pages) = &mut self.pages {
            pages.push((page, Bytes::copy_from_slice(data)));
        }
    }

    /// `None` without checksums.
    fn done(self, header: Header, trailer: Trailer) -> Option<Received> {
        let post = trailer.post_apply?;
        Some(Received { header, post, pages: self.pages, sums: self.sums })
    }
}

/// The checksum the database would have after a received change set.
fn checksum_after(
    tracked: &mut Tracked,
    db: &Database,
    info: &RecordInfo,
    new: &[(PageNo, Checksum)],
) -> Result<Checksum, OpError> {
    let resets_sums = tracked.page_size != info.page_size;
    let before = if resets_sums { 0 } else { tracked.pages };
    let mut checksum = if resets_sums { Checksum::EMPTY } else { tracked.pos.checksum };
    let name = db.name();
    let files = tracked.files(&db.shared)?;
    let mut old = |page: PageNo| -> Result<Checksum, OpError> {
        let sum = files.sums.get(page)?;
        sum.ok_or_else(|| OpError::SumUnknown { db: name.clone(), page })
    };
    for (page, sum) in new {
        if page.get() <= before {
            checksum = checksum.toggle(old(*page)?);
        }
        checksum = checksum.toggle(*sum);
    }
    for page in (info.commit + 1..=before).filter_map(PageNo::new) {
        if page != info.page_size.lock_page() {
            checksum = checksum.toggle(old(page)?);
        }
    }
    Ok(checksum)
}
