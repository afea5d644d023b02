//! The border to the kernel: each request is counted, passed to [`Tree`], and answered.
//!
//! No decision is made here. A panic below is caught, so that the request is answered with EIO (a dropped
//! reply is) and the thread goes on serving.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tracing::{debug, error, warn};

use crate::disk::fault;

use super::attributes::{Change, Xattr};
use super::errno::RequestError;
use super::files::{self, Opened, PendingOpen};
use super::names::Found;
use super::requests::RequestKind;
use super::tree::{Caller, Entry, TTL, Tree};

/// Largest write in one request. SQLite writes a page or a frame at a time; copies write more.
const WRITE_MAX: u32 = 1 << 20;

/// Requests that the kernel may have under way without an application waiting (read-ahead, write-back).
const BACKGROUND_MAX: u16 = 256;

/// The file system as fuser sees it.
#[derive(Debug)]
pub(super) struct Fuse {
    tree: Arc<Tree>,
}

thread_local! {
    /// What is read for a READ; kept, because a fresh megabyte for each would cost more than the read.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Fuse {
    pub(super) fn new(tree: Arc<Tree>) -> Self {
        Self { tree }
    }

    fn serve(&self, kind: RequestKind, handle: impl FnOnce(&Arc<Tree>)) {
        self.tree.requests.count(kind);
        if catch_unwind(AssertUnwindSafe(|| handle(&self.tree))).is_err() {
            error!(request = kind.name(), "BUG: a request panicked; it was answered with EIO");
        }
    }
}

impl Tree {
    /// Logs an error once, here where it is handled, and gives the kernel's number for it.
    fn refuse(&self, kind: RequestKind, error: &RequestError) -> Errno {
        if error.is_serious() && self.requests.may_log() {
            warn!(request = kind.name(), error = %chain(error), "request failed");
        } else {
            debug!(request = kind.name(), error = %chain(error), "request refused");
        }
        error.errno()
    }

    fn reply_empty(&self, kind: RequestKind, result: Result<(), RequestError>, reply: ReplyEmpty) {
        match result {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.refuse(kind, &error)),
        }
    }

    fn reply_entry(
        &self,
        kind: RequestKind,
        result: Result<Entry, RequestError>,
        reply: ReplyEntry,
    ) {
        match result {
            Ok(Entry { attr, generation, ttl }) => {
                reply.entry(&ttl, &attr, Generation(generation));
            }
            Err(error) => reply.error(self.refuse(kind, &error)),
        }
    }

    fn reply_attr(
        &self,
        kind: RequestKind,
        result: Result<(FileAttr, Duration), RequestError>,
        reply: ReplyAttr,
    ) {
        match result {
            Ok((attr, ttl)) => reply.attr(&ttl, &attr),
            Err(error) => reply.error(self.refuse(kind, &error)),
        }
    }

    fn reply_xattr(
        &self,
        kind: RequestKind,
        result: Result<Xattr, RequestError>,
        reply: ReplyXattr,
    ) {
        match result {
            Ok(Xattr::Size(size)) => reply.size(size),
            Ok(Xattr::Data(data)) => reply.data(&data),
            Err(error) => reply.error(self.refuse(kind, &error)),
        }
    }

    fn serve_open(self: &Arc<Self>, ino: u64, flags: OpenFlags, caller: Caller, reply: ReplyOpen) {
        match self.open(ino, flags, caller) {
            Ok(Opened::Special(fh)) => {
                reply.opened(
                    FileHandle(fh),
                    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
                );
            }
            Ok(Opened::File(pending)) => {
                let flags = file_flags(pending.is_read_only());
                self.answer_open(pending, move |tree, result| match result {
                    Ok(fh) => reply.opened(FileHandle(fh), flags),
                    Err(error) => reply.error(tree.refuse(RequestKind::Open, &error)),
                });
            }
            Err(error) => reply.error(self.refuse(RequestKind::Open, &error)),
        }
    }

    fn serve_write(&self, fh: u64, offset: u64, data: &[u8], drops: bool, reply: ReplyWrite) {
        match self.write(fh, offset, data, drops) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(self.refuse(RequestKind::Write, &error)),
        }
    }

    fn serve_create(
        self: &Arc<Self>,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        caller: Caller,
        reply: ReplyCreate,
    ) {
        match self.create(parent, name, mode, flags, caller) {
            Ok((Entry { attr, generation, ttl }, pending)) => {
                let flags = file_flags(pending.is_read_only());
                self.answer_open(pending, move |tree, result| match result {
                    Ok(fh) => {
                        reply.created(&ttl, &attr, Generation(generation), FileHandle(fh), flags);
                    }
                    Err(error) => {
                        // The kernel does not learn of the entry.
                        tree.nodes.forget(attr.ino.0, 1);
                        reply.error(tree.refuse(RequestKind::Create, &error));
                    }
                });
            }
            Err(error) => reply.error(self.refuse(RequestKind::Create, &error)),
        }
    }

    /// Completes an open where it may wait, and answers.
    fn answer_open(
        self: &Arc<Self>,
        pending: PendingOpen,
        answer: impl FnOnce(&Self, Result<u64, RequestError>) + Send + 'static,
    ) {
        if pending.attaches() {
            self.wait_elsewhere(move |tree| answer(tree, tree.complete_open(pending)));
        } else if pending.may_commit() {
            self.wait(move |tree| answer(tree, tree.complete_open(pending)));
        } else {
            answer(self, self.complete_open(pending));
        }
    }
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Everything is cached until this daemon says otherwise: no change comes from elsewhere.
fn file_flags(is_read_only: bool) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
    if is_read_only {
        flags |= FopenFlags::FOPEN_NOFLUSH;
    }
    flags
}

