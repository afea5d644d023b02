//! What lanes are asked and what they answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Change, Holder};
use crate::sqlite::{Salts, WalChecksum};
use crate::types::DbName;

/// The end of a WAL as capture saw it, when its writer died before other connections could see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abandoned {
    /// Salts of the WAL.
    pub salts: Salts,
    /// The commit frame of the last captured transaction.
    pub frames: u32,
    /// Size of the database in pages after it.
    pub pages: u32,
}

/// What a lane can do with one database.
#[derive(Debug)]
pub enum Request {
    /// Becomes the only writer and stays it: local writers get SQLite's "busy".
    Fence {
        /// Current name.
        name: DbName,
    },
    /// Stops being a writer and closes the files, as [`Request::Detach`] does.
    Unfence,
    /// Writes a change as a legal writer; stays fenced if it was.
    Apply {
        /// Current name. A missing file is made.
        name: DbName,
        /// What to write.
        change: Change,
    },
    /// Copies the WAL back as far as readers allow.
    Checkpoint {
        /// Current name.
        name: DbName,
    },
    /// Closes the files. If no other connection is open, first copies the WAL back whole and removes it.
    Detach,
    /// Makes the commit of a dead writer visible. The caller knows that the dead process still holds WRITE.
    PublishAbandoned {
        /// Current name.
        name: DbName,
        /// What capture saw.
        abandoned: Abandoned,
    },
    /// Waits until no process changes the database file in rollback mode.
    WaitUnlocked {
        /// Current name.
        name: DbName,
        /// How long.
        timeout: Duration,
    },
    /// Asks who holds the WAL's writer lock.
    WriteLockHolder {
        /// Current name.
        name: DbName,
    },
    /// Removes the database and its companions.
    Remove {
        /// Current name.
        name: DbName,
    },
    /// Makes the directories above a name.
    MakeParents {
        /// A name.
        name: DbName,
    },
    /// Renames the database and its companions.
    Rename {
        /// Current name.
        from: DbName,
        /// New name; a database there is replaced.
        to: DbName,
    },
}

impl Request {
    /// The database's current name, where the request says it.
    pub(super) fn name(&self) -> Option<&DbName> {
        match self {
            Self::Fence { name }
            | Self::Apply { name, .. }
            | Self::Checkpoint { name }
            | Self::PublishAbandoned { name, .. }
            | Self::WaitUnlocked { name, .. }
            | Self::WriteLockHolder { name }
            | Self::Remove { name }
            | Self::MakeParents { name }
            | Self::Rename { from: name, .. } => Some(name),
            Self::Unfence | Self::Detach => None,
        }
    }
}

/// The committed end of a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalState {
    /// Salts of the WAL.
    pub salts: Salts,
    /// Frames up to the last commit.
    pub frames: u32,
    /// Frames that are copied back into the database file.
    pub backfilled: u32,
    /// Size of the database in pages.
    pub pages: u32,
    /// Checksum of the last frame.
    pub chain: WalChecksum,
}

/// Where a database's pages are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileState {
    /// All in the database file.
    Main,
    /// Some in the WAL.
    Wal(WalState),
}

impl FileState {
    /// Whether the database file has every page as it is now. It is not synced by that.
    #[must_use]
    pub fn is_written_back(&self) -> bool {
        match self {
            Self::Main => true,
            Self::Wal(wal) => wal.frames == wal.backfilled,
        }
    }
}

/// What a lane answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// To `Remove`, `MakeParents`, `Rename`, `WaitUnlocked`.
    Done,
    /// To `Fence`, `Apply`, `Checkpoint`: the state afterwards.
    State(FileState),
    /// To `Unfence` and `Detach`: whether the WAL is gone (or there was none to remove).
    Closed {
        /// The database file has every page and no companion was left by us.
        clean: bool,
    },
    /// To `PublishAbandoned`: whether there was something to make visible.
    Published(bool),
    /// To `WriteLockHolder`.
    Holder(Option<Holder>),
}

fn holder_text(holder: Option<Holder>) -> String {
    match holder {
        Some(Holder::Process(pid)) => format!("process {pid}"),
        Some(Holder::Description) => "an open file".to_owned(),
        None => "nobody that the system names".to_owned(),
    }
}

/// Why a request to a lane failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A lock was not to be had in time: ask again.
    #[error("{path}: waiting for {lock} took too long, held by {}", holder_text(*holder))]
    Busy {
        /// The database.
        path: PathBuf,
        /// Which lock.
        lock: &'static str,
        /// Who holds it, if the system can tell.
        holder: Option<Holder>,
    },
    /// The system refused something.
    #[error("{step}: {path}")]
    Io {
        /// Verb and object.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A companion of the database contradicts itself; the log can restore the database.
    #[error("{path}: {what} is damaged")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// Which part.
        what: &'static str,
    },
    /// The change does not keep its promises.
    #[error("{path}: pages of the change are out of order, too long, too short or out of range")]
    InvalidChange {
        /// The database.
        path: PathBuf,
    },
    /// The pool is stopped, or the lane is gone.
    #[error("the mount's client is stopped")]
    Stopped,
}
