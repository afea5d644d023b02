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

/// The file of a database whose position nobody knows.
const COPY: &str = "without-log.db";

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
    /// A file could not be written. A log that cannot be read is reported: what could be read is kept, and the database
    /// as a whole if this node may have committed to it.
    pub fn keep_extra(&self, db: &Database, extra: Extra) -> Result<usize, OpError> {
        let (count, is_complete) = self.keep_transactions(db, extra)?;
        if !is_complete {
            self.keep_copy(db)?;
        }
        Ok(count)
    }

    /// Returns how many files there are, and whether the log could be read.
    fn keep_transactions(&self, db: &Database, extra: Extra) -> Result<(usize, bool), OpError> {
        let name = db.name();
        let after = match extra {
            Extra::Behind(pos) => Ok(Some(pos)),
            Extra::All => db.log_base().map(Some),
            Extra::Own => self.own_since(db),
        };
        let mut files = Kept { dir: self.lost_dir(&name), count: 0, first: None, last: None };
        let mut after = match after {
            Ok(Some(after)) => after,
            Ok(None) => return Ok((0, true)),
            Err(cause) => {
                error!(db = %name, error = %cause, "transactions that the primary may lack cannot be read");
                return Ok((0, false));
            }
        };
        let is_complete = loop {
            let Some(records) = read(db, after) else { break false };
            let Some(last) = records.last() else { break true };
            after = last.pos;
            if !files.keep_all(&name, &records)? {
                break false;
            }
        };
        files.finish()?;
        if let (Some(first), Some(last)) = (files.first, files.last) {
            warn!(
                db = %name, from = first.get(), to = last.get(), files = files.count,
                path = %files.dir.display(),
                "this node has transactions that the primary does not have: kept as LTX files"
            );
        }
        Ok((files.count, is_complete))
    }

    /// Copies the file of a database whose log cannot be read to `lost+found`, unless all of it came from a primary.
    ///
    /// # Errors
    /// The copy could not be written.
    pub fn keep_copy(&self, db: &Database) -> Result<(), OpError> {
        let name = db.name();
        let path = self.shared.files.join(name.as_path());
        if !db.may_have_own() || !path.exists() {
            return Ok(());
        }
        // Nothing is applied meanwhile.
        let id = db.id().ok_or_else(|| OpError::NotTracked(db.name()))?;
        let _claim = self.to_apply.claim(id);
        if let Some(client) = self.shared.client().filter(|_| db.is_unused()) {
            self.detach(db, id, client);
        }
        let dir = self.lost_dir(&name);
        disk::create_dir_durable(&dir).map_err(failed("create directory", &dir))?;
        let to = free_name(&dir, COPY).map_err(failed("look for a free name", &dir))?;
        copy_database(&path, &to).map_err(failed("copy to lost+found", &path))?;
        sync_both(&dir)?;
        db.own_is_kept()?;
        warn!(
            db = %name, to = %to.display(),
            "the log cannot be read, and this node may have committed transactions that the primary does not have: the \
             file is kept"
        );
        Ok(())
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
            Ok(since) => since.is_some() || (db.is_without_log() && db.may_have_own()),
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
        if !db.is_written_back() {
            self.keep_transactions(db, Extra::All)?;
        }
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
                Ok(()) => {
                    let synced = fs::File::open(&to).and_then(|file| file.sync_all());
                    synced.map_err(failed("sync file", &to))?;
                }
                Err(_) => (),
            }
        }
        sync_both(&dir)?;
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

