//! Operations on names: look up, make, remove, rename, link.
//!
//! The kernel holds the lock of the directory that changes, so no two of these meet in one directory.
//! Removing and renaming go through `store`, which captures or commits first and then calls back.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use fuser::RenameFlags;
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags as BackingFlags, Stat};
use rustix::io::Errno;

use super::backing::Directory;
use super::errno::RequestError;
use super::special::{self, Special};
use super::tree::{Caller, Entry, Tree};
use crate::database::FileRole;
use crate::types::DbName;

/// What a look-up found.
#[derive(Debug)]
pub(super) enum Found {
    /// It is there.
    Entry(Entry),
    /// It is not there, and the kernel may remember that.
    Absent,
    /// It is not there now, but may appear without a request.
    NotYet,
}

/// Whether a file is a regular one.
pub(super) fn is_regular(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether removing this name removes the file.
fn is_last_name(stat: &Stat) -> bool {
    is_directory(stat) || stat.st_nlink <= 1
}

impl Tree {
    pub(super) fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found, RequestError> {
        let directory = self.directory(parent)?;
        let path = directory.child(name)?;
        if directory.is_root()
            && let Some(special @ (Special::Primary | Special::Lag)) =
                Special::named(&self.store, true, &path)
        {
            let entry = self.special_entry(&special, parent, name)?;
            return Ok(entry.map_or(Found::NotYet, Found::Entry));
        }
        match directory.stat(name) {
            Ok(stat) => self.entry(parent, name, &stat).map(Found::Entry),
            Err(Errno::NOENT) if special::may_appear(directory.is_root(), name) => {
                let entry = match Special::named(&self.store, directory.is_root(), &path) {
                    Some(special) => self.special_entry(&special, parent, name)?,
                    None => None,
                };
                Ok(entry.map_or(Found::NotYet, Found::Entry))
            }
            Err(Errno::NOENT) => Ok(Found::Absent),
            Err(error) => Err(RequestError::backing("look up name")(error)),
        }
    }

    /// Gives a new file to the caller and sets the mode that was asked for; the backing file system has
    /// applied this process's own identity and umask.
    pub(super) fn hand_over(
        &self,
        directory: &Directory<'_>,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Stat, RequestError> {
        let step = RequestError::backing;
        let stat = directory.stat(name).map_err(step("read attributes of new file"))?;
        let mut is_changed = false;
        if self.backing.gives_away && (stat.st_uid != caller.uid || stat.st_gid != caller.gid) {
            let parent = rustix::fs::statat(directory, "", AtFlags::EMPTY_PATH)
                .map_err(step("read attributes of directory"))?;
            let is_inherited = parent.st_mode & libc::S_ISGID != 0;
            let gid = (!is_inherited).then(|| rustix::fs::Gid::from_raw(caller.gid));
            let uid = rustix::fs::Uid::from_raw(caller.uid);
            rustix::fs::chownat(directory, name, Some(uid), gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(step("give new file to its owner"))?;
            is_changed = true;
        }
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        let kept = if is_directory(&stat) { stat.st_mode & libc::S_ISGID } else { 0 };
        let wanted = (mode & 0o7777) | kept;
        if !is_link && (stat.st_mode & 0o7777 != wanted || (is_changed && wanted & 0o6000 != 0)) {
            rustix::fs::chmodat(directory, name, Mode::from_raw_mode(wanted), AtFlags::empty())
                .map_err(step("set mode of new file"))?;
            is_changed = true;
        }
        if is_changed {
            return directory.stat(name).map_err(step("read attributes of new file"));
        }
        Ok(stat)
    }

    pub(super) fn mknod(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry, RequestError> {
        let directory = self.directory(parent)?;
        let path = directory.child(name)?;
        self.refuse_reserved(&directory, &path)?;
        let file_type = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            _ => return Err(RequestError::DeviceNode),
        };
        let make = || {
            rustix::fs::mknodat(&directory, name, file_type, Mode::from_raw_mode(mode & 0o7777), 0)
                .map_err(RequestError::backing("make node"))
        };
        if file_type == FileType::RegularFile {
            let (db, role) = self.store.resolve(&path);
            // Nothing is written through this open, so it need not wait for a replica's write lock.
            db.open(role, caller.origin, true, false)?;
            let made = make();
            db.release(role, caller.origin, true);
            made?;
        } else {
            make()?;
        }
        let stat = self.hand_over(&directory, name, mode, caller)?;
        self.entry(parent, name, &stat)
    }

    pub(super) fn mkdir(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        caller: Caller,
    ) -> Result<Entry, RequestError> {
        let directory = self.directory(parent)?;
        self.refuse_reserved(&directory, &directory.child(name)?)?;
        rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(mode & 0o7777))
            .map_err(RequestError::backing("make directory"))?;
        let stat = self.hand_over(&directory, name, mode, caller)?;
        self.entry(parent, name, &stat)
    }

    pub(super) fn symlink(
        &self,
        parent: u64,
        name: &OsStr,
        target: &Path,
        caller: Caller,
    ) -> Result<Entry, RequestError> {
        let directory = self.directory(parent)?;
        self.refuse_reserved(&directory, &directory.child(name)?)?;
        rustix::fs::symlinkat(target, &directory, name)
            .map_err(RequestError::backing("make symbolic link"))?;
        let stat = self.hand_over(&directory, name, 0o777, caller)?;
        self.entry(parent, name, &stat)
    }

    pub(super) fn readlink(&self, ino: u64) -> Result<Vec<u8>, RequestError> {
        let fd = self.node_fd(ino, None)?;
        let target = rustix::fs::readlinkat(&fd, "", Vec::new())
            .map_err(RequestError::backing("read symbolic link"))?;
        Ok(target.into_bytes())
    }

    /// Another name for a file. A database or companion gets none: SQLite would look for the journal and
    /// the WAL under the wrong name.
    pub(super) fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Entry, RequestError> {
        let target = self.directory(parent)?;
        self.refuse_reserved(&target, &target.child(name)?)?;
        let source = self.locate(ino).ok_or(RequestError::Stale)?;
        if is_regular(&source.stat) {
            let path = source.directory.child(&source.name)?;
            let (db, _) = self.store.resolve(&path);
            if db.id().is_some() {
                return Err(RequestError::SecondName(path));
            }
        }
        let flags = AtFlags::empty();
        rustix::fs::linkat(&source.directory, &source.name, &target, name, flags)
            .map_err(RequestError::backing("make hard link"))?;
        let stat = target.stat(name).map_err(RequestError::backing("read attributes of link"))?;
        self.entry(parent, name, &stat)
    }

    pub(super) fn unlink(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
    ) -> Result<(), RequestError> {
        let directory = self.directory(parent)?;
        let path = directory.child(name)?;
        let stat = self.stat_to_remove(&directory, name, &path)?;
        let ino = self.backing.ino(&stat)?;
        let mut remove = || -> io::Result<()> {
            rustix::fs::unlinkat(&directory, name, AtFlags::empty())?;
            self.nodes.unlinked(ino, parent, name, is_last_name(&stat));
            Ok(())
        };
        if is_regular(&stat) {
            return Ok(self.store.unlink(&path, caller.origin, &mut remove)?);
        }
        remove().map_err(RequestError::backing("remove name"))
    }

    pub(super) fn rmdir(&self, parent: u64, name: &OsStr) -> Result<(), RequestError> {
        let directory = self.directory(parent)?;
        let path = directory.child(name)?;
        let stat = self.stat_to_remove(&directory, name, &path)?;
        let ino = self.backing.ino(&stat)?;
        rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR)
            .map_err(RequestError::backing("remove directory"))?;
        self.nodes.unlinked(ino, parent, name, true);
        Ok(())
    }

    /// Attributes of an entry that is to be removed or renamed; a special file cannot be.
    fn stat_to_remove(
        &self,
        directory: &Directory<'_>,
        name: &OsStr,
        path: &DbName,
    ) -> Result<Stat, RequestError> {
        let special = Special::named(&self.store, directory.is_root(), path);
        let is_root_special = matches!(special, Some(Special::Primary | Special::Lag));
        if is_root_special && special.as_ref().is_some_and(|it| it.text(&self.store).is_some()) {
            return Err(RequestError::Reserved);
        }
        match directory.stat(name) {
            Ok(_) if is_root_special => Err(RequestError::backing("look up name")(Errno::NOENT)),
            Err(Errno::NOENT) if special.is_some() && !is_root_special => {
                Err(RequestError::Reserved)
            }
            result => result.map_err(RequestError::backing("look up name")),
        }
    }

    pub(super) fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        flags: RenameFlags,
        caller: Caller,
    ) -> Result<(), RequestError> {
        let known = RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE;
        if !known.contains(flags) || flags == known {
            return Err(RequestError::RenameFlags(flags.bits()));
        }
        let (from_directory, to_directory) = (self.directory(from.0)?, self.directory(to.0)?);
        let (from_path, to_path) = (from_directory.child(from.1)?, to_directory.child(to.1)?);
        let from_stat = self.stat_to_remove(&from_directory, from.1, &from_path)?;
        self.refuse_reserved(&to_directory, &to_path)?;
        let from_ino = self.backing.ino(&from_stat)?;
        let to_stat = match to_directory.stat(to.1) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(RequestError::backing("look up name")(error)),
        };
        let to_ino = to_stat.as_ref().map(|stat| self.backing.ino(stat)).transpose()?;
        if to_ino == Some(from_ino) {
            // Two names of one file: rename(2) leaves both.
            return Ok(());
        }
        let backing_flags = BackingFlags::from_bits_retain(flags.bits());
        let rename = || {
            rustix::fs::renameat_with(&from_directory, from.1, &to_directory, to.1, backing_flags)
        };
        if flags.contains(RenameFlags::RENAME_EXCHANGE) {
            self.refuse_exchange(&from_stat, &from_path)?;
            if let Some(stat) = &to_stat {
                self.refuse_exchange(stat, &to_path)?;
            }
            let _agree = self.renames.write();
            rename().map_err(RequestError::backing("exchange names"))?;
            self.nodes.renamed(from_ino, from, to);
            if let Some(to_ino) = to_ino {
                self.nodes.renamed(to_ino, to, from);
            }
            return Ok(());
        }
        let mut rename = || -> io::Result<()> {
            let _agree = self.renames.write();
            rename()?;
            if let (Some(stat), Some(ino)) = (&to_stat, to_ino) {
                self.nodes.unlinked(ino, to.0, to.1, is_last_name(stat));
            }
            self.nodes.renamed(from_ino, from, to);
            Ok(())
        };
        Ok(self.store.rename(&from_path, &to_path, caller.origin, &mut rename)?)
    }

    /// Databases do not trade places: each identity would have to change its name at the same instant.
    fn refuse_exchange(&self, stat: &Stat, path: &DbName) -> Result<(), RequestError> {
        let is_refused = if is_directory(stat) {
            let inside = [path.as_bytes(), b"/"].concat();
            self.store.databases().iter().any(|db| db.name().as_bytes().starts_with(&inside))
        } else if is_regular(stat) {
            let (db, role) = self.store.resolve(path);
            role != FileRole::Main
                || db.id().is_some()
                || self.handles.of_inode(stat.st_ino).is_some()
        } else {
            false
        };
        if is_refused { Err(RequestError::ExchangeDatabase(path.clone())) } else { Ok(()) }
    }
}
