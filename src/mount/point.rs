//! The mount point: checked, cleaned of what a crash left, mounted, unmounted.
//!
//! As root by mount(2); otherwise, or where the kernel refuses, by `fusermount3`, which hands over the
//! descriptor. Nothing here waits for ever: what may hang runs on a thread that can be given up.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use super::MountError;

/// How long one system call on a mount point may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many mounts on top of each other are cleared away.
const STACK_MAX: usize = 16;

/// The type that mount tables show.
const FILE_SYSTEM_TYPE: &str = "fuse.weir";

/// A line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mounted {
    point: PathBuf,
    file_system: OsString,
    source: OsString,
}

/// A checked mount point.
#[derive(Clone, Debug)]
pub(super) struct MountPoint {
    path: PathBuf,
    source: String,
}

impl MountPoint {
    /// Makes the directory if it is missing, replaces a dead mount, and refuses anything else in the way.
    pub(super) fn prepare(path: &Path, files: &Path) -> Result<Self, MountError> {
        let data = files.parent().unwrap_or(files);
        let data = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
        let source = format!("weir:{}", data.display());
        let path =
            absolute(path).map_err(|source| MountError::Point { path: path.to_owned(), source })?;
        let point = Self { path, source };
        point.clear()?;
        let failed = |source| MountError::Point { path: point.path.clone(), source };
        fs::create_dir_all(&point.path).map_err(failed)?;
        let path = fs::canonicalize(&point.path).map_err(failed)?;
        if data.starts_with(&path) || path.starts_with(data.join("files")) {
            return Err(MountError::Overlap { path, data });
        }
        if fs::read_dir(&path).map_err(failed)?.next().is_some() {
            return Err(MountError::NotEmpty { path });
        }
        Ok(Self { path, ..point })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Unmounts what a crash left: our own mounts, and dead ones.
    fn clear(&self) -> Result<(), MountError> {
        for _ in 0..STACK_MAX {
            let Some(mounted) = top_mount(&self.path) else {
                return Ok(());
            };
            let is_ours = mounted.file_system == FILE_SYSTEM_TYPE
                && mounted.source.as_bytes() == self.source.as_bytes();
            if !is_ours && !is_dead(&self.path, &mounted) {
                return Err(MountError::Occupied {
                    path: self.path.clone(),
                    file_system: mounted.file_system.to_string_lossy().into_owned(),
                    from: mounted.source.to_string_lossy().into_owned(),
                });
            }
            tracing::info!(path = %self.path.display(), "remove the mount that a crash left");
            self.unmount(UnmountFlags::FORCE | UnmountFlags::DETACH)
                .map_err(|source| MountError::Unmount { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// Mounts; returns the descriptor that requests come from.
    pub(super) fn mount(&self, allow_other: bool) -> Result<OwnedFd, MountError> {
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) => Some(OwnedFd::from(device)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MountError::NoFuse);
            }
            // fusermount3 may open it for us.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(source) => return Err(MountError::Device { source }),
        };
        if let Some(device) = device {
            match self.mount_directly(&device, allow_other) {
                Ok(()) => return Ok(device),
                Err(Errno::PERM) => (),
                Err(error) => {
                    return Err(MountError::Mount {
                        path: self.path.clone(),
                        source: error.into(),
                    });
                }
            }
        }
        self.mount_by_helper(allow_other)
    }

    fn mount_directly(&self, device: &OwnedFd, allow_other: bool) -> Result<(), Errno> {
        let mode = rustix::fs::stat(&self.path)?.st_mode;
        let mut options = format!(
            "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions",
            device.as_raw_fd(),
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        if allow_other {
            options.push_str(",allow_other");
        }
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount(
            self.source.as_str(),
            &self.path,
            FILE_SYSTEM_TYPE,
            flags,
            options.as_c_str(),
        )
    }

    fn mount_by_helper(&self, allow_other: bool) -> Result<OwnedFd, MountError> {
        // fusermount3 splits options at commas.
        let source = self.source.replace('\\', "\\\\").replace(',', "\\,");
        let mut options =
            format!("fsname={source},subtype=weir,default_permissions,nosuid,nodev,noatime");
        if allow_other {
            options.push_str(",allow_other");
        }
        let failed = |source| MountError::Helper { source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        let spawned = Command::new("fusermount3")
            .args(["-o", &options, "--"])
            .arg(&self.path)
            .env("_FUSE_COMMFD", "0")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut helper = match spawned {
            Ok(helper) => helper,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MountError::NoHelper);
            }
            Err(source) => return Err(failed(source)),
        };
        let received = receive_descriptor(&ours);
        drop(ours);
        let mut said = String::new();
        if let Some(mut stderr) = helper.stderr.take() {
            stderr.read_to_string(&mut said).map_err(failed)?;
        }
        helper.wait().map_err(failed)?;
        received.map_err(|_| MountError::HelperRefused {
            path: self.path.clone(),
            said: said.trim().to_owned(),
        })
    }

    /// Unmounts, within a bounded time.
    pub(super) fn unmount(&self, flags: UnmountFlags) -> io::Result<()> {
        let path = self.path.clone();
        bounded("unmount", move || unmount(&path, flags)).unwrap_or_else(|| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not finish the unmount"))
        })
    }

    /// Whether our mount is still there.
    pub(super) fn is_mounted(&self) -> bool {
        top_mount(&self.path)
            .is_some_and(|mounted| mounted.source.as_bytes() == self.source.as_bytes())
    }
}

fn unmount(path: &Path, flags: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => (),
        Err(error) => return Err(error.into()),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u");
    if flags.contains(UnmountFlags::DETACH) {
        helper.arg("-z");
    }
    let output = helper.arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(Errno::BUSY.into());
    }
    Err(io::Error::other(said.trim().to_owned()))
}

