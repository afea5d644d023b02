//! The mount: kernel requests to `store`.
//!
//! A request takes one path: `fuse` (counts, answers) → `tree` with `names`, `files`, `attributes`,
//! `listing` (decide) → `store`/`database` (capture) and `backing` (plain files). `node` starts and ends it.
//! What always holds: a thread that serves requests never waits for work that goes through the mount; such
//! requests are parked on `workers`. Locks, page cache and permissions are the kernel's.
//! Not here: SQLite's formats, commits, replication.

mod attributes;
mod backing;
mod errno;
mod files;
mod fuse;
mod handles;
mod listing;
mod names;
mod nodes;
mod point;
mod requests;
mod special;
mod tree;
mod workers;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier, Session, SessionACL};
use parking_lot::{Condvar, Mutex};
use rustix::mount::UnmountFlags;
use tracing::{info, warn};

use self::backing::Backing;
use self::fuse::Fuse;
use self::point::MountPoint;
pub use self::requests::{RequestCounts, RequestKind};
use self::tree::Tree;
use crate::client::Pool;
use crate::store::{InvalidateEntry, Store};
use crate::types::DbName;

/// How long an unmount waits for applications to close their files before they are cut off.
const BUSY_WAIT: Duration = Duration::from_secs(2);

/// How long the threads that serve requests may take to end after the unmount.
const END_WAIT: Duration = Duration::from_secs(10);

/// How long a detached mount may go on before its connection is ended by force.
const ABORT_WAIT: Duration = Duration::from_secs(1);

/// How long one invalidation may take before its sender goes on without it.
const INVALIDATE_WAIT: Duration = Duration::from_secs(1);

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountOptions {
    /// Where; made if it is missing.
    pub mount: PathBuf,
    /// Whether other users may use it; each file's own permissions count in either case.
    pub allow_other: bool,
    /// Threads that serve requests, at least 2.
    pub threads: usize,
}

