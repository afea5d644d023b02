//! Who this node is, for as long as its data directory lives: `DATA/node.json`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::types::{ClusterId, NodeId};

/// Why the identity could not be read, kept or taken.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is damaged.
    #[error(
        "{path} is damaged ({reason}); restore it from a backup, or remove it to make this a new node",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What cannot be read.
        reason: String,
    },
    /// The other node is of another cluster.
    #[error(
        "this node belongs to cluster {ours}, the other one to cluster {theirs}; check the addresses in \
         lease.peers, or start this node with an empty node.data to join the other cluster"
    )]
    OtherCluster {
        /// This node's cluster.
        ours: ClusterId,
        /// The other node's cluster.
        theirs: ClusterId,
    },
    /// The file could not be read or written.
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    node: String,
    cluster: Option<String>,
}

/// This node's id, and its cluster's once it has one.
#[derive(Debug)]
pub struct Identity {
    path: PathBuf,
    node: NodeId,
    cluster: Mutex<Option<ClusterId>>,
}

impl Identity {
    const VERSION: u32 = 1;

    /// Reads the identity of a data directory, or makes a new one.
    ///
    /// # Errors
    /// The file is damaged or cannot be read or written.
    pub fn load_or_create(data: &Path) -> Result<Self, IdentityError> {
        let path = data.join("node.json");
        match fs::read(&path) {
            Ok(content) => Self::parse(path, &content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let node = NodeId::new(random());
                let identity = Self { path, node, cluster: Mutex::new(None) };
                identity.write(None)?;
                Ok(identity)
            }
            Err(source) => Err(IdentityError::Disk { step: "read node identity", path, source }),
        }
    }

    fn parse(path: PathBuf, content: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |reason: String| IdentityError::Damaged { path: path.clone(), reason };
        let content: Content =
            serde_json::from_slice(content).map_err(|error| damaged(error.to_string()))?;
        if content.version != Self::VERSION {
            return Err(damaged(format!("version {} is not known", content.version)));
        }
        let node = content.node.parse().map_err(|error| damaged(format!("node: {error}")))?;
        let cluster = content.cluster.map(|text| text.parse()).transpose();
        let cluster = cluster.map_err(|error| damaged(format!("cluster: {error}")))?;
        Ok(Self { path, node, cluster: Mutex::new(cluster) })
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its cluster; `None` on a replica that never met its primary.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock()
    }

    /// On the primary: the cluster, founded now if there is none.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn found_cluster(&self) -> Result<ClusterId, IdentityError> {
        let mut cluster = self.cluster.lock();
        match *cluster {
            Some(id) => Ok(id),
            None => {
                let id = ClusterId::new(random());
                self.write(Some(id))?;
                Ok(*cluster.insert(id))
            }
        }
    }

    /// On a replica: joins the cluster of the primary it talks to. Once joined, it stays.
    ///
    /// # Errors
    /// [`IdentityError::OtherCluster`] if this node is of another one.
    pub fn join_cluster(&self, theirs: ClusterId) -> Result<(), IdentityError> {
        let mut cluster = self.cluster.lock();
        match *cluster {
            Some(ours) if ours == theirs => Ok(()),
            Some(ours) => Err(IdentityError::OtherCluster { ours, theirs }),
            None => {
                self.write(Some(theirs))?;
                *cluster = Some(theirs);
                Ok(())
            }
        }
    }

    fn write(&self, cluster: Option<ClusterId>) -> Result<(), IdentityError> {
        let content = Content {
            version: Self::VERSION,
            node: self.node.to_string(),
            cluster: cluster.map(|id| id.to_string()),
        };
        let text = serde_json::to_vec_pretty(&content)
            .expect("BUG: the identity has no map with other keys than strings");
        disk::replace(&self.path, &text).map_err(|source| IdentityError::Disk {
            step: "write node identity",
            path: self.path.clone(),
            source,
        })
    }
}

/// A random id; 0 means "none" on the wire.
fn random() -> u64 {
    loop {
        let id = rand::random();
        if id != 0 {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_lives_as_long_as_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.cluster(), None);
        let cluster = first.found_cluster().unwrap();
        let second = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!((second.node(), second.cluster()), (first.node(), Some(cluster)));
        assert_eq!(second.found_cluster().unwrap(), cluster);
    }

    #[test]
    fn a_node_joins_one_cluster_and_names_both_when_it_meets_another() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path()).unwrap();
        identity.join_cluster(ClusterId::new(1)).unwrap();
        identity.join_cluster(ClusterId::new(1)).unwrap();
        let error = identity.join_cluster(ClusterId::new(2)).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "this node belongs to cluster 0000000000000001, the other one to cluster \
                 0000000000000002; "
            ),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_file_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.json");
        for content in ["", "{}", "{\"version\":9,\"node\":\"0\",\"cluster\":null}", "\u{0}"] {
            fs::write(&path, content).unwrap();
            let error = Identity::load_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("node.json is damaged ("), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }
}
