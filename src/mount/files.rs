//! Operations on open regular files. The hot path of the whole program starts in [`Tree::write`].
//!
//! Every regular file belongs to a `Database`; writes, changes of length and syncs are its business.
//! Reads come from the backing file.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use fuser::OpenFlags;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::backing::{Directory, proc_path};
use super::errno::RequestError;
use super::handles::{FileHandle, Open, SpecialHandle};
use super::names::is_regular;
use super::special::is_special_ino;
use super::tree::{Caller, Entry, Located, Tree};
use crate::database::{Database, FileRole, OpenOutcome};

/// An open that is not answered yet.
#[derive(Debug)]
pub(super) struct PendingOpen {
    handle: FileHandle,
    /// A replica must hold the write lock first.
    attaches: bool,
    truncates: bool,
    /// Set if truncating must clear the set-user-id bits.
    drops_privileges: bool,
}

impl PendingOpen {
    /// Whether completing it waits for work that goes through the mount.
    pub(super) fn attaches(&self) -> bool {
        self.attaches
    }

    /// Whether completing it may commit a transaction.
    pub(super) fn may_commit(&self) -> bool {
        self.truncates
    }

    /// Whether the kernel need not tell when a descriptor is closed.
    pub(super) fn is_read_only(&self) -> bool {
        !self.handle.is_writable
    }
}

/// What an open led to.
#[derive(Debug)]
pub(super) enum Opened {
    File(PendingOpen),
    Special(u64),
}

