//! The gRPC service: who may call, then one task per stream.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming};

use super::beat::Beats;
use super::incoming::Connection;
use super::live::{Live, positions};
use super::peers::{Peer, Peers, Ticket};
use super::source::Source;
use super::sums::SumsSource;
use crate::disk::clock;
use crate::replication::convert::{self, Incoming, Outgoing};
use crate::replication::error::{LinkError, Malformed, Reason, Refusal};
use crate::replication::limits::{
    CHUNKS_QUEUED, EVENTS_QUEUED, FETCHES_SERVED_MAX, HELLO_TIMEOUT, POSITIONS_TIMEOUT,
};
use crate::replication::link::{Ended, receive};
use crate::replication::membership::Membership;
use crate::replication::message::{
    Beat, Caller, FetchChunk, FetchRequest, FollowEvent, FollowRequest, SumsChunk, SumsRequest,
};
use crate::replication::pb;
use crate::replication::pb::replication_server::Replication;
use crate::replication::view::Filter;
use crate::store::{Role, Store};
use crate::types::DbId;

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) store: Arc<Store>,
    pub(crate) me: Arc<Membership>,
    pub(crate) peers: Arc<Peers>,
    tasks: Mutex<JoinSet<()>>,
    fetches: Arc<AtomicUsize>,
    stall_timeout: Duration,
}

impl Service {
    pub(crate) fn new(store: Arc<Store>, me: Arc<Membership>, stall_timeout: Duration) -> Self {
        let (peers, tasks, fetches) = (Arc::default(), Mutex::default(), Arc::default());
        Self { store, me, peers, tasks, fetches, stall_timeout }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Takes the tasks, to await them.
    pub(crate) fn take_tasks(&self) -> JoinSet<()> {
        std::mem::take(&mut self.tasks.lock())
    }

    async fn begin_follow(
        &self,
        connection: Connection,
        mut requests: Incoming<FollowRequest>,
    ) -> Result<mpsc::Receiver<Result<FollowEvent, LinkError>>, LinkError> {
        let FollowRequest::Hello { caller, filters } =
            receive(&mut requests, HELLO_TIMEOUT).await?
        else {
            return Err(Malformed::Missing("the hello").into());
        };
        let welcome = self.me.admit(&caller, &self.store.role())?;
        let filter = Filter::new(&filters)
            .map_err(|error| Refusal::new(Reason::ProtocolError, error.to_string()))?;
        let store = Arc::clone(&self.store);
        let have = positions(&mut requests, |id| store.by_id(id).is_some());
        let have = tokio::time::timeout(POSITIONS_TIMEOUT, have).await;
        let have = have.unwrap_or(Err(LinkError::Silent(POSITIONS_TIMEOUT)))?;
        let peer = Peer::new(caller, connection, clock::wall_ms(), filter);
        let registration = self.peers.register(peer, Arc::clone(&self.store))?;
        let (out, events) = mpsc::channel(EVENTS_QUEUED);
        let (store, stall_timeout) = (Arc::clone(&self.store), self.stall_timeout);
        let live = Live::new(store, registration, welcome, &have, out, stall_timeout);
        self.spawn(live.run(requests));
        Ok(events)
    }

    fn begin_beat(
        &self,
        connection: &Connection,
        caller: &Caller,
    ) -> Result<mpsc::Receiver<Result<Beat, LinkError>>, Refusal> {
        let welcome = self.me.admit(caller, &self.store.role())?;
        let peer = self.peers.of_session(caller)?;
        let ticket = peer.begin_beat(connection)?;
        let (out, beats) = mpsc::channel(EVENTS_QUEUED);
        let work = Beats::new(Arc::clone(&self.store), peer, welcome.epoch);
        let connection = connection.clone();
        self.spawn(async move {
            if work.run(out).await == Ended::Unread {
                connection.close();
            }
            drop(ticket);
        });
        Ok(beats)
    }

    async fn begin_fetch(
        &self,
        connection: Connection,
        mut requests: Incoming<FetchRequest>,
    ) -> Result<mpsc::Receiver<Result<FetchChunk, LinkError>>, LinkError> {
        let FetchRequest::Begin(begin) = receive(&mut requests, HELLO_TIMEOUT).await? else {
            return Err(Malformed::Missing("the begin").into());
        };
        self.me.admit(&begin.caller, &self.store.role())?;
        let peer = self.peers.of_session(&begin.caller)?;
        let db = self.wanted(&peer, begin.db)?;
        let tickets = self.tickets(&peer, &connection)?;
        let (out, chunks) = mpsc::channel(CHUNKS_QUEUED);
        let source = Source { store: Arc::clone(&self.store), db, out };
        self.spawn(async move {
            tokio::select! {
                _ = peer.ended() => (),
                ended = source.run(begin, requests) => if ended == Ended::Unread {
                    connection.close();
                },
            }
            drop(tickets);
        });
        Ok(chunks)
    }

    fn begin_sums(
        &self,
        connection: Connection,
        request: SumsRequest,
    ) -> Result<mpsc::Receiver<Result<SumsChunk, LinkError>>, Refusal> {
        self.me.admit(&request.caller, &self.store.role())?;
        let peer = self.peers.of_session(&request.caller)?;
        let db = self.wanted(&peer, request.db)?;
        let tickets = self.tickets(&peer, &connection)?;
        let (out, chunks) = mpsc::channel(CHUNKS_QUEUED);
        self.spawn(async move {
            tokio::select! {
                _ = peer.ended() => (),
                ended = SumsSource { db, out }.run(request) => if ended == Ended::Unread {
                    connection.close();
                },
            }
            drop(tickets);
        });
        Ok(chunks)
    }

    /// A place among the fetches that are served, to this follower and at all.
    fn tickets(&self, peer: &Peer, connection: &Connection) -> Result<(Ticket, Ticket), Refusal> {
        let of_peer = peer.begin_fetch(connection)?;
        let of_all = Ticket::take(&self.fetches, FETCHES_SERVED_MAX).ok_or_else(|| {
            let message = format!("{FETCHES_SERVED_MAX} fetches are being served");
            Refusal::new(Reason::Busy, message)
        })?;
        Ok((of_peer, of_all))
    }

    fn wanted(&self, peer: &Peer, db: DbId) -> Result<Arc<crate::database::Database>, Refusal> {
        let found = self.store.by_id(db).filter(|db| peer.filter.wants(&db.name()));
        found.ok_or_else(|| Refusal::new(Reason::NoDatabase, format!("there is no database {db}")))
    }
}

/// The service as tonic wants it.
#[derive(Clone, Debug)]
pub(crate) struct Handle(pub(crate) Arc<Service>);

#[tonic::async_trait]
impl Replication for Handle {
    type FollowStream = Outgoing<pb::FollowEvent>;
    type HeartbeatStream = Outgoing<pb::Beat>;
    type FetchStream = Outgoing<pb::FetchChunk>;
    type SumsStream = Outgoing<pb::SumsChunk>;

