//! What can go wrong with the log and the page sums.

use std::io;
use std::path::PathBuf;

use crate::types::{Checksum, Epoch, Pos, Txid};

/// Why the log did not do as asked. Unless a variant says otherwise nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The system refused; the log is as it was and may be used further.
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
    /// An earlier `fsync` failed, so nobody knows what is on the disk: the log takes no more records
    /// until the daemon has opened it anew.
    #[error(
        "{path}: an earlier fsync failed; the log takes no more records before it is opened anew"
    )]
    Failed {
        /// Directory of the log.
        path: PathBuf,
    },
    /// The record does not begin where the log ends.
    #[error("record {min}..{max} of epoch {epoch} on {pre} does not follow {position}")]
    OutOfOrder {
        /// Where the log ends.
        position: Pos,
        /// First transaction of the record.
        min: Txid,
        /// Last transaction of the record.
        max: Txid,
        /// Epoch of the record.
        epoch: Epoch,
        /// Checksum before the record.
        pre: Checksum,
    },
    /// The length in the record's info is not that of the bytes, or no record may be that long.
    #[error("a record of {bytes} bytes says it has {said}")]
    Length {
        /// What was given.
        bytes: usize,
        /// What the info says.
        said: u32,
    },
    /// A position to go back to is not in the log.
    #[error("{path}: {position} is not in the log")]
    NoSuchPosition {
        /// Directory of the log.
        path: PathBuf,
        /// What was asked for.
        position: Pos,
    },
    /// There is a log already.
    #[error("{path}: there is a log already")]
    Exists {
        /// Directory of the log.
        path: PathBuf,
    },
    /// There is no log.
    #[error("{path}: no log here")]
    Missing {
        /// Directory of the log.
        path: PathBuf,
    },
    /// Bytes that were written are not the bytes that are there: the database needs a snapshot.
    #[error(
        "{path}: damaged at byte {offset}: {what}; seed this database again from another node or a backup"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// Written by a later version of this program.
    #[error("{path}: format version {found}, this program knows {known}; use a newer one")]
    Version {
        /// The segment.
        path: PathBuf,
        /// What it says.
        found: u16,
        /// The newest one known here.
        known: u16,
    },
}

/// Why the page sums could not be read or written. The file may always be removed and rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum SumsError {
    /// The system refused.
    #[error("{step}: {path}")]
    Disk {
        /// Verb and object.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither header is whole: rebuild the file from the database.
    #[error("{path}: no valid header; remove the file, it is rebuilt from the database")]
    NoHeader {
        /// The file.
        path: PathBuf,
    },
    /// Written by a later version of this program.
    #[error(
        "{path}: format version {found}, this program knows {known}; remove the file, it is rebuilt"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u16,
        /// The newest one known here.
        known: u16,
    },
}
