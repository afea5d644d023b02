//! Keeps what a replica has beyond its primary before that is given up: in `lost+found`, in a directory per database.
//!
//! Transactions become LTX files, a database that the primary does not have is kept as a whole. Everything is durable
//! before the caller goes on.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tracing::{error, info, warn};

use super::Store;
use crate::client::Request;
use crate::database::{Database, LogRead, LogRecord, OpError};
use crate::disk;
use crate::log::Payload;
use crate::ltx::{Header, IndexedFile};
use crate::types::{DbName, NodeId, Pos, Txid};

/// Bytes of log that are read at a time.
const STEP_BYTES: usize = 1 << 20;
/// The name of a directory has room for 255 bytes, and the last of them for what tells long names apart.
const ESCAPED_BYTES_MAX: usize = 220;

/// Which of a database's transactions the primary may not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extra {
    /// All behind a position.
    Behind(Pos),
    /// All that this node committed itself since it last received one; nobody can say whether the primary has them.
    Own,
    /// All that the log holds.
    All,
}

impl Store {
    /// Keeps transactions of a database in `lost+found` as LTX files. Returns how many files there are of them.
    ///
    /// # Errors
    /// A file could not be written. A log that cannot be read is reported, and what could be read is kept.
    pub fn keep_extra(&self, db: &Database, extra: Extra) -> Result<usize, OpError> {
        let name = db.name();
        let after = match extra {
            Extra::Behind(pos) => Ok(Some(pos)),
            Extra::All => db.log_base().map(Some),
            Extra::Own => self.own_since(db),
        };
        let mut files = Kept { dir: self.lost_dir(&name), count: 0, first: None, last: None };
        let mut after = match after {
            Ok(Some(after)) => after,
            Ok(None) => return Ok(0),
            Err(cause) => {
                error!(db = %name, error = %cause, "transactions that the primary may lack cannot be read");
                return Ok(0);
            }
        };
        while let Some(records) = read(db, after) {
            for record in &records {
                files.keep(record)?;
                after = record.pos;
            }
        }
        files.finish()?;
        if let (Some(first), Some(last)) = (files.first, files.last) {
            warn!(
                db = %name, from = first.get(), to = last.get(), files = files.count,
                path = %files.dir.display(),
                "this node has transactions that the primary does not have: kept as LTX files"
            );
        }
        Ok(files.count)
    }

    /// The position behind which this node committed every transaction itself; `None` if the last was received.
    fn own_since(&self, db: &Database) -> Result<Option<Pos>, OpError> {
        let mut after = db.log_base()?;
        let mut since = None;
        loop {
            let LogRead::Records(records) = db.read_log(after, STEP_BYTES)? else {
                return Ok(None);
            };
            if records.is_empty() {
                return Ok(since);
            }
            for record in records {
                let is_own = author(&record.ltx) == Some(self.shared.node);
                since = is_own.then(|| since.unwrap_or(after));
                after = record.pos;
            }
        }
    }

    /// Moves the file of a database that the primary does not have to `lost+found` if this node committed to it last.
    pub(super) fn keep_own_file(&self, db: &Database) -> Result<(), OpError> {
        let name = db.name();
        let is_own = match self.own_since(db) {
            Ok(since) => since.is_some(),
            Err(cause) => {
                warn!(db = %name, error = %cause, "its log cannot be read: the file is kept");
                true
            }
        };
        if !is_own || !self.shared.files.join(name.as_path()).exists() {
            return Ok(());
        }
        // Brings the WAL back if no application is there.
        drop(self.call(db, Request::Detach));
        let dir = self.lost_dir(&name);
        disk::create_dir_durable(&dir).map_err(failed("create directory", &dir))?;
        let stem = format!("{:016x}.db", db.position().txid_raw());
        let to = free_name(&dir, &stem).map_err(failed("look for a free name", &dir))?;
        for suffix in ["-wal", "-journal", ""] {
            let from = self.shared.files.join(with_suffix(name.as_path(), suffix));
            let to = with_suffix(&to, suffix);
            #[allow(clippy::disallowed_methods, reason = "the content is not new")]
            match fs::rename(&from, &to) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("move to lost+found", &from)(cause));
                }
                Ok(()) | Err(_) => (),
            }
        }
        disk::sync_dir(&dir).map_err(failed("sync directory", &dir))?;
        self.invalidate(&name);
        warn!(
            db = %name, pos = %db.position(), to = %to.display(),
            "the primary does not have this database, and this node committed to it: kept"
        );
        Ok(())
    }

    /// Where what is lost of a database is kept.
    #[must_use]
    pub fn lost_dir(&self, name: &DbName) -> PathBuf {
        self.lost_and_found.join(escaped(name))
    }

    /// How many files are kept of a database's transactions.
    #[must_use]
    pub fn lost_files(&self, name: &DbName) -> usize {
        let entries = fs::read_dir(self.lost_dir(name)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "ltx")).count()
    }
}

