//! A store served under a mount, for one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use weir::client::Pool;
use weir::mount::{Mount, MountError, MountOptions};
use weir::store::{ReplicaWrites, Retention, Role, Store, StoreOptions};
use weir::types::{Epoch, NodeId};

/// Whether mounting is possible here; prints why not.
pub(crate) fn can_mount() -> bool {
    if !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: /dev/fuse is missing");
        return false;
    }
    let has_helper = Command::new("fusermount3").arg("-V").output().is_ok();
    if !rustix::process::geteuid().is_root() && !has_helper {
        println!("SKIPPED: neither root nor fusermount3");
        return false;
    }
    true
}

/// Whether a program is there; prints that the test is skipped if not.
pub(crate) fn has_program(name: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {name}")]).output();
    let is_there = found.is_ok_and(|output| output.status.success());
    if !is_there {
        println!("SKIPPED: the program {name} is missing");
    }
    is_there
}

/// A mount, its store and its directories; unmounted when dropped.
pub(crate) struct Served {
    pub(crate) mount: Option<Mount>,
    pub(crate) store: Arc<Store>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn open_store(data: &Path) -> Arc<Store> {
    let store = Store::open(StoreOptions {
        data: data.to_owned(),
        node: NodeId::new(1),
        replica_writes: ReplicaWrites::Busy,
        retention: Retention { age: Duration::from_secs(3600), bytes: 1 << 30, bytes_max: 1 << 32 },
    })
    .unwrap();
    store.set_role(Role::Primary { epoch: Epoch::new(1) });
    store
}

pub(crate) fn pool(mount: &Path) -> Arc<Pool> {
    Arc::new(Pool::start(mount.to_owned(), 1).unwrap())
}

pub(crate) fn options(mount: &Path) -> MountOptions {
    MountOptions { mount: mount.to_owned(), allow_other: false, threads: 4 }
}

/// Mounts the files of `data` at `mount`.
pub(crate) fn start(data: &Path, options: MountOptions) -> Result<(Mount, Arc<Store>), MountError> {
    let store = open_store(data);
    let pool = pool(&options.mount);
    let mount = Mount::start(options, Arc::clone(&store), Arc::clone(&pool))?;
    store.connect(pool);
    store.mounted(mount.invalidate());
    Ok((mount, store))
}

impl Served {
    /// Serves an empty store; `None` where that is impossible.
    pub(crate) fn start() -> Option<Self> {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut MountOptions)) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut options = options(&dir.path().join("mnt"));
        change(&mut options);
        let (mount, store) = start(&dir.path().join("data"), options).unwrap();
        Some(Self { mount: Some(mount), store, dir })
    }

    /// A path below the mount.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mnt").join(name)
    }

    /// A path below the plain files.
    pub(crate) fn backing(&self, name: &str) -> PathBuf {
        self.dir.path().join("data/files").join(name)
    }

    /// A plain directory beside the mount, for comparing.
    pub(crate) fn plain(&self) -> PathBuf {
        let path = self.dir.path().join("plain");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            self.store.close();
            if let Err(error) = mount.unmount() {
                println!("unmount: {error}");
            }
        }
    }
}

/// Runs a shell script in a directory; returns its output, or panics with everything it said.
pub(crate) fn shell(directory: &Path, script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