/// Why the mount could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// No FUSE in the kernel or in the container.
    #[error(
        "/dev/fuse is missing: run 'modprobe fuse', or start the container with '--device /dev/fuse --cap-add SYS_ADMIN'"
    )]
    NoFuse,
    /// The device is there but cannot be opened.
    #[error("open /dev/fuse")]
    Device {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not allowed to mount, and nobody who is.
    #[error("mounting needs root or the program 'fusermount3': install the package 'fuse3'")]
    NoHelper,
    /// The helper could not be used.
    #[error("run fusermount3")]
    Helper {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The helper said no.
    #[error("mount {}: {said}{}", path.display(), helper_remedy(said))]
    HelperRefused {
        /// The mount point.
        path: PathBuf,
        /// Its message.
        said: String,
    },
    /// The kernel said no.
    #[error("mount {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The mount point cannot be used.
    #[error("use {} as mount point", path.display())]
    Point {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It would hide files.
    #[error("{} is not empty, and mounting there would hide what is in it: move the files away or choose another directory", path.display())]
    NotEmpty {
        /// The mount point.
        path: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{} is in use by a {file_system} file system ({from}): unmount it with 'umount {}' or choose another directory", path.display(), path.display())]
    Occupied {
        /// The mount point.
        path: PathBuf,
        /// Its type.
        file_system: String,
        /// Its source.
        from: String,
    },
    /// The daemon would serve itself.
    #[error("the mount point {} and the data directory {} overlap: choose another mount point", path.display(), data.display())]
    Overlap {
        /// The mount point.
        path: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// The directory with the plain files cannot be used.
    #[error("open {}", path.display())]
    Backing {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel did not accept the session, or its threads could not be started.
    #[error("start serving {}", path.display())]
    Session {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("unmount {}: try 'umount -l {}'", path.display(), path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What to do about a refusal of fusermount3.
fn helper_remedy(said: &str) -> &'static str {
    if said.contains("user_allow_other") {
        ": add the line 'user_allow_other' to /etc/fuse.conf, or set allow_other = false"
    } else if said.contains("/dev/fuse") {
        ": run as root, or let everybody open it with 'chmod 666 /dev/fuse' as other systems do"
    } else {
        ""
    }
}

/// Whether requests are served, and how serving ended.
#[derive(Debug, Default)]
struct Serving {
    has_ended: Mutex<bool>,
    changed: Condvar,
}

impl Serving {
    fn end(&self) {
        *self.has_ended.lock() = true;
        self.changed.notify_all();
    }

    fn wait_end(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut has_ended = self.has_ended.lock();
        while !*has_ended {
            if self.changed.wait_until(&mut has_ended, deadline).timed_out() {
                break;
            }
        }
        *has_ended
    }
}

/// A mounted file system. Dropping it without [`Mount::unmount`] leaves it mounted until the process ends.
#[derive(Debug)]
pub struct Mount {
    point: MountPoint,
    tree: Arc<Tree>,
    notifier: Notifier,
    serving: Arc<Serving>,
    /// The kernel's number for the connection, which ends it when nothing else does.
    connection: u32,
}

impl Mount {
    /// Mounts and serves. When this returns, applications can use the mount.
    ///
    /// # Errors
    /// Each [`MountError`] names the remedy.
    pub fn start(
        options: MountOptions,
        store: Arc<Store>,
        pool: Arc<Pool>,
    ) -> Result<Self, MountError> {
        let files = store.files().to_owned();
        let backing = Backing::open(&files)
            .map_err(|source| MountError::Backing { path: files.clone(), source })?;
        let point = MountPoint::prepare(&options.mount, &files)?;
        let threads = options.threads.max(2);
        let tree = Arc::new(Tree::new(backing, store, pool, threads));
        let device = point.mount(options.allow_other)?;
        let failed = |source| MountError::Session { path: point.path().to_owned(), source };
        let session = Self::session(&tree, device, options.allow_other, threads);
        let session = session.map_err(|source| Self::undo(&point, failed(source)))?;
        let notifier = session.notifier();
        let serving = Arc::new(Serving::default());
        let watched = Arc::clone(&serving);
        std::thread::Builder::new()
            .name("weir-mount".to_owned())
            .spawn(move || {
                if let Err(error) = session.run() {
                    warn!(%error, "serving the mount ended");
                }
                watched.end();
            })
            .map_err(|source| Self::undo(&point, failed(source)))?;
        let root = rustix::fs::stat(point.path())
            .map_err(|error| Self::undo(&point, failed(error.into())))?;
        let connection = rustix::fs::minor(root.st_dev);
        info!(mount = %point.path().display(), threads, "mounted");
        Ok(Self { point, tree, notifier, serving, connection })
    }

    fn session(
        tree: &Arc<Tree>,
        device: std::os::fd::OwnedFd,
        allow_other: bool,
        threads: usize,
    ) -> io::Result<Session<Fuse>> {
        let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
        let mut config = fuser::Config::default();
        config.acl = acl;
        config.n_threads = Some(threads);
        // A descriptor for each thread needs the right to open the device.
        config.clone_fd = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
        Session::from_fd(Fuse::new(Arc::clone(tree)), device, acl, config)
    }

    fn undo(point: &MountPoint, error: MountError) -> MountError {
        if let Err(error) = point.unmount(UnmountFlags::FORCE | UnmountFlags::DETACH) {
            warn!(%error, mount = %point.path().display(), "unmount after a failed start");
        }
        error
    }

    /// Where it is mounted: absolute, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.point.path()
    }

    /// Whether requests are being served; false once somebody else has unmounted it.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !*self.serving.has_ended.lock()
    }

    /// Waits until nothing is served any more, for at most `timeout`; says whether that is so.
    #[must_use]
    pub fn wait_end(&self, timeout: Duration) -> bool {
        self.serving.wait_end(timeout)
    }

    /// How many requests of each kind came so far.
    #[must_use]
    pub fn requests(&self) -> RequestCounts {
        self.tree.requests.snapshot()
    }

    /// How many inodes the kernel knows.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.tree.nodes.len()
    }

    /// Makes the kernel look a name up again, and forget what it has cached of the file. Never call it
    /// with a lock held that a request may need: it waits (for a bounded time) until the kernel has no
    /// request under way in the directory.
    #[must_use]
    pub fn invalidate(&self) -> InvalidateEntry {
        let (tree, notifier) = (Arc::clone(&self.tree), self.notifier.clone());
        Arc::new(move |name| {
            let (done, result) = mpsc::channel();
            let (inner, notifier, entry) = (Arc::clone(&tree), notifier.clone(), name.clone());
            tree.workers.run(move || {
                if let Err(error) = invalidate(&inner, &notifier, &entry) {
                    warn!(%error, name = %entry, "invalidate the kernel's cache");
                }
                // Nobody listens any more if it took too long.
                done.send(()).ok();
            });
            if result.recv_timeout(INVALIDATE_WAIT).is_err() {
                warn!(%name, "the kernel is slow to drop a name from its cache");
            }
        })
    }

    /// Unmounts. Applications that still have files open are named in the log, given a moment, and then cut
    /// off. Bounded: it never waits for an application or the kernel for long.
    ///
    /// # Errors
    /// [`MountError::Unmount`] if the mount is still there.
    pub fn unmount(self) -> Result<(), MountError> {
        let deadline = Instant::now() + BUSY_WAIT;
        let mut is_first = true;
        while self.is_serving() {
            match self.point.unmount(UnmountFlags::empty()) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => (),
                // Somebody else was faster.
                Err(_) if !self.point.is_mounted() => break,
                Err(error) => {
                    warn!(%error, mount = %self.path().display(), "unmount");
                    break;
                }
            }
            if is_first {
                let holders = point::holders(self.path()).join(", ");
                warn!(mount = %self.path().display(), %holders, "the mount is busy");
                is_first = false;
            }
            if Instant::now() >= deadline || self.serving.wait_end(Duration::from_millis(50)) {
                break;
            }
        }
        if self.point.is_mounted() {
            let forced = self.point.unmount(UnmountFlags::FORCE | UnmountFlags::DETACH);
            let path = self.path().to_owned();
            forced.map_err(|source| MountError::Unmount { path, source })?;
        }
        let has_ended =
            self.serving.wait_end(ABORT_WAIT) || (self.abort() && self.serving.wait_end(END_WAIT));
        if !has_ended {
            warn!(
                mount = %self.path().display(),
                "applications keep files open: they are cut off when this process ends"
            );
        }
        self.tree.parked.close(END_WAIT);
        self.tree.workers.close(END_WAIT);
        Ok(())
    }
}

impl Mount {
    /// Ends the connection: a detached mount lives on while applications have files open. Says whether it
    /// could.
    fn abort(&self) -> bool {
        let switch = format!("/sys/fs/fuse/connections/{}/abort", self.connection);
        std::fs::write(switch, b"1").is_ok()
    }
}

fn invalidate(tree: &Tree, notifier: &Notifier, name: &DbName) -> io::Result<()> {
    let path = name.as_path();
    let parent = path.parent().unwrap_or(Path::new(""));
    let Some(entry) = path.file_name() else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() {
        nodes::ROOT
    } else {
        match rustix::fs::statat(tree.backing.root(), parent, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        {
            Ok(stat) => tree.backing.known_as(stat.st_ino),
            // Without the directory the kernel knows nothing in it.
            Err(_) => return Ok(()),
        }
    };
    if !tree.nodes.is_known(parent) {
        return Ok(());
    }
    notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(entry.as_bytes()))?;
    if let Ok(stat) =
        rustix::fs::statat(tree.backing.root(), path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
        && tree.nodes.is_known(stat.st_ino)
    {
        notifier.inval_inode(INodeNo(stat.st_ino), 0, 0)?;
    }
    Ok(())
}
