//! Writes without a commit point: `journal_mode=MEMORY` or `OFF`, `cp`, `rsync`, a memory map.
//!
//! Nothing tells the daemon where such a transaction ends. For SQLite without a journal it is when its lock
//! on the file is gone (`store` waits for that through the mount); for writers that do not lock it is the
//! close of the file. Then the pages that were written are compared with their sums.

use std::time::Duration;

use tracing::warn;

use super::requests::{database_size, open_regular};
use super::state::State;
use super::{Database, FileRole, OpError, Origin, disk_error};
use crate::client::{Abandoned, Answer, Holder, Request};
use crate::types::DbId;

/// Under this identity files that are no tracked databases are asked about.
const UNTRACKED: DbId = DbId::new(0);

/// How sure a caller of [`Database::capture_unlogged`] is that the writer is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriterIs {
    /// It held SQLite's locks and released them.
    Unlocked,
    /// It closed the file.
    Gone,
}

impl Database {
    /// Whether [`Database::flush`] has work to do and so must run on a worker.
    #[must_use]
    pub fn needs_flush(&self, role: FileRole, origin: Origin) -> bool {
        if origin == Origin::Daemon || !self.shared.is_primary() {
            return false;
        }
        let state = self.state.lock();
        match role {
            FileRole::Main => state.written_without_journal,
            FileRole::Shm => state.wal_commits != state.wal_commits_published,
            FileRole::Wal | FileRole::Journal => false,
        }
    }

    /// A descriptor is being closed by thread `tid`. Captures writes that had no commit point; publishes
    /// the commit of a writer that died before it could. May block for long.
    ///
    /// # Errors
    /// The writes could not be captured.
    pub fn flush(&self, role: FileRole, origin: Origin, tid: u32) -> Result<(), OpError> {
        if !self.needs_flush(role, origin) {
            return Ok(());
        }
        match role {
            FileRole::Main => {
                let writes = self.unlogged_writes();
                if self.is_locked_by_a_writer() {
                    return Ok(());
                }
                self.capture_unlogged(WriterIs::Gone, Some(writes))
            }
            FileRole::Shm => {
                self.publish_abandoned(tid);
                Ok(())
            }
            FileRole::Wal | FileRole::Journal => Ok(()),
        }
    }

    /// How often the database file was written outside every journal. If the number is what it was before a look at
    /// SQLite's locks found no writer, no writer has begun since.
    #[must_use]
    pub fn unlogged_writes(&self) -> u64 {
        self.state.lock().unlogged_writes
    }

    /// Captures what was written without a journal, as one transaction, unless more was written than `writes`.
    ///
    /// # Errors
    /// The transaction is not in the log; the writes stay noted.
    pub fn capture_unlogged(&self, writer: WriterIs, writes: Option<u64>) -> Result<(), OpError> {
        let mut state = self.state.lock();
        if !state.written_without_journal || state.rollback.journal_is_live() {
            return Ok(());
        }
        if writes.is_some_and(|writes| writes != state.unlogged_writes) {
            // Another writer has begun; its own end will be looked for.
            return Ok(());
        }
        if state.foreign_writer && writer == WriterIs::Unlocked {
            return Ok(());
        }
        let path = self.shared.files.join(self.name().as_path());
        let file = open_regular(&path, false).map_err(disk_error("open database", &path))?;
        let size = match file {
            Some(file) => database_size(&file).map_err(disk_error("read header", &path))?,
            None => None,
        };
        if size.is_none() {
            self.no_database_any_more(state);
            return Ok(());
        }
        if writer == WriterIs::Unlocked && !state.warned_about_journal_mode {
            state.warned_about_journal_mode = true;
            warn!(
                db = %self.name(),
                "written without a journal (journal_mode MEMORY or OFF): replicated when the lock is released, \
                 but a crash in the middle of a write corrupts the database"
            );
        }
        self.capture_main(&mut state).inspect_err(|error| {
            if matches!(error, OpError::TooLarge { .. }) {
                state.quarantine(&error.to_string(), false);
            }
        })
    }

    /// Whether something was written that no commit point will report.
    #[must_use]
    pub fn is_written_without_journal(&self) -> bool {
        self.state.lock().written_without_journal
    }

    /// Whether the file has the length that its header promises.
    #[must_use]
    pub fn looks_complete(&self) -> bool {
        let path = self.shared.files.join(self.name().as_path());
        let Ok(Some(file)) = open_regular(&path, false) else { return false };
        let Ok(Some((page_size, pages))) = database_size(&file) else { return false };
        let len = u64::from(pages) * u64::from(page_size.get());
        pages > 0 && file.metadata().is_ok_and(|metadata| metadata.len() == len)
    }

    /// The file lost its header: what was a database is an ordinary file now.
    fn no_database_any_more(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        state.written_without_journal = false;
        state.foreign_writer = false;
        state.rollback.finished();
        let was_tracked = state.tracked.is_some();
        drop(state);
        if was_tracked {
            warn!(db = %self.name(), "the file has no SQLite header any more: no longer replicated");
            self.untrack();
        }
    }

    /// Whether some process holds RESERVED or more on the file.
    fn is_locked_by_a_writer(&self) -> bool {
        let Some(client) = self.shared.client() else { return false };
        let id = self.id().unwrap_or(UNTRACKED);
        let request = Request::WaitUnlocked { name: self.name(), timeout: Duration::ZERO };
        client.call(id, request).is_err()
    }

    /// Shows a logged commit in the wal-index if the process of thread `tid` holds the write lock and is
    /// about to lose it: it died between the answer to its commit and its own update.
    fn publish_abandoned(&self, tid: u32) {
        let (abandoned, commits) = {
            let state = self.state.lock();
            let Some(salts) = state.wal.salts() else { return };
            let Some(tracked) = &state.tracked else { return };
            let abandoned = Abandoned { salts, frames: state.wal.captured(), pages: tracked.pages };
            (abandoned, state.wal_commits)
        };
        let (Some(client), Some(id)) = (self.shared.client(), self.id()) else { return };
        let name = self.name();
        match client.call(id, Request::WriteLockHolder { name: name.clone() }) {
            Ok(Answer::Holder(Some(Holder::Process(pid)))) if is_thread_of(tid, pid) => (),
            // Who let go of the lock has told the others before.
            Ok(Answer::Holder(None)) => return self.state.lock().wal_commits_published = commits,
            Ok(_) | Err(_) => return,
        }
        match client.call(id, Request::PublishAbandoned { name, abandoned }) {
            Ok(_) => self.state.lock().wal_commits_published = commits,
            Err(error) => {
                warn!(db = %self.name(), %error, "publish the commit of a dead writer");
            }
        }
    }
}

/// Whether a thread belongs to a process; also while it exits.
fn is_thread_of(tid: u32, pid: u32) -> bool {
    tid == pid || std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}
