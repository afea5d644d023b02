//! One database: its files, its log, its position.
//!
//! `mount` reports every request on a database's files; `replication` reads the log, takes snapshots and
//! delivers received transactions. A `Database` exists for every regular file that is open or tracked;
//! it is *tracked* (has an id, a log, a position) once it has the SQLite header.
//!
//! Nothing here touches files through the mount: that is `client`'s work.

#![forbid(unsafe_code)]

mod apply;
mod commit;
mod counter;
mod error;
mod follow;
mod history;
mod idle;
mod images;
mod install;
mod mend;
mod meta;
mod occupied;
mod offline;
mod receive;
mod recover;
mod requests;
mod shared;
mod snapshot;
mod state;
mod status;
mod undo;
mod unlogged;
mod verify;
mod wal;

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;
use tracing::{error, info};

use crate::log::{Log, PageSums, WeakLogReader};
use crate::types::{DbId, DbName, PageSize, Pos};

pub use apply::Batch;
pub use error::{OpError, ReceiveError};
pub use follow::{LogRead, LogRecord, LogSpan};
pub use history::Common;
pub use install::Image;
pub use recover::{Recovered, WalOwner};
pub use shared::{Event, Shared};
pub use snapshot::{Completion, Exact, Snapshot};
pub use state::Quarantine;
pub use status::DatabaseStatus;
pub use unlogged::WriterIs;
pub use verify::Changed;

use error::disk_error;
use meta::Meta;
use state::{Files, State, Tracked, sums_path};

/// Which of a database's files a request is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FileRole {
    /// The database file itself, or any other file that is not a companion.
    Main,
    /// `-wal`
    Wal,
    /// `-shm`
    Shm,
    /// `-journal`
    Journal,
}

impl FileRole {
    /// The class for fault points.
    fn class(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Wal => "wal",
            Self::Shm => "shm",
            Self::Journal => "journal",
        }
    }
}

/// Who sent a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Any process but this daemon.
    Application,
    /// This daemon, through its own mount (`client`).
    Daemon,
}

/// What an open needs before it may be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenOutcome {
    /// Answer now.
    Ready,
    /// A replica must hold the write lock first, a primary may be able to finish its recovery: call
    /// `Store::attach` on a worker, then answer.
    AttachFirst,
}

/// One database of this node.
#[derive(Debug)]
pub struct Database {
    me: Weak<Database>,
    shared: Arc<Shared>,
    name: RwLock<DbName>,
    /// The identity, readable without the state's lock.
    id: RwLock<Option<DbId>>,
    state: Mutex<State>,
    /// Long operations under the state's lock, so that nobody waits for it who must not.
    occupied: AtomicUsize,
    /// The log while it is open, and what the state looked like last: readable without the state's lock.
    reader: Mutex<WeakLogReader>,
    last_status: Mutex<Option<DatabaseStatus>>,
    /// Signalled when no transaction is open in the database file itself.
    quiet: Condvar,
    /// The change counter that readers see, if it is not the file's.
    shown: counter::Shown,
    /// The positions at the end of the log and of what readers see.
    positions: watch::Sender<Positions>,
}

/// Removes a log directory as a whole: after a crash it is there or it is not. What is left is removed at the next
/// start.
///
/// # Errors
/// The disk refused.
pub fn remove_log(dir: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else { return Ok(()) };
    let mut dead = std::ffi::OsString::from(DEAD_LOG);
    dead.push(name);
    let dead = parent.join(dead);
    #[allow(
        clippy::disallowed_methods,
        reason = "the directory is synced below; its content is to go"
    )]
    std::fs::rename(dir, &dead)?;
    crate::disk::sync_dir(parent)?;
    std::fs::remove_dir_all(&dead)
}

/// What the names of log directories begin with that are being removed.
pub const DEAD_LOG: &str = "dead-";

/// How far a database is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Positions {
    /// End of the log.
    pub logged: Pos,
    /// What readers of this node see.
    pub applied: Pos,
}

