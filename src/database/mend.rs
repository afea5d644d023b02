//! Computes page sums anew that were lost while the node runs, from the pages themselves.
//!
//! The sums lie in a file of their own, which a disk may damage or somebody remove; nothing is lost with them. What is
//! computed is believed only if all sums together give the checksum of the position: a page that the disk has changed
//! meanwhile must not become part of the history. Costs O(database), once.
//!
//! Called by `commit` when a transaction needs a sum that is not known, under the database's mutex.
//! Not here: sums that are lost when the daemon starts (`recover`), and on a replica, which takes a fresh copy.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tracing::{error, warn};

use super::recover::{companion, read_up_to};
use super::requests::{open_regular, read_or_zeros};
use super::state::{State, Tracked};
use super::{Database, OpError, Shared, disk_error};
use crate::ltx;
use crate::sqlite::{Journal, Reading};
use crate::types::{Checksum, DbName, PageNo, PageSize};

/// Fills in a page as it was at the database's position; `false` if nobody knows any more.
pub(super) type Before<'a> = &'a mut dyn FnMut(PageNo, &mut [u8]) -> io::Result<bool>;

/// Sums for one transaction only: of pages that nobody can read as they were before it. Taken together they are what
/// the position's checksum says; a single one is right only if it is alone.
pub(super) type StandIns = HashMap<PageNo, Checksum>;

/// Computes every sum that is not known.
///
/// # Errors
/// [`OpError::PagesContradict`] if the pages are not what the position says.
pub(super) fn mend(
    tracked: &mut Tracked,
    shared: &Shared,
    name: &DbName,
    before: Before<'_>,
) -> Result<StandIns, OpError> {
    let (page_size, pages, promised) = (tracked.page_size, tracked.pages, tracked.pos.checksum);
    let sums = &mut tracked.files(shared)?.sums;
    let mut checksum = Checksum::EMPTY;
    let mut found = Vec::new();
    let mut unreadable = Vec::new();
    let mut data = vec![0; page_size.bytes()];
    for page in (1..=pages).filter_map(PageNo::new) {
        if page == page_size.lock_page() {
            continue;
        }
        if let Some(sum) = sums.get(page)? {
            checksum = checksum.toggle(sum);
        } else if before(page, &mut data).map_err(disk_error("read page", name.as_path()))? {
            let sum = ltx::page_sum(page, &data);
            checksum = checksum.toggle(sum);
            found.push((page, sum));
        } else {
            unreadable.push(page);
        }
    }
    let rest = promised.toggle(checksum);
    if unreadable.is_empty() && rest != Checksum::EMPTY {
        let at =
            |found: Option<&(PageNo, Checksum)>| found.map_or(PageNo::FIRST, |(page, _)| *page);
        return Err(OpError::PagesContradict {
            db: name.clone(),
            first: at(found.first()),
            last: at(found.last()),
        });
    }
    warn!(db = %name, pages = found.len() + unreadable.len(), "page sums were lost: computed anew");
    if let [page] = unreadable[..] {
        found.push((page, rest));
        unreadable.clear();
    }
    for (page, sum) in found {
        sums.set(page, sum);
    }
    let mut left = Some(rest);
    let share = |page| (page, left.take().unwrap_or(Checksum::EMPTY));
    Ok(unreadable.into_iter().map(share).collect())
}

impl Database {
    /// Computes lost sums while no transaction is open in the database file.
    ///
    /// # Errors
    /// As [`mend`]; the database is quarantined if its pages contradict its position.
    pub(super) fn mend_sums(&self, state: &mut State) -> Result<(), OpError> {
        let name = self.name();
        let State { tracked, wal, rollback, .. } = state;
        let Some(tracked) = tracked.as_mut() else { return Ok(()) };
        if !self.shared.is_primary() || !rollback.is_clean() {
            return Ok(());
        }
        let main = tracked.main(&self.shared, &name)?;
        let page_size = tracked.page_size;
        let wal_file = self.wal_file(wal.captured() > 0)?;
        let mut before = |page: PageNo, buffer: &mut [u8]| {
            match (wal.frame_of(page), &wal_file) {
                (Some(frame), Some(file)) => {
                    let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
                    wal.read_image(frame, buffer, &read)?;
                }
                (Some(_) | None, _) => read_or_zeros(&main, page, page_size, buffer)?,
            }
            Ok(true)
        };
        let result = mend(tracked, &self.shared, &name, &mut before);
        self.refuse_damage(state, result).map(drop)
    }

    /// The sum of a page; a lost one is computed if possible.
    pub(super) fn sum_of(&self, state: &mut State, page: PageNo) -> Result<Checksum, OpError> {
        let unknown = || OpError::SumUnknown { db: self.name(), page };
        for mended in [false, true] {
            let tracked = state.tracked.as_mut().ok_or_else(unknown)?;
            if let Some(sum) = tracked.files(&self.shared)?.sums.get(page)? {
                return Ok(sum);
            }
            if !mended {
                self.mend_sums(state)?;
            }
        }
        Err(unknown())
    }

    fn wal_file(&self, has_frames: bool) -> Result<Option<File>, OpError> {
        let Some(wal) = self.name().with_suffix("-wal").filter(|_| has_frames) else {
            return Ok(None);
        };
        let path = self.shared.files.join(wal.as_path());
        open_regular(&path, false).map_err(disk_error("open WAL", &path))
    }

    /// Takes a database out of service whose pages are not what its log says.
    pub(super) fn refuse_damage<T>(
        &self,
        state: &mut State,
        result: Result<T, OpError>,
    ) -> Result<T, OpError> {
        if let Err(cause @ OpError::PagesContradict { .. }) = &result
            && state.quarantine.is_none()
        {
            error!(db = %self.name(), error = %cause, "quarantined");
            state.quarantine(&cause.to_string(), false);
        }
        result
    }
}

/// Pages as they were before the transaction in progress, where its journal keeps them.
pub(super) struct JournalledPages {
    file: Option<File>,
    offsets: HashMap<PageNo, u64>,
}

impl JournalledPages {
    /// Reads the journal beside a database file; without one there are no pages.
    pub(super) fn read(main: &Path, page_size: PageSize) -> io::Result<Self> {
        let mut offsets = HashMap::new();
        let Some(file) = open_regular(&companion(main, "-journal"), false)? else {
            return Ok(Self { file: None, offsets });
        };
        let len = file.metadata()?.len();
        let read = |at: u64, buffer: &mut [u8]| read_up_to(&file, at, buffer);
        let journal = Journal::open(read, len, page_size, Reading::Live)?;
        if let Some(mut journal) = journal.filter(|journal| journal.page_size() == page_size) {
            while let Some(record) = journal.next()? {
                offsets.entry(record.page).or_insert(record.offset);
            }
        }
        Ok(Self { file: Some(file), offsets })
    }

    /// Fills in a page; `false` if the journal does not have it.
    pub(super) fn fill(&self, page: PageNo, buffer: &mut [u8]) -> io::Result<bool> {
        match (&self.file, self.offsets.get(&page)) {
            (Some(file), Some(offset)) => file.read_exact_at(buffer, *offset).map(|()| true),
            _ => Ok(false),
        }
    }
}
