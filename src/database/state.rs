//! What a database knows while it is in use; everything here is behind its one mutex.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tracing::warn;

use super::apply::InMemory;
use super::meta::Meta;
use super::requests::open_regular;
use super::snapshot::Touched;
use super::{OpError, Shared, disk_error};
use crate::capture::{RollbackCapture, WalCapture};
use crate::log::{Log, LogReader, LogSync, PageSums, SumsError};
use crate::types::{DbId, DbName, PageNo, PageSize, Pos};

/// State of one database.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tracked: Option<Tracked>,
    pub(super) wal: WalCapture,
    /// Whether `wal` knows the WAL file's content.
    pub(super) wal_is_known: bool,
    pub(super) rollback: RollbackCapture,
    /// The file was written with neither journal nor WAL.
    pub(super) written_without_journal: bool,
    /// A writer that does not lock (cp, rsync) is at work: capture when it closes the file.
    pub(super) foreign_writer: bool,
    pub(super) warned_about_journal_mode: bool,
    /// The live journal is one that a crash left and that recovery could not take away: its end is a rollback.
    pub(super) journal_is_hot: bool,
    /// Counts writes to the database file outside every journal, to tell that none came meanwhile.
    pub(super) unlogged_writes: u64,
    /// Counts writes to the database file that the log was perhaps not durable for.
    pub(super) unsynced_writes: u64,
    /// The application syncs its WAL before it copies it into the database file.
    pub(super) wal_is_synced: bool,
    /// Counts commits in the WAL, and how many of them the wal-index is known to show.
    pub(super) wal_commits: u64,
    pub(super) wal_commits_published: u64,
    /// Pages of the last commit in the WAL: the only one that perhaps no connection ever saw.
    pub(super) last_wal_pages: Vec<PageNo>,
    /// The file is being replaced by a copy from the primary.
    pub(super) is_installing: bool,
    /// The file has no name any more, or another file has it: what is still open of it is nobody's database.
    pub(super) is_removed: bool,
    pub(super) open_files: u32,
    pub(super) open_by_application: u32,
    pub(super) quarantine: Option<Quarantine>,
    /// The quarantine is for a recovery that did not fit on the disk.
    pub(super) recovery_needs_space: bool,
    pub(super) snapshots: Vec<Weak<Mutex<Touched>>>,
    pub(super) pending: VecDeque<Pending>,
    pub(super) pending_bytes: usize,
    /// Position that readers of this node see.
    pub(super) applied: Pos,
}

/// Why a database takes no transactions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantine {
    /// For people: what happened and what to do.
    pub reason: String,
    /// Whether a fresh copy from the primary mends it.
    pub reseed: bool,
}

/// A received transaction in memory until it is applied.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) before: Pos,
    pub(super) after: Pos,
    pub(super) change: InMemory,
    pub(super) bytes: usize,
}

/// What a database has beyond its files.
#[derive(Debug)]
pub(super) struct Tracked {
    pub(super) id: DbId,
    pub(super) pos: Pos,
    /// Size of the database at `pos`.
    pub(super) page_size: PageSize,
    pub(super) pages: u32,
    /// Everything up to here is in the database file, though perhaps not durably.
    pub(super) backfilled: Pos,
    /// When the newest transaction was committed.
    pub(super) timestamp_ms: i64,
    pub(super) meta: Meta,
    pub(super) files: Option<Files>,
    /// The database file; opened when needed, forgotten when the name gets another file.
    pub(super) main: Option<Arc<File>>,
}

/// The open files of a database in use.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) log: Log,
    pub(super) syncer: Arc<LogSync>,
    pub(super) reader: LogReader,
    pub(super) sums: PageSums,
}

impl Tracked {
    pub(super) fn log_dir(shared: &Shared, id: DbId) -> PathBuf {
        shared.logs.join(id.to_string())
    }

