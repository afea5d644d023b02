//! What applications have open.
//!
//! The table is split so that the hot path, finding the handle of a write, takes one uncontended read lock.
//! A file that has lost all its names is reached through any handle of its inode.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use super::special::Special;
use crate::database::{Database, FileRole, Origin};

/// Number of parts of the table; a power of two.
const SHARDS: usize = 16;

/// An open regular file.
#[derive(Debug)]
pub(super) struct FileHandle {
    pub(super) file: File,
    pub(super) ino: u64,
    pub(super) db: Arc<Database>,
    pub(super) role: FileRole,
    pub(super) origin: Origin,
    pub(super) is_writable: bool,
}

/// One entry of a directory, as it was when the listing began.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) ino: u64,
    pub(super) kind: fuser::FileType,
    pub(super) name: std::ffi::OsString,
    pub(super) special: Option<Special>,
}

/// An open directory. The listing is made when reading starts at offset 0 and kept, so that offsets stay
/// valid while entries come and go.
#[derive(Debug)]
pub(super) struct DirectoryHandle {
    pub(super) fd: OwnedFd,
    pub(super) ino: u64,
    pub(super) listing: Mutex<Option<Arc<Vec<Listed>>>>,
}

/// An open special file. The text is taken at each read from offset 0, so that one pass over the file sees
/// one text, and a handle that is kept open sees later ones.
#[derive(Debug)]
pub(super) struct SpecialHandle {
    pub(super) special: Special,
    pub(super) text: Mutex<Vec<u8>>,
}

/// Anything open.
#[derive(Clone, Debug)]
pub(super) enum Open {
    File(Arc<FileHandle>),
    Directory(Arc<DirectoryHandle>),
    Special(Arc<SpecialHandle>),
}

impl Open {
    fn ino(&self) -> Option<u64> {
        match self {
            Self::File(handle) => Some(handle.ino),
            Self::Directory(handle) => Some(handle.ino),
            Self::Special(_) => None,
        }
    }
}

/// A descriptor of an open file or directory, kept alive while it is used.
#[derive(Debug)]
pub(super) enum OpenFd {
    File(Arc<FileHandle>),
    Directory(Arc<DirectoryHandle>),
}

impl AsFd for OpenFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(handle) => handle.file.as_fd(),
            Self::Directory(handle) => handle.fd.as_fd(),
        }
    }
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Option<Open>>,
    free: Vec<usize>,
}

/// The table of everything open.
#[derive(Debug, Default)]
pub(super) struct Handles {
    shards: [RwLock<Shard>; SHARDS],
    next_shard: AtomicUsize,
    by_inode: Mutex<HashMap<u64, Vec<u64>>>,
}

impl Handles {
    /// Adds a handle; returns its number.
    pub(super) fn insert(&self, open: Open) -> u64 {
        let ino = open.ino();
        let shard_index = self.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut shard = self.shards[shard_index].write();
        let slot = if let Some(slot) = shard.free.pop() {
            shard.slots[slot] = Some(open);
            slot
        } else {
            shard.slots.push(Some(open));
            shard.slots.len() - 1
        };
        drop(shard);
        let fh = (slot * SHARDS + shard_index) as u64;
        if let Some(ino) = ino {
            self.by_inode.lock().entry(ino).or_default().push(fh);
        }
        fh
    }

    fn place(fh: u64) -> Option<(usize, usize)> {
        let fh = usize::try_from(fh).ok()?;
        Some((fh % SHARDS, fh / SHARDS))
    }

    /// The handle with a number.
    pub(super) fn get(&self, fh: u64) -> Option<Open> {
        let (shard, slot) = Self::place(fh)?;
        self.shards[shard].read().slots.get(slot)?.clone()
    }

    /// The open regular file with a number.
    pub(super) fn file(&self, fh: u64) -> Option<Arc<FileHandle>> {
        match self.get(fh)? {
            Open::File(handle) => Some(handle),
            Open::Directory(_) | Open::Special(_) => None,
        }
    }

    /// The open directory with a number.
    pub(super) fn directory(&self, fh: u64) -> Option<Arc<DirectoryHandle>> {
        match self.get(fh)? {
            Open::Directory(handle) => Some(handle),
            Open::File(_) | Open::Special(_) => None,
        }
    }

    /// Removes a handle.
    pub(super) fn remove(&self, fh: u64) -> Option<Open> {
        let (shard, slot) = Self::place(fh)?;
        let open = {
            let mut shard = self.shards[shard].write();
            let open = shard.slots.get_mut(slot)?.take()?;
            shard.free.push(slot);
            open
        };
        if let Some(ino) = open.ino() {
            let mut by_inode = self.by_inode.lock();
            if let Some(numbers) = by_inode.get_mut(&ino) {
                numbers.retain(|number| *number != fh);
                if numbers.is_empty() {
                    by_inode.remove(&ino);
                }
            }
        }
        Some(open)
    }

    /// Some open descriptor of an inode; a writable one if there is one.
    pub(super) fn of_inode(&self, ino: u64) -> Option<OpenFd> {
        let numbers = self.by_inode.lock().get(&ino).cloned()?;
        let mut found = None;
        for open in numbers.into_iter().filter_map(|fh| self.get(fh)) {
            match open {
                Open::File(handle) if handle.is_writable => return Some(OpenFd::File(handle)),
                Open::File(handle) => found = Some(OpenFd::File(handle)),
                Open::Directory(handle) => found = Some(OpenFd::Directory(handle)),
                Open::Special(_) => (),
            }
        }
        found
    }

    /// Removes and returns everything that is still open.
    pub(super) fn drain(&self) -> Vec<Open> {
        self.by_inode.lock().clear();
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.free.clear();
            all.extend(shard.slots.drain(..).flatten());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(ino: u64) -> Open {
        let fd = OwnedFd::from(File::open("/").unwrap());
        Open::Directory(Arc::new(DirectoryHandle { fd, ino, listing: Mutex::default() }))
    }

    #[test]
    fn numbers_are_reused_only_after_removal() {
        let handles = Handles::default();
        let numbers: Vec<u64> = (0..100).map(|ino| handles.insert(directory(ino))).collect();
        for (ino, fh) in numbers.iter().enumerate() {
            assert_eq!(handles.directory(*fh).unwrap().ino, ino as u64);
        }
        assert!(handles.remove(numbers[3]).is_some());
        assert!(handles.remove(numbers[3]).is_none());
        assert!(handles.get(numbers[3]).is_none());
        assert!(handles.of_inode(3).is_none());
        assert!(handles.of_inode(4).is_some());
        assert_eq!(handles.drain().len(), 99);
        assert!(handles.get(u64::MAX).is_none());
    }
}
