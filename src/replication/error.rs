//! Refusals and malformed messages.

use std::time::Duration;

use crate::database::OpError;
use crate::types::{ClusterId, Epoch, NameError, NodeId};

/// Why a call was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Reason {
    /// The protocol versions do not match.
    Protocol,
    /// The nodes belong to different clusters.
    Cluster,
    /// The node called itself.
    Itself,
    /// Another node with the same id has connected.
    Replaced,
    /// The callee takes no writes.
    NotPrimary,
    /// The session is not open.
    NoSession,
    /// The caller broke the protocol.
    ProtocolError,
    /// The database is unknown, or not wanted by the caller's filter.
    NoDatabase,
    /// Too many streams.
    Busy,
    /// The caller did not read for too long.
    Stalled,
    /// The callee could not read its log or its pages.
    Failed,
    /// The callee is stopping.
    Stopping,
}

impl Reason {
    /// Whether only a person can resolve it: the follower then asks less often.
    #[must_use]
    pub fn needs_a_person(self) -> bool {
        match self {
            Self::Protocol | Self::Cluster | Self::Itself | Self::Replaced => true,
            Self::NotPrimary
            | Self::NoSession
            | Self::ProtocolError
            | Self::NoDatabase
            | Self::Busy
            | Self::Stalled
            | Self::Failed
            | Self::Stopping => false,
        }
    }
}

/// A refusal, as it travels.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// For people: names the thing and the remedy.
    pub message: String,
    /// The primary's name, if the callee is not it and knows.
    pub primary: Option<String>,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), primary: None }
    }

    pub(crate) fn protocol(theirs: u32, software: &str, ours: u32) -> Self {
        Self::new(
            Reason::Protocol,
            format!(
                "the peer (weir {software}) speaks protocol {theirs}, this node speaks {ours}: \
                 run the same version of weir on all nodes"
            ),
        )
    }

    pub(crate) fn cluster(peer: &str, theirs: ClusterId, ours: ClusterId) -> Self {
        Self::new(
            Reason::Cluster,
            format!(
                "node {peer} belongs to cluster {theirs}, this node to cluster {ours}: \
                 correct the address, or empty the data directory of the node that should move"
            ),
        )
    }

    pub(crate) fn itself(node: NodeId) -> Self {
        Self::new(
            Reason::Itself,
            format!(
                "node {node} called itself: correct the primary's address, or, if the data \
                 directory was copied from another node, remove node.json from the copy"
            ),
        )
    }

    pub(crate) fn replaced(node: NodeId, name: &str, address: &str) -> Self {
        Self::new(
            Reason::Replaced,
            format!(
                "another connection with node id {node} came from {address} (name {name}): if two \
                 nodes run on copies of one data directory, remove node.json from one of them"
            ),
        )
    }

    pub(crate) fn failed(error: &OpError) -> Self {
        Self::new(Reason::Failed, format!("the primary could not read the database: {error}"))
    }

    pub(crate) fn stopping(me: &str) -> Self {
        Self::new(Reason::Stopping, format!("node {me} is stopping"))
    }

    pub(crate) fn not_primary(me: &str, primary: Option<String>) -> Self {
        let message = match &primary {
            Some(primary) => format!("node {me} is not the primary, {primary} is"),
            None => format!("node {me} is not the primary and knows of none"),
        };
        Self { reason: Reason::NotPrimary, message, primary }
    }
}

/// A message that breaks the protocol. The stream ends; nothing of it is used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what} holds {count}, at most {max} are allowed")]
    TooMany { what: &'static str, count: usize, max: usize },
    #[error("{0} is no position")]
    Position(&'static str),
    #[error("{0} is no page number")]
    PageNo(&'static str),
    #[error("{0} is no page size")]
    PageSize(u32),
    #[error("a page sum lacks its flag, or the sums are cut off")]
    Sums,
    #[error("a name of a database is not acceptable")]
    Name(#[from] NameError),
    #[error("{0} is not expected here")]
    Unexpected(&'static str),
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self::new(Reason::ProtocolError, format!("protocol error: {error}"))
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the connection broke: {}", .0.message())]
    Lost(Box<tonic::Status>),
    #[error("the peer closed the stream")]
    Closed,
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    #[error("connect to {address}")]
    Connect {
        address: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the primary's epoch is {theirs}, this node has seen {seen}")]
    OldEpoch { theirs: Epoch, seen: Epoch },
    #[error("keep the cluster's id")]
    Join(#[source] std::io::Error),
    #[error("this node is stopping")]
    Stopping,
}

impl From<Malformed> for LinkError {
    fn from(error: Malformed) -> Self {
        Self::Refused(error.into())
    }
}

impl From<tokio::task::JoinError> for LinkError {
    fn from(error: tokio::task::JoinError) -> Self {
        match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Self::Stopping,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_cluster_is_told_with_both_ids() {
        let refusal = Refusal::cluster("b", ClusterId::new(0xb), ClusterId::new(0xa));
        assert!(refusal.to_string().contains("000000000000000b"));
        assert!(refusal.to_string().contains("000000000000000a"));
    }
}
