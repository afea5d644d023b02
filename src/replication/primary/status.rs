//! What the primary knows of its followers, for people and metrics.

use std::time::Duration;

use crate::types::{DbId, DbName, NodeId, Pos};

/// How far a follower is behind in one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    /// Transactions that it has not applied.
    pub transactions: u64,
    /// Bytes of log that it has not applied; `None` if the log no longer reaches back.
    pub bytes: Option<u64>,
    /// How long the first of them has been committed.
    pub time: Duration,
}

/// A follower and one database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerDatabase {
    /// Which.
    pub id: DbId,
    /// Its name.
    pub name: DbName,
    /// What survives a crash of the follower.
    pub durable: Pos,
    /// What its readers see.
    pub applied: Pos,
    /// How far it is behind.
    pub lag: Lag,
}

/// A connected follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerStatus {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where it connects from.
    pub address: String,
    /// The version it runs.
    pub software: String,
    /// Since when: milliseconds since the Unix epoch.
    pub connected_since_ms: i64,
    /// The databases it wants.
    pub databases: Vec<FollowerDatabase>,
}
