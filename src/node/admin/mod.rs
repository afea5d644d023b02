//! The admin socket: how the tools of this machine talk to a running node.
//!
//! `DATA/admin.sock`, for the daemon's own user. A request is one line of JSON; the answer is one or more
//! lines, and raw bytes where a line announces them. Called by `node` (server) and `cli` (client).
//! Nothing that arrives here is trusted: sizes and times have bounds, names are checked.

mod client;
mod export;
mod server;
mod verify;

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::status::Status;
use crate::types::{DbName, NameError};

pub use client::{AdminError, Client};
pub(super) use server::{AdminServer, Compare, Context};

/// Bytes of a request at most.
const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Bytes of an answer's line at most: a status of 100 000 databases fits.
const REPLY_BYTES_MAX: u64 = 64 << 20;
/// Bytes of pages in one message of an export.
const CHUNK_BYTES: usize = 1 << 20;
/// Name of the socket in the data directory.
const SOCKET: &str = "admin.sock";
/// Bytes of a path that fit into a socket's address, the final NUL not counted.
const ADDRESS_BYTES_MAX: usize = 107;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Status`].
    Status,
    /// Answered by some [`Reply::Copy`] and [`Reply::Pages`], one [`Reply::Copied`].
    Export {
        /// Which database.
        db: WireName,
    },
    /// Answered by [`Reply::Progress`] and one [`Reply::Verified`] for each database, then [`Reply::End`].
    Verify {
        /// Which database; all if there is none.
        db: Option<WireName>,
    },
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The node's state.
    Status(Box<Status>),
    /// A copy begins.
    Copy {
        /// Bytes per page.
        page_size: u32,
        /// About so many pages come.
        pages: u32,
    },
    /// So many bytes of raw pages follow this line.
    Pages {
        /// The first of them.
        first: u32,
        /// Bytes.
        bytes: usize,
    },
    /// The copy is complete: it is the database at `position`.
    Copied {
        /// `TXID/CHECKSUM`.
        position: String,
    },
    /// How far a long request is.
    Progress {
        /// About what: a database.
        what: String,
        /// Done so far.
        done: u64,
        /// Of so much.
        total: u64,
    },
    /// A database was compared.
    Verified(Verified),
    /// The request is answered.
    End,
    /// The request failed.
    Error {
        /// Names the thing and the remedy.
        message: String,
    },
}

/// What the comparison of one database found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Verified {
    /// Path below the mount.
    pub name: String,
    /// `TXID/CHECKSUM` at which it was compared.
    pub position: String,
    /// Pages read.
    pub pages: u32,
    /// Whether all that was compared is equal.
    pub ok: bool,
    /// Whether the pages' total is the position's checksum.
    pub checksum: bool,
    /// Pages that differ from the stored page sums, the first hundred.
    pub differing_pages: Vec<u32>,
    /// On a replica: the comparison with the primary.
    pub primary: Option<VerifiedPrimary>,
    /// What else to know, or to do.
    pub note: Option<String>,
}

/// What the comparison of one database with the primary found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerifiedPrimary {
    /// Whether the sums of all pages were compared at the position.
    pub compared: bool,
    /// Pages that are not what they are on the primary, the first hundred.
    pub differing_pages: Vec<u32>,
    /// What was found, or why it was not compared.
    pub result: String,
}

/// A database's name on the wire: text, or bytes if it is not UTF-8.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WireName {
    /// UTF-8.
    Text(String),
    /// Anything.
    Bytes(Vec<u8>),
}

impl From<&DbName> for WireName {
    fn from(name: &DbName) -> Self {
        match std::str::from_utf8(name.as_bytes()) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(name.as_bytes().to_owned()),
        }
    }
}

impl TryFrom<&WireName> for DbName {
    type Error = NameError;

    fn try_from(name: &WireName) -> Result<Self, NameError> {
        match name {
            WireName::Text(text) => Self::new(text.as_bytes()),
            WireName::Bytes(bytes) => Self::new(bytes),
        }
    }
}

/// The path to bind or connect to. A data directory whose path is too long for a socket's address is
/// reached through an open descriptor, which must live as long as the path is used.
fn address(data: &Path, name: &str) -> io::Result<(PathBuf, Option<std::fs::File>)> {
    let path = data.join(name);
    if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
        return Ok((path, None));
    }
    let directory = std::fs::File::open(data)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()));
    Ok((path, Some(directory)))
}
