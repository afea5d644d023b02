//! What a node tells about itself: the content of `weir status --json`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// State of a running node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Who it is.
    pub node: NodeStatus,
    /// `primary` or `replica`.
    pub role: String,
    /// The primary's name, as far as it is known.
    pub primary: Option<String>,
    /// The reign; 0 on a replica that knows no primary.
    pub epoch: u64,
    /// Milliseconds since this node was last known to be level with the primary: 0 on the primary,
    /// `null` before the first contact.
    pub lag_ms: Option<i64>,
    /// All databases, by name.
    pub databases: Vec<DatabaseStatus>,
    /// On the primary: who follows it.
    pub replicas: Vec<ReplicaStatus>,
    /// On a replica: databases that are being copied as a whole.
    pub copies: Vec<CopyStatus>,
    /// On a replica: databases of the primary that it cannot make or name. Without them it counts as level.
    #[serde(default)]
    pub aside: Vec<AsideStatus>,
    /// On a replica: why it does not follow, if it does not.
    pub follower_error: Option<String>,
}

/// A database on its way from the primary.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Path below the mount.
    pub name: String,
    /// Pages that are settled.
    pub pages: u32,
    /// Pages there are.
    pub pages_total: u32,
}

/// A database of the primary that a replica cannot make or name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AsideStatus {
    /// Its path on the primary.
    pub name: String,
    /// Its id.
    pub id: String,
    /// What is in the way, and what to do.
    pub reason: String,
}

impl Status {
    /// Whether the replicas that this node knows, itself included, have all there is; for a replica: all
    /// that the primary had at some moment within the last `window`.
    #[must_use]
    pub fn is_level(&self, window: Duration) -> bool {
        if self.role == "primary" {
            return self.replicas.iter().all(|replica| replica.lag_transactions == 0);
        }
        let window_ms = i64::try_from(window.as_millis()).unwrap_or(i64::MAX);
        let is_whole = self.copies.is_empty() && self.aside.is_empty();
        is_whole && self.lag_ms.is_some_and(|lag_ms| lag_ms < window_ms)
    }
}

/// Who a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its random id.
    pub id: String,
    /// Its cluster; `null` on a replica that never met its primary.
    pub cluster: Option<String>,
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since its start.
    pub uptime_ms: u64,
    /// The data directory.
    pub data: PathBuf,
    /// The mount point.
    pub mount: PathBuf,
    /// Where it serves replicas.
    pub listen: Option<String>,
}

/// State of one database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Path below the mount.
    pub name: String,
    /// Its id, the same on all nodes.
    pub id: String,
    /// `TXID/CHECKSUM` at the end of the log.
    pub position: String,
    /// Last transaction.
    pub txid: u64,
    /// Epoch of the primary that wrote it.
    pub epoch: u64,
    /// `TXID/CHECKSUM` that readers of this node see.
    pub applied: String,
    /// Bytes per page.
    pub page_size: u32,
    /// Size in pages.
    pub pages: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// `wal`, or `rollback` for all others.
    pub journal_mode: String,
    /// Bytes of log on disk.
    pub log_bytes: u64,
    /// Files in `lost+found` with transactions that this node had beyond its primary.
    #[serde(default)]
    pub lost_files: usize,
    /// `ok` or `quarantined`.
    pub state: String,
    /// Why it is not `ok`, and what to do.
    pub reason: Option<String>,
}

/// State of one replica, as its primary sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: String,
    /// Its random id.
    pub id: String,
    /// Where it calls from.
    pub address: String,
    /// Since when, milliseconds since the Unix epoch.
    pub connected_since_ms: i64,
    /// Transactions that it has not applied yet, over all databases.
    pub lag_transactions: u64,
    /// Bytes of log that it has not applied yet, over all databases.
    pub lag_bytes: u64,
    /// For how long it has not applied the oldest transaction that it lacks; 0 if it lacks none.
    pub lag_ms: u64,
    /// By database.
    pub databases: Vec<ReplicaDatabase>,
}

/// How far a replica is with one database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaDatabase {
    /// Path below the mount.
    pub name: String,
    /// Its id.
    pub id: String,
    /// `TXID/CHECKSUM` that survives a crash of the replica.
    pub received: String,
    /// `TXID/CHECKSUM` that readers of the replica see.
    pub applied: String,
    /// Transactions that it has not applied yet.
    pub lag_transactions: u64,
    /// Bytes of log that it has not applied yet; `null` if the log no longer reaches back so far.
    pub lag_bytes: Option<u64>,
    /// For how long it has not applied the oldest of them.
    pub lag_ms: u64,
}
