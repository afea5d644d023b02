//! The followers of this node: who is connected, and how far each is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::incoming::Connection;
use crate::replication::error::{Reason, Refusal};
use crate::replication::limits::{CONNECTIONS_PER_FOLLOWER, FETCHES_PER_FOLLOWER, FOLLOWERS_MAX};
use crate::replication::message::{Ack, Caller};
use crate::replication::view::Filter;
use crate::store::Store;
use crate::types::{DbId, NodeId, Pos};

/// One follower, as long as its live stream is open.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) caller: Caller,
    pub(crate) connection: Connection,
    /// Milliseconds since the Unix epoch.
    pub(crate) since_ms: i64,
    pub(crate) filter: Filter,
    end: watch::Sender<Option<Refusal>>,
    acked: Mutex<HashMap<DbId, Ack>>,
    beats: Arc<AtomicUsize>,
    fetches: Arc<AtomicUsize>,
    /// The connections of its other streams.
    others: Mutex<Vec<Connection>>,
}

/// One of a limited number of streams.
#[derive(Debug)]
pub(crate) struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    /// Takes one if fewer than `max` are out.
    pub(crate) fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let taken = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            (count < max).then_some(count + 1)
        });
        taken.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    pub(crate) fn new(
        caller: Caller,
        connection: Connection,
        since_ms: i64,
        filter: Filter,
    ) -> Self {
        let (end, _) = watch::channel(None);
        let (acked, others) = (Mutex::default(), Mutex::default());
        let (beats, fetches) = (Arc::default(), Arc::default());
        Self { caller, connection, since_ms, filter, end, acked, beats, fetches, others }
    }

    /// The one heartbeat of a session.
    pub(crate) fn begin_beat(&self, connection: &Connection) -> Result<Ticket, Refusal> {
        let ticket = Ticket::take(&self.beats, 1);
        self.uses(connection);
        ticket.ok_or_else(|| Refusal::new(Reason::Busy, "this session has a heartbeat already"))
    }

    /// One of the Fetches of a session.
    pub(crate) fn begin_fetch(&self, connection: &Connection) -> Result<Ticket, Refusal> {
        let ticket = Ticket::take(&self.fetches, FETCHES_PER_FOLLOWER);
        self.uses(connection);
        ticket.ok_or_else(|| {
            let message = format!("{FETCHES_PER_FOLLOWER} fetches of this node are being served");
            Refusal::new(Reason::Busy, message)
        })
    }

    fn uses(&self, connection: &Connection) {
        let mut others = self.others.lock();
        let is_known = others.iter().any(|other| other.is_same(connection));
        if !is_known && others.len() < CONNECTIONS_PER_FOLLOWER {
            others.push(connection.clone());
        }
    }

    /// Closes all its connections: it does not read, and HTTP/2 would keep what it was sent.
    pub(crate) fn close(&self) {
        self.connection.close();
        self.others.lock().iter().for_each(Connection::close);
    }

    /// Ends all its streams for a reason.
    pub(crate) fn end(&self, refusal: Refusal) {
        self.end.send_if_modified(|end| {
            let is_first = end.is_none();
            if is_first {
                *end = Some(refusal);
            }
            is_first
        });
    }

    /// Resolves when its streams are to end.
    pub(crate) async fn ended(&self) -> Refusal {
        let mut end = self.end.subscribe();
        let ended = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        ended.unwrap_or_else(|| Refusal::new(Reason::NoSession, "the live stream has ended"))
    }

    /// Takes an acknowledgement.
    pub(crate) fn acked(&self, ack: Ack) {
        self.acked.lock().insert(ack.db, ack);
    }

    /// A database is gone.
    pub(crate) fn dropped(&self, db: DbId) {
        self.acked.lock().remove(&db);
    }

    /// What it has of a database.
    pub(crate) fn ack(&self, db: DbId) -> Ack {
        let none = Ack { db, durable: Pos::ZERO, applied: Pos::ZERO };
        self.acked.lock().get(&db).copied().unwrap_or(none)
    }
}

/// All followers.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_node: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

impl Peers {
    /// Adds a follower. An older connection of the same node is told and ends.
    pub(crate) fn register(
        self: &Arc<Self>,
        peer: Peer,
        store: Arc<Store>,
    ) -> Result<Registration, Refusal> {
        let peer = Arc::new(peer);
        let node = peer.caller.node;
        let mut by_node = self.by_node.lock();
        if by_node.len() >= FOLLOWERS_MAX && !by_node.contains_key(&node) {
            return Err(Refusal::new(
                Reason::Busy,
                format!("{FOLLOWERS_MAX} followers are connected, more are not served"),
            ));
        }
        if let Some(older) = by_node.insert(node, Arc::clone(&peer)) {
            let address = peer.connection.address.to_string();
            older.end(Refusal::replaced(node, &peer.caller.name, &address));
        }
        drop(by_node);
        Ok(Registration { peers: Arc::clone(self), store, peer })
    }

    /// The follower that a stream says it belongs to.
    pub(crate) fn of_session(&self, caller: &Caller) -> Result<Arc<Peer>, Refusal> {
        let by_node = self.by_node.lock();
        let peer = by_node.get(&caller.node).filter(|p| p.caller.session == caller.session);
        peer.cloned().ok_or_else(|| {
            Refusal::new(Reason::NoSession, "the live stream of this session is not open")
        })
    }

    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.by_node.lock().values().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_node.lock().is_empty()
    }

    /// Ends all streams.
    pub(crate) fn end_all(&self, refusal: &Refusal) {
        for peer in self.all() {
            peer.end(refusal.clone());
        }
    }
}

/// A follower's place; it loses it when its live stream ends.
#[derive(Debug)]
pub(crate) struct Registration {
    peers: Arc<Peers>,
    store: Arc<Store>,
    pub(crate) peer: Arc<Peer>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let node = self.peer.caller.node;
        let mut by_node = self.peers.by_node.lock();
        if by_node.get(&node).is_some_and(|current| Arc::ptr_eq(current, &self.peer)) {
            by_node.remove(&node);
            self.store.follower_gone(node);
        }
        drop(by_node);
        self.peer.end(Refusal::new(Reason::NoSession, "the live stream has ended"));
    }
}