    async fn follow(
        &self,
        request: Request<Streaming<pb::FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let connection = connection(&request)?;
        let requests = convert::incoming(request.into_inner());
        let events = self.0.begin_follow(connection, requests).await?;
        Ok(Response::new(convert::outgoing(events)))
    }

    async fn heartbeat(
        &self,
        request: Request<pb::HeartbeatRequest>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let connection = connection(&request)?;
        let caller = convert::caller(request.into_inner().caller).map_err(Refusal::from)?;
        let beats = self.0.begin_beat(&connection, &caller)?;
        Ok(Response::new(convert::outgoing(beats)))
    }

    async fn fetch(
        &self,
        request: Request<Streaming<pb::FetchRequest>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let connection = connection(&request)?;
        let requests = convert::incoming(request.into_inner());
        let chunks = self.0.begin_fetch(connection, requests).await?;
        Ok(Response::new(convert::outgoing(chunks)))
    }

    async fn sums(
        &self,
        request: Request<pb::SumsRequest>,
    ) -> Result<Response<Self::SumsStream>, Status> {
        let connection = connection(&request)?;
        let request = SumsRequest::try_from(request.into_inner()).map_err(Refusal::from)?;
        let chunks = self.0.begin_sums(connection, request)?;
        Ok(Response::new(convert::outgoing(chunks)))
    }
}

fn connection<T>(request: &Request<T>) -> Result<Connection, Status> {
    let connection = request.extensions().get::<Connection>().cloned();
    connection.ok_or_else(|| Status::internal("no connection"))
}

/// Whether a role is a primary's.
pub(crate) fn is_primary(role: &Role) -> bool {
    matches!(role, Role::Primary { .. })
}
