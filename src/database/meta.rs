//! The small file beside a database's log that says whose log it is.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{self, clock};
use crate::types::{DbName, Txid};

/// Name of the file in the log's directory.
const FILE: &str = "meta.json";

/// What must be known about a database before its log is read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The name for people; `name_hex` counts.
    name: String,
    name_hex: String,
    /// A name that a rename in progress leaves; whichever of the two files exists is the database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renamed_from_hex: Option<String>,
    /// Every transaction up to this one is in the database file, durably. 0 = none.
    pub(crate) durable_txid: u64,
    /// Salts of the WAL when `durable_txid` was taken: a WAL found after a crash is not older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wal_salts: Option<(u32, u32)>,
    /// Which file it is, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileIdentity>,
    /// The file is being replaced by a copy from the primary.
    #[serde(default)]
    pub(crate) installing: bool,
    /// The database file was written outside every journal, or may have been, and that is not in the log: after a
    /// crash only a comparison of all pages tells.
    #[serde(default)]
    pub(crate) unlogged: bool,
    /// The boot of the machine in which the file may have become durable beyond the log (`synchronous=OFF`): after
    /// another one only a comparison of all pages tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unsynced_boot: Option<String>,
    /// Records up to this transaction were durable and are gone: a later log must not hide it. 0 = none.
    #[serde(default)]
    pub(crate) lost_from_txid: u64,
    /// All that the database holds came from a primary, or is kept elsewhere: this node has committed nothing since.
    #[serde(default)]
    pub(crate) only_received: bool,
    /// The daemon stopped in an orderly way: nothing to recover while the file still looks like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clean: Option<Clean>,
}

/// What the database file looked like at an orderly stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Clean {
    pub(crate) txid: u64,
    pub(crate) len: u64,
    pub(crate) mtime_ns: i128,
}

/// What tells a file from another of the same name. Inode numbers are given out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct FileIdentity {
    inode: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born_ns: Option<i128>,
}

impl FileIdentity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        let born = metadata.created().ok();
        let since = born.and_then(|born| born.duration_since(std::time::UNIX_EPOCH).ok());
        Self { inode, born_ns: since.and_then(|since| since.as_nanos().try_into().ok()) }
    }
}

impl Clean {
    /// What a file looks like now.
    pub(crate) fn of(txid: Option<Txid>, metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let mtime_ns =
            i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { txid: txid.map_or(0, Txid::get), len: metadata.len(), mtime_ns }
    }
}

impl Meta {
    pub(crate) fn new(name: &DbName) -> Self {
        Self {
            name: name.to_string(),
            name_hex: to_hex(name.as_bytes()),
            renamed_from_hex: None,
            durable_txid: 0,
            wal_salts: None,
            file: None,
            installing: false,
            unlogged: false,
            unsynced_boot: None,
            lost_from_txid: 0,
            only_received: false,
            clean: None,
        }
    }

    /// Notes which file it is.
    pub(crate) fn is_for(&mut self, metadata: &std::fs::Metadata) {
        self.file = Some(FileIdentity::of(metadata));
    }

    /// Whether a file is another than the one noted.
    pub(crate) fn is_for_another_than(&self, metadata: &std::fs::Metadata) -> bool {
        self.file.is_some_and(|file| file != FileIdentity::of(metadata))
    }

    /// Whether the machine has gone down while the file was perhaps durable beyond the log.
    pub(crate) fn may_lead_after_power_loss(&self) -> bool {
        self.unsynced_boot.is_some() && self.unsynced_boot != clock::boot_id()
    }

    /// The transaction that the log must reach.
    pub(crate) fn promised_txid(&self) -> u64 {
        let clean = self.clean.map_or(0, |clean| clean.txid);
        self.durable_txid.max(clean).max(self.lost_from_txid)
    }

    pub(crate) fn rename(&mut self, to: &DbName) {
        self.renamed_from_hex = Some(std::mem::replace(&mut self.name_hex, to_hex(to.as_bytes())));
        self.name = to.to_string();
    }

    pub(crate) fn rename_is_done(&mut self) {
        self.renamed_from_hex = None;
    }

    /// The name, and the one before if a rename was in progress.
    pub(crate) fn names(&self) -> (Option<DbName>, Option<DbName>) {
        let parse = |hex: &str| from_hex(hex).and_then(|bytes| DbName::new(&bytes).ok());
        (parse(&self.name_hex), self.renamed_from_hex.as_deref().and_then(parse))
    }

    pub(crate) fn load(log_dir: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(log_dir.join(FILE))?;
        serde_json::from_slice(&bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    pub(crate) fn save(&self, log_dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        disk::replace(&log_dir.join(FILE), &bytes)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("BUG: writing to a String cannot fail");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strange_names_survive() {
        let dir = tempfile::tempdir().unwrap();
        let name = DbName::new(b"a b/\xff\n.db").unwrap();
        let mut meta = Meta::new(&name);
        meta.durable_txid = 7;
        meta.save(dir.path()).unwrap();
        assert_eq!(Meta::load(dir.path()).unwrap(), meta);
        assert_eq!(meta.names(), (Some(name.clone()), None));
        let other = DbName::new(b"c").unwrap();
        meta.rename(&other);
        assert_eq!(meta.names(), (Some(other), Some(name)));
    }
}
