//! The file system in its own words: from inode numbers to backing files.
//!
//! `fuse` turns requests into calls of this type; `names`, `files`, `attributes` and `listing` are its
//! operations. FUSE threads run them; what may wait for more than a page of disk goes through [`Tree::wait`].
//! Nothing here ever waits for work that goes through the mount, except on a worker.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fuser::FileAttr;
use parking_lot::RwLock;
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::backing::{Backing, Directory};
use super::errno::RequestError;
use super::handles::{Handles, Open, OpenFd};
use super::nodes::{Nodes, ROOT};
use super::requests::Requests;
use super::special::Special;
use super::workers::Workers;
use crate::client::Pool;
use crate::database::Origin;
use crate::store::Store;
use crate::types::DbName;

/// How long the kernel may remember names, absent names and attributes. Everything that changes goes
/// through the mount, or is invalidated, so this is "for ever".
pub(super) const TTL: Duration = Duration::from_secs(365 * 24 * 3600);

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) origin: Origin,
    /// The kernel's number of the thread.
    pub(super) tid: u32,
}

/// An answer to a look-up.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) attr: FileAttr,
    pub(super) generation: u64,
    pub(super) ttl: Duration,
}

/// A node found by one of its names.
#[derive(Debug)]
pub(super) struct Located<'a> {
    pub(super) directory: Directory<'a>,
    pub(super) name: OsString,
    pub(super) stat: Stat,
}

/// A descriptor that leads to a node, for calls on its `/proc` path.
#[derive(Debug)]
pub(super) enum NodeFd<'a> {
    Root(BorrowedFd<'a>),
    Path(OwnedFd),
    Open(OpenFd),
}

impl AsFd for NodeFd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Path(fd) => fd.as_fd(),
            Self::Open(fd) => fd.as_fd(),
        }
    }
}

/// All state of a mount.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) backing: Backing,
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    pub(super) store: Arc<Store>,
    pub(super) workers: Workers,
    /// For requests on databases in a long operation: there may be many, and the others must not wait behind them.
    pub(super) parked: Workers,
    pub(super) requests: Requests,
    /// Held for writing while a name changes on disk and in [`Nodes`]; whoever holds it for reading sees
    /// the two agree. It is never held while anything else is waited for.
    pub(super) renames: RwLock<()>,
    pool: Arc<Pool>,
    waiting_inline: AtomicUsize,
    waiting_inline_max: usize,
}

impl Tree {
    pub(super) fn new(
        backing: Backing,
        store: Arc<Store>,
        pool: Arc<Pool>,
        threads: usize,
    ) -> Self {
        Self {
            backing,
            nodes: Nodes::default(),
            handles: Handles::default(),
            store,
            workers: Workers::default(),
            parked: Workers::default(),
            requests: Requests::default(),
            renames: RwLock::new(()),
            pool,
            waiting_inline: AtomicUsize::new(0),
            waiting_inline_max: threads / 2,
        }
    }

    /// Who a request is from.
    pub(super) fn caller(&self, request: &fuser::Request) -> Caller {
        let tid = request.pid();
        let origin = if self.pool.is_lane(tid) { Origin::Daemon } else { Origin::Application };
        Caller { uid: request.uid(), gid: request.gid(), origin, tid }
    }

    /// Runs what may wait for a disk or a replica: on this thread while at least half of the FUSE threads
    /// are left to serve others (a change of threads costs more than a short wait), otherwise on a worker.
    pub(super) fn wait(self: &Arc<Self>, job: impl FnOnce(&Self) + Send + 'static) {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let others = self.waiting_inline.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting_inline);
        if others < self.waiting_inline_max {
            job(self);
            return;
        }
        drop(waiting);
        self.wait_elsewhere(job);
    }

    /// Runs what may wait for work through the mount: never on a FUSE thread.
    pub(super) fn wait_elsewhere(self: &Arc<Self>, job: impl FnOnce(&Self) + Send + 'static) {
        let tree = Arc::clone(self);
        self.workers.run(move || job(&tree));
    }

    /// Runs a request: on this thread, unless it would wait for a database in a long operation.
    pub(super) fn park_if(
        self: &Arc<Self>,
        is_occupied: bool,
        job: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        if is_occupied {
            let tree = Arc::clone(self);
            self.parked.run(move || job(&tree));
        } else {
            job(self);
        }
    }

    /// Whether an open file's database is in a long operation.
    pub(super) fn is_occupied(&self, fh: u64) -> bool {
        self.store.is_any_occupied()
            && self.handles.file(fh).is_some_and(|handle| handle.db.is_occupied())
    }

    /// Whether the database of a node is in a long operation.
    pub(super) fn is_node_occupied(&self, ino: u64) -> bool {
        self.store.is_any_occupied()
            && self.locate(ino).is_some_and(|at| self.is_name_occupied(&at.directory, &at.name))
    }