impl Database {
    /// A file that is not known to be a database.
    #[must_use]
    pub fn untracked(shared: &Arc<Shared>, name: DbName) -> Arc<Self> {
        Self::with_state(shared, name, None, State::default())
    }

    /// A database of the primary that this replica does not have yet.
    ///
    /// # Errors
    /// Its log directory could not be made.
    pub fn adopted(shared: &Arc<Shared>, id: DbId, name: DbName) -> Result<Arc<Self>, OpError> {
        let db = Self::with_state(shared, name, Some(id), State::default());
        let tracked = db.begin_log(id, Pos::ZERO, PageSize::MIN)?;
        db.state.lock().tracked = Some(tracked);
        Ok(db)
    }

    /// Takes a file that is there already, with its WAL, as a new database. On a primary, while nobody uses it.
    ///
    /// # Errors
    /// The file could not be read or logged.
    pub fn take_existing_file(&self) -> Result<(), OpError> {
        {
            let mut state = self.state.lock();
            state.foreign_writer = true;
            state.written_without_journal = true;
        }
        self.capture_unlogged(WriterIs::Gone, None)?;
        self.take_over_wal(&mut self.state.lock())
    }

    /// The daemon's own name for the file changed without the file moving.
    pub fn set_name(&self, to: &DbName) {
        *self.name.write() = to.clone();
    }

