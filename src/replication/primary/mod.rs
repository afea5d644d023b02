//! The primary's side: serves followers.
//!
//! `node` runs one [`Server`] on every node; while the node is a replica it refuses to be followed and says who
//! the primary is. Not here: what is sent (`live`, `beat`, `source`) and to whom (`peers`).

mod beat;
mod incoming;
mod live;
mod peers;
mod service;
mod source;
mod status;
mod sums;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport;
use tracing::{info, warn};

use super::error::Refusal;
use super::level::CommitTimes;
use super::limits::{
    COMMIT_SAMPLE_PAUSE, CONNECTION_WINDOW, MESSAGE_BYTES_MAX, PING_INTERVAL, PING_TIMEOUT,
    STALL_TIMEOUT, STOP_TIMEOUT, STREAM_WINDOW, STREAMS_PER_CONNECTION,
};
use super::membership::Membership;
use super::pb::replication_server::ReplicationServer;
use crate::disk::clock;
use crate::store::{CatalogChange, Store};
use crate::types::DbId;
use service::{Handle, Service, is_primary};

pub use status::{FollowerDatabase, FollowerStatus, Lag};

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("serve replication")]
    Transport(#[source] transport::Error),
}

/// Serves followers.
#[derive(Debug)]
pub struct Server {
    service: Arc<Service>,
    times: Mutex<CommitTimes>,
}

impl Server {
    /// A server for a store; it listens when [`Server::serve`] is called.
    #[must_use]
    pub fn new(store: Arc<Store>, me: Arc<Membership>) -> Arc<Self> {
        Self::with_stall_timeout(store, me, STALL_TIMEOUT)
    }

    fn with_stall_timeout(
        store: Arc<Store>,
        me: Arc<Membership>,
        stall_timeout: Duration,
    ) -> Arc<Self> {
        let service = Arc::new(Service::new(store, me, stall_timeout));
        Arc::new(Self { service, times: Mutex::default() })
    }

    /// Serves until `stop` resolves; then tells the followers and ends their streams.
    ///
    /// # Errors
    /// [`ServeError::Transport`].
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), ServeError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ReplicationServer<Handle>>().await;
        let replication = ReplicationServer::new(Handle(Arc::clone(&self.service)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (stopping, stopped) = watch::channel(false);
        let server = transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_service(health_service)
            .add_service(replication)
            .serve_with_incoming_shutdown(incoming::accept(listener), wait_for(stopped));
        tokio::pin!(server);
        tokio::pin!(stop);
        tokio::select! {
            ended = &mut server => return ended.map_err(ServeError::Transport),
            () = self.watch_commits() => (),
            () = &mut stop => (),
        }
        self.service.peers.end_all(&Refusal::stopping(self.service.me.name()));
        stopping.send_replace(true);
        let tasks = self.service.take_tasks();
        let all_ended = async { tokio::join!(&mut server, tasks.join_all()) };
        match tokio::time::timeout(STOP_TIMEOUT, all_ended).await {
            Ok((ended, _)) => ended.map_err(ServeError::Transport)?,
            Err(_) => warn!("some streams did not end in time and were cut"),
        }
        info!("replication stopped");
        Ok(())
    }

    /// Notes when transactions were committed, for the lag in seconds. Never ends.
    async fn watch_commits(&self) {
        let store = &self.service.store;
        let subscription = store.subscribe();
        loop {
            let announcement = subscription.next().await;
            // Under load one look for many commits.
            tokio::time::sleep(COMMIT_SAMPLE_PAUSE).await;
            if self.service.peers.is_empty() || !is_primary(&store.role()) {
                self.times.lock().clear();
                continue;
            }
            let now = clock::boottime();
            for id in announcement.changed {
                let Some(db) = store.by_id(id) else { continue };
                let slowest = self.slowest(id);
                let mut times = self.times.lock();
                times.committed(id, db.position().txid_raw(), now);
                times.settled(id, slowest);
            }
            for change in announcement.catalog {
                match change {
                    CatalogChange::Dropped { id } => self.times.lock().dropped(id),
                    CatalogChange::Named { .. } => (),
                }
            }
            if announcement.catalog_lost {
                let known: HashSet<DbId> =
                    store.databases().iter().filter_map(|db| db.id()).collect();
                self.times.lock().retain(&known);
            }
        }
    }

    /// The last transaction that all followers have applied.
    fn slowest(&self, id: DbId) -> u64 {
        let peers = self.service.peers.all();
        peers.iter().map(|peer| peer.ack(id).applied.txid_raw()).min().unwrap_or(0)
    }

    /// The connected followers and how far they are. Reads the logs' indices: not for a network thread.
    #[must_use]
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let databases = self.service.store.databases();
        let peers = self.service.peers.all();
        let now = clock::boottime();
        peers
            .iter()
            .map(|peer| FollowerStatus {
                node: peer.caller.node,
                name: peer.caller.name.clone(),
                address: peer.connection.address.to_string(),
                software: peer.caller.software.clone(),
                connected_since_ms: peer.since_ms,
                databases: databases
                    .iter()
                    .filter(|db| peer.filter.wants(&db.name()))
                    .filter_map(|db| {
                        let id = db.id()?;
                        let ack = peer.ack(id);
                        let newest = db.position().txid_raw();
                        let applied = ack.applied;
                        let lag = if applied.txid_raw() >= newest {
                            Lag { bytes: Some(0), ..Lag::default() }
                        } else {
                            Lag {
                                transactions: newest - applied.txid_raw(),
                                bytes: db.log_span(applied).ok().flatten().map(|s| s.bytes),
                                time: self.times.lock().behind_for(id, applied.txid_raw(), now),
                            }
                        };
                        let (durable, name) = (ack.durable, db.name());
                        Some(FollowerDatabase { id, name, durable, applied, lag })
                    })
                    .collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    // The sender lives as long as the server that waits here.
    drop(stopped.wait_for(|stopped| *stopped).await);
}