/// What the kernel takes as "there is nothing by that name, and you may remember it".
fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Locks stay in the kernel (no POSIX_LOCKS, no FLOCK_LOCKS); writes come at once (no
        // WRITEBACK_CACHE); cached data is never dropped behind our back (no AUTO_INVAL_DATA).
        // KILLPRIV_V2 spares a GETXATTR before each write.
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_ASYNC_DIO,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                debug!(?flag, "the kernel lacks a FUSE feature");
            }
        }
        // The nearest possible value is as good.
        if let Err(nearest) = config.set_max_write(WRITE_MAX) {
            config.set_max_write(nearest).ok();
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            config.set_max_background(nearest).ok();
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.tree.close();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.serve(RequestKind::Lookup, |tree| match tree.lookup(parent.0, name) {
            Ok(Found::Entry(entry)) => tree.reply_entry(RequestKind::Lookup, Ok(entry), reply),
            Ok(Found::Absent) => reply.entry(&TTL, &absent(), Generation(0)),
            Ok(Found::NotYet) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(tree.refuse(RequestKind::Lookup, &error)),
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.serve(RequestKind::Forget, |tree| tree.nodes.forget(ino.0, lookups));
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(RequestKind::Getattr, |tree| {
            let result = tree.getattr(ino.0, fh.map(|fh| fh.0));
            tree.reply_attr(RequestKind::Getattr, result, reply);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { fh: fh.map(|fh| fh.0), mode, uid, gid, size, atime, mtime };
        self.serve(RequestKind::Setattr, |tree| {
            let caller = tree.caller(request);
            let answer = move |tree: &Tree| {
                let result = tree.setattr(ino.0, &change, caller);
                tree.reply_attr(RequestKind::Setattr, result, reply);
            };
            match size {
                // Without a handle a replica may have to take the write lock first.
                Some(_) if fh.is_none() => tree.wait_elsewhere(answer),
                Some(_) if fh.is_some_and(|fh| tree.is_occupied(fh.0)) => {
                    tree.park_if(true, move |tree| answer(tree));
                }
                Some(_) if tree.may_wait_for_length(fh.map(|fh| fh.0)) => tree.wait(answer),
                Some(_) | None => answer(tree),
            }
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(RequestKind::Readlink, |tree| match tree.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(tree.refuse(RequestKind::Readlink, &error)),
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Mknod, |tree| {
            let result = tree.mknod(parent.0, name, mode, tree.caller(request));
            tree.reply_entry(RequestKind::Mknod, result, reply);
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Mkdir, |tree| {
            let result = tree.mkdir(parent.0, name, mode, tree.caller(request));
            tree.reply_entry(RequestKind::Mkdir, result, reply);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Unlink, |tree| {
            let (name, caller) = (name.to_owned(), tree.caller(request));
            tree.wait(move |tree| {
                tree.reply_empty(RequestKind::Unlink, tree.unlink(parent.0, &name, caller), reply);
            });
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Rmdir, |tree| {
            tree.reply_empty(RequestKind::Rmdir, tree.rmdir(parent.0, name), reply);
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Symlink, |tree| {
            let result = tree.symlink(parent.0, link_name, target, tree.caller(request));
            tree.reply_entry(RequestKind::Symlink, result, reply);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Rename, |tree| {
            let (name, newname) = (name.to_owned(), newname.to_owned());
            let caller = tree.caller(request);
            tree.wait(move |tree| {
                let (from, to) = ((parent.0, name.as_os_str()), (newparent.0, newname.as_os_str()));
                let result = tree.rename(from, to, flags, caller);
                tree.reply_empty(RequestKind::Rename, result, reply);
            });
        });
    }

    fn link(
        &self,
        _request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.serve(RequestKind::Link, |tree| {
            let result = tree.link(ino.0, newparent.0, newname);
            tree.reply_entry(RequestKind::Link, result, reply);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.serve(RequestKind::Open, |tree| {
            let caller = tree.caller(request);
            tree.park_if(tree.is_node_occupied(ino.0), move |tree| {
                tree.serve_open(ino.0, flags, caller, reply);
            });
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.serve(RequestKind::Create, |tree| {
            let (name, caller) = (name.to_owned(), tree.caller(request));
            let is_occupied = tree.store.is_any_occupied()
                && tree.directory(parent.0).is_ok_and(|at| tree.is_name_occupied(&at, &name));
            tree.park_if(is_occupied, move |tree| {
                tree.serve_create(parent.0, &name, mode, flags, caller, reply);
            });
        });
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.serve(RequestKind::Read, |tree| {
            READ_BUFFER.with_borrow_mut(|buffer| {
                let size = size as usize;
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                match tree.read(fh.0, offset, &mut buffer[..size]) {
                    Ok(length) => reply.data(&buffer[..length]),
                    Err(error) => reply.error(tree.refuse(RequestKind::Read, &error)),
                }
            });
        });
    }

    fn write(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        fault::request_from(request.pid());
        self.serve(RequestKind::Write, |tree| {
            let drops = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
            if tree.is_occupied(fh.0) {
                let data = data.to_owned();
                tree.park_if(true, move |tree| {
                    tree.serve_write(fh.0, offset, &data, drops, reply);
                });
            } else {
                tree.serve_write(fh.0, offset, data, drops, reply);
            }
        });
    }

    fn flush(
        &self,
        request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let tid = request.pid();
        self.serve(RequestKind::Flush, |tree| {
            tree.park_if(tree.is_occupied(fh.0), move |tree| match tree.needs_flush(fh.0) {
                Some(handle) => tree.wait_elsewhere(move |tree| {
                    tree.reply_empty(RequestKind::Flush, files::flush(&handle, tid), reply);
                }),
                None => reply.ok(),
            });
        });
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Release, |tree| {
            tree.park_if(tree.is_occupied(fh.0), move |tree| {
                tree.release(fh.0);
                reply.ok();
            });
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Fsync, |tree| {
            if tree.is_occupied(fh.0) {
                return tree.park_if(true, move |tree| {
                    tree.reply_empty(RequestKind::Fsync, tree.fsync(fh.0), reply);
                });
            }
            tree.wait(move |tree| {
                tree.reply_empty(RequestKind::Fsync, tree.fsync(fh.0), reply);
            });
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(RequestKind::Opendir, |tree| match tree.opendir(ino.0) {
            Ok(fh) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Err(error) => reply.error(tree.refuse(RequestKind::Opendir, &error)),
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.serve(RequestKind::Readdir, |tree| match tree.readdir(fh.0, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(tree.refuse(RequestKind::Readdir, &error)),
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.serve(RequestKind::Readdirplus, |tree| {
            match tree.readdirplus(fh.0, offset, &mut reply) {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(tree.refuse(RequestKind::Readdirplus, &error)),
            }
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Releasedir, |tree| {
            tree.release(fh.0);
            reply.ok();
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Fsyncdir, |tree| {
            tree.wait(move |tree| {
                tree.reply_empty(RequestKind::Fsyncdir, tree.fsyncdir(fh.0), reply);
            });
        });
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.serve(RequestKind::Statfs, |tree| match tree.statfs() {
            Ok(size) => {
                let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
                reply.statfs(
                    size.f_blocks,
                    size.f_bfree,
                    size.f_bavail,
                    size.f_files,
                    size.f_ffree,
                    small(size.f_bsize),
                    small(size.f_namemax),
                    small(size.f_frsize),
                );
            }
            Err(error) => reply.error(tree.refuse(RequestKind::Statfs, &error)),
        });
    }

    fn setxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Setxattr, |tree| {
            let result = tree.setxattr(ino.0, name, value, flags);
            tree.reply_empty(RequestKind::Setxattr, result, reply);
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        self.serve(RequestKind::Getxattr, |tree| {
            tree.reply_xattr(RequestKind::Getxattr, tree.getxattr(ino.0, name, size), reply);
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.serve(RequestKind::Listxattr, |tree| {
            tree.reply_xattr(RequestKind::Listxattr, tree.listxattr(ino.0, size), reply);
        });
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.serve(RequestKind::Removexattr, |tree| {
            tree.reply_empty(RequestKind::Removexattr, tree.removexattr(ino.0, name), reply);
        });
    }

    fn fallocate(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.serve(RequestKind::Fallocate, |tree| {
            tree.wait(move |tree| {
                let result = tree.fallocate(fh.0, offset, length, mode);
                tree.reply_empty(RequestKind::Fallocate, result, reply);
            });
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.serve(RequestKind::Lseek, |tree| match tree.seek(fh.0, offset, whence) {
            Ok(found) => reply.offset(found),
            Err(error) => reply.error(tree.refuse(RequestKind::Lseek, &error)),
        });
    }

    // ENOSYS makes the kernel do these itself, or say that they are not supported, and not ask again.

    fn copy_file_range(
        &self,
        _request: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.serve(RequestKind::Other, |_| reply.error(RequestError::LeftToKernel.errno()));
    }

    fn bmap(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _blocksize: u32,
        _idx: u64,
        reply: ReplyBmap,
    ) {
        self.serve(RequestKind::Other, |_| reply.error(RequestError::LeftToKernel.errno()));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.serve(RequestKind::Other, |_| reply.error(RequestError::LeftToKernel.errno()));
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.serve(RequestKind::Other, |_| reply.error(RequestError::LeftToKernel.errno()));
    }
}
