//! Takes transactions from the primary into the log, checked against the page sums.
//!
//! Costs O(changed pages). Applying them to the files is `apply`'s work; the decoded pages wait in memory
//! for it, up to a bound, beyond which they are read from the log again.

use bytes::Bytes;

use super::state::{Pending, State, Tracked};
use super::{Database, Event, OpError, ReceiveError};
use crate::client::Change;
use crate::log::RecordInfo;
use crate::ltx::{self, LtxFile};
use crate::types::{Checksum, Epoch, PageNo, Pos};

/// Bytes of decoded pages that wait in memory per database.
const PENDING_BYTES_MAX: usize = 8 << 20;

/// Why a replica needs a fresh copy after its disk refused to keep the log.
const LOG_FAILED: &str = "the disk failed to keep its log: a fresh copy from the primary is needed";

/// Why a replica needs a fresh copy when page sums are lost: what is not applied yet is in no file.
const SUMS_LOST: &str = "its page sums were lost: a fresh copy from the primary is needed";

/// A received change set, decoded.
struct Received {
    info: RecordInfo,
    pages: Vec<(PageNo, Bytes)>,
    sums: Vec<(PageNo, Checksum)>,
    before: Pos,
}

impl Database {
    /// Takes a transaction from the primary into the log (not yet durable, not yet applied).
    /// Returns the new position.
    ///
    /// # Errors
    /// See [`ReceiveError`]. A transaction that is already in the log is taken as received.
    pub fn receive(&self, epoch: Epoch, ltx: &[u8]) -> Result<Pos, ReceiveError> {
        let mut pages = Vec::new();
        let file =
            LtxFile::parse_with(ltx, |page, data| pages.push((page, Bytes::copy_from_slice(data))))
                .map_err(|source| ReceiveError::Invalid { db: self.name(), source })?;
        let header = *file.header();
        let Some(post) = file.trailer().post_apply else {
            return Err(ReceiveError::NoChecksums(self.name()));
        };
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
            pages: u32::try_from(pages.len()).unwrap_or(u32::MAX),
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
        let sums = pages.iter().map(|(page, data)| (*page, ltx::page_sum(*page, data))).collect();
        let received = Received { info, pages, sums, before };
        self.take(&mut state, received, ltx)
    }

    fn take(&self, state: &mut State, received: Received, ltx: &[u8]) -> Result<Pos, ReceiveError> {
        let Received { info, pages, sums, before } = received;
        let name = self.name();
        let tracked = state.tracked.as_mut().expect("BUG: checked by receive");
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
        let resets_sums = tracked.page_size != info.page_size;
        let files = tracked.files(&self.shared)?;
        if let Err(error) = files.log.append(&info, ltx) {
            if files.syncer.has_failed() {
                state.quarantine(LOG_FAILED, true);
            }
            return Err(OpError::from(error).into());
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
        let bytes = pages.iter().map(|(_, data)| data.len()).sum::<usize>();
        if state.pending_bytes + bytes <= PENDING_BYTES_MAX {
            let change = Change { page_size: info.page_size, commit: info.commit, pages };
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
