//! One daemon per data directory.
//!
//! `DATA/lock` is locked with `flock` for the life of the process and says who holds it. The kernel drops the
//! lock when the process is gone, so a crash leaves nothing to clean; a process that was killed but is
//! stuck in a request to its own mount is freed by aborting that mount.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::stale;
use super::timestamp::format_wall_ms;
use crate::disk::clock;

/// How long a dying holder is waited for.
const DYING_WAIT: Duration = Duration::from_secs(5);
/// How long the lock of a process that cannot be seen is waited for.
const GONE_WAIT: Duration = Duration::from_secs(1);
const DYING_POLL: Duration = Duration::from_millis(50);
/// The content is small; anything longer is not ours.
const CONTENT_BYTES_MAX: usize = 16 << 10;

/// Who holds a data directory; the content of its `lock` file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Its node name.
    pub node: String,
    /// Its command line.
    pub command: String,
    /// Its mount point.
    pub mount: PathBuf,
    /// Since when, milliseconds since the Unix epoch.
    pub since_wall_ms: i64,
}

impl Holder {
    fn this_process(node: &str, mount: &Path) -> Self {
        let arguments: Vec<_> =
            std::env::args_os().map(|part| part.to_string_lossy().into_owned()).collect();
        Self {
            pid: std::process::id(),
            node: node.to_owned(),
            command: arguments.join(" "),
            mount: mount.to_owned(),
            since_wall_ms: clock::wall_ms(),
        }
    }
}

/// Why the data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon runs on it.
    #[error(
        "{data} is in use by node {node:?}: process {pid}, `{command}`, since {since}; stop it first \
         (kill {pid}), or give this node a node.data of its own",
        data = data.display(),
        node = holder.node,
        pid = holder.pid,
        command = holder.command,
        since = format_wall_ms(holder.since_wall_ms)
    )]
    Held {
        /// The data directory.
        data: PathBuf,
        /// Who.
        holder: Box<Holder>,
    },
    /// Another process holds it and did not say who it is.
    #[error(
        "{data} is in use by a process that is just starting or is no weir; see who has {data}/lock \
         open (fuser {data}/lock)",
        data = data.display()
    )]
    HeldByUnknown {
        /// The data directory.
        data: PathBuf,
    },
    /// The file could not be used.
    #[error("{step}: {path}")]
    Disk {
        /// Verb and object.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The lock; dropping it, or dying, frees the data directory.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Locks a data directory, which must exist, for this process.
    ///
    /// # Errors
    /// [`LockError::Held`] says who has it.
    pub fn acquire(data: &Path, node: &str, mount: &Path) -> Result<Self, LockError> {
        let path = data.join("lock");
        let failed = |step| {
            let path = path.clone();
            move |source: io::Error| LockError::Disk { step, path, source }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed("open lock file"))?;
        if !try_lock(&file).map_err(failed("lock file"))? {
            let holder = read_holder(&file);
            if !wait_for_dying(&file, holder.as_ref()).map_err(failed("lock file"))? {
                let data = data.to_owned();
                return Err(match holder {
                    Some(holder) => LockError::Held { data, holder: Box::new(holder) },
                    None => LockError::HeldByUnknown { data },
                });
            }
        }
        let content = serde_json::to_vec_pretty(&Holder::this_process(node, mount))
            .expect("BUG: the lock's content has no map with other keys than strings");
        file.set_len(0).map_err(failed("write lock file"))?;
        file.write_all_at(&content, 0).map_err(failed("write lock file"))?;
        Ok(Self { _file: file })
    }
}

/// Who holds a data directory now; `None` if nobody does.
///
/// # Errors
/// The lock file could not be read.
pub fn holder(data: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(data.join("lock")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if try_lock(&file)? { Ok(None) } else { Ok(read_holder(&file)) }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_holder(file: &File) -> Option<Holder> {
    // Whoever locks the file afterwards writes from its beginning, wherever reading ended.
    let mut content = vec![0; CONTENT_BYTES_MAX];
    let len = file.read_at(&mut content, 0).ok()?;
    serde_json::from_slice(&content[..len]).ok()
}

/// If the holder was killed, frees it from its mount and waits for its end. Says whether the lock is ours.
fn wait_for_dying(file: &File, holder: Option<&Holder>) -> io::Result<bool> {
    let wait = match holder {
        Some(holder) if is_dying(holder.pid) => {
            tracing::warn!(
                pid = holder.pid,
                "the last daemon was killed and is not yet gone, freeing its mount"
            );
            stale::abort(&holder.mount);
            DYING_WAIT
        }
        // The kernel may let go of the lock a moment after the process is gone.
        Some(holder) if !Path::new(&format!("/proc/{}", holder.pid)).exists() => GONE_WAIT,
        Some(_) | None => return Ok(false),
    };
    let deadline = clock::boottime() + wait;
    while clock::boottime() < deadline {
        if try_lock(file)? {
            return Ok(true);
        }
        thread::park_timeout(DYING_POLL);
    }
    Ok(false)
}

/// Whether a process is a zombie with threads left, or has a SIGKILL that it has not died of yet. A process
/// that cannot be seen is not dying: it may run in another container on the same data directory.
fn is_dying(pid: u32) -> bool {
    const SIGKILL_BIT: u64 = 1 << 8;
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map_or("", str::trim);
    let pending = |name| u64::from_str_radix(field(name), 16).unwrap_or(0) & SIGKILL_BIT != 0;
    field("State:").starts_with(['Z', 'X']) || pending("ShdPnd:") || pending("SigPnd:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataLock::acquire(dir.path(), "a", Path::new("/mnt/db")).unwrap();
        let error = DataLock::acquire(dir.path(), "b", Path::new("/mnt/db")).unwrap_err();
        let text = error.to_string();
        let pid = std::process::id();
        assert!(text.contains(&format!("is in use by node \"a\": process {pid}, `")), "{text}");
        assert_eq!(holder(dir.path()).unwrap().unwrap().pid, pid);
        drop(lock);
        assert_eq!(holder(dir.path()).unwrap(), None);
        DataLock::acquire(dir.path(), "b", Path::new("/mnt/db")).unwrap();
    }

    #[test]
    fn a_foreign_holder_is_no_riddle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "garbage").unwrap();
        let file = File::open(dir.path().join("lock")).unwrap();
        assert!(try_lock(&file).unwrap());
        let error = DataLock::acquire(dir.path(), "b", Path::new("/mnt/db")).unwrap_err();
        assert!(error.to_string().contains("is in use by a process that"), "{error}");
    }

    #[test]
    fn a_live_process_and_one_out_of_sight_are_not_dying_a_killed_one_is() {
        assert!(!is_dying(std::process::id()));
        assert!(!is_dying(0));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        child.kill().unwrap();
        // Not waited for yet: it is dying or a zombie.
        assert!(is_dying(child.id()));
        child.wait().unwrap();
    }
}
