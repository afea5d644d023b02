//! Attributes, extended attributes, and the size of the file system.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, TimeOrNow};
use rustix::fs::{
    AtFlags, Gid, Mode, StatVfs, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
};

use super::backing::proc_path;
use super::errno::RequestError;
use super::special::is_special_ino;
use super::tree::{Caller, TTL, Tree};

/// What a SETATTR changes.
#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) fh: Option<u64>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

/// An extended attribute or a list of them, or its size where that was the question.
#[derive(Debug)]
pub(super) enum Xattr {
    Size(u32),
    Data(Vec<u8>),
}

/// Largest value and list that Linux allows.
const XATTR_MAX: usize = 65536;

impl Tree {
    pub(super) fn getattr(
        &self,
        ino: u64,
        fh: Option<u64>,
    ) -> Result<(FileAttr, Duration), RequestError> {
        if is_special_ino(ino) {
            let special = self.special_node(ino)?;
            let attr = self.special_attributes(&special)?.ok_or(RequestError::Stale)?;
            return Ok((attr, Duration::ZERO));
        }
        if fh.is_none()
            && let Some(located) = self.locate(ino)
        {
            return Ok((self.backing.attributes(&located.stat)?, TTL));
        }
        let fd = self.node_fd(ino, fh)?;
        let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)
            .map_err(RequestError::backing("read attributes"))?;
        Ok((self.backing.attributes(&stat)?, TTL))
    }

    pub(super) fn setattr(
        &self,
        ino: u64,
        change: &Change,
        caller: Caller,
    ) -> Result<(FileAttr, Duration), RequestError> {
        if is_special_ino(ino) {
            return Err(RequestError::Reserved);
        }
        if let Some(size) = change.size {
            self.set_len(ino, change.fh, size, caller)?;
        }
        let fd = self.node_fd(ino, change.fh)?;
        let path = proc_path(&fd);
        let path = path.as_str();
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chown(path, uid, gid).map_err(RequestError::backing("change owner"))?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))
                .map_err(RequestError::backing("change mode"))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty())
                .map_err(RequestError::backing("change times"))?;
        }
        let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)
            .map_err(RequestError::backing("read attributes"))?;
        Ok((self.backing.attributes(&stat)?, TTL))
    }

    pub(super) fn statfs(&self) -> Result<StatVfs, RequestError> {
        rustix::fs::fstatvfs(self.backing.root())
            .map_err(RequestError::backing("read file system size"))
    }

    pub(super) fn setxattr(
        &self,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<(), RequestError> {
        if is_special_ino(ino) {
            return Err(RequestError::Reserved);
        }
        let fd = self.node_fd(ino, None)?;
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        rustix::fs::setxattr(proc_path(&fd).as_str(), name, value, flags)
            .map_err(RequestError::backing("set extended attribute"))
    }

    pub(super) fn removexattr(&self, ino: u64, name: &OsStr) -> Result<(), RequestError> {
        if is_special_ino(ino) {
            return Err(RequestError::Reserved);
        }
        let fd = self.node_fd(ino, None)?;
        rustix::fs::removexattr(proc_path(&fd).as_str(), name)
            .map_err(RequestError::backing("remove extended attribute"))
    }

    pub(super) fn getxattr(
        &self,
        ino: u64,
        name: &OsStr,
        size: u32,
    ) -> Result<Xattr, RequestError> {
        if is_special_ino(ino) {
            return Err(RequestError::backing("read extended attribute")(
                rustix::io::Errno::NODATA,
            ));
        }
        let fd = self.node_fd(ino, None)?;
        let path = proc_path(&fd);
        xattr(size, |buffer| rustix::fs::getxattr(path.as_str(), name, buffer))
    }

    pub(super) fn listxattr(&self, ino: u64, size: u32) -> Result<Xattr, RequestError> {
        if is_special_ino(ino) {
            return Ok(if size == 0 { Xattr::Size(0) } else { Xattr::Data(Vec::new()) });
        }
        let fd = self.node_fd(ino, None)?;
        let path = proc_path(&fd);
        xattr(size, |buffer| rustix::fs::listxattr(path.as_str(), buffer))
    }
}

fn xattr(
    size: u32,
    read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
) -> Result<Xattr, RequestError> {
    let mut buffer = vec![0; XATTR_MAX];
    let length = read(&mut buffer).map_err(RequestError::backing("read extended attribute"))?;
    buffer.truncate(length);
    let length = u32::try_from(length).map_err(|_| RequestError::Range)?;
    if size == 0 {
        return Ok(Xattr::Size(length));
    }
    if length > size { Err(RequestError::Range) } else { Ok(Xattr::Data(buffer)) }
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => specific(time),
    }
}

fn specific(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        },
        // fuser gives "1970 minus (seconds and nanoseconds)", while the kernel meant "1970 minus seconds,
        // plus nanoseconds"; taking the parts apart again gives what the kernel said.
        Err(before) => {
            let before = before.duration();
            Timespec {
                tv_sec: i64::try_from(before.as_secs()).map_or(i64::MIN, i64::wrapping_neg),
                tv_nsec: before.subsec_nanos().into(),
            }
        }
    }
}
