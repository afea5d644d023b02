//! One database: its files, its log, its position.
//!
//! `mount` reports every request on a database's files; `replication` reads the log, takes snapshots and
//! delivers received transactions. A `Database` exists for every regular file that is open or tracked;
//! it is *tracked* (has an id, a log, a position) once it has the SQLite header.
//!
//! Nothing here touches files through the mount: that is `client`'s work.

use std::fs::File;
use std::path::PathBuf;

use crate::types::{Checksum, DbId, DbName, Epoch, PageNo, PageSize, Pos};

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
    /// A replica must hold the write lock first: call `Store::attach` on a worker, then answer.
    AttachFirst,
}

/// Why a request on a database's file failed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The backing file or the log could not be read or written.
    #[error("{step}: {path}")]
    Disk {
        /// Verb and object.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A write on a node that is not the primary.
    #[error("{0}: this node is not the primary")]
    NotPrimary(DbName),
    /// The database takes no writes until an operator or a re-seed repairs it.
    #[error("{0}: quarantined")]
    Quarantined(DbName),
}

impl OpError {
    /// The number for the kernel.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Disk { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::NotPrimary(_) => libc::EROFS,
            Self::Quarantined(_) => libc::EIO,
        }
    }
}

/// One record of the log, ready to send.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// Epoch of the primary that wrote it.
    pub epoch: Epoch,
    /// Position after it.
    pub pos: Pos,
    /// The LTX file.
    pub ltx: bytes::Bytes,
}

/// What `Database::read_log` found behind a position.
#[derive(Debug)]
pub enum LogRead {
    /// Records that follow the position, oldest first; empty if there are none.
    Records(Vec<LogRecord>),
    /// The position is not in the log (too old, or another history): the follower needs a snapshot.
    NeedsSnapshot,
}

/// What of the log lies behind a position, known without reading the records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LogSpan {
    /// How many records.
    pub records: u64,
    /// Their bytes, all together; may be rounded up to whole segments.
    pub bytes: u64,
    /// Bytes of the first of them; 0 if there is none.
    pub first_bytes: u64,
}

