//! Opens and closes the store, and changes the node's role.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::{Mutex, RwLock};
use tracing::{error, info, warn};

use super::{APPLIERS, InvalidateEntry, ReplicaWrites, Role, Store, StoreError, StoreOptions};
use crate::client::{Pool, Request};
use crate::database::{DEAD_LOG, Database, Recovered, Shared, WalOwner, remove_log};
use crate::disk;
use crate::log::LogOptions;
use crate::sqlite::DatabaseHeader;
use crate::types::{DbId, DbName};

/// Threads that write databases back at the stop.
const CLOSERS: usize = 16;

impl Store {
    /// Opens the data directory and recovers every database. No application may have files open.
    /// The node starts as a replica without a primary.
    ///
    /// # Errors
    /// The data directory is unusable. A damaged database does not fail the store: it is quarantined.
    pub fn open(options: StoreOptions) -> Result<Arc<Self>, StoreError> {
        let dir = |name: &str| -> Result<PathBuf, StoreError> {
            let path = options.data.join(name);
            disk::create_dir_durable(&path).map_err(failed("create directory", &path))?;
            Ok(path)
        };
        let (files, logs, lost_and_found) = (dir("files")?, dir("log")?, dir("lost+found")?);
        dir("tmp")?;
        let readonly = options.replica_writes == ReplicaWrites::Readonly;
        let store = Arc::new_cyclic(|me: &Weak<Self>| {
            let me = me.clone();
            let listener = Box::new(move |event| {
                if let Some(store) = me.upgrade() {
                    store.hear(event);
                }
            });
            let log = LogOptions::default();
            let shared = Shared::new(files, logs, options.node, log, readonly, listener);
            Self {
                shared: Arc::new(shared),
                lost_and_found,
                role_file: options.data.join("role"),
                retention: options.retention,
                role: RwLock::new(Role::Replica { primary: None }),
                catalog: Mutex::default(),
                announcer: Default::default(),
                to_apply: Default::default(),
                unlogged: Default::default(),
                stop: Default::default(),
                threads: Mutex::default(),
                fenced: Mutex::default(),
                held_back: Mutex::default(),
                used: Mutex::default(),
                followers: Mutex::default(),
                level_at: Mutex::default(),
                invalidate: Default::default(),
            }
        });
        store.recover()?;
        store.start_threads()?;
        Ok(store)
    }

    fn recover(&self) -> Result<(), StoreError> {
        let owner = match fs::read(&self.role_file) {
            Ok(role) if role == b"replica" => WalOwner::Daemon,
            // Without a note the files are whatever their owner put there.
            Ok(_) | Err(_) => WalOwner::Applications,
        };
        for id in self.logs_to_recover()? {
            let dir = self.shared.logs.join(id.to_string());
            match Database::recover(&self.shared, id, owner) {
                Ok(Recovered::Database(db)) => self.catalog.lock().track(id, db),
                Ok(Recovered::FileIsGone(name)) => {
                    let name = name.map(|name| name.to_string()).unwrap_or_default();
                    info!(db = name, %id, "the file was removed: its log goes too");
                    remove_log_of(&dir);
                }
                Err(cause) => {
                    error!(%id, error = %cause, "a log directory that tells nothing, left alone");
                }
            }
        }
        Ok(())
    }

    /// The log directories that belong to databases, after those are gone whose file another database replaced.
    fn logs_to_recover(&self) -> Result<Vec<DbId>, StoreError> {
        let logs = &self.shared.logs;
        let mut ids = Vec::new();
        for entry in fs::read_dir(logs).map_err(failed("read directory", logs))? {
            let entry = entry.map_err(failed("read directory", logs))?;
            let name = entry.file_name();
            match name.to_str().and_then(|name| name.parse::<DbId>().ok()) {
                Some(id) => ids.push(id),
                None if name.as_bytes().starts_with(DEAD_LOG.as_bytes()) => {
                    if let Err(cause) = fs::remove_dir_all(entry.path()) {
                        warn!(error = %cause, path = %entry.path().display(), "remove log");
                    }
                }
                None => warn!(path = %entry.path().display(), "not a log directory, left alone"),
            }
        }
        let replaced_by: Vec<(DbName, DbId)> = ids
            .iter()
            .filter_map(|id| Some((Database::renamed_over(&self.shared, *id)?, *id)))
            .collect();
        for (name, by) in replaced_by {
            ids.retain(|id| {
                let is_replaced =
                    *id != by && Database::noted_name(&self.shared, *id).as_ref() == Some(&name);
                if is_replaced {
                    info!(db = %name, %id, "a crash interrupted its replacement: its log goes");
                    remove_log_of(&logs.join(id.to_string()));
                }
                !is_replaced
            });
        }
        Ok(ids)
    }