    /// Whether the database of a name is in a long operation.
    pub(super) fn is_name_occupied(&self, directory: &Directory<'_>, name: &OsStr) -> bool {
        self.store.is_any_occupied()
            && directory.child(name).is_ok_and(|path| self.store.resolve(&path).0.is_occupied())
    }

    /// A directory to work in.
    pub(super) fn directory(&self, ino: u64) -> Result<Directory<'_>, RequestError> {
        if ino == ROOT {
            return Ok(self.backing.root_directory());
        }
        let open = || {
            let path = self.nodes.directory_path(ino).ok_or(RequestError::Stale)?;
            self.backing.directory(path, ino).map_err(|error| match error {
                Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP => RequestError::Stale,
                error => RequestError::backing("open directory")(error),
            })
        };
        open().or_else(|_| {
            let _agree = self.renames.read_recursive();
            open()
        })
    }

    /// A node by one of its names, checked; `None` if no name leads to it.
    pub(super) fn locate(&self, ino: u64) -> Option<Located<'_>> {
        let find = || {
            self.nodes.links(ino).into_iter().find_map(|link| {
                let directory = self.directory(link.parent).ok()?;
                let stat = directory.stat(&link.name).ok()?;
                (stat.st_ino == ino).then(|| Located { directory, name: link.name, stat })
            })
        };
        find().or_else(|| {
            let _agree = self.renames.read_recursive();
            find()
        })
    }

    /// A descriptor that leads to a node: of the handle, by name, or of any handle.
    pub(super) fn node_fd(&self, ino: u64, fh: Option<u64>) -> Result<NodeFd<'_>, RequestError> {
        if ino == ROOT {
            return Ok(NodeFd::Root(self.backing.root()));
        }
        if let Some(open) = fh.and_then(|fh| self.handles.get(fh)) {
            match open {
                Open::File(handle) => return Ok(NodeFd::Open(OpenFd::File(handle))),
                Open::Directory(handle) => return Ok(NodeFd::Open(OpenFd::Directory(handle))),
                Open::Special(_) => return Err(RequestError::Reserved),
            }
        }
        let open = || {
            let Located { directory, name, .. } = self.locate(ino)?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&directory, &name, flags, Mode::empty()).ok()?;
            rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_ino == ino).then_some(NodeFd::Path(fd))
        };
        open()
            .or_else(|| self.handles.of_inode(ino).map(NodeFd::Open))
            .or_else(|| {
                let _agree = self.renames.read_recursive();
                open()
            })
            .ok_or(RequestError::Stale)
    }

    /// Answers a look-up of something that is there.
    pub(super) fn entry(
        &self,
        parent: u64,
        name: &OsStr,
        stat: &Stat,
    ) -> Result<Entry, RequestError> {
        let attr = self.backing.attributes(stat)?;
        let generation = self.nodes.remember(attr.ino.0, parent, name);
        Ok(Entry { attr, generation, ttl: TTL })
    }

    /// Answers a look-up of a special file; `None` while it does not exist.
    pub(super) fn special_entry(
        &self,
        special: &Special,
        parent: u64,
        name: &OsStr,
    ) -> Result<Option<Entry>, RequestError> {
        let Some(attr) = self.special_attributes(special)? else { return Ok(None) };
        let generation = self.nodes.remember(attr.ino.0, parent, name);
        Ok(Some(Entry { attr, generation, ttl: Duration::ZERO }))
    }

    /// Attributes of a special file; `None` while it does not exist.
    pub(super) fn special_attributes(
        &self,
        special: &Special,
    ) -> Result<Option<FileAttr>, RequestError> {
        let root = rustix::fs::fstat(self.backing.root())
            .map_err(RequestError::backing("read attributes of the root"))?;
        Ok(special.attributes(&self.store, &self.backing, &root))
    }

    /// The special file that the kernel knows by a number. After a rename of its database the kernel may
    /// remember it under a name that is another's by now.
    pub(super) fn special_node(&self, ino: u64) -> Result<Special, RequestError> {
        for link in self.nodes.links(ino) {
            let Some(parent) = self.nodes.directory_path(link.parent) else { continue };
            let path = super::backing::child_path(&parent, &link.name)?;
            if let Some(special) = Special::named(&self.store, parent.is_empty(), &path)
                && self.special_attributes(&special)?.is_some_and(|attr| attr.ino.0 == ino)
            {
                return Ok(special);
            }
        }
        Err(RequestError::Stale)
    }

    /// Refuses a name that belongs to a special file, whether that exists now or not.
    pub(super) fn refuse_reserved(
        &self,
        directory: &Directory<'_>,
        path: &DbName,
    ) -> Result<(), RequestError> {
        match Special::named(&self.store, directory.is_root(), path) {
            Some(_) => Err(RequestError::Reserved),
            None => Ok(()),
        }
    }

    /// The session is over: whatever is still open will not be released by a request any more.
    pub(super) fn close(&self) {
        for open in self.handles.drain() {
            if let Open::File(handle) = open {
                handle.db.release(handle.role, handle.origin, handle.is_writable);
            }
        }
    }
}