/// An absolute path whose existing part has no links in it; the last component is not looked at, because
/// a dead mount cannot be.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if fs::read_link(&path).is_ok() {
        return fs::canonicalize(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path);
    };
    Ok(fs::canonicalize(parent).map_or_else(|_| path.clone(), |parent| parent.join(name)))
}

/// The uppermost mount on a path.
fn top_mount(path: &Path) -> Option<Mounted> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    parse_mount_table(&table).into_iter().rfind(|mounted| mounted.point == path)
}

/// Reads proc(5)'s mountinfo: "36 35 98:0 /root /point options ... - type source super-options".
fn parse_mount_table(table: &[u8]) -> Vec<Mounted> {
    let mut all = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(point), Some(file_system), Some(source)) =
            (fields.get(4), fields.get(dash + 1), fields.get(dash + 2))
        else {
            continue;
        };
        all.push(Mounted {
            point: unescape(point).into(),
            file_system: unescape(file_system),
            source: unescape(source),
        });
    }
    all
}

/// Undoes the kernel's escaping of blanks, tabs, newlines and backslashes as `\040`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            _ => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Whether the process behind a FUSE mount is gone. One that does not answer is not touched.
fn is_dead(path: &Path, mounted: &Mounted) -> bool {
    if !mounted.file_system.as_bytes().starts_with(b"fuse") {
        return false;
    }
    let path = path.to_owned();
    let answer = bounded("stat", move || rustix::fs::stat(&path));
    matches!(answer, Some(Err(Errno::NOTCONN)))
}

/// Runs a call that may hang on a thread of its own, for at most [`PATIENCE`].
fn bounded<T: Send + 'static>(name: &str, call: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = mpsc::channel();
    std::thread::Builder::new()
        .name(format!("weir-{name}"))
        .spawn(move || {
            // Nobody listens any more if it took too long.
            done.send(call()).ok();
        })
        .ok()?;
    result.recv_timeout(PATIENCE).ok()
}

/// Takes the descriptor that fusermount3 sends over its socket.
fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    const SPACE: usize = 64;
    #[repr(align(8))]
    struct Control([u8; SPACE]);
    let mut byte = 0_u8;
    let mut control = Control([0; SPACE]);
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: a message header of zeros is valid; the pointers set below outlive the call.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control.0).cast();
    message.msg_controllen = SPACE;
    // SAFETY: `message` points to one byte of data and SPACE aligned bytes of control data, all alive.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if received < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in `message`, so its first control header is within `control` or null.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: not null, so it lies in `control` and is complete (CMSG_FIRSTHDR checks the length).
    let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
    if level != libc::SOL_SOCKET || kind != libc::SCM_RIGHTS {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the data of an SCM_RIGHTS header is at least one descriptor, which now belongs to us alone.
    let fd =
        unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()) };
    Ok(fd)
}

/// Who keeps a mount busy: processes with something open, mapped or as their directory below it.
pub(super) fn holders(point: &Path) -> Vec<String> {
    const HOLDERS_MAX: usize = 10;
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let name = process.file_name();
        if !name.as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        if holds(&process.path(), point) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} ({})", name.to_string_lossy(), command.trim_end()));
            if found.len() == HOLDERS_MAX {
                break;
            }
        }
    }
    found
}

fn holds(process: &Path, point: &Path) -> bool {
    let leads_below =
        |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(point));
    if leads_below(process.join("cwd")) || leads_below(process.join("root")) {
        return true;
    }
    if let Ok(descriptors) = fs::read_dir(process.join("fd"))
        && descriptors.flatten().any(|descriptor| leads_below(descriptor.path()))
    {
        return true;
    }
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| {
        let path = line.iter().position(|byte| *byte == b'/').map(|at| &line[at..]);
        path.is_some_and(|path| Path::new(OsStr::from_bytes(path)).starts_with(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let table = b"36 35 98:0 / /mnt/a\\040b rw,noatime shared:1 - fuse.weir weir:/x\\134y rw\n\
            37 35 0:5 / /mnt/c rw - tmpfs tmpfs rw\n\nbroken line\n";
        let parsed = parse_mount_table(table);
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[0].point, Path::new("/mnt/a b"));
        assert_eq!(parsed[0].file_system, "fuse.weir");
        assert_eq!(parsed[0].source, "weir:/x\\y");
        assert_eq!(parsed[1].source, "tmpfs");
    }

    #[test]
    fn a_process_with_an_open_file_is_a_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        let own = std::process::id().to_string();
        let is_named = |found: Vec<String>| found.iter().any(|holder| holder.starts_with(&own));
        assert!(!is_named(holders(&path)));
        let file = File::create(path.join("held")).unwrap();
        assert!(is_named(holders(&path)));
        drop(file);
    }

    #[test]
    fn a_directory_with_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"x").unwrap();
        let error = MountPoint::prepare(dir.path(), &data.path().join("files")).unwrap_err();
        assert!(matches!(error, MountError::NotEmpty { .. }), "{error}");
        let inside = data.path().join("files/mnt");
        let error = MountPoint::prepare(&inside, &data.path().join("files")).unwrap_err();
        assert!(matches!(error, MountError::Overlap { .. }), "{error}");
        let error =
            MountPoint::prepare(Path::new("/proc"), &data.path().join("files")).unwrap_err();
        assert!(matches!(error, MountError::Occupied { .. }), "{error}");
    }
}
