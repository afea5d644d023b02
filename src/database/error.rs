//! What can go wrong with a database, and the number the kernel gets for it.

use std::path::{Path, PathBuf};

use crate::log::{LogError, SumsError};
use crate::ltx::{DecodeError, EncodeError, MergeError};
use crate::types::{Checksum, DbName, PageNo, Pos};

/// Why a request on a database failed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The backing file could not be read or written.
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
    /// The log could not be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The page sums could not be read or written.
    #[error(transparent)]
    Sums(#[from] SumsError),
    /// A page's sum is not known, so no checksum can be computed.
    #[error("{db}: the sum of page {page} is lost: restart the daemon to rebuild the sums")]
    SumUnknown {
        /// The database.
        db: DbName,
        /// The page.
        page: PageNo,
    },
    /// Page sums were lost, and what the file holds in their place is not what the log says.
    #[error(
        "{db}: the disk has changed a page between {first} and {last}: their sums were lost, and computed anew they do \
         not give the checksum of the log's last transaction. Stop the daemon, put a good copy of the file in its \
         place (a replica has one) and start it again"
    )]
    PagesContradict {
        /// The database.
        db: DbName,
        /// First page without a sum.
        first: PageNo,
        /// Last page without a sum.
        last: PageNo,
    },
    /// A change set could not be made.
    #[error("{db}: encode change set")]
    Encode {
        /// The database.
        db: DbName,
        /// What is wrong.
        #[source]
        source: EncodeError,
    },
    /// A change set in the log could not be read.
    #[error("{db}: decode change set in the log")]
    Decode {
        /// The database.
        db: DbName,
        /// What is wrong.
        #[source]
        source: DecodeError,
    },
    /// Change sets in the log could not be merged.
    #[error("{db}: merge change sets of the log")]
    Merge {
        /// The database.
        db: DbName,
        /// What is wrong.
        #[source]
        source: MergeError,
    },
    /// One transaction larger than a record can be.
    #[error("{db}: a change set of {bytes} bytes, 4 GiB are possible: commit in smaller steps")]
    TooLarge {
        /// The database.
        db: DbName,
        /// Its size.
        bytes: u64,
    },
    /// A write on a node that is not the primary.
    #[error("{0}: this node is not the primary")]
    NotPrimary(DbName),
    /// A journal on a node that is not the primary. Its own number: SQLite turns it into `SQLITE_READONLY`.
    #[error("{0}: this node is not the primary, so there is nothing to write a journal for")]
    ReplicaJournal(DbName),
    /// The database takes no writes until an operator or a re-seed repairs it.
    #[error("{0}: quarantined, see `weir status`")]
    Quarantined(DbName),
    /// Not a database, or not one any more.
    #[error("{0}: not a tracked database")]
    NotTracked(DbName),
    /// The file lost its header while the daemon was stopped. Replicas keep what they have.
    #[error(
        "{0}: its file is no SQLite database any more: put a good copy in its place, or remove it"
    )]
    HeaderIsGone(DbName),
    /// The file of a replica was written while the daemon did not run.
    #[error("{0}: somebody changed it while the daemon did not run")]
    ChangedOffline(DbName),
    /// The log ends before what had been said to be durable.
    #[error(
        "{path}: the log ends at transaction {}, but {promised} had been durable: the disk, or somebody, lost a part of \
         it. The database file is as it was", found.txid_raw()
    )]
    LogLost {
        /// Directory of the log.
        path: PathBuf,
        /// A transaction that it once reached.
        promised: u64,
        /// Where it ends now.
        found: Pos,
    },
    /// Something did not happen in time.
    #[error("{db}: {step}: not within {seconds} s")]
    Timeout {
        /// The database.
        db: DbName,
        /// What was waited for.
        step: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The way through the mount failed.
    #[error("{db}: {step} through the mount")]
    Client {
        /// The database.
        db: DbName,
        /// Verb and object.
        step: &'static str,
        /// What is wrong.
        #[source]
        source: crate::client::ClientError,
    },
    /// Another database has a name, or lies in the directory of that name.
    #[error("{db}: database {other} is in the way")]
    NameTaken {
        /// The name.
        db: DbName,
        /// Who has it.
        other: crate::types::DbId,
    },
    /// A copy on a node that has become the primary.
    #[error("{0}: this node is the primary and takes no copy")]
    NotReplica(DbName),
    /// An image does not have the checksum it should have.
    #[error("{db}: the copy's checksum is {actual}, {promised} is promised")]
    WrongImage {
        /// The database.
        db: DbName,
        /// What it should be.
        promised: Checksum,
        /// What it is.
        actual: Checksum,
    },
}

impl OpError {
    /// The number for the kernel.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Disk { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Log(error) => log_errno(error),
            Self::NotPrimary(_) => libc::EROFS,
            Self::ReplicaJournal(_) => libc::EACCES,
            Self::TooLarge { .. } => libc::EFBIG,
            Self::Timeout { .. } => libc::EAGAIN,
            Self::NotTracked(_)
            | Self::NotReplica(_)
            | Self::NameTaken { .. }
            | Self::HeaderIsGone(_)
            | Self::LogLost { .. }
            | Self::ChangedOffline(_)
            | Self::Sums(_)
            | Self::SumUnknown { .. }
            | Self::PagesContradict { .. }
            | Self::Encode { .. }
            | Self::Decode { .. }
            | Self::Merge { .. }
            | Self::Quarantined(_)
            | Self::Client { .. }
            | Self::WrongImage { .. } => libc::EIO,
        }
    }
}

impl OpError {
    /// Whether the log does not hold what was written to it: trying again does not help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Log(LogError::Damaged { .. }) | Self::Decode { .. })
    }

    /// Whether the cause is a disk, or a quota, that is used up.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return matches!(io.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT));
            }
            cause = error.source();
        }
        false
    }
}

/// A full disk is told apart: SQLite says "database or disk is full" then.
fn log_errno(error: &LogError) -> i32 {
    match error {
        LogError::Disk { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EIO,
    }
}

/// Names step and file of a failed system call.
pub(super) fn disk_error<'a>(
    step: &'static str,
    path: &'a Path,
) -> impl Fn(std::io::Error) -> OpError + use<'a> {
    move |source| OpError::Disk { step, path: path.to_owned(), source }
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
        source: DecodeError,
    },
    /// It carries no checksums, so it cannot be checked.
    #[error("{0}: a change set without checksums")]
    NoChecksums(DbName),
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
