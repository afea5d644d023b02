//! All databases of a node: names, identities, announcements, the node's role.
//!
//! Lock order: a database's lock before the store's; the store's are leaves, held for memory work only. No lock is
//! held across an await.

#![forbid(unsafe_code)]

mod adopt;
mod announce;
mod apply;
mod catalog;
mod follow;
mod housekeeping;
mod lost;
mod open;
mod queue;
mod stop;
mod tree;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::database::{Database, Event, Shared};
use crate::types::{DbId, DbName, Epoch, NodeId, Txid};

pub use announce::{Announcement, CatalogChange, Subscription};
pub use lost::Extra;

use announce::Announcer;
use catalog::Catalog;
use queue::WorkQueue;
use stop::{Stop, Unlogged};

/// Threads that apply received transactions.
const APPLIERS: usize = 2;
/// How long a replica keeps a database open through the mount after its last use.
const DETACH_AFTER: Duration = Duration::from_secs(5);

/// What this node is for writes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// Takes writes.
    Primary {
        /// Its reign.
        epoch: Epoch,
    },
    /// Follows a primary, or waits for one.
    Replica {
        /// Name of the primary as peers know it; `None` while none is known or connected.
        primary: Option<String>,
    },
}

/// What a local write on a replica gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ReplicaWrites {
    /// `SQLITE_BUSY` after the application's timeout; works again after a promotion.
    #[default]
    Busy,
    /// `SQLITE_READONLY` at once: opening for writing fails with `EROFS`.
    Readonly,
}

/// How much of a database's log is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Records younger than this are kept, within `bytes`.
    pub age: Duration,
    /// Bytes of log per database that age alone may keep.
    pub bytes: u64,
    /// Bytes of log per database that a lagging replica may hold back; beyond it gets a snapshot.
    pub bytes_max: u64,
}

/// How to open a [`Store`].
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The data directory; `files`, `log`, `tmp` and `lost+found` are made below it.
    pub data: PathBuf,
    /// This node, for the LTX headers.
    pub node: NodeId,
    /// What a local write on a replica gets.
    pub replica_writes: ReplicaWrites,
    /// How much log is kept.
    pub retention: Retention,
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The data directory could not be used.
    #[error("{step}: {path}")]
    Disk {
        /// Verb and object.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Tells the kernel to look a name up again; the mount provides it.
pub type InvalidateEntry = Arc<dyn Fn(&DbName) + Send + Sync>;

/// All databases of this node.
pub struct Store {
    shared: Arc<Shared>,
    lost_and_found: PathBuf,
    role_file: PathBuf,
    retention: Retention,
    role: RwLock<Role>,
    catalog: Mutex<Catalog>,
    announcer: Announcer,
    to_apply: WorkQueue,
    unlogged: Unlogged,
    stop: Stop,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Databases whose write lock this replica holds for an application.
    fenced: Mutex<HashSet<DbId>>,
    /// Databases that a reader keeps from being applied: since when, and whether that was said.
    held_back: Mutex<HashMap<DbId, (Instant, bool)>>,
    /// Databases that `client` may have open, and when it was last asked.
    used: Mutex<HashMap<DbId, Instant>>,
    followers: Mutex<HashMap<NodeId, HashMap<DbId, Option<Txid>>>>,
    /// When a replica was last level with the primary, on the clock that runs through suspension.
    level_at: Mutex<Option<Duration>>,
    invalidate: OnceLock<InvalidateEntry>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Store {
    /// The directory that holds the plain files shown under the mount.
    #[must_use]
    pub fn files(&self) -> &Path {
        &self.shared.files
    }

    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role.read().clone()
    }

    /// All tracked databases.
    #[must_use]
    pub fn databases(&self) -> Vec<Arc<Database>> {
        self.catalog.lock().tracked()
    }

    /// The database with an identity.
    #[must_use]
    pub fn by_id(&self, id: DbId) -> Option<Arc<Database>> {
        self.catalog.lock().by_id(id)
    }

    /// The tracked database with a name.
    #[must_use]
    pub fn by_name(&self, name: &DbName) -> Option<Arc<Database>> {
        self.catalog.lock().by_name(name).filter(|db| db.id().is_some())
    }

    /// Whether a database is in a long operation under its lock.
    #[must_use]
    pub fn is_any_occupied(&self) -> bool {
        self.shared.occupied().load(std::sync::atomic::Ordering::Acquire) > 0
    }

    /// Reports changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        self.announcer.subscribe()
    }

    /// Hears what databases report. Their locks are held: only leaf locks may be taken here.
    fn hear(&self, event: Event) {
        match event {
            Event::Tracked(db) => {
                let Some(id) = db.id() else { return };
                let name = db.name();
                self.catalog.lock().track(id, db);
                self.announcer.catalog(&CatalogChange::Named { id, name });
            }
            Event::Untracked(id) => {
                drop(self.catalog.lock().untrack(id));
                self.announcer.catalog(&CatalogChange::Dropped { id });
            }
            Event::Committed(id) => self.announcer.changed(id),
            Event::Received(id) => self.to_apply.push(id),
            Event::WrittenWithoutJournal(db) => self.unlogged.push(db),
        }
    }

    fn used_through_mount(&self, id: DbId) {
        self.used.lock().insert(id, Instant::now());
    }

    fn invalidate(&self, name: &DbName) {
        if let Some(invalidate) = self.invalidate.get() {
            invalidate(name);
        }
    }
}
