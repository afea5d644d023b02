//! Mounts left behind by a daemon that died.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

/// How long a mount may take to answer before it counts as hung.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// Mounts stacked over each other; more is no accident.
const STACK_MAX: usize = 16;

/// Why the mount point cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// Something else serves it.
    #[error(
        "{mount} already has a {kind} file system mounted; unmount it (umount {mount}) or choose another \
         node.mount",
        mount = mount.display()
    )]
    InUse {
        /// The mount point.
        mount: PathBuf,
        /// Type of the file system.
        kind: String,
    },
    /// A file system is mounted there that does not answer.
    #[error(
        "{mount} has a {kind} file system mounted that does not answer; stop its daemon, or unmount it \
         (umount -f -l {mount})",
        mount = mount.display()
    )]
    Hung {
        /// The mount point.
        mount: PathBuf,
        /// Type of the file system.
        kind: String,
    },
    /// The directory could not be used.
    #[error("{step}: {path}")]
    Disk {
        /// Verb and object.
        step: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Makes the mount point ready: removes dead mounts from it and creates the directory. Says whether a dead
/// mount was there.
///
/// # Errors
/// Something alive is mounted there, or the directory cannot be made.
pub fn clear(mount: &Path) -> Result<bool, MountPointError> {
    let failed = |step| {
        let path = mount.to_owned();
        move |source: io::Error| MountPointError::Disk { step, path, source }
    };
    let mut cleared = false;
    for _ in 0..STACK_MAX {
        let Some(kind) = fuse_mount(mount).map_err(failed("read mounts"))? else { break };
        match probe(mount) {
            Probe::Dead => detach(mount).map_err(failed("unmount"))?,
            Probe::Alive => return Err(MountPointError::InUse { mount: mount.to_owned(), kind }),
            Probe::Hung => return Err(MountPointError::Hung { mount: mount.to_owned(), kind }),
        }
        cleared = true;
    }
    crate::disk::create_dir_durable(mount).map_err(failed("create mount point"))?;
    Ok(cleared)
}

/// Cuts a dead daemon's mount off, as far as that is possible: its processes' requests fail at once.
pub(super) fn abort(mount: &Path) {
    if !matches!(fuse_mount(mount), Ok(Some(_))) {
        return;
    }
    // MNT_FORCE aborts the connection; the mount itself is removed by `clear`, or by DETACH here.
    for flags in [UnmountFlags::FORCE, UnmountFlags::DETACH] {
        if let Err(error) = unmount(mount, flags) {
            tracing::debug!(mount = %mount.display(), %error, "forced unmount");
        }
    }
}

/// Type of the FUSE file system mounted at a path, the topmost one.
fn fuse_mount(mount: &Path) -> io::Result<Option<String>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let topmost = table.split(|byte| *byte == b'\n').filter_map(parse_line);
    let topmost = topmost.filter(|(path, _)| path == mount).next_back();
    Ok(topmost.map(|(_, kind)| kind).filter(|kind| kind == "fuse" || kind.starts_with("fuse.")))
}

/// Mount point and type of one line: `36 35 98:0 /root /mount options - type source`.
fn parse_line(line: &[u8]) -> Option<(PathBuf, String)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some((path, String::from_utf8_lossy(kind).into_owned()))
}

/// The kernel writes blanks, newlines and backslashes as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

enum Probe {
    Alive,
    Dead,
    Hung,
}

/// Asks a mount for its root, in a thread of its own because a mount without an answer blocks for ever.
fn probe(mount: &Path) -> Probe {
    let (sender, receiver) = mpsc::channel();
    let path = mount.to_owned();
    thread::spawn(move || drop(sender.send(fs::read_dir(path).map(drop))));
    match receiver.recv_timeout(ANSWER_WAIT) {
        Ok(Ok(())) => Probe::Alive,
        Ok(Err(error)) => match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO) => Probe::Dead,
            _ => Probe::Alive,
        },
        Err(_) => Probe::Hung,
    }
}

/// Removes a dead mount. Processes that still have files open keep their dead descriptors.
fn detach(mount: &Path) -> io::Result<()> {
    match unmount(mount, UnmountFlags::DETACH) {
        Err(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            let status =
                Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mount).status()?;
            if status.success() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read_with_their_escapes() {
        let line = b"36 35 0:98 / /mnt/my\\040db rw,nosuid shared:1 - fuse.weir weir rw";
        assert_eq!(parse_line(line), Some((PathBuf::from("/mnt/my db"), "fuse.weir".to_owned())));
        assert_eq!(parse_line(b"36 35"), None);
        assert_eq!(parse_line(b""), None);
    }

    #[test]
    fn a_plain_directory_needs_no_clearing_and_a_missing_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("a/b");
        assert!(!clear(&mount).unwrap());
        assert!(mount.is_dir());
        assert!(!clear(&mount).unwrap());
    }
}