/// Why a received transaction was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// Not the next one: ask again from the local position.
    #[error("{db}: {found} does not follow {expected}")]
    OutOfOrder {
        /// The database.
        db: DbName,
        /// Local position.
        expected: Pos,
        /// Position the transaction builds on.
        found: Pos,
    },
    /// The bytes are not a valid LTX file.
    #[error("{db}: invalid change set")]
    Invalid {
        /// The database.
        db: DbName,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Applying it would not give the promised checksum: the database is quarantined.
    #[error("{db}: checksum would be {actual}, {promised} is promised")]
    ChecksumMismatch {
        /// The database.
        db: DbName,
        /// What the change set says.
        promised: Checksum,
        /// What local pages and the change set give.
        actual: Checksum,
    },
    /// The log could not be written.
    #[error(transparent)]
    Op(#[from] OpError),
}

/// One database of this node.
#[derive(Debug)]
pub struct Database {
    name: parking_lot::RwLock<DbName>,
}

impl Database {
    pub(crate) fn untracked(name: DbName) -> Self {
        Self { name: parking_lot::RwLock::new(name) }
    }

    pub(crate) fn set_name(&self, name: DbName) {
        *self.name.write() = name;
    }

    /// Its current name.
    #[must_use]
    pub fn name(&self) -> DbName {
        self.name.read().clone()
    }

    /// Its identity; `None` while it is not tracked.
    #[must_use]
    pub fn id(&self) -> Option<DbId> {
        None
    }

    /// The position at the end of its log.
    #[must_use]
    pub fn position(&self) -> Pos {
        Pos::ZERO
    }

    // ---- kernel requests, called by `mount` ----

    /// A file of the database is being opened. `truncate` is `O_TRUNC`.
    ///
    /// # Errors
    /// [`OpError::NotPrimary`] where a replica refuses the open (`replica.writes = "readonly"`).
    pub fn open(
        &self,
        _role: FileRole,
        _origin: Origin,
        _writable: bool,
        _truncate: bool,
    ) -> Result<OpenOutcome, OpError> {
        Ok(OpenOutcome::Ready)
    }

    /// Writes to a file of the database. When the write completes a commit, the transaction is in the
    /// log when this returns.
    ///
    /// # Errors
    /// The write did not happen, and a transaction that it would have committed is not in the log.
    pub fn write(
        &self,
        _role: FileRole,
        _origin: Origin,
        _file: &File,
        _offset: u64,
        _data: &[u8],
    ) -> Result<(), OpError> {
        use std::os::unix::fs::FileExt as _;
        _file.write_all_at(_data, _offset).map_err(|source| OpError::Disk {
            step: "write file",
            path: self.name().as_path().to_owned(),
            source,
        })
    }

    /// Sets the length of a file of the database (`ftruncate`, `O_TRUNC`, `fallocate`).
    ///
    /// # Errors
    /// As for [`Database::write`].
    pub fn set_len(
        &self,
        _role: FileRole,
        _origin: Origin,
        _file: &File,
        _len: u64,
    ) -> Result<(), OpError> {
        _file.set_len(_len).map_err(|source| OpError::Disk {
            step: "set length of file",
            path: self.name().as_path().to_owned(),
            source,
        })
    }

    /// `fsync`: what was answered before is durable when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// The kernel may have forgotten dirty pages: the database takes no more writes.
    pub fn sync(&self, _role: FileRole, _file: &File) -> Result<(), OpError> {
        _file.sync_data().map_err(|source| OpError::Disk {
            step: "sync file",
            path: self.name().as_path().to_owned(),
            source,
        })
    }

    /// Whether [`Database::flush`] has work to do and so must run on a worker.
    #[must_use]
    pub fn needs_flush(&self, _role: FileRole, _origin: Origin) -> bool {
        false
    }

    /// A descriptor is being closed. Captures foreign writes; publishes the commit of a writer that died.
    /// May block for long.
    ///
    /// # Errors
    /// The foreign writes could not be captured.
    pub fn flush(&self, _role: FileRole, _origin: Origin) -> Result<(), OpError> {
        Ok(())
    }

    /// The last descriptor of one open is gone.
    pub fn release(&self, _role: FileRole, _origin: Origin, _writable: bool) {}

    // ---- replication ----

    /// Records behind `after`, at least one if there are any, about `bytes_max` in total.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn read_log(&self, _after: Pos, _bytes_max: usize) -> Result<LogRead, OpError> {
        unimplemented!()
    }

    /// One change set over the records behind `after`, the last image of each page: at least one
    /// record, then as many as fit in `bytes_max` bytes of log. `Ok(None)` if `after` is not in the
    /// log, or is its end.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn merge_log(&self, _after: Pos, _bytes_max: u64) -> Result<Option<LogRecord>, OpError> {
        unimplemented!()
    }

    /// How much log lies behind `after`; `None` if the position is not in the log.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn log_span(&self, _after: Pos) -> Result<Option<LogSpan>, OpError> {
        unimplemented!()
    }

    /// Starts a snapshot. Writers go on.
    ///
    /// # Errors
    /// The database file could not be opened.
    pub fn snapshot(&self) -> Result<Snapshot, OpError> {
        unimplemented!()
    }

    /// Goes on with a snapshot that began at `base` ([`Snapshot::base`]), perhaps in an earlier process.
    /// `Ok(None)` if the log no longer reaches back to it.
    ///
    /// # Errors
    /// The database file could not be opened.
    pub fn resume_snapshot(&self, _base: Pos) -> Result<Option<Snapshot>, OpError> {
        unimplemented!()
    }

    /// Takes a transaction from the primary into the log (not yet durable, not yet applied).
    /// Returns the new position.
    ///
    /// # Errors
    /// See [`ReceiveError`]. A transaction that is already in the log is taken as received.
    pub fn receive(&self, _epoch: Epoch, _ltx: &[u8]) -> Result<Pos, ReceiveError> {
        unimplemented!()
    }

    /// Makes the log durable; returns the durable position. Blocks on the disk.
    ///
    /// # Errors
    /// The log could not be synced.
    pub fn sync_log(&self) -> Result<Pos, OpError> {
        unimplemented!()
    }

    /// The last position that readers of this node can see.
    #[must_use]
    pub fn applied(&self) -> Pos {
        Pos::ZERO
    }

    /// Page sums of `count` pages from `first` on, for finding the pages that differ between two nodes.
    /// Pages beyond the end are left out.
    ///
    /// # Errors
    /// The sums or the database could not be read.
    pub fn page_sums(&self, _first: PageNo, _count: u32) -> Result<Vec<Checksum>, OpError> {
        unimplemented!()
    }
}

/// A snapshot being taken: first a fuzzy copy of the pages, then the change set that makes it exact.
#[derive(Debug)]
pub struct Snapshot {}

impl Snapshot {
    /// Page size, and number of pages to copy.
    #[must_use]
    pub fn size(&self) -> (PageSize, u32) {
        unimplemented!()
    }

    /// What was in the file when the copy began: every page read holds at least this state, so the
    /// log behind it makes the copy exact. The log keeps it while the snapshot lives.
    #[must_use]
    pub fn base(&self) -> Pos {
        unimplemented!()
    }

    /// Raw bytes of up to `count` pages from `first` on, as they are in the file now.
    ///
    /// # Errors
    /// The database file could not be read.
    pub fn read(&self, _first: PageNo, _count: u32) -> Result<Vec<u8>, OpError> {
        unimplemented!()
    }

    /// The change set that turns the copied pages into the state at the returned position
    /// (`LogRecord::pos`), however long ago they were copied.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn finish(self) -> Result<LogRecord, OpError> {
        unimplemented!()
    }
}