fn is_writing(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Opens a backing file. The descriptor can also be read if it is for writing: the kernel has checked the
/// caller's permission, and `database` wants to see what it replaces.
fn open_backing(directory: &Directory<'_>, name: &OsStr, for_writing: bool) -> Result<File, Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let open = |access| rustix::fs::openat(directory, name, flags | access, Mode::empty());
    let fd = if for_writing {
        match open(OFlags::RDWR) {
            Err(Errno::ACCESS) => open(OFlags::WRONLY)?,
            result => result?,
        }
    } else {
        open(OFlags::RDONLY)?
    };
    Ok(File::from(fd))
}

impl Tree {
    pub(super) fn open(
        &self,
        ino: u64,
        flags: OpenFlags,
        caller: Caller,
    ) -> Result<Opened, RequestError> {
        let truncates = flags.0 & libc::O_TRUNC != 0;
        let is_writable = is_writing(flags.0) || truncates;
        if is_special_ino(ino) {
            return if is_writable { Err(RequestError::Reserved) } else { self.open_special(ino) };
        }
        let (file, db, role) = self.open_node(ino, is_writable)?;
        let outcome = db.open(role, caller.origin, is_writable, truncates)?;
        let handle = FileHandle { file, ino, db, role, origin: caller.origin, is_writable };
        Ok(Opened::File(PendingOpen {
            handle,
            attaches: outcome == OpenOutcome::AttachFirst,
            truncates,
            drops_privileges: caller.uid != 0,
        }))
    }

    /// Opens a node's backing file by one of its names, or anew through any handle if it has none left.
    fn open_node(
        &self,
        ino: u64,
        for_writing: bool,
    ) -> Result<(File, Arc<Database>, FileRole), RequestError> {
        for _ in 0..4 {
            let Some(Located { directory, name, .. }) = self.locate(ino) else { break };
            let file = match open_backing(&directory, &name, for_writing) {
                Ok(file) => file,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(RequestError::backing("open file")(error)),
            };
            let stat = rustix::fs::fstat(&file)
                .map_err(RequestError::backing("read attributes of opened file"))?;
            if stat.st_ino == ino && is_regular(&stat) {
                let (db, role) = self.store.resolve(&directory.child(&name)?);
                return Ok((file, db, role));
            }
        }
        let open = self.handles.of_inode(ino).ok_or(RequestError::Stale)?;
        let super::handles::OpenFd::File(other) = &open else { return Err(RequestError::Stale) };
        let file = File::options().read(true).write(for_writing).open(proc_path(&open));
        let file = file.map_err(RequestError::backing("open file without a name"))?;
        Ok((file, Arc::clone(&other.db), other.role))
    }

    fn open_special(&self, ino: u64) -> Result<Opened, RequestError> {
        let special = self.special_node(ino)?;
        let text = special.text(&self.store).ok_or(RequestError::Stale)?;
        let handle = SpecialHandle { special, text: Mutex::new(text) };
        Ok(Opened::Special(self.handles.insert(Open::Special(Arc::new(handle)))))
    }

    /// Creates and opens a file, or opens one that the kernel did not know of.
    pub(super) fn create(
        &self,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, PendingOpen), RequestError> {
        let directory = self.directory(parent)?;
        let path = directory.child(name)?;
        self.refuse_reserved(&directory, &path)?;
        let truncates = flags & libc::O_TRUNC != 0;
        let (db, role) = self.store.resolve(&path);
        let outcome = db.open(role, caller.origin, true, truncates)?;
        let created = self.create_backing(&directory, parent, name, mode, flags, caller);
        match created {
            Ok((entry, file, is_new)) => {
                let ino = entry.attr.ino.0;
                let origin = caller.origin;
                let handle = FileHandle { file, ino, db, role, origin, is_writable: true };
                let pending = PendingOpen {
                    handle,
                    attaches: outcome == OpenOutcome::AttachFirst,
                    truncates: truncates && !is_new,
                    drops_privileges: caller.uid != 0,
                };
                Ok((entry, pending))
            }
            Err(error) => {
                db.release(role, caller.origin, true);
                Err(error)
            }
        }
    }

    fn create_backing(
        &self,
        directory: &Directory<'_>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
    ) -> Result<(Entry, File, bool), RequestError> {
        let open_flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Set-id bits come last: giving the file away would clear them.
        let permissions = Mode::from_raw_mode(mode & 0o777);
        let opened = rustix::fs::openat(directory, name, open_flags, permissions);
        let (file, stat, is_new) = match opened {
            Ok(fd) => (File::from(fd), self.hand_over(directory, name, mode, caller)?, true),
            Err(Errno::EXIST) if flags & libc::O_EXCL == 0 => {
                let file = open_backing(directory, name, true)
                    .map_err(RequestError::backing("open existing file"))?;
                let stat = rustix::fs::fstat(&file)
                    .map_err(RequestError::backing("read attributes of opened file"))?;
                if !is_regular(&stat) {
                    return Err(RequestError::Stale);
                }
                (file, stat, false)
            }
            Err(error) => return Err(RequestError::backing("create file")(error)),
        };
        Ok((self.entry(parent, name, &stat)?, file, is_new))
    }

    /// Does what an open waits for, and gives it a handle.
    pub(super) fn complete_open(&self, pending: PendingOpen) -> Result<u64, RequestError> {
        let PendingOpen { handle, attaches, truncates, drops_privileges } = pending;
        let complete = || {
            if attaches {
                self.store.attach(&handle.db)?;
                // A copy from the primary may have taken the file's place meanwhile; the kernel looks again.
                let same = self.locate(handle.ino).is_some_and(|at| at.stat.st_ino == handle.ino);
                if !same {
                    return Err(RequestError::Stale);
                }
            }
            if truncates {
                handle.db.set_len(handle.role, handle.origin, &handle.file, 0)?;
                if drops_privileges {
                    drop_privileges(&handle.file)?;
                }
            }
            Ok(())
        };
        match complete() {
            Ok(()) => Ok(self.handles.insert(Open::File(Arc::new(handle)))),
            Err(error) => {
                handle.db.release(handle.role, handle.origin, handle.is_writable);
                Err(error)
            }
        }
    }

    /// Fills `buffer`; returns how much there was before the end of the file.
    pub(super) fn read(
        &self,
        fh: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, RequestError> {
        match self.handles.get(fh).ok_or(RequestError::BadHandle)? {
            Open::File(handle) => {
                let filled = read_full(&handle.file, offset, buffer)
                    .map_err(RequestError::backing("read file"))?;
                handle.db.show_counter(handle.role, offset, &mut buffer[..filled]);
                Ok(filled)
            }
            Open::Special(handle) => Ok(self.read_special(&handle, offset, buffer)),
            Open::Directory(_) => Err(RequestError::BadHandle),
        }
    }

    fn read_special(&self, handle: &SpecialHandle, offset: u64, buffer: &mut [u8]) -> usize {
        let mut text = handle.text.lock();
        if offset == 0 {
            // A file that has gone reads as empty.
            *text = handle.special.text(&self.store).unwrap_or_default();
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        let length = buffer.len().min(text.len() - from);
        buffer[..length].copy_from_slice(&text[from..from + length]);
        length
    }

    /// Writes; a transaction that this completes is in the log when it returns.
    pub(super) fn write(
        &self,
        fh: u64,
        offset: u64,
        data: &[u8],
        drops: bool,
    ) -> Result<(), RequestError> {
        let handle = self.handles.file(fh).ok_or(RequestError::BadHandle)?;
        handle.db.write(handle.role, handle.origin, &handle.file, offset, data)?;
        if drops {
            drop_privileges(&handle.file)?;
        }
        Ok(())
    }

    pub(super) fn fsync(&self, fh: u64) -> Result<(), RequestError> {
        match self.handles.get(fh).ok_or(RequestError::BadHandle)? {
            Open::File(handle) => Ok(handle.db.sync(handle.role, &handle.file)?),
            Open::Directory(_) | Open::Special(_) => Ok(()),
        }
    }

    /// The file whose closing needs work; `None` if the close can be answered at once.
    pub(super) fn needs_flush(&self, fh: u64) -> Option<Arc<FileHandle>> {
        let handle = self.handles.file(fh)?;
        handle.db.needs_flush(handle.role, handle.origin).then_some(handle)
    }

    pub(super) fn release(&self, fh: u64) {
        match self.handles.remove(fh) {
            Some(Open::File(handle)) => {
                handle.db.release(handle.role, handle.origin, handle.is_writable);
            }
            Some(Open::Directory(_) | Open::Special(_)) | None => (),
        }
    }

    /// Whether this change of length may commit a transaction or needs a file opened for it.
    pub(super) fn may_wait_for_length(&self, fh: Option<u64>) -> bool {
        fh.and_then(|fh| self.handles.file(fh))
            .is_none_or(|handle| handle.role == FileRole::Journal)
    }

    /// Sets a file's length, through the handle if there is one.
    pub(super) fn set_len(
        &self,
        ino: u64,
        fh: Option<u64>,
        length: u64,
        caller: Caller,
    ) -> Result<(), RequestError> {
        if let Some(handle) = fh.and_then(|fh| self.handles.file(fh)) {
            handle.db.set_len(handle.role, handle.origin, &handle.file, length)?;
            return if caller.uid == 0 { Ok(()) } else { drop_privileges(&handle.file) };
        }
        let (file, db, role) = self.open_node(ino, true)?;
        let origin = caller.origin;
        let outcome = db.open(role, origin, true, false)?;
        let change = || {
            if outcome == OpenOutcome::AttachFirst {
                self.store.attach(&db)?;
            }
            db.set_len(role, origin, &file, length)?;
            if db.needs_flush(role, origin) {
                db.flush(role, origin, caller.tid)?;
            }
            if caller.uid == 0 { Ok(()) } else { drop_privileges(&file) }
        };
        let result = change();
        db.release(role, origin, true);
        result
    }

    /// Reserves or releases ranges. A database only grows: SQLite knows no holes.
    pub(super) fn fallocate(
        &self,
        fh: u64,
        offset: u64,
        length: u64,
        mode: i32,
    ) -> Result<(), RequestError> {
        let handle = self.handles.file(fh).ok_or(RequestError::BadHandle)?;
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let is_plain = handle.role == FileRole::Main && handle.db.id().is_none();
        let step = RequestError::backing("reserve space");
        if is_plain && !flags.is_empty() {
            return rustix::fs::fallocate(&handle.file, flags, offset, length).map_err(step);
        }
        if !flags.is_empty() && flags != FallocateFlags::KEEP_SIZE {
            return Err(RequestError::FallocateDatabase(handle.db.name()));
        }
        let end = offset.checked_add(length).ok_or(RequestError::Invalid)?;
        rustix::fs::fallocate(&handle.file, FallocateFlags::KEEP_SIZE, offset, length)
            .map_err(step)?;
        if flags.is_empty() && end > self.length(&handle)? {
            handle.db.set_len(handle.role, handle.origin, &handle.file, end)?;
        }
        Ok(())
    }

    fn length(&self, handle: &FileHandle) -> Result<u64, RequestError> {
        let metadata = handle.file.metadata();
        Ok(metadata.map_err(RequestError::backing("read length of file"))?.len())
    }

    /// Finds data or a hole.
    pub(super) fn seek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64, RequestError> {
        let handle = self.handles.file(fh).ok_or(RequestError::BadHandle)?;
        let from = u64::try_from(offset)
            .map_err(|_| RequestError::Backing { step: "seek", source: Errno::NXIO.into() })?;
        // The descriptor's position moves, which nobody uses.
        let to = match whence {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(from),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(from),
            _ => return Err(RequestError::Invalid),
        };
        let found = rustix::fs::seek(&handle.file, to).map_err(RequestError::backing("seek"))?;
        i64::try_from(found).map_err(|_| RequestError::Invalid)
    }
}

/// Clears the bits that let a program run as somebody else, as a write by anybody but root must.
fn drop_privileges(file: &File) -> Result<(), RequestError> {
    let step = RequestError::backing;
    let stat = rustix::fs::fstat(file).map_err(step("read attributes of file"))?;
    let mode = stat.st_mode & 0o7777;
    let is_group_executable = mode & libc::S_IXGRP != 0;
    let cleared = mode & !libc::S_ISUID & !(if is_group_executable { libc::S_ISGID } else { 0 });
    if cleared == mode {
        return Ok(());
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(cleared)).map_err(step("clear set-id bits"))
}

fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A descriptor is being closed by a thread: captures what was written outside SQLite's protocol.
pub(super) fn flush(handle: &FileHandle, tid: u32) -> Result<(), RequestError> {
    Ok(handle.db.flush(handle.role, handle.origin, tid)?)
}