/// The next records, none at the end; `None` where the log cannot be read.
fn read(db: &Database, after: Pos) -> Option<Vec<LogRecord>> {
    // What lies before a damaged record is read one by one.
    match db.read_log(after, STEP_BYTES).or_else(|_| db.read_log(after, 1)) {
        Ok(LogRead::Records(records)) => Some(records),
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
    /// Returns whether all of them could be read.
    fn keep_all(&mut self, name: &DbName, records: &[LogRecord]) -> Result<bool, OpError> {
        for record in records {
            if let Err(cause) = record.ltx.check() {
                error!(db = %name, pos = %record.pos, error = %cause, "a transaction that the primary lacks cannot be read");
                return Ok(false);
            }
            self.keep(record)?;
        }
        Ok(true)
    }

    fn keep(&mut self, record: &LogRecord) -> Result<(), OpError> {
        let Some(header) = header(&record.ltx) else {
            error!(pos = %record.pos, "a record of the log is no change set");
            return Ok(());
        };
        let (min, max) = (header.min_txid, header.max_txid);
        if self.count == 0 {
            disk::create_dir_durable(&self.dir).map_err(failed("create directory", &self.dir))?;
        }
        let name = format!("{min}-{max}.ltx");
        let kept = names(&name).map(|name| self.dir.join(name));
        let kept = kept
            .take_while(|path| path.exists())
            .find(|path| holds(path, &record.ltx).unwrap_or(false));
        if let Some(path) = kept {
            // Whoever wrote it was perhaps killed before it was durable.
            let synced = fs::File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(failed("sync file", &path))?;
        } else {
            let path =
                free_name(&self.dir, &name).map_err(failed("look for a free name", &self.dir))?;
            copy(&mut record.ltx.reader(), &path).map_err(failed("keep a transaction", &path))?;
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
        sync_both(&self.dir)
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

/// Makes a file with this content, durably.
fn copy(from: &mut impl io::Read, to: &Path) -> io::Result<()> {
    let written = fs::File::create_new(to).and_then(|mut file| {
        io::copy(from, &mut file)?;
        file.sync_all()
    });
    written.inspect_err(|_| drop(fs::remove_file(to)))
}

/// Copies a file, its WAL and its journal.
fn copy_database(from: &Path, to: &Path) -> io::Result<()> {
    let suffixes = ["", "-wal", "-journal"];
    let copied =
        suffixes.iter().try_for_each(|suffix| match fs::File::open(with_suffix(from, suffix)) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !suffix.is_empty() => Ok(()),
            opened => copy(&mut opened?, &with_suffix(to, suffix)),
        });
    copied.inspect_err(|_| {
        for suffix in suffixes {
            drop(fs::remove_file(with_suffix(to, suffix)));
        }
    })
}

/// A database's directory, and the one that it is in: perhaps it was made by a daemon that was killed then.
fn sync_both(dir: &Path) -> Result<(), OpError> {
    for dir in [Some(dir), dir.parent()].into_iter().flatten() {
        disk::sync_dir(dir).map_err(failed("sync directory", dir))?;
    }
    Ok(())
}

/// A name, and then the same with numbers.
fn names(name: &str) -> impl Iterator<Item = String> + use<'_> {
    let (stem, end) = name.split_once('.').unwrap_or((name, ""));
    let numbered = (2..10_000_u32).map(move |n| format!("{stem}-{n}.{end}"));
    std::iter::once(name.to_owned()).chain(numbered)
}

/// The name, or the name with a number if there is such a file of an earlier time.
fn free_name(dir: &Path, name: &str) -> io::Result<PathBuf> {
    for name in names(name) {
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
    use crate::ltx::{Compressor, Encoder, Flags, WalSource};
    use crate::types::{Checksum, Epoch, PageNo, PageSize};

    fn record(content: u8) -> LogRecord {
        let header = Header {
            flags: Flags::NONE,
            page_size: PageSize::MIN,
            commit: 1,
            min_txid: Txid::FIRST,
            max_txid: Txid::FIRST,
            timestamp_ms: 0,
            pre_apply: None,
            wal: WalSource::default(),
            node_id: NodeId::new(1),
        };
        let data = vec![content; PageSize::MIN.bytes()];
        let sum = crate::ltx::page_sum(PageNo::FIRST, &data);
        let (mut compressor, mut out) = (Compressor::default(), Vec::new());
        let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).unwrap();
        encoder.page(PageNo::FIRST, &data).unwrap();
        encoder.finish(Checksum::EMPTY.toggle(sum)).unwrap();
        let pos = Pos { epoch: Epoch::new(1), txid: Some(Txid::FIRST), checksum: sum };
        LogRecord { epoch: pos.epoch, pos, ltx: Payload::Memory(out.into()) }
    }

    #[test]
    fn what_is_kept_already_is_not_kept_again() {
        let dir = tempfile::tempdir().unwrap();
        let name = DbName::new(b"x.db").unwrap();
        for (content, expected) in [(1, 1), (1, 1), (2, 2), (2, 2), (1, 2), (3, 3), (2, 3)] {
            let at = dir.path().join("x.db");
            let mut files = Kept { dir: at.clone(), count: 0, first: None, last: None };
            assert!(files.keep_all(&name, &[record(content)]).unwrap());
            files.finish().unwrap();
            assert_eq!(fs::read_dir(&at).unwrap().count(), expected, "{content}");
        }
    }

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