    /// Notes durably whether a primary has all that is in here. A crash may leave `false` where it is `true`.
    pub(super) fn note_only_received(
        &mut self,
        shared: &Shared,
        only_received: bool,
    ) -> Result<(), OpError> {
        if self.meta.only_received == only_received {
            return Ok(());
        }
        self.meta.only_received = only_received;
        let dir = Self::log_dir(shared, self.id);
        self.meta.save(&dir).map_err(disk_error("write meta", &dir)).inspect_err(|_| {
            self.meta.only_received = !only_received;
        })
    }

    /// Page size, and size in pages.
    pub(super) fn size(&self) -> (PageSize, u32) {
        (self.page_size, self.pages)
    }

    /// Log and page sums; opens them if needed.
    pub(super) fn files(&mut self, shared: &Shared) -> Result<&mut Files, OpError> {
        if self.files.is_none() {
            let dir = Self::log_dir(shared, self.id);
            if self.meta.clean.take().is_some() {
                // From here on the file may change; what it looked like at the stop must not count any more.
                self.meta.save(&dir).map_err(disk_error("write meta", &dir))?;
            }
            let log = Log::open(&dir, shared.log)?;
            if log.position() != self.pos {
                let found = log.position();
                return Err(OpError::LogLost { path: dir, promised: self.pos.txid_raw(), found });
            }
            let path = sums_path(&dir);
            let sums = PageSums::open(&path).or_else(|error| {
                warn!(%error, "the page sums are lost: computed anew when a transaction needs them");
                let mut sums = PageSums::create(&path, self.page_size)?;
                sums.truncate(self.pages);
                Ok::<_, SumsError>(sums)
            })?;
            self.files = Some(Files::new(log, sums));
        }
        Ok(self.files.as_mut().expect("BUG: files were just opened"))
    }

    /// The database file; opens it if needed.
    pub(super) fn main(&mut self, shared: &Shared, name: &DbName) -> Result<Arc<File>, OpError> {
        if let Some(main) = &self.main {
            return Ok(main.clone());
        }
        let path = shared.files.join(name.as_path());
        let file = open_regular(&path, true).map_err(disk_error("open database", &path))?;
        let file = file.ok_or_else(|| OpError::NotTracked(name.clone()))?;
        Ok(self.main.insert(Arc::new(file)).clone())
    }
}

impl Files {
    pub(super) fn new(log: Log, sums: PageSums) -> Self {
        Self { syncer: log.syncer(), reader: log.reader(), log, sums }
    }
}

/// Where the page sums of a log directory are.
pub(super) fn sums_path(log_dir: &Path) -> PathBuf {
    log_dir.join("sums")
}

impl State {
    pub(super) fn quarantine(&mut self, reason: &str, reseed: bool) {
        if self.quarantine.is_none() {
            self.quarantine = Some(Quarantine { reason: reason.to_owned(), reseed });
        }
    }

    /// Every transaction so far is in the database file.
    pub(super) fn all_is_backfilled(&mut self) {
        if let Some(tracked) = &mut self.tracked {
            tracked.backfilled = tracked.pos;
        }
    }

    /// The database file was written: snapshots in progress must look at these pages again.
    pub(super) fn touch(&mut self, offset: u64, len: usize) {
        if self.snapshots.is_empty() {
            return;
        }
        let Some(tracked) = &self.tracked else { return };
        self.snapshots.retain(|snapshot| match snapshot.upgrade() {
            Some(touched) => {
                touched.lock().wrote(tracked.page_size, offset, len);
                true
            }
            None => false,
        });
    }

    /// Pages were logged: the log brings them to snapshots in progress, whatever was read of them.
    pub(super) fn settle(&mut self, pages: impl Iterator<Item = PageNo>) {
        let snapshots: Vec<_> = self.snapshots.iter().filter_map(Weak::upgrade).collect();
        let mut open: Vec<_> = snapshots.iter().map(|touched| touched.lock()).collect();
        open.retain(|touched| !touched.is_empty());
        if open.is_empty() {
            return;
        }
        for page in pages {
            open.iter_mut().for_each(|touched| touched.logged(page));
        }
    }

    /// Forgets received transactions that wait in memory; they are read from the log instead.
    pub(super) fn drop_pending(&mut self) {
        self.pending.clear();
        self.pending_bytes = 0;
    }
}
