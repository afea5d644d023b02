//! Open-file-description locks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use crate::sqlite::LockRange;

/// Who holds a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A process, by a POSIX lock (that is what SQLite takes).
    Process(u32),
    /// An open file description, possibly of this process; the system does not say whose.
    Description,
}

/// Takes a lock that others may hold too; `false` if somebody holds it exclusively.
pub(super) fn try_shared(file: &File, range: LockRange) -> io::Result<bool> {
    set(file, libc::F_RDLCK, range)
}

/// Takes a lock for this description alone; `false` if somebody else holds it.
/// A shared lock of the same description is turned into it, or stays as it was.
pub(super) fn try_exclusive(file: &File, range: LockRange) -> io::Result<bool> {
    set(file, libc::F_WRLCK, range)
}

/// Drops whatever lock this description holds.
pub(super) fn unlock(file: &File, range: LockRange) -> io::Result<()> {
    set(file, libc::F_UNLCK, range).map(|_| ())
}

/// Who stands in the way of an exclusive lock.
pub(super) fn holder(file: &File, range: LockRange) -> io::Result<Option<Holder>> {
    Ok(conflict(file, range)?.map(|lock| match u32::try_from(lock.l_pid) {
        Ok(pid) if pid != 0 => Holder::Process(pid),
        Ok(_) | Err(_) => Holder::Description,
    }))
}

/// Whether somebody else holds a lock exclusively (`Some(true)`), shared (`Some(false)`) or not at all.
pub(super) fn is_exclusive(file: &File, range: LockRange) -> io::Result<Option<bool>> {
    Ok(conflict(file, range)?.map(|lock| i32::from(lock.l_type) == libc::F_WRLCK))
}

fn conflict(file: &File, range: LockRange) -> io::Result<Option<libc::flock>> {
    let mut lock = describe(libc::F_WRLCK, range);
    // SAFETY: the descriptor is open and `lock` is a valid flock that the call may overwrite.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock))
}

fn set(file: &File, kind: i32, range: LockRange) -> io::Result<bool> {
    let lock = describe(kind, range);
    // SAFETY: the descriptor is open and `lock` is a valid flock that lives during the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        Some(_) | None => Err(error),
    }
}

fn describe(kind: i32, range: LockRange) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("BUG: lock kinds are small"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("BUG: SEEK_SET is 0"),
        l_start: libc::off_t::from(range.start),
        l_len: libc::off_t::from(range.len),
        // An open-file-description lock has no process.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_of_one_process_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let (one, other) = (open().unwrap(), open().unwrap());
        let range = LockRange::SHARED;
        assert!(try_shared(&one, range).unwrap());
        assert!(try_shared(&other, range).unwrap());
        assert!(!try_exclusive(&one, range).unwrap());
        assert_eq!(is_exclusive(&one, range).unwrap(), Some(false));
        unlock(&other, range).unwrap();
        assert!(try_exclusive(&one, range).unwrap());
        assert!(!try_shared(&other, range).unwrap());
        assert_eq!(holder(&other, range).unwrap(), Some(Holder::Description));
        assert_eq!(is_exclusive(&other, range).unwrap(), Some(true));
        drop(one);
        assert_eq!(holder(&other, range).unwrap(), None);
    }
}
