//! Undoes what a transaction in rollback mode left in the database file when a crash ended it.
//!
//! The first step of `recover`, and a look at the pages that no journal protects.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use tracing::info;

use super::commit::{self, Transaction};
use super::recover::{companion, open_main, read_up_to};
use super::requests::{open_regular, read_or_zeros};
use super::state::State;
use super::{Database, OpError, disk_error};
use crate::disk::{fault, set_len, write_all_at};
use crate::sqlite::{Journal, JournalHeader, Reading, free_leaves, super_journal};
use crate::types::{DbName, PageNo, PageSize};

/// What became of a journal that a crash left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Undone {
    /// There was none, or it was not hot.
    Nothing,
    /// Its transaction was rolled back.
    RolledBack,
    /// Its transaction spans several databases and is committed: the file is ahead of the log.
    WasCommitted,
}

impl Database {
    /// Rolls a hot journal back.
    pub(super) fn undo_hot_journal(
        &self,
        state: &mut State,
        main: &Path,
    ) -> Result<Undone, OpError> {
        let path = companion(main, "-journal");
        let opened = open_regular(&path, false).map_err(disk_error("open journal", &path))?;
        let Some(file) = opened else { return Ok(Undone::Nothing) };
        let fail = disk_error("read journal", &path);
        let len = file.metadata().map_err(&fail)?.len();
        let mut first = [0; 1];
        if len == 0 || file.read_at(&mut first, 0).map_err(&fail)? == 0 {
            return Ok(Undone::Nothing);
        }
        if !JournalHeader::may_be_hot(&first) {
            return Ok(Undone::Nothing);
        }
        let read = |at: u64, buffer: &mut [u8]| read_up_to(&file, at, buffer);
        if let Some(super_name) = super_journal(read, len).map_err(&fail)?
            && !self.super_journal_exists(&super_name)
        {
            info!(db = %self.name(), "the journal belongs to a committed transaction over several databases");
            return Ok(Undone::WasCommitted);
        }
        let page_size = state.tracked.as_ref().map_or(PageSize::MIN, |tracked| tracked.page_size);
        let Some(mut journal) =
            Journal::open(read, len, page_size, Reading::AfterCrash).map_err(&fail)?
        else {
            return Ok(Undone::Nothing);
        };
        let target = open_main(main)?;
        let write = disk_error("roll back database", main);
        let page_size = journal.page_size();
        let mut pages = 0u64;
        while let Some(record) = journal.next().map_err(&fail)? {
            let at = record.page.offset(page_size);
            write_all_at("main", &target, journal.image(), at).map_err(&write)?;
            pages += 1;
        }
        let len = u64::from(journal.header().pages) * u64::from(page_size.get());
        set_len("main", &target, len).map_err(&write)?;
        fault::step("main", "sync").map_err(&write)?;
        target.sync_all().map_err(&write)?;
        info!(db = %self.name(), pages, "rolled back a transaction that was not committed");
        Ok(Undone::RolledBack)
    }

    /// The path is the one that the application used, so only its end is known to lie below the mount.
    fn super_journal_exists(&self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|p| !p.is_empty()).collect();
        (0..parts.len()).any(|skip| {
            DbName::new(&parts[skip..].join(&b'/'))
                .is_ok_and(|name| self.shared.files.join(name.as_path()).exists())
        })
    }

    /// Logs free pages whose content is not what the log says, as a transaction: a journal lacks pages that were free
    /// before its transaction, so a rollback leaves in them what the transaction wrote. Costs O(free pages).
    pub(super) fn take_free_pages(&self, state: &mut State) -> Result<(), OpError> {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let (page_size, commit) = (tracked.page_size, tracked.pages);
        if commit == 0 {
            return Ok(());
        }
        let file = tracked.main(&self.shared, &name)?;
        let mut image =
            |page: PageNo, buffer: &mut [u8]| read_or_zeros(&file, page, page_size, buffer);
        let pages = free_leaves(page_size, commit, &mut image)
            .map_err(disk_error("read free pages", name.as_path()))?;
        let transaction = Transaction {
            page_size,
            commit,
            pages,
            image: &mut image,
            before: None,
            wal: None,
            skip_unchanged: true,
            knows_nothing: false,
        };
        if let Some(prepared) = commit::prepare(tracked, &self.shared, &name, transaction)? {
            self.finish(state, prepared);
        }
        Ok(())
    }
}
