//! Cuts off the mount of a daemon that was killed but cannot die, stuck in a request to its own mount.
//! A mount whose daemon is gone is replaced by `mount`, without our help.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Cuts a dead daemon's mount off, as far as that is possible: its processes' requests fail at once.
pub(super) fn abort(mount: &Path) {
    if !matches!(fuse_mount(mount), Ok(Some(_))) {
        return;
    }
    // FORCE aborts the connection, DETACH takes the mount out of the tree.
    for flags in [
        UnmountFlags::FORCE | UnmountFlags::NOFOLLOW,
        UnmountFlags::DETACH | UnmountFlags::NOFOLLOW,
    ] {
        if let Err(error) = unmount(mount, flags) {
            tracing::debug!(mount = %mount.display(), %error, "forced unmount");
        }
    }
}

/// Type of the FUSE file system mounted at a path, the topmost one.
fn fuse_mount(mount: &Path) -> io::Result<Option<String>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mut topmost = table.split(|byte| *byte == b'\n').filter_map(parse_line);
    let topmost = topmost.rfind(|(path, _)| path == mount);
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
}
