//! A database's files under the mount: paths, opening, whole writes; and the locks of its main file.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::api::ClientError;
use super::lock::{self, Holder};
use crate::sqlite::{DatabaseHeader, LockRange};
use crate::types::DbName;

/// Why a step did not end.
#[derive(Debug)]
pub(super) enum Stop {
    /// A lock is held by somebody else: try the request again later. What was taken so far stays taken.
    Blocked { lock: &'static str, holder: Option<Holder> },
    /// It cannot be done.
    Failed(ClientError),
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

/// The outcome of a part of a request.
pub(super) type Step<T> = Result<T, Stop>;

/// Turns an I/O error into the error of a named step on a file.
pub(super) fn at<'a>(
    step: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ClientError + 'a {
    move |source| ClientError::Io { step, path: path.to_owned(), source }
}

/// Paths of a database's files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Paths {
    pub(super) main: PathBuf,
    pub(super) wal: PathBuf,
    pub(super) shm: PathBuf,
    pub(super) journal: PathBuf,
}

impl Paths {
    pub(super) fn new(mount: &Path, name: &DbName) -> Self {
        let main = mount.join(name.as_path());
        let with = |suffix: &str| {
            let mut path = main.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        Self { wal: with("-wal"), shm: with("-shm"), journal: with("-journal"), main }
    }

    /// The error for a part of this database that contradicts itself.
    pub(super) fn damaged(&self, what: &'static str) -> ClientError {
        ClientError::Damaged { path: self.main.clone(), what }
    }
}

/// An application may have put anything in a file's place: a link would lead away, a FIFO would wait.
pub(super) const OPEN_FLAGS: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Refuses everything else that can have a name.
pub(super) fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Opens a file of a database for reading.
///
/// # Errors
/// `NotFound` also if what has the name is no regular file.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    match File::options().read(true).custom_flags(OPEN_FLAGS).open(path) {
        Ok(file) => regular(file),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            Err(io::ErrorKind::NotFound.into())
        }
        Err(error) => Err(error),
    }
}

/// Opens a file of a database for reading and writing.
///
/// # Errors
/// `NotFound` also if what has the name is no regular file.
pub(super) fn open_to_write(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OPEN_FLAGS).open(path).and_then(regular)
}

/// Opens a companion of a database as SQLite does: with the database's owner and permissions, so that the
/// application's process can open it too.
pub(super) fn open_companion(path: &Path, main: &Metadata) -> Result<File, ClientError> {
    let mode = main.mode() & 0o777;
    let mut options = File::options();
    options.read(true).write(true).custom_flags(OPEN_FLAGS).mode(mode);
    match options.open(path).and_then(regular) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        opened => return opened.map_err(at("open", path)),
    }
    let created = options.create(true).truncate(false).open(path).and_then(regular);
    let file = created.map_err(at("create", path))?;
    let made = file.metadata().map_err(at("stat", path))?;
    if made.mode() & 0o777 != mode {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        file.set_permissions(permissions).map_err(at("set permissions of", path))?;
    }
    if (made.uid(), made.gid()) != (main.uid(), main.gid()) {
        // Only root can; for others the database is their own already, or its group cannot be given away.
        let given = std::os::unix::fs::fchown(&file, Some(main.uid()), Some(main.gid()));
        given.or_else(ignore_permission).map_err(at("set owner of", path))?;
    }
    Ok(file)
}

fn ignore_permission(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }
}

/// Length of a file; 0 if it does not exist. SQLite takes an empty companion for a missing one.
pub(super) fn len_or_zero(path: &Path) -> Result<u64, ClientError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(at("stat", path)(error)),
    }
}

