//! Who is primary. One file per way to decide it; today the configuration names the primary.
//!
//! Called by `node`, which turns the role into action. Nothing here knows databases.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::config::LeaseConfig;
use crate::types::Epoch;

/// What this node is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Assignment {
    /// It takes writes.
    Primary {
        /// Its reign.
        epoch: Epoch,
    },
    /// It follows another node.
    Follow {
        /// The primary's name.
        name: String,
        /// Where it serves replicas.
        url: String,
    },
}

/// The primary is named in the configuration and never changes.
#[derive(Clone, Debug)]
pub struct StaticLease {
    primary: String,
    peers: BTreeMap<String, String>,
}

impl StaticLease {
    /// The one reign of a static primary.
    pub const EPOCH: Epoch = Epoch::new(1);

    /// Takes the checked configuration.
    #[must_use]
    pub fn new(config: &LeaseConfig) -> Self {
        let LeaseConfig::Static { primary, peers } = config;
        Self { primary: primary.clone(), peers: peers.clone() }
    }

    /// The primary's name.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.primary
    }

    /// What the node with a name is to be.
    #[must_use]
    pub fn assignment(&self, node: &str) -> Assignment {
        if node == self.primary {
            return Assignment::Primary { epoch: Self::EPOCH };
        }
        let url =
            self.peers.get(&self.primary).expect("BUG: config checks that the primary is a peer");
        Assignment::Follow { name: self.primary.clone(), url: url.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_node_is_primary_and_the_others_follow_it() {
        let peers = [("a", "http://a:1"), ("b", "http://b:1")];
        let peers = peers.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let lease = StaticLease::new(&LeaseConfig::Static { primary: "a".to_owned(), peers });
        assert_eq!(lease.assignment("a"), Assignment::Primary { epoch: Epoch::new(1) });
        let url = "http://a:1".to_owned();
        assert_eq!(lease.assignment("c"), Assignment::Follow { name: "a".to_owned(), url });
    }
}
