//! Finds out at the start whether somebody changed the database while the daemon did not run.
//!
//! After an orderly stop a look at the file's length and time tells ([`super::meta::Clean`]). After a crash the
//! file may lag behind the log, but never lead: what leads was written by somebody else, and redoing the log
//! over it would destroy it. Looked at: page 1 (its change counter, and whether the file is another one), and, if the WAL that the log speaks of is gone,
//! which SQLite lets happen only when everything is in the file, every page.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use tracing::warn;

use super::recover::{STEP_BYTES, companion, each_page, start_of_redo};
use super::requests::{database_size, open_regular, read_or_zeros};
use super::state::State;
use super::unlogged::WriterIs;
use super::wal::salt_pair;
use super::{Database, OpError, disk_error};
use crate::log::Read;
use crate::ltx;
use crate::sqlite::{DatabaseHeader, WalHeader};
use crate::types::{Checksum, PageNo};

/// What the log says about pages that a crash may have left as they were before.
pub(super) struct Redone {
    /// All sums that a page had since the file was last known to be whole, the newest last.
    versions: HashMap<PageNo, Vec<Checksum>>,
    /// The change counter of the newest page 1 among them.
    change_counter: Option<u32>,
    wal_is_gone: bool,
}

impl Database {
    /// Collects what the log would redo. Before the page sums are brought to its end.
    pub(super) fn pages_to_redo(&self, state: &mut State, main: &Path) -> Result<Redone, OpError> {
        let name = self.name();
        let mut redone =
            Redone { versions: HashMap::new(), change_counter: None, wal_is_gone: false };
        let Some(tracked) = state.tracked.as_mut() else { return Ok(redone) };
        let end = tracked.pos;
        let mut salts = tracked.meta.wal_salts;
        let durable = tracked.meta.durable_txid;
        let files = tracked.files(&self.shared)?;
        let mut from = start_of_redo(files, durable)?;
        while from != end {
            let Read::Records(records) = files.reader.read_lazily(from, STEP_BYTES)? else { break };
            let Some((last, _)) = records.last() else { break };
            from = last.pos();
            for (info, bytes) in &records {
                salts = info.wal.map(|span| span.salts);
                let mut before = Vec::new();
                each_page(&name, bytes, |page, data| {
                    if page == PageNo::FIRST {
                        let header = DatabaseHeader::parse(data).ok();
                        redone.change_counter = header.map(|header| header.change_counter);
                    }
                    let versions = redone.versions.entry(page).or_default();
                    if versions.is_empty() {
                        before.push(page);
                    }
                    versions.push(ltx::page_sum(page, data));
                    Ok::<_, OpError>(())
                })?;
                for page in before {
                    let base = files.sums.get(page)?;
                    let versions = redone.versions.get_mut(&page).expect("BUG: just put in");
                    versions.splice(0..0, base);
                }
            }
        }
        redone.wal_is_gone = salts.is_some() && wal_salts(main)? != salts;
        Ok(redone)
    }

    /// Whether the file holds something that the log does not know. The page sums must be at the log's end.
    pub(super) fn file_leads(
        &self,
        state: &mut State,
        main: &Path,
        redone: &Redone,
    ) -> Result<bool, OpError> {
        let Some(tracked) = state.tracked.as_mut().filter(|tracked| tracked.pages > 0) else {
            return Ok(false);
        };
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let fail = disk_error("read database", main);
        let Some(file) = open_regular(main, false).map_err(&fail)? else { return Ok(false) };
        let is_another = tracked.meta.is_for_another_than(&file.metadata().map_err(&fail)?);
        let sums = &mut tracked.files(&self.shared)?.sums;
        let mut data = vec![0; page_size.bytes()];
        read_or_zeros(&file, PageNo::FIRST, page_size, &mut data).map_err(&fail)?;
        let Ok(header) = DatabaseHeader::parse(&data) else { return Ok(false) };
        let sum = ltx::page_sum(PageNo::FIRST, &data);
        let is_known = match redone.versions.get(&PageNo::FIRST) {
            Some(versions) => versions.contains(&sum),
            None => sums.get(PageNo::FIRST)? == Some(sum),
        };
        let first_is_newer = !is_known
            && redone.change_counter.is_none_or(|newest| {
                is_another || header.change_counter.wrapping_sub(newest).cast_signed() > 0
            });
        if first_is_newer || !redone.wal_is_gone {
            return Ok(first_is_newer);
        }
        let mut differs = database_size(&file).map_err(&fail)? != Some((page_size, pages));
        for page in (1..=pages).filter_map(PageNo::new) {
            if page == page_size.lock_page() {
                continue;
            }
            read_or_zeros(&file, page, page_size, &mut data).map_err(&fail)?;
            let sum = ltx::page_sum(page, &data);
            if sums.get(page)? == Some(sum) {
                continue;
            }
            if redone.versions.get(&page).is_some_and(|versions| versions.contains(&sum)) {
                // It lags: a crash of the whole machine took the WAL, and the log has all of it.
                return Ok(false);
            }
            differs = true;
        }
        Ok(differs)
    }
}

impl Database {
    /// After a power failure with `synchronous=OFF`: pages of the file may be newer than the log, whose records are
    /// redone already. The difference becomes one transaction, as the file is what the application finds. O(database).
    pub(super) fn take_what_leads(&self, main: &Path) -> Result<(), OpError> {
        let fail = disk_error("read header", main);
        let file = open_regular(main, false).map_err(&fail)?;
        let size = file.map_or(Ok(None), |file| database_size(&file)).map_err(&fail)?;
        if size.is_none() {
            return Err(OpError::HeaderIsGone(self.name()));
        }
        let before = self.state.lock().tracked.as_ref().map(|tracked| tracked.pos);
        {
            let mut state = self.state.lock();
            state.foreign_writer = true;
            state.written_without_journal = true;
        }
        self.capture_unlogged(WriterIs::Gone, None)?;
        let after = self.state.lock().tracked.as_ref().map(|tracked| tracked.pos);
        if before != after {
            warn!(
                db = %self.name(),
                "a power failure (synchronous=OFF) left the file ahead of the log: what differs is a transaction now"
            );
        }
        Ok(())
    }
}

/// The salts of the WAL beside a database file; `None` if there is none or it is empty.
fn wal_salts(main: &Path) -> Result<Option<(u32, u32)>, OpError> {
    let path = companion(main, "-wal");
    let Some(file) = open_regular(&path, false).map_err(disk_error("open WAL", &path))? else {
        return Ok(None);
    };
    Ok(read_wal_header(&file).map(|header| salt_pair(header.salts)))
}

fn read_wal_header(file: &File) -> Option<WalHeader> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = [0; WalHeader::SIZE];
    file.read_exact_at(&mut bytes, 0).ok()?;
    WalHeader::parse(&bytes).ok()
}
