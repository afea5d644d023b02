//! What all databases of a node share: where things are, what the node is, who listens.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::Database;
use crate::client::Pool;
use crate::log::LogOptions;
use crate::types::{DbId, Epoch, NodeId};

/// Something about a database that others want to know. Sent while its lock is held: a listener must
/// not call back.
#[derive(Debug)]
pub enum Event {
    /// It has an identity and a log from now on.
    Tracked(Arc<Database>),
    /// Its file is no database any more.
    Untracked(DbId),
    /// Its position moved on the primary.
    Committed(DbId),
    /// A transaction waits to be applied on this replica.
    Received(DbId),
    /// It was written outside every journal: someone must find out when the writer is done.
    WrittenWithoutJournal(Arc<Database>),
}

/// What all databases of a node share.
pub struct Shared {
    /// Where the plain files are.
    pub files: PathBuf,
    /// Where the logs are, one directory per database.
    pub logs: PathBuf,
    /// This node.
    pub node: NodeId,
    /// How logs are written.
    pub log: LogOptions,
    /// Whether opening for writing fails on a replica, instead of the write finding the database busy.
    pub readonly_replica: bool,
    is_primary: AtomicBool,
    epoch: AtomicU64,
    client: OnceLock<Arc<Pool>>,
    occupied: AtomicUsize,
    listener: Box<dyn Fn(Event) + Send + Sync>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Shared {
    /// The node starts as a replica in epoch 0.
    #[must_use]
    pub fn new(
        files: PathBuf,
        logs: PathBuf,
        node: NodeId,
        log: LogOptions,
        readonly_replica: bool,
        listener: Box<dyn Fn(Event) + Send + Sync>,
    ) -> Self {
        Self {
            files,
            logs,
            node,
            log,
            readonly_replica,
            is_primary: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            client: OnceLock::new(),
            occupied: AtomicUsize::new(0),
            listener,
        }
    }

    /// How many databases are in a long operation under their locks.
    #[must_use]
    pub fn occupied(&self) -> &AtomicUsize {
        &self.occupied
    }

    /// Whether this node takes writes.
    #[must_use]
    pub fn is_primary(&self) -> bool {
        self.is_primary.load(Ordering::Acquire)
    }

    /// The epoch that new transactions carry.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch::new(self.epoch.load(Ordering::Acquire))
    }

    /// Changes what this node is.
    pub fn set_primary(&self, epoch: Option<Epoch>) {
        if let Some(epoch) = epoch {
            self.epoch.store(epoch.get(), Ordering::Release);
        }
        self.is_primary.store(epoch.is_some(), Ordering::Release);
    }

    /// Gives access through the mount; only the first call counts.
    pub fn connect(&self, client: Arc<Pool>) {
        // A second mount in one process does not happen.
        drop(self.client.set(client));
    }

    /// Access through the mount, once it is up.
    #[must_use]
    pub fn client(&self) -> Option<&Arc<Pool>> {
        self.client.get()
    }

    /// Tells the listener.
    pub fn tell(&self, event: Event) {
        (self.listener)(event);
    }
}
