//! Directories: open, list, sync.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use fuser::{FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags};

use super::backing::{child_path, kind_of};
use super::errno::RequestError;
use super::handles::{DirectoryHandle, Listed, Open};
use super::nodes::ROOT;
use super::special::Special;
use super::tree::{Entry, Tree};

impl Tree {
    pub(super) fn opendir(&self, ino: u64) -> Result<u64, RequestError> {
        let directory = self.directory(ino)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&directory, ".", flags, Mode::empty())
            .map_err(RequestError::backing("open directory"))?;
        let handle = DirectoryHandle { fd, ino, listing: Mutex::new(None) };
        Ok(self.handles.insert(Open::Directory(Arc::new(handle))))
    }

    /// Fills a reply with entries from `offset` on.
    pub(super) fn readdir(
        &self,
        fh: u64,
        offset: u64,
        reply: &mut ReplyDirectory,
    ) -> Result<(), RequestError> {
        let (_, listing) = self.listing(fh, offset)?;
        for (next, listed) in remaining(&listing, offset) {
            if reply.add(INodeNo(listed.ino), next, listed.kind, &listed.name) {
                break;
            }
        }
        Ok(())
    }

    /// Fills a reply with entries and their attributes; each is a look-up for the kernel.
    pub(super) fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        reply: &mut ReplyDirectoryPlus,
    ) -> Result<(), RequestError> {
        let (handle, listing) = self.listing(fh, offset)?;
        for (next, listed) in remaining(&listing, offset) {
            let Some(entry) = self.listed_entry(&handle, listed) else { continue };
            let Entry { attr, generation, ttl } = entry;
            let generation = fuser::Generation(generation);
            if reply.add(attr.ino, next, &listed.name, &ttl, &attr, generation) {
                self.take_back(listed, attr.ino.0);
                break;
            }
        }
        Ok(())
    }

    /// An entry with its attributes; `None` if it has gone since, or lies elsewhere.
    fn listed_entry(&self, handle: &DirectoryHandle, listed: &Listed) -> Option<Entry> {
        if let Some(special) = &listed.special {
            return self.special_entry(special, handle.ino, &listed.name).ok()?;
        }
        if is_dot(&listed.name) {
            let stat = rustix::fs::statat(&handle.fd, ".", AtFlags::empty()).ok()?;
            let mut attr = self.backing.attributes(&stat).ok()?;
            // The kernel takes no more than the number of these two.
            attr.ino = INodeNo(listed.ino);
            return Some(Entry { attr, generation: 0, ttl: super::tree::TTL });
        }
        let stat = rustix::fs::statat(&handle.fd, &listed.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        self.entry(handle.ino, &listed.name, &stat).ok()
    }

    /// The entry did not fit into the reply, so the kernel does not know of the look-up.
    fn take_back(&self, listed: &Listed, ino: u64) {
        if !is_dot(&listed.name) {
            self.nodes.forget(ino, 1);
        }
    }

    fn listing(
        &self,
        fh: u64,
        offset: u64,
    ) -> Result<(Arc<DirectoryHandle>, Arc<Vec<Listed>>), RequestError> {
        let handle = self.handles.directory(fh).ok_or(RequestError::BadHandle)?;
        let mut kept = handle.listing.lock();
        let listing = match kept.as_ref() {
            Some(listing) if offset > 0 => Arc::clone(listing),
            Some(_) | None => {
                let listing = Arc::new(self.list(&handle)?);
                *kept = Some(Arc::clone(&listing));
                listing
            }
        };
        drop(kept);
        Ok((handle, listing))
    }

    fn list(&self, handle: &DirectoryHandle) -> Result<Vec<Listed>, RequestError> {
        let step = RequestError::backing;
        // Without a path the directory has been removed: there is nothing special about its entries.
        let path = self.nodes.directory_path(handle.ino);
        let mut all = Vec::new();
        let mut specials = Vec::new();
        if handle.ino == ROOT {
            specials.extend(self.listed_special(Special::Lag, ".lag".into()));
            specials.extend(self.listed_special(Special::Primary, ".primary".into()));
        }
        for entry in rustix::fs::Dir::read_from(&handle.fd).map_err(step("list directory"))? {
            let entry = entry.map_err(step("list directory"))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if handle.ino == ROOT && (name == ".lag" || name == ".primary") {
                continue;
            }
            let ino = if handle.ino == ROOT && is_dot(&name) {
                ROOT
            } else {
                self.backing.known_as(entry.ino())
            };
            let mut kind = kind_of(entry.file_type());
            if entry.file_type() == rustix::fs::FileType::Unknown {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                kind = rustix::fs::statat(&handle.fd, &name, flags)
                    .map_or(kind, |stat| super::backing::kind(&stat));
            }
            if kind == FileType::RegularFile {
                specials.extend(path.as_deref().and_then(|path| self.listed_position(path, &name)));
            }
            all.push(Listed { ino, kind, name, special: None });
        }
        // "." and ".." come first in nearly all file systems; where they do not, nobody minds.
        let after_dots = all.iter().take_while(|listed| is_dot(&listed.name)).count();
        if !specials.is_empty() {
            let real: HashSet<&OsStr> = all.iter().map(|listed| listed.name.as_os_str()).collect();
            specials.retain(|special| !real.contains(special.name.as_os_str()));
        }
        all.splice(after_dots..after_dots, specials);
        Ok(all)
    }

    /// The position file of a database, if the file is one.
    fn listed_position(&self, directory: &[u8], name: &OsStr) -> Option<Listed> {
        let db = child_path(directory, name).ok()?;
        self.store.by_name(&db)?;
        let mut position = name.to_owned();
        position.push("-pos");
        self.listed_special(Special::Position(db), position)
    }

    fn listed_special(&self, special: Special, name: OsString) -> Option<Listed> {
        let attr = self.special_attributes(&special).ok()??;
        Some(Listed { ino: attr.ino.0, kind: attr.kind, name, special: Some(special) })
    }

    pub(super) fn fsyncdir(&self, fh: u64) -> Result<(), RequestError> {
        let handle = self.handles.directory(fh).ok_or(RequestError::BadHandle)?;
        rustix::fs::fsync(&handle.fd).map_err(RequestError::backing("sync directory"))
    }
}

fn is_dot(name: &OsStr) -> bool {
    name == "." || name == ".."
}

/// The entries behind an offset, each with the offset of the one after it.
fn remaining(listing: &[Listed], offset: u64) -> impl Iterator<Item = (u64, &Listed)> {
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(listing.len());
    (offset + 1..).zip(&listing[from..])
}
