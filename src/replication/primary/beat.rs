//! The heartbeat to one follower: a steady sign of life, and the positions it must reach to be level.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::FutureExt as _;

use super::live::{catalog, refreshed};
use super::peers::Peer;
use crate::disk::clock;
use crate::replication::error::LinkError;
use crate::replication::limits::{BEAT_INTERVAL, ENTRIES_PER_MESSAGE, STALL_TIMEOUT};
use crate::replication::link::{Ended, Sender, last_words, send};
use crate::replication::message::Beat;
use crate::replication::view::View;
use crate::store::{Announcement, CatalogChange, Role, Store, Subscription};
use crate::types::{DbId, Epoch, Pos};

/// The state of one heartbeat.
pub(crate) struct Beats {
    store: Arc<Store>,
    peer: Arc<Peer>,
    epoch: Epoch,
    subscription: Subscription,
    view: View,
    changed: HashSet<DbId>,
    gone: HashSet<DbId>,
    sequence: u64,
}

impl Beats {
    pub(crate) fn new(store: Arc<Store>, peer: Arc<Peer>, epoch: Epoch) -> Self {
        let subscription = store.subscribe();
        let mut view = View::new(peer.filter.clone());
        view.replace(&catalog(&store));
        let changed = view.iter().map(|(id, _)| id).collect();
        let gone = HashSet::new();
        Self { store, peer, epoch, subscription, view, changed, gone, sequence: 0 }
    }

    /// Beats until the follower is gone or this node's role changes.
    pub(crate) async fn run(mut self, out: Sender<Beat>) -> Ended {
        let Err(reason) = self.beat_on(&out).await;
        last_words(&out, reason)
    }

    async fn beat_on(&mut self, out: &Sender<Beat>) -> Result<std::convert::Infallible, LinkError> {
        let peer = Arc::clone(&self.peer);
        let ended = peer.ended();
        tokio::pin!(ended);
        let mut interval = tokio::time::interval(BEAT_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                refusal = &mut ended => return Err(refusal.into()),
                _ = interval.tick() => {
                    if self.store.role() != (Role::Primary { epoch: self.epoch }) {
                        return Err(LinkError::Closed);
                    }
                    // Asked at the beat, not woken by every commit.
                    while let Some(announcement) = self.subscription.next().now_or_never() {
                        self.announced(announcement);
                    }
                    for beat in self.messages() {
                        send(out, beat, STALL_TIMEOUT).await?;
                    }
                }
            }
        }
    }

    fn announced(&mut self, announcement: Announcement) {
        let changes = if announcement.catalog_lost {
            self.view.replace(&catalog(&self.store))
        } else {
            let changes = announcement.catalog.into_iter().map(|c| refreshed(&self.store, c));
            changes.filter_map(|c| self.view.apply(c)).collect()
        };
        for change in changes {
            match change {
                CatalogChange::Named { id, .. } => {
                    self.gone.remove(&id);
                    self.changed.insert(id);
                }
                CatalogChange::Dropped { id } => {
                    self.changed.remove(&id);
                    self.gone.insert(id);
                }
            }
        }
        self.changed.extend(announcement.changed.iter().filter(|id| self.view.contains(**id)));
    }

    /// The next beat, in as many messages as it needs.
    fn messages(&mut self) -> Vec<Beat> {
        self.sequence += 1;
        let positions: Vec<(DbId, Pos)> = self
            .changed
            .drain()
            .filter_map(|id| Some((id, self.store.by_id(id)?.position())))
            .collect();
        let gone: Vec<DbId> = self.gone.drain().collect();
        let count = positions.len().max(gone.len()).div_ceil(ENTRIES_PER_MESSAGE).max(1);
        (0..count)
            .map(|n| Beat {
                sequence: self.sequence,
                boottime_ns: u64::try_from(clock::boottime().as_nanos()).unwrap_or(u64::MAX),
                wall_ms: clock::wall_ms(),
                interval_ms: u32::try_from(BEAT_INTERVAL.as_millis()).unwrap_or(u32::MAX),
                epoch: self.epoch,
                databases: part(&positions, n),
                gone: part(&gone, n),
                more: n + 1 < count,
            })
            .collect()
    }
}

fn part<T: Clone>(all: &[T], n: usize) -> Vec<T> {
    all.chunks(ENTRIES_PER_MESSAGE).nth(n).map(<[T]>::to_vec).unwrap_or_default()
}
