//! Hands received transactions, several as one, to whoever writes them into the files.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::images::change_of;
use super::state::State;
use super::{Database, OpError, Quarantine};
use crate::client::Change;
use crate::log::{Read, RecordInfo};
use crate::ltx::LtxFile;
use crate::types::{DbName, PageNo, PageSize, Pos};

/// Bytes of pages that are applied as one transaction.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Bytes of decoded pages in memory; a transaction with more is read from the log while it is written.
const DECODED_BYTES_MAX: usize = 16 << 20;

/// Transactions to apply as one: the last image of every page.
#[derive(Debug)]
pub struct Batch {
    /// Position it builds on.
    pub before: Pos,
    /// Position afterwards.
    pub after: Pos,
    /// What to write.
    pub change: Change,
    /// How many transactions it holds.
    pub transactions: u64,
}

impl Database {
    /// What is to be applied next; `None` if everything in the log is, or the database is quarantined.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn next_batch(&self) -> Result<Option<Batch>, OpError> {
        let name = self.name();
        let mut state = self.state.lock();
        if state.quarantine.is_some() || state.is_installing {
            return Ok(None);
        }
        let applied = state.applied;
        let Some(tracked) = &state.tracked else { return Ok(None) };
        if tracked.pos == applied {
            return Ok(None);
        }
        if state.pending.front().is_some_and(|pending| pending.before == applied) {
            return Ok(Some(batch_from_memory(&mut state)));
        }
        state.drop_pending();
        let tracked = state.tracked.as_mut().expect("BUG: checked above");
        let reader = tracked.files(&self.shared)?.reader.clone();
        drop(state);
        let Read::Records(records) = reader.read_lazily(applied, BATCH_BYTES_MAX / 2)? else {
            self.quarantine("received transactions are missing in the log", true);
            return Ok(None);
        };
        let decoded = |info: &RecordInfo| info.pages as usize * info.page_size.bytes();
        let mut merge = Merge::default();
        let mut bytes = 0;
        let mut after = applied;
        for (info, ltx) in records {
            bytes += decoded(&info);
            let Some(in_memory) = ltx.memory().filter(|_| bytes <= DECODED_BYTES_MAX) else {
                if after == applied {
                    let (after, change) = (info.pos(), change_of(&name, ltx)?);
                    let transactions = after.txid_raw() - applied.txid_raw();
                    return Ok(Some(Batch { before: applied, after, change, transactions }));
                }
                break;
            };
            merge.add(decode(&name, in_memory)?);
            after = info.pos();
        }
        let transactions = after.txid_raw() - applied.txid_raw();
        Ok(merge.finish().map(|change| Batch { before: applied, after, change, transactions }))
    }

    /// A batch is in the files: readers see it. Nothing if the database took a copy from the primary meanwhile.
    pub fn batch_applied(&self, before: Pos, after: Pos) {
        let mut state = self.state.lock();
        if state.applied != before {
            return;
        }
        state.applied = after;
        while state.pending.front().is_some_and(|pending| pending.before != after) {
            let stale = state.pending.pop_front().expect("BUG: just seen");
            state.pending_bytes -= stale.bytes;
        }
        self.publish(&state);
    }

    /// Everything that is applied is in the database file itself, not only in its WAL.
    pub fn checkpointed(&self, at: Pos) {
        let mut state = self.state.lock();
        if let Some(tracked) = &mut state.tracked {
            tracked.backfilled = at;
        }
    }

    /// Whether a fresh copy from the primary is needed.
    #[must_use]
    pub fn needs_reseed(&self) -> bool {
        matches!(self.quarantined(), Some(Quarantine { reseed: true, .. }))
    }
}

fn batch_from_memory(state: &mut State) -> Batch {
    let mut merge = Merge::default();
    let mut bytes = 0;
    let mut after = state.applied;
    let before = state.applied;
    while let Some(pending) = state.pending.front() {
        if pending.before != after || (bytes > 0 && bytes + pending.bytes > BATCH_BYTES_MAX) {
            break;
        }
        let pending = state.pending.pop_front().expect("BUG: just seen");
        state.pending_bytes -= pending.bytes;
        bytes += pending.bytes;
        after = pending.after;
        merge.add(pending.change);
    }
    let change = merge.finish().expect("BUG: at least one transaction was pending");
    Batch { before, after, change, transactions: after.txid_raw() - before.txid_raw() }
}

/// A change with all its images.
#[derive(Debug)]
pub(super) struct InMemory {
    pub(super) page_size: PageSize,
    pub(super) commit: u32,
    pub(super) pages: Vec<(PageNo, Bytes)>,
}

impl From<InMemory> for Change {
    fn from(InMemory { page_size, commit, pages }: InMemory) -> Self {
        Self { page_size, commit, pages: pages.into() }
    }
}

/// Several changes as one.
#[derive(Default)]
struct Merge {
    first: Option<InMemory>,
    more: Option<(InMemory, BTreeMap<PageNo, Bytes>)>,
}

impl Merge {
    fn add(&mut self, change: InMemory) {
        if self.more.is_none() {
            let Some(first) = self.first.take() else {
                self.first = Some(change);
                return;
            };
            let InMemory { page_size, commit, pages } = first;
            let pages = pages.into_iter().collect();
            self.more = Some((InMemory { page_size, commit, pages: Vec::new() }, pages));
        }
        let (merged, pages) = self.more.as_mut().expect("BUG: just made");
        if merged.page_size != change.page_size {
            // A change of page size carries every page.
            pages.clear();
        }
        merged.page_size = change.page_size;
        merged.commit = change.commit;
        pages.extend(change.pages);
        drop(PageNo::new(change.commit + 1).map(|end| pages.split_off(&end)));
    }

    fn finish(self) -> Option<Change> {
        match (self.first, self.more) {
            (Some(change), _) => Some(change.into()),
            (None, Some((merged, pages))) => {
                Some(InMemory { pages: pages.into_iter().collect(), ..merged }.into())
            }
            (None, None) => None,
        }
    }
}

fn decode(name: &DbName, ltx: &[u8]) -> Result<InMemory, OpError> {
    let error = |source| OpError::Decode { db: name.clone(), source };
    let file = LtxFile::parse_trusted(ltx).map_err(error)?;
    let header = file.header();
    let mut pages = Vec::with_capacity(file.entries().len());
    for entry in file.entries() {
        let mut data = vec![0; header.page_size.bytes()];
        file.read(*entry, &mut data).map_err(error)?;
        pages.push((entry.page, data.into()));
    }
    Ok(InMemory { page_size: header.page_size, commit: header.commit, pages })
}