    fn start_threads(self: &Arc<Self>) -> Result<(), StoreError> {
        type Job = fn(&Arc<Store>);
        let mut jobs: Vec<(String, Job)> = vec![
            ("housekeeping".to_owned(), Self::run_housekeeping),
            ("unlogged".to_owned(), Self::run_watcher),
        ];
        jobs.extend((0..APPLIERS).map(|n| {
            let run: Job = Self::run_applier;
            (format!("apply-{n}"), run)
        }));
        for (name, run) in jobs {
            let store = self.clone();
            let thread = thread::Builder::new()
                .name(name)
                .spawn(move || run(&store))
                .map_err(failed("start thread", Path::new("/proc/self/task")))?;
            self.threads.lock().push(thread);
        }
        Ok(())
    }

    /// Gives the store its way through the mount, before the mount is up: the first open may need it.
    pub fn connect(&self, client: Arc<Pool>) {
        self.shared.connect(client);
    }

    /// The mount is up: received transactions can be applied from now on.
    pub fn mounted(&self, invalidate: InvalidateEntry) {
        // A second mount in one process does not happen.
        drop(self.invalidate.set(invalidate));
        for db in self.databases() {
            if let Some(id) = db.id() {
                self.to_apply.push(id);
            }
        }
    }

    /// Changes the node's role. Blocks until the write locks of all open databases are taken or released.
    pub fn set_role(&self, role: Role) {
        let (text, epoch) = match &role {
            Role::Primary { epoch } => ("primary", Some(*epoch)),
            Role::Replica { .. } => ("replica", None),
        };
        // Before the first write of the new role: recovery must know whose the WAL files are.
        if let Err(cause) = disk::replace(&self.role_file, text.as_bytes()) {
            error!(error = %cause, path = %self.role_file.display(), "note the role");
        }
        let was_primary = self.shared.is_primary();
        self.shared.set_primary(epoch);
        *self.role.write() = role;
        if epoch.is_some() && !was_primary {
            self.release_fences();
            self.take_untracked_files();
        }
    }

    fn release_fences(&self) {
        let Some(client) = self.shared.client() else { return };
        let fenced: Vec<DbId> = self.fenced.lock().drain().collect();
        for id in fenced {
            if let Err(cause) = client.call(id, Request::Unfence) {
                error!(%id, error = %cause, "release the write lock");
            }
        }
    }

    /// Databases that were put into the data directory while the daemon was not running.
    fn take_untracked_files(&self) {
        for name in database_files(&self.shared.files) {
            if self.by_name(&name).is_some() || name.is_being_imported() {
                continue;
            }
            if let Err(cause) = self.main_file(&name).take_existing_file() {
                error!(db = %name, error = %cause, "take a database that was there before");
            }
        }
    }

    /// Stops taking writes, writes everything back and syncs. Called after the unmount.
    pub fn close(&self) {
        self.stop.stop();
        self.to_apply.close();
        self.unlogged.close();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                error!("a thread of the store panicked");
            }
        }
        // Each waits for the disk several times; together they share its flushes.
        let databases = self.databases();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..databases.len().min(CLOSERS) {
                scope.spawn(|| {
                    while let Some(db) = databases.get(next.fetch_add(1, Ordering::Relaxed)) {
                        db.close();
                    }
                });
            }
        });
    }
}

fn remove_log_of(path: &Path) {
    if let Err(cause) = remove_log(path) {
        error!(error = %cause, path = %path.display(), "remove log");
    }
}

/// SQLite databases below a directory, by their header.
fn database_files(root: &Path) -> Vec<DbName> {
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(path),
                Ok(kind) if kind.is_file() && has_header(&path) => {
                    let name = path.strip_prefix(root).ok().map(|path| path.as_os_str().as_bytes());
                    found.extend(name.and_then(|name| DbName::new(name).ok()));
                }
                Ok(_) | Err(_) => (),
            }
        }
    }
    found
}

fn has_header(path: &Path) -> bool {
    use std::io::Read as _;
    let mut bytes = [0; DatabaseHeader::SIZE];
    // Opening a FIFO would wait for its other end.
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()) {
        return false;
    }
    fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes)).is_ok()
        && DatabaseHeader::parse(&bytes).is_ok()
}

fn failed<'a>(
    step: &'static str,
    path: &'a Path,
) -> impl Fn(std::io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Disk { step, path: path.to_owned(), source }
}
