//! Who this node is, and whom it talks to.

use std::fmt;
use std::io;

use parking_lot::Mutex;

use super::error::{Reason, Refusal};
use super::limits::PROTOCOL;
use super::message::{Caller, Welcome};
use crate::store::Role;
use crate::types::{ClusterId, Epoch, NodeId};

/// Keeps the id of the cluster that this node joins; called at most once.
pub type Join = Box<dyn Fn(ClusterId) -> io::Result<()> + Send + Sync>;

/// This node's identity, shared by its server and its follower.
pub struct Membership {
    node: NodeId,
    name: String,
    cluster: Mutex<Option<ClusterId>>,
    join: Join,
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("node", &self.node)
            .field("name", &self.name)
            .field("cluster", &self.cluster())
            .finish_non_exhaustive()
    }
}

impl Membership {
    /// `cluster` is `None` until the node has joined one; then `join` must keep the id durably. The
    /// first primary makes an id of its own before it serves.
    #[must_use]
    pub fn new(node: NodeId, name: String, cluster: Option<ClusterId>, join: Join) -> Self {
        Self { node, name, cluster: Mutex::new(cluster), join }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster it belongs to.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock()
    }

    /// Joins a cluster: takes effect when the id is kept.
    ///
    /// # Errors
    /// The id could not be kept; the node belongs to no cluster yet.
    pub fn join(&self, cluster: ClusterId) -> io::Result<()> {
        let mut current = self.cluster.lock();
        if current.is_none() {
            (self.join)(cluster)?;
            *current = Some(cluster);
        }
        Ok(())
    }

    /// This node as a caller.
    pub(crate) fn caller(&self, session: u64) -> Caller {
        Caller {
            protocol: PROTOCOL,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster(),
            node: self.node,
            name: self.name.clone(),
            session,
        }
    }

    /// Whether a caller may follow this node; then what to say.
    pub(crate) fn admit(&self, caller: &Caller, role: &Role) -> Result<Welcome, Refusal> {
        if caller.protocol != PROTOCOL {
            return Err(Refusal::protocol(caller.protocol, &caller.software, PROTOCOL));
        }
        if caller.node == self.node {
            return Err(Refusal::itself(self.node));
        }
        let ours = self.cluster();
        if let (Some(theirs), Some(ours)) = (caller.cluster, ours)
            && theirs != ours
        {
            return Err(Refusal::cluster(&caller.name, theirs, ours));
        }
        match (role, ours) {
            (Role::Primary { epoch }, Some(cluster)) => Ok(self.welcome(cluster, *epoch)),
            (Role::Primary { .. }, None) => Err(Refusal::new(
                Reason::NotPrimary,
                format!("node {} is the primary of no cluster yet", self.name),
            )),
            (Role::Replica { primary }, _) => {
                Err(Refusal::not_primary(&self.name, primary.clone()))
            }
        }
    }

    fn welcome(&self, cluster: ClusterId, epoch: Epoch) -> Welcome {
        Welcome {
            protocol: PROTOCOL,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            cluster,
            node: self.node,
            name: self.name.clone(),
            epoch,
        }
    }

    /// Whether to follow a primary that has admitted us.
    pub(crate) fn accept(&self, welcome: &Welcome) -> Result<(), Refusal> {
        if welcome.protocol != PROTOCOL {
            return Err(Refusal::protocol(welcome.protocol, &welcome.software, PROTOCOL));
        }
        if welcome.node == self.node {
            return Err(Refusal::itself(self.node));
        }
        match self.cluster() {
            Some(ours) if ours != welcome.cluster => {
                Err(Refusal::cluster(&welcome.name, welcome.cluster, ours))
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u64, cluster: Option<u64>) -> Membership {
        let join: Join = Box::new(|_| Ok(()));
        Membership::new(NodeId::new(node), format!("n{node}"), cluster.map(ClusterId::new), join)
    }

    const PRIMARY: Role = Role::Primary { epoch: Epoch::new(3) };

    fn check(me: &Membership, caller: &Caller, role: &Role, expected: Reason) {
        assert_eq!(me.admit(caller, role).unwrap_err().reason, expected);
    }

    #[test]
    fn a_new_node_joins_and_a_member_comes_back() {
        let me = member(1, Some(7));
        for cluster in [None, Some(7)] {
            let other = member(2, cluster);
            let welcome = me.admit(&other.caller(1), &PRIMARY).unwrap();
            other.accept(&welcome).unwrap();
            other.join(welcome.cluster).unwrap();
            assert_eq!(other.cluster(), me.cluster());
        }
    }

    #[test]
    fn strangers_are_refused_for_a_reason() {
        let me = member(1, Some(7));
        let caller = member(2, None).caller(1);
        let replica = Role::Replica { primary: Some("x".to_owned()) };
        check(&me, &Caller { protocol: 99, ..caller.clone() }, &PRIMARY, Reason::Protocol);
        check(&me, &Caller { node: NodeId::new(1), ..caller.clone() }, &PRIMARY, Reason::Itself);
        check(&me, &member(2, Some(8)).caller(1), &PRIMARY, Reason::Cluster);
        check(&me, &caller, &replica, Reason::NotPrimary);
        check(&member(1, None), &caller, &PRIMARY, Reason::NotPrimary);
        let refusal = me.admit(&caller, &replica).unwrap_err();
        assert_eq!(refusal.primary.as_deref(), Some("x"));
        // Another cluster is another cluster, whoever its primary is.
        check(&me, &member(2, Some(8)).caller(1), &replica, Reason::Cluster);
    }

    #[test]
    fn a_follower_refuses_a_primary_of_another_cluster() {
        let welcome = member(1, Some(7)).admit(&member(2, None).caller(1), &PRIMARY).unwrap();
        let reason = member(2, Some(8)).accept(&welcome).unwrap_err().reason;
        assert_eq!(reason, Reason::Cluster);
        assert_eq!(member(1, None).accept(&welcome).unwrap_err().reason, Reason::Itself);
    }

    #[test]
    fn an_id_that_cannot_be_kept_is_not_taken() {
        let join: Join = Box::new(|_| Err(io::Error::other("disk full")));
        let me = Membership::new(NodeId::new(1), "n".to_owned(), None, join);
        assert!(me.join(ClusterId::new(1)).is_err());
        assert_eq!(me.cluster(), None);
    }
}