/// Whether a path still leads to an open file.
pub(super) fn leads_to(path: &Path, file: &File) -> bool {
    match (std::fs::symlink_metadata(path), file.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// Removes a file; it may be gone already.
pub(super) fn remove(path: &Path) -> Result<(), ClientError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads as many bytes as there are, up to the length of the buffer.
pub(super) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// How much of the main file a session has locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    Unlocked,
    Shared,
    Exclusive,
}

/// The main file, with SQLite's locks on it.
#[derive(Debug)]
pub(super) struct MainFile {
    pub(super) file: File,
    level: Level,
    pending: bool,
    reserved: bool,
    /// Length of the file after our last write in place. Right while RESERVED is held; to ask the file after each write
    /// would cost two requests to the mount.
    len_known: Option<u64>,
}

impl MainFile {
    pub(super) fn new(file: File) -> Self {
        Self { file, level: Level::Unlocked, pending: false, reserved: false, len_known: None }
    }

    /// The database header, if there is a valid one.
    pub(super) fn header(&self, path: &Path) -> Result<Option<DatabaseHeader>, ClientError> {
        let mut bytes = [0; DatabaseHeader::SIZE];
        let filled = read_at(&self.file, &mut bytes, 0).map_err(at("read", path))?;
        Ok(DatabaseHeader::parse(&bytes[..filled]).ok())
    }

    /// Sees to it that connections find another change counter than `before`, or a change that did not move it would
    /// leave them with the pages they have. The daemon shows what is written here, and keeps the file as it is.
    pub(super) fn move_counter(
        &self,
        before: &DatabaseHeader,
        path: &Path,
    ) -> Result<(), ClientError> {
        let Some(now) = self.header(path)? else { return Ok(()) };
        let steps = now.change_counter.wrapping_sub(before.change_counter);
        // In WAL mode the counter means nothing, and whoever could have pages would hold a lock.
        if (1..1 << 31).contains(&steps) || (before.is_wal() && now.is_wal()) {
            return Ok(());
        }
        let counter = before.change_counter.wrapping_add(1).to_be_bytes();
        let mut places = vec![DatabaseHeader::COUNTER_AT];
        if now.version_valid_for == now.change_counter {
            places.push(DatabaseHeader::VALID_FOR_AT);
        }
        places.into_iter().try_for_each(|place| {
            let written = self.file.write_all_at(&counter, place.start as u64);
            written.map_err(at("write", path))
        })
    }

    pub(super) fn len(&self, path: &Path) -> Result<u64, ClientError> {
        Ok(self.file.metadata().map_err(at("stat", path))?.len())
    }

    /// Sets the length of the file after pages up to `written_to` were written. The caller is the only writer.
    pub(super) fn set_len_after_write(
        &mut self,
        written_to: u64,
        len: u64,
        path: &Path,
    ) -> Result<(), ClientError> {
        let current = match self.len_known.take() {
            Some(known) => known.max(written_to),
            None => self.len(path)?,
        };
        if current != len {
            self.file.set_len(len).map_err(at("truncate", path))?;
        }
        self.len_known = self.reserved.then_some(len);
        Ok(())
    }

    /// A write failed half-way: nobody knows how long the file is now.
    pub(super) fn forget_len(&mut self) {
        self.len_known = None;
    }

    /// Takes SHARED as SQLite does: through PENDING, so that a waiting writer is not starved.
    pub(super) fn lock_shared(&mut self, path: &Path) -> Step<()> {
        if self.level != Level::Unlocked {
            return Ok(());
        }
        if !lock::try_shared(&self.file, LockRange::PENDING).map_err(at("lock", path))? {
            return Err(self.blocked("PENDING", LockRange::PENDING));
        }
        let taken = lock::try_shared(&self.file, LockRange::SHARED);
        lock::unlock(&self.file, LockRange::PENDING).map_err(at("unlock", path))?;
        if !taken.map_err(at("lock", path))? {
            return Err(self.blocked("SHARED", LockRange::SHARED));
        }
        self.level = Level::Shared;
        Ok(())
    }

    /// Takes RESERVED: the one writer of a rollback database.
    pub(super) fn lock_reserved(&mut self, path: &Path) -> Step<()> {
        if !self.reserved {
            let range = LockRange::RESERVED;
            if !lock::try_exclusive(&self.file, range).map_err(at("lock", path))? {
                return Err(self.blocked("RESERVED", range));
            }
            self.reserved = true;
        }
        Ok(())
    }

    /// Takes EXCLUSIVE from SHARED. PENDING stays taken when readers are still there, so that no new one comes.
    pub(super) fn lock_exclusive(&mut self, path: &Path) -> Step<()> {
        debug_assert_ne!(self.level, Level::Unlocked, "SHARED comes first");
        if !self.pending {
            let range = LockRange::PENDING;
            if !lock::try_exclusive(&self.file, range).map_err(at("lock", path))? {
                return Err(self.blocked("PENDING", range));
            }
            self.pending = true;
        }
        if self.level != Level::Exclusive {
            let range = LockRange::SHARED;
            if !lock::try_exclusive(&self.file, range).map_err(at("lock", path))? {
                return Err(self.blocked("EXCLUSIVE", range));
            }
            self.level = Level::Exclusive;
        }
        Ok(())
    }

    /// Goes back to SHARED, and lets readers in again.
    pub(super) fn unlock_exclusive(&mut self, path: &Path) -> Result<(), ClientError> {
        if self.level == Level::Exclusive {
            lock::try_shared(&self.file, LockRange::SHARED).map_err(at("unlock", path))?;
            self.level = Level::Shared;
        }
        if self.pending {
            lock::unlock(&self.file, LockRange::PENDING).map_err(at("unlock", path))?;
            self.pending = false;
        }
        Ok(())
    }

    pub(super) fn unlock_reserved(&mut self, path: &Path) -> Result<(), ClientError> {
        if self.reserved {
            self.len_known = None;
            lock::unlock(&self.file, LockRange::RESERVED).map_err(at("unlock", path))?;
            self.reserved = false;
        }
        Ok(())
    }

    pub(super) fn is_exclusive(&self) -> bool {
        self.level == Level::Exclusive
    }

    pub(super) fn blocked(&self, name: &'static str, range: LockRange) -> Stop {
        Stop::Blocked { lock: name, holder: lock::holder(&self.file, range).unwrap_or(None) }
    }
}
