//! The plain files behind the mount: directories opened safely, attributes read.
//!
//! Every operation starts at the root's descriptor and crosses no symbolic link and no other device, so a
//! directory that is swapped for a link between look-up and use leads nowhere. The last component is always
//! used with the "do not follow" form of a call.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::errno::RequestError;
use super::nodes::ROOT;
use super::special::is_special_ino;
use crate::types::DbName;

/// The directory tree that is shown under the mount.
#[derive(Debug)]
pub(super) struct Backing {
    root: OwnedFd,
    device: u64,
    root_ino: u64,
    has_openat2: AtomicBool,
    /// New files are given to whoever asked for them.
    pub(super) gives_away: bool,
}

/// A directory that an operation works in.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    fd: DirectoryFd<'a>,
    /// Below the root, without a leading slash; empty for the root.
    path: Vec<u8>,
}

#[derive(Debug)]
enum DirectoryFd<'a> {
    Root(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl AsFd for Directory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            DirectoryFd::Root(fd) => *fd,
            DirectoryFd::Below(fd) => fd.as_fd(),
        }
    }
}

impl Directory<'_> {
    /// Whether this is the mount's root.
    pub(super) fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// The checked path of an entry.
    pub(super) fn child(&self, name: &OsStr) -> Result<DbName, RequestError> {
        child_path(&self.path, name)
    }

    /// Attributes of an entry, of the link itself if it is one.
    pub(super) fn stat(&self, name: &OsStr) -> Result<Stat, Errno> {
        rustix::fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// The checked path of an entry of a directory.
pub(super) fn child_path(directory: &[u8], name: &OsStr) -> Result<DbName, RequestError> {
    if name.len() > 255 {
        return Err(crate::types::NameError::TooLong(name.len()).into());
    }
    if directory.is_empty() {
        return Ok(DbName::new(name.as_bytes())?);
    }
    Ok(DbName::new(&[directory, name.as_bytes()].join(&b'/'))?)
}

impl Backing {
    /// Opens the root.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&root)?;
        Ok(Self {
            root,
            device: stat.st_dev,
            root_ino: stat.st_ino,
            has_openat2: AtomicBool::new(true),
            gives_away: rustix::process::geteuid().is_root(),
        })
    }

    /// The root's descriptor.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The root as a directory to work in.
    pub(super) fn root_directory(&self) -> Directory<'_> {
        Directory { fd: DirectoryFd::Root(self.root.as_fd()), path: Vec::new() }
    }

    /// A directory below the root, if it has the inode number that is expected.
    pub(super) fn directory(&self, path: Vec<u8>, ino: u64) -> Result<Directory<'_>, Errno> {
        let fd = self.open_below(OsStr::from_bytes(&path), OFlags::PATH | OFlags::DIRECTORY)?;
        if rustix::fs::fstat(&fd)?.st_ino != ino {
            return Err(Errno::STALE);
        }
        Ok(Directory { fd: DirectoryFd::Below(fd), path })
    }

    fn open_below(&self, path: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        if self.has_openat2.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                // An old kernel, or a container's filter.
                Err(Errno::NOSYS | Errno::PERM) => self.has_openat2.store(false, Ordering::Relaxed),
                result => return result,
            }
        }
        let mut at = self.root.try_clone().map_err(|_| Errno::MFILE)?;
        let mut parts = path.as_bytes().split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            if part == b".." {
                return Err(Errno::XDEV);
            }
            let step = if parts.peek().is_some() {
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW
            } else {
                flags
            };
            at = rustix::fs::openat(&at, OsStr::from_bytes(part), step, Mode::empty())?;
        }
        Ok(at)
    }

    /// The number that the kernel knows a file by.
    ///
    /// # Errors
    /// [`RequestError::OtherDevice`]: inode numbers are unique on one device only.
    pub(super) fn ino(&self, stat: &Stat) -> Result<u64, RequestError> {
        if stat.st_dev != self.device || is_special_ino(stat.st_ino) {
            return Err(RequestError::OtherDevice);
        }
        Ok(self.known_as(stat.st_ino))
    }

    /// The number that the kernel knows a backing inode by.
    pub(super) fn known_as(&self, ino: u64) -> u64 {
        if ino == self.root_ino { ROOT } else { ino }
    }

    /// Attributes as the kernel wants them.
    pub(super) fn attributes(&self, stat: &Stat) -> Result<FileAttr, RequestError> {
        Ok(FileAttr {
            ino: INodeNo(self.ino(stat)?),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            atime: time(stat.st_atime, i64::try_from(stat.st_atime_nsec).unwrap_or(0)),
            mtime: time(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: time(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            crtime: UNIX_EPOCH,
            kind: kind(stat),
            perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            flags: 0,
        })
    }
}

/// The kind of a file.
pub(super) fn kind(stat: &Stat) -> FileType {
    kind_of(rustix::fs::FileType::from_raw_mode(stat.st_mode))
}

/// The kind of a file, as FUSE names it.
pub(super) fn kind_of(file_type: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Backing;
    match file_type {
        Backing::Directory => FileType::Directory,
        Backing::Symlink => FileType::Symlink,
        Backing::Fifo => FileType::NamedPipe,
        Backing::Socket => FileType::Socket,
        Backing::CharacterDevice => FileType::CharDevice,
        Backing::BlockDevice => FileType::BlockDevice,
        Backing::RegularFile | Backing::Unknown => FileType::RegularFile,
    }
}

/// Seconds since 1970 of the last write; 0 for earlier ones.
pub(super) fn mtime_seconds(stat: &Stat) -> u64 {
    u64::try_from(stat.st_mtime).unwrap_or(0)
}

fn time(seconds: i64, nanos: i64) -> SystemTime {
    let nanos = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    match u64::try_from(seconds) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
        Err(_) => UNIX_EPOCH - Duration::from_secs(seconds.unsigned_abs()) + nanos,
    }
}

/// A path that leads to exactly what a descriptor has open, also for links and for descriptors that
/// cannot be used otherwise (`O_PATH`).
pub(super) fn proc_path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_swapped_for_a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let backing = Backing::open(dir.path()).unwrap();
        for has_openat2 in [true, false] {
            backing.has_openat2.store(has_openat2, Ordering::Relaxed);
            let ino = rustix::fs::stat(dir.path().join("real")).unwrap().st_ino;
            assert!(backing.directory(b"real".to_vec(), ino).is_ok());
            assert_eq!(backing.directory(b"real".to_vec(), ino + 1).unwrap_err(), Errno::STALE);
            assert!(backing.directory(b"link".to_vec(), ino).is_err());
            assert!(backing.directory(b"../real".to_vec(), ino).is_err());
        }
    }

    #[test]
    fn times_before_1970_survive() {
        assert_eq!(time(-2, 500_000_000), UNIX_EPOCH - Duration::from_millis(1500));
        assert_eq!(time(1, 5), UNIX_EPOCH + Duration::new(1, 5));
    }
}