    fn with_state(shared: &Arc<Shared>, name: DbName, id: Option<DbId>, state: State) -> Arc<Self> {
        let logged = state.tracked.as_ref().map_or(Pos::ZERO, |tracked| tracked.pos);
        let positions = watch::Sender::new(Positions { logged, applied: state.applied });
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            shared: shared.clone(),
            name: RwLock::new(name),
            id: RwLock::new(id),
            state: Mutex::new(state),
            occupied: AtomicUsize::new(0),
            reader: Mutex::default(),
            last_status: Mutex::default(),
            quiet: Condvar::new(),
            shown: counter::Shown::default(),
            positions,
        })
    }

    /// Its current name.
    #[must_use]
    pub fn name(&self) -> DbName {
        self.name.read().clone()
    }

    /// Its identity; `None` while it is not tracked.
    #[must_use]
    pub fn id(&self) -> Option<DbId> {
        *self.id.read()
    }

    /// The position at the end of its log.
    #[must_use]
    pub fn position(&self) -> Pos {
        self.positions.borrow().logged
    }

    /// The last position that readers of this node can see.
    #[must_use]
    pub fn applied(&self) -> Pos {
        self.positions.borrow().applied
    }

    /// Follows both positions.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Positions> {
        self.positions.subscribe()
    }

    /// Why it takes no transactions, if it does not.
    #[must_use]
    pub fn quarantined(&self) -> Option<Quarantine> {
        self.state.lock().quarantine.clone()
    }

    /// Stops taking transactions; reads go on. `reseed` says that a copy from the primary mends it.
    pub fn quarantine(&self, reason: &str, reseed: bool) {
        error!(db = %self.name(), reason, "quarantined");
        self.state.lock().quarantine(reason, reseed);
    }

    /// Gives the database a name that the file already has. Durable when it returns.
    ///
    /// # Errors
    /// The name could not be stored; the old one is in force.
    pub fn renamed(&self, to: &DbName) -> Result<(), OpError> {
        let mut state = self.state.lock();
        if let Some(tracked) = &mut state.tracked {
            let dir = Tracked::log_dir(&self.shared, tracked.id);
            if tracked.meta.names().0.as_ref() != Some(to) {
                // It became a database while it was renamed.
                tracked.meta.rename(to);
            }
            tracked.meta.rename_is_done();
            tracked.meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        }
        *self.name.write() = to.clone();
        Ok(())
    }

    /// Notes durably that the file is about to be renamed: after a crash whichever name exists counts.
    ///
    /// # Errors
    /// The intention could not be stored: do not rename.
    pub fn will_rename(&self, to: &DbName) -> Result<(), OpError> {
        let mut state = self.state.lock();
        let Some(tracked) = &mut state.tracked else { return Ok(()) };
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        let before = tracked.meta.clone();
        tracked.meta.rename(to);
        tracked.meta.save(&dir).map_err(|error| {
            tracked.meta = before;
            disk_error("write meta", &dir)(error)
        })
    }

    /// The rename that [`Database::will_rename`] announced did not happen.
    pub fn not_renamed(&self) {
        let name = self.name();
        let mut state = self.state.lock();
        let Some(tracked) = &mut state.tracked else { return };
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        tracked.meta.rename(&name);
        tracked.meta.rename_is_done();
        if let Err(error) = tracked.meta.save(&dir) {
            error!(db = %name, %error, "write meta");
        }
    }

    /// The file lost its name for good, to a removal or to another file. Returns the identity it had.
    pub fn removed(&self) -> Option<DbId> {
        self.state.lock().is_removed = true;
        self.untrack()
    }

    /// Forgets identity and log: the file is gone or no database any more. Its log directory is removed.
    pub fn untrack(&self) -> Option<DbId> {
        let mut state = self.state.lock();
        let tracked = state.tracked.take()?;
        *state = State {
            open_files: state.open_files,
            open_by_application: state.open_by_application,
            is_removed: state.is_removed,
            ..State::default()
        };
        *self.id.write() = None;
        *self.reader.lock() = WeakLogReader::default();
        self.positions.send_replace(Positions { logged: Pos::ZERO, applied: Pos::ZERO });
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        drop(tracked.files);
        if let Err(error) = remove_log(&dir) {
            error!(db = %self.name(), %error, path = %dir.display(), "remove log");
        }
        self.shared.tell(Event::Untracked(tracked.id));
        Some(tracked.id)
    }

    /// Gives a file that turns out to be a database an identity and an empty log.
    fn track(&self, state: &mut State, page_size: PageSize) -> Result<(), OpError> {
        if state.tracked.is_some() {
            return Ok(());
        }
        let id = DbId::new(rand::random());
        let tracked = self.begin_log(id, Pos::ZERO, page_size)?;
        state.tracked = Some(tracked);
        *self.id.write() = Some(id);
        info!(db = %self.name(), %id, page_size = page_size.get(), "new database");
        if let Some(me) = self.me.upgrade() {
            self.shared.tell(Event::Tracked(me));
        }
        Ok(())
    }

    /// Makes the log directory of a database that begins at `base`.
    fn begin_log(&self, id: DbId, base: Pos, page_size: PageSize) -> Result<Tracked, OpError> {
        let name = self.name();
        let dir = Tracked::log_dir(&self.shared, id);
        let mut meta = Meta::new(&name);
        if let Ok(metadata) = self.shared.files.join(name.as_path()).metadata() {
            meta.is_for(&metadata);
        }
        let made = (|| -> Result<Files, OpError> {
            crate::disk::create_dir_durable(&dir).map_err(disk_error("create directory", &dir))?;
            meta.save(&dir).map_err(disk_error("write meta", &dir))?;
            let log = Log::create(&dir, base, self.shared.log)?;
            let sums = PageSums::create(&sums_path(&dir), page_size)?;
            Ok(Files::new(log, sums))
        })();
        let files = made.inspect_err(|_| {
            // Left behind it would look like a database whose file is missing.
            drop(std::fs::remove_dir_all(&dir));
        })?;
        Ok(Tracked {
            id,
            pos: base,
            page_size,
            pages: 0,
            backfilled: base,
            timestamp_ms: 0,
            meta,
            files: Some(files),
            main: None,
        })
    }

    /// Tells followers of the positions where they are now.
    fn publish(&self, state: &State) {
        let logged = state.tracked.as_ref().map_or(Pos::ZERO, |tracked| tracked.pos);
        self.positions.send_replace(Positions { logged, applied: state.applied });
    }
}
