//! All databases of a node: names, identities, announcements, the node's role.
//!
//! Lock order: store before database. No lock is held across an await.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::client::Pool;
use crate::database::{Database, FileRole, OpError, Origin};
use crate::types::{DbId, DbName, Epoch, NodeId, Pos};

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

/// A change in the set of databases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogChange {
    /// A database exists, or has a new name.
    Named {
        /// Which.
        id: DbId,
        /// Its name from now on.
        name: DbName,
    },
    /// A database is gone.
    Dropped {
        /// Which.
        id: DbId,
    },
}

/// What happened since a [`Subscription`] was last asked.
#[derive(Default, Debug)]
pub struct Announcement {
    /// In order. A rename over another database is `Dropped` then `Named`.
    pub catalog: Vec<CatalogChange>,
    /// The catalog changes overflowed: read the whole catalog again.
    pub catalog_lost: bool,
    /// Databases with new transactions, each once.
    pub changed: Vec<DbId>,
}

/// A receiver of announcements. Bounded: each database appears at most once.
#[derive(Debug)]
pub struct Subscription {}

impl Subscription {
    /// Waits until there is something to report. Cancellation-safe.
    pub async fn next(&self) -> Announcement {
        unimplemented!()
    }
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
#[derive(Debug)]
pub struct Store {
    files: PathBuf,
    names: parking_lot::Mutex<std::collections::HashMap<DbName, std::sync::Weak<Database>>>,
}

impl Store {
    /// Opens the data directory and recovers every database. No application may have files open.
    /// The node starts as a replica without a primary.
    ///
    /// # Errors
    /// The data directory is unusable. A damaged database does not fail the store: it is quarantined.
    pub fn open(_options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let files = _options.data.join("files");
        crate::disk::create_dir_durable(&files).map_err(|source| StoreError::Disk {
            step: "create directory",
            path: files.clone(),
            source,
        })?;
        Ok(Arc::new(Self { files, names: parking_lot::Mutex::default() }))
    }

    /// Gives the store its way through the mount; called once the mount is up.
    pub fn connect(&self, _client: Arc<Pool>, _invalidate: InvalidateEntry) {}

    /// Changes the node's role. Blocks until the write locks of all open databases are taken or released.
    pub fn set_role(&self, _role: Role) {}

    /// Stops taking writes, writes everything back and syncs. Called before the unmount.
    pub fn close(&self) {}

    /// A replica is connected and needs the log of a database from this position on.
    pub fn follower_needs(&self, _peer: NodeId, _db: DbId, _pos: Pos) {
        unimplemented!()
    }

    /// A replica is gone: the log is no longer kept for it.
    pub fn follower_gone(&self, _peer: NodeId) {
        unimplemented!()
    }

    /// The directory that holds the plain files shown under the mount.
    #[must_use]
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// This node's role.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::Primary { epoch: Epoch::new(1) }
    }

    // ---- kernel requests, called by `mount` ----

    /// The database for a regular file that is not a companion, made if there is none.
    #[must_use]
    pub fn main_file(&self, _name: &DbName) -> Arc<Database> {
        let mut names = self.names.lock();
        if let Some(db) = names.get(_name).and_then(std::sync::Weak::upgrade) {
            return db;
        }
        let db = Arc::new(Database::untracked(_name.clone()));
        names.insert(_name.clone(), Arc::downgrade(&db));
        db
    }

    /// Splits a path into the database it belongs to and the role of the file: `a/x.db-wal` is the
    /// WAL of `a/x.db` if that file exists, otherwise a main file of its own.
    #[must_use]
    pub fn resolve(&self, _path: &DbName) -> (Arc<Database>, FileRole) {
        for (suffix, role) in
            [("-wal", FileRole::Wal), ("-shm", FileRole::Shm), ("-journal", FileRole::Journal)]
        {
            let Some(base) = _path.as_bytes().strip_suffix(suffix.as_bytes()) else { continue };
            let Ok(base) = DbName::new(base) else { continue };
            if self.files.join(base.as_path()).is_file() {
                return (self.main_file(&base), role);
            }
        }
        (self.main_file(_path), FileRole::Main)
    }

    /// Removes a file by calling `remove`, and what hangs on it: the unlink of a journal commits, of a
    /// WAL captures, of a database drops it.
    ///
    /// # Errors
    /// The file is still there, and nothing was committed.
    pub fn unlink(
        &self,
        _path: &DbName,
        _origin: Origin,
        _remove: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), OpError> {
        _remove().map_err(|source| OpError::Disk {
            step: "remove file",
            path: _path.as_path().to_owned(),
            source,
        })
    }

    /// Renames a file or directory by calling `rename`; databases keep their identity.
    ///
    /// # Errors
    /// Nothing was renamed.
    pub fn rename(
        &self,
        _from: &DbName,
        _to: &DbName,
        _origin: Origin,
        _rename: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), OpError> {
        _rename().map_err(|source| OpError::Disk {
            step: "rename file",
            path: _from.as_path().to_owned(),
            source,
        })?;
        let mut names = self.names.lock();
        if let Some(db) = names.remove(_from) {
            if let Some(db) = db.upgrade() {
                db.set_name(_to.clone());
            }
            names.insert(_to.clone(), db);
        }
        Ok(())
    }

    /// On a replica: takes the write lock of a database through the mount so that an application gets
    /// SQLite's "busy". Blocks; never call it on a thread that serves kernel requests.
    ///
    /// # Errors
    /// The lock could not be taken in time.
    pub fn attach(&self, _db: &Arc<Database>) -> Result<(), OpError> {
        Ok(())
    }

    /// Milliseconds since this node was last known to be level with the primary: 0 on the primary,
    /// `i32::MAX` before the first contact. The content of `.lag`.
    #[must_use]
    pub fn lag_ms(&self) -> i64 {
        0
    }

    // ---- replication ----

    /// All tracked databases.
    #[must_use]
    pub fn databases(&self) -> Vec<Arc<Database>> {
        Vec::new()
    }

    /// The database with an identity.
    #[must_use]
    pub fn by_id(&self, _id: DbId) -> Option<Arc<Database>> {
        None
    }

    /// The tracked database with a name.
    #[must_use]
    pub fn by_name(&self, _name: &DbName) -> Option<Arc<Database>> {
        None
    }

    /// Reports changes from now on.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        unimplemented!()
    }

    /// On a replica: makes or renames a database as the primary has it. A local file in the way moves
    /// to `lost+found`.
    ///
    /// # Errors
    /// The log's directory could not be made.
    pub fn adopt(&self, _id: DbId, _name: &DbName) -> Result<Arc<Database>, OpError> {
        unimplemented!()
    }

    /// On a replica: removes a database the primary does not have. Blocks on the mount.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn forget(&self, _id: DbId) -> Result<(), OpError> {
        unimplemented!()
    }

    /// On a replica: replaces a database's content by a complete image that `Snapshot`s gave, checked
    /// against the position's checksum first. Readers see either state. Blocks for long.
    ///
    /// # Errors
    /// The image does not match the position, or a file could not be written.
    pub fn install(&self, _db: &Database, _image: &Path, _pos: Pos) -> Result<(), OpError> {
        unimplemented!()
    }

    /// On a replica: contact with the primary, for `.primary` and `.lag`. `level` means that every
    /// position the primary reported is applied here.
    pub fn heard_from_primary(&self, _name: &str, _level: bool) {
        unimplemented!()
    }

    /// On a replica: the stream to the primary broke.
    pub fn lost_primary(&self) {
        unimplemented!()
    }
}
