//! Which pages changed since a position, so that a copy can be compared with sums of another time.

use std::collections::BTreeSet;

use super::follow::LogRead;
use super::requests::{database_size, read_or_zeros};
use super::state::State;
use super::{Database, OpError, disk_error};
use crate::ltx::{self, IndexedFile};
use crate::sqlite::free_leaves;
use crate::types::{PageNo, Pos};

/// Bytes of log that are looked at together.
const STEP_BYTES: usize = 4 << 20;

/// What the transactions behind a position did to the pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed {
    /// Pages that were written; all of them if the size of pages changed.
    pub pages: BTreeSet<PageNo>,
    /// Pages behind this one were cut off, though there may be new ones.
    pub kept: u32,
    /// The position up to which this holds.
    pub end: Pos,
}

impl Changed {
    /// Whether a page may be another than it was.
    #[must_use]
    pub fn has(&self, page: PageNo) -> bool {
        page.get() > self.kept || self.pages.contains(&page)
    }
}

/// What a look at the pages of an open transaction says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum RolledBack {
    /// They have what the transaction wrote.
    No,
    /// They are what they were.
    Wholly,
    /// They are what they were, but for free pages that no journal restores.
    ButForFreePages,
}

impl Database {
    /// What changed behind `after`; `None` if that is not in the log.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn changed_since(&self, after: Pos) -> Result<Option<Changed>, OpError> {
        if self.log_span(after)?.is_none() {
            return Ok(None);
        }
        let end = self.position();
        let mut changed = Changed { pages: BTreeSet::new(), kept: u32::MAX, end: after };
        while changed.end.txid_raw() < end.txid_raw() {
            let LogRead::Records(records) = self.read_log(changed.end, STEP_BYTES)? else {
                return Ok(None);
            };
            if records.is_empty() {
                return Ok(None);
            }
            for record in records {
                let read = |at: u64, buffer: &mut [u8]| record.ltx.read_at(at, buffer);
                let file = IndexedFile::open(record.ltx.len(), read)
                    .map_err(|source| OpError::Decode { db: self.name(), source })?;
                changed.kept = changed.kept.min(file.header().commit);
                changed.pages.extend(file.entries().iter().map(|entry| entry.page));
                changed.end = record.pos;
            }
        }
        Ok(Some(changed))
    }

    /// Whether the database file holds what it held before the open transaction.
    pub(super) fn rolled_back(&self, state: &mut State) -> Result<RolledBack, OpError> {
        let name = self.name();
        let State { tracked, rollback, .. } = state;
        let Some(tracked) = tracked.as_mut() else { return Ok(RolledBack::Wholly) };
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let file = tracked.main(&self.shared, &name)?;
        let fail = disk_error("read database", name.as_path());
        if database_size(&file).map_err(&fail)? != Some((page_size, pages)) {
            return Ok(if pages == 0 { RolledBack::Wholly } else { RolledBack::No });
        }
        let sums = &mut tracked.files(&self.shared)?.sums;
        let mut data = vec![0; page_size.bytes()];
        let mut differing = Vec::new();
        for page in rollback.pages().filter(|page| *page != page_size.lock_page()) {
            read_or_zeros(&file, page, page_size, &mut data).map_err(&fail)?;
            if page.get() <= pages && sums.get(page)? != Some(ltx::page_sum(page, &data)) {
                differing.push(page);
            }
        }
        if differing.is_empty() {
            return Ok(RolledBack::Wholly);
        }
        // A journal lacks pages that were free before its transaction: nobody reads what a rollback leaves in them.
        let mut image =
            |page: PageNo, buffer: &mut [u8]| read_or_zeros(&file, page, page_size, buffer);
        let free = free_leaves(page_size, pages, &mut image).map_err(&fail)?;
        let is_rollback = differing.iter().all(|page| free.contains(page));
        Ok(if is_rollback { RolledBack::ButForFreePages } else { RolledBack::No })
    }
}