/// The next records; `None` at the end, or where the log cannot be read.
fn read(db: &Database, after: Pos) -> Option<Vec<LogRecord>> {
    match db.read_log(after, STEP_BYTES) {
        Ok(LogRead::Records(records)) => (!records.is_empty()).then_some(records),
        Ok(LogRead::NeedsSnapshot) => {
            error!(db = %db.name(), pos = %after, "the log does not reach back to what the primary has");
            None
        }
        Err(cause) => {
            error!(db = %db.name(), error = %cause, "transactions that the primary lacks cannot be read");
            None
        }
    }
}

/// The node that committed a transaction.
fn author(ltx: &Payload) -> Option<NodeId> {
    header(ltx).map(|header| header.node_id)
}

fn header(ltx: &Payload) -> Option<Header> {
    let file = IndexedFile::open(ltx.len(), |at, buffer| ltx.read_at(at, buffer));
    file.ok().map(|file| *file.header())
}

/// Bytes that are compared at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Files of one database being kept.
struct Kept {
    dir: PathBuf,
    count: usize,
    first: Option<Txid>,
    last: Option<Txid>,
}

impl Kept {
    fn keep(&mut self, record: &LogRecord) -> Result<(), OpError> {
        let Some(header) = header(&record.ltx) else {
            error!(pos = %record.pos, "a record of the log is no change set");
            return Ok(());
        };
        let (min, max) = (header.min_txid, header.max_txid);
        if self.count == 0 {
            disk::create_dir_durable(&self.dir).map_err(failed("create directory", &self.dir))?;
        }
        let path = self.dir.join(format!("{min}-{max}.ltx"));
        if !holds(&path, &record.ltx).unwrap_or(false) {
            let path = free_name(&self.dir, &format!("{min}-{max}.ltx"))
                .map_err(failed("look for a free name", &path))?;
            write(&path, &record.ltx).map_err(failed("keep a transaction", &path))?;
        }
        self.count += 1;
        self.first.get_or_insert(min);
        self.last = Some(max);
        Ok(())
    }

    fn finish(&self) -> Result<(), OpError> {
        if self.count == 0 {
            return Ok(());
        }
        info!(path = %self.dir.display(), files = self.count, "kept");
        disk::sync_dir(&self.dir).map_err(failed("sync directory", &self.dir))
    }
}

/// Whether a file holds just this.
fn holds(path: &Path, ltx: &Payload) -> io::Result<bool> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() != ltx.len() {
        return Ok(false);
    }
    let (mut kept, mut wanted) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    while at < ltx.len() {
        let len = usize::try_from(ltx.len() - at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        file.read_exact_at(&mut kept[..len], at)?;
        ltx.read_at(at, &mut wanted[..len])?;
        if kept[..len] != wanted[..len] {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}

fn write(path: &Path, ltx: &Payload) -> io::Result<()> {
    let written = fs::File::create_new(path).and_then(|mut file| {
        io::copy(&mut ltx.reader(), &mut file)?;
        file.sync_all()
    });
    written.inspect_err(|_| drop(fs::remove_file(path)))
}

/// The name, or the name with a number if there is such a file of an earlier time.
fn free_name(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let (stem, end) = name.split_once('.').unwrap_or((name, ""));
    for n in 1..10_000_u32 {
        let name = if n == 1 { name.to_owned() } else { format!("{stem}-{n}.{end}") };
        let path = dir.join(name);
        match fs::symlink_metadata(&path) {
            Ok(_) => (),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(cause) => return Err(cause),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A database's name as the name of one directory: other bytes than letters, digits, `.`, `_` and `-` as `%` and two
/// digits.
fn escaped(name: &DbName) -> String {
    let mut text = String::new();
    for (at, byte) in name.as_path().as_os_str().as_bytes().iter().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || (b"._-".contains(byte) && at > 0);
        if is_plain {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    if text.len() > ESCAPED_BYTES_MAX {
        let sum = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        text.truncate(ESCAPED_BYTES_MAX);
        text.push_str(&format!("~{sum:016x}"));
    }
    text
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl Fn(io::Error) -> OpError + use<'a> {
    move |source| OpError::Disk { step, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_becomes_one_directory_of_its_own() {
        let check = |name: &[u8], expected: &str| {
            assert_eq!(escaped(&DbName::new(name).unwrap()), expected);
        };
        check(b"app.db", "app.db");
        check(b"t/7.db", "t%2f7.db");
        check(b"t%2f7.db", "t%252f7.db");
        check(b".hidden", "%2ehidden");
        check(b"a b\xff", "a%20b%ff");
        let long = |end: &str| {
            escaped(&DbName::new(format!("{}{end}", "d/".repeat(1000)).as_bytes()).unwrap())
        };
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() <= 255);
    }
}
