//! Puts a node's state together.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};

use super::identity::Identity;
use super::status::{
    AsideStatus, CopyStatus, DatabaseStatus, NodeStatus, ReplicaDatabase, ReplicaStatus, Status,
};
use crate::config::Config;
use crate::database::Database;
use crate::disk::clock;
use crate::replication::{CopyProgress, Follower, FollowerStatus, Server, SetAside};
use crate::store::{Role, Store};

/// What a report is made from.
#[derive(Debug)]
pub(super) struct Reporter {
    pub(super) config: Arc<Config>,
    pub(super) identity: Arc<Identity>,
    pub(super) store: Arc<Store>,
    pub(super) server: Option<Arc<Server>>,
    /// Weak: the follower is stopped by value.
    pub(super) follower: Weak<Follower>,
    /// On the clock that runs through suspension.
    pub(super) started: std::time::Duration,
}

impl Reporter {
    /// The node's state now. Reads the logs' indices: not for a network thread.
    pub(super) fn status(&self) -> Status {
        let role = self.store.role();
        let following = self.follower.upgrade().map(|follower| follower.status());
        let link = following.as_ref().and_then(|following| following.link.as_ref());
        let mut databases: Vec<_> =
            self.store.databases().iter().filter_map(|db| self.database(db)).collect();
        databases.sort_by(|a, b| a.name.cmp(&b.name));
        let newest_epoch = databases.iter().map(|db| db.epoch).max().unwrap_or(0);
        let (role, primary, epoch) = match role {
            Role::Primary { epoch } => {
                ("primary", Some(self.config.node.name.clone()), epoch.get())
            }
            Role::Replica { primary } => {
                ("replica", primary, link.map_or(newest_epoch, |link| link.epoch.get()))
            }
        };
        let lag_ms = self.store.lag_ms();
        Status {
            node: self.node(),
            role: role.to_owned(),
            primary,
            epoch,
            lag_ms: (lag_ms < i64::from(i32::MAX)).then_some(lag_ms),
            databases,
            replicas: self.server.iter().flat_map(|s| s.followers()).map(replica).collect(),
            copies: following.iter().flat_map(|f| &f.copies).map(copy).collect(),
            aside: following.iter().flat_map(|f| &f.aside).map(aside).collect(),
            follower_error: following.and_then(|following| following.error),
        }
    }

    fn node(&self) -> NodeStatus {
        let uptime = clock::boottime().saturating_sub(self.started);
        NodeStatus {
            name: self.config.node.name.clone(),
            id: self.identity.node().to_string(),
            cluster: self.identity.cluster().map(|id| id.to_string()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            data: self.config.node.data.clone(),
            mount: self.config.node.mount.clone(),
            listen: self.config.replication.listen.as_ref().map(ToString::to_string),
        }
    }

    fn database(&self, db: &Database) -> Option<DatabaseStatus> {
        let status = db.status()?;
        let log = self.config.node.data.join("log").join(&status.id);
        Some(DatabaseStatus {
            lost_files: self.store.lost_files(&db.name()),
            log_bytes: status.log_bytes.unwrap_or_else(|| bytes_in(&log)),
            name: status.name,
            id: status.id,
            position: status.position,
            txid: status.txid,
            epoch: status.epoch,
            applied: status.applied,
            page_size: status.page_size,
            pages: status.pages,
            bytes: status.bytes,
            journal_mode: status.journal_mode.to_owned(),
            state: if status.quarantine.is_some() { "quarantined" } else { "ok" }.to_owned(),
            reason: status.quarantine,
        })
    }
}

/// Bytes on disk of the files in a directory; 0 if it cannot be read.
fn bytes_in(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

fn aside(aside: &SetAside) -> AsideStatus {
    let (name, id) = (aside.name.to_string(), aside.id.to_string());
    AsideStatus { name, id, reason: aside.reason.clone() }
}

fn copy(progress: &CopyProgress) -> CopyStatus {
    let name = progress.name.to_string();
    CopyStatus { name, pages: progress.pages, pages_total: progress.pages_total }
}

fn replica(follower: FollowerStatus) -> ReplicaStatus {
    let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let databases: Vec<_> = follower
        .databases
        .iter()
        .map(|db| ReplicaDatabase {
            name: db.name.to_string(),
            id: db.id.to_string(),
            received: db.durable.to_string(),
            applied: db.applied.to_string(),
            lag_transactions: db.lag.transactions,
            lag_bytes: db.lag.bytes,
            lag_ms: ms(db.lag.time),
        })
        .collect();
    ReplicaStatus {
        name: follower.name,
        id: follower.node.to_string(),
        address: follower.address,
        connected_since_ms: follower.connected_since_ms,
        lag_transactions: databases.iter().map(|db| db.lag_transactions).sum(),
        lag_bytes: databases.iter().filter_map(|db| db.lag_bytes).sum(),
        lag_ms: databases.iter().map(|db| db.lag_ms).max().unwrap_or(0),
        databases,
    }
}
