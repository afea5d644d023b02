//! The live stream to one follower.
//!
//! One task per follower. It holds cursors and no data: records are read from the log when the stream
//! can take more, so a slow follower costs no memory and the writers nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tracing::{error, info};

use super::peers::{Peer, Registration};
use crate::database::{Database, LogRead, LogRecord, OpError};
use crate::replication::convert::Incoming;
use crate::replication::error::{LinkError, Malformed, Refusal};
use crate::replication::limits::{
    DATABASES_MAX, ENTRIES_PER_MESSAGE, HELLO_TIMEOUT, LIVE_MERGE_BYTES, NAMES_BYTES_PER_MESSAGE,
    ROLE_CHECK_INTERVAL, ROUND_PAUSE, TURN_BYTES,
};
use crate::replication::link::{Ended, Sender, blocking, last_words, receive, stalled};
use crate::replication::message::{FollowEvent, FollowRequest, Record, Welcome};
use crate::replication::schedule::{Look, Schedule, Turn, fitting, look};
use crate::replication::view::View;
use crate::store::{Announcement, CatalogChange, Role, Store, Subscription};
use crate::types::{DbId, DbName, Pos};

/// The positions that a follower has, said after its hello. Only those of databases that are `known` here are kept.
pub(crate) async fn positions(
    requests: &mut Incoming<FollowRequest>,
    known: impl Fn(DbId) -> bool,
) -> Result<HashMap<DbId, Pos>, LinkError> {
    let mut have = HashMap::new();
    let mut count = 0;
    loop {
        match receive(requests, HELLO_TIMEOUT).await? {
            FollowRequest::Have { databases, complete } => {
                // An empty message counts too, or there could be any number of them.
                count += databases.len().max(1);
                have.extend(databases.into_iter().filter(|(id, _)| known(*id)));
                if count > DATABASES_MAX {
                    let what = "the list of databases";
                    return Err(Malformed::TooMany { what, count, max: DATABASES_MAX }.into());
                }
                if complete {
                    return Ok(have);
                }
            }
            FollowRequest::Hello { .. } => return Err(Malformed::Unexpected("a hello").into()),
            FollowRequest::Acks(_) => return Err(Malformed::Unexpected("an ack").into()),
            FollowRequest::Resume { .. } => return Err(Malformed::Unexpected("a resume").into()),
        }
    }
}

/// All databases of a store by identity.
pub(crate) fn catalog(store: &Store) -> HashMap<DbId, DbName> {
    store.databases().iter().filter_map(|db| Some((db.id()?, db.name()))).collect()
}

/// A change as it is now: what was announced may be out of date, and the newest is announced as well.
pub(crate) fn refreshed(store: &Store, change: CatalogChange) -> CatalogChange {
    let (CatalogChange::Named { id, .. } | CatalogChange::Dropped { id }) = change;
    match store.by_id(id) {
        Some(db) => CatalogChange::Named { id, name: db.name() },
        None => CatalogChange::Dropped { id },
    }
}

/// A catalog cut into messages.
fn catalog_events(view: &View) -> VecDeque<FollowEvent> {
    let mut events = VecDeque::new();
    let mut databases = Vec::new();
    let mut bytes = 0;
    for (db, name) in view.iter() {
        if databases.len() == ENTRIES_PER_MESSAGE || bytes > NAMES_BYTES_PER_MESSAGE {
            let databases = std::mem::take(&mut databases);
            events.push_back(FollowEvent::Catalog { databases, complete: false });
            bytes = 0;
        }
        bytes += name.as_bytes().len();
        databases.push((db, name.clone()));
    }
    events.push_back(FollowEvent::Catalog { databases, complete: true });
    events
}

/// The state of one live stream.
pub(crate) struct Live {
    store: Arc<Store>,
    registration: Registration,
    subscription: Subscription,
    role: Role,
    view: View,
    schedule: Schedule,
    events: VecDeque<FollowEvent>,
    out: Sender<FollowEvent>,
    stall_timeout: Duration,
}

impl Live {
    /// Prepares the stream: what is subscribed to first is not missed after the catalog.
    pub(crate) fn new(
        store: Arc<Store>,
        registration: Registration,
        welcome: Welcome,
        have: &HashMap<DbId, Pos>,
        out: Sender<FollowEvent>,
        stall_timeout: Duration,
    ) -> Self {
        let subscription = store.subscribe();
        let role = Role::Primary { epoch: welcome.epoch };
        let mut view = View::new(registration.peer.filter.clone());
        view.replace(&catalog(&store));
        let mut schedule = Schedule::default();
        for (db, _) in view.iter() {
            let pos = have.get(&db).copied().unwrap_or(Pos::ZERO);
            if pos.txid.is_some() {
                store.follower_needs(registration.peer.caller.node, db, pos);
            }
            schedule.add(db, pos);
        }
        let mut events = catalog_events(&view);
        events.push_front(FollowEvent::Welcome(welcome));
        Self { store, registration, subscription, role, view, schedule, events, out, stall_timeout }
    }

    fn peer(&self) -> &Peer {
        &self.registration.peer
    }

    /// Serves until the stream ends, and says why if the follower can still read it.
    pub(crate) async fn run(mut self, requests: Incoming<FollowRequest>) {
        let peer = Arc::clone(&self.registration.peer);
        let name = peer.caller.name.clone();
        info!(peer = %name, node = %peer.caller.node, address = %peer.connection.address, "follower connected");
        let Err(reason) = self.serve(requests).await;
        info!(peer = %name, reason = %reason, "follower disconnected");
        if last_words(&self.out, reason) == Ended::Unread {
            peer.close();
        }
    }

    async fn serve(
        &mut self,
        mut requests: Incoming<FollowRequest>,
    ) -> Result<std::convert::Infallible, LinkError> {
        let peer = Arc::clone(&self.registration.peer);
        let ended = peer.ended();
        tokio::pin!(ended);
        let out = self.out.clone();
        let mut role_check = tokio::time::interval(ROLE_CHECK_INTERVAL);
        let mut blocked_since: Option<Instant> = None;
        let mut round_ended = Instant::now();
        let mut resume_at: Option<Instant> = None;
        loop {
            let has_work = !self.events.is_empty() || self.schedule.has_work();
            let is_pausing = resume_at.is_some();
            tokio::select! {
                biased;
                refusal = &mut ended => return Err(refusal.into()),
                request = requests.next() => self.request(request.ok_or(LinkError::Closed)??)?,
                permit = out.reserve(), if has_work && !is_pausing => {
                    blocked_since = None;
                    self.step(permit.map_err(|_| LinkError::Closed)?).await?;
                    if self.events.is_empty() && !self.schedule.has_work() {
                        round_ended = Instant::now();
                    }
                }
                announcement = self.subscription.next(), if !has_work => {
                    self.announced(announcement);
                    let next_round = round_ended + ROUND_PAUSE;
                    resume_at = (next_round > Instant::now()).then_some(next_round);
                }
                () = pause_until(resume_at), if is_pausing => resume_at = None,
                _ = role_check.tick() => {
                    self.check_role()?;
                    let since = *blocked_since.get_or_insert_with(Instant::now);
                    if has_work && since.elapsed() > self.stall_timeout {
                        return Err(stalled(self.stall_timeout).into());
                    }
                    if !has_work {
                        blocked_since = None;
                    }
                }
            }
        }
    }

    /// Hears what is new without waiting: a busy round must not miss who else has a turn.
    fn listen(&mut self) {
        while self.events.is_empty()
            && let Some(announcement) = self.subscription.next().now_or_never()
        {
            self.announced(announcement);
        }
    }

    fn check_role(&self) -> Result<(), Refusal> {
        let role = self.store.role();
        if role == self.role {
            return Ok(());
        }
        let primary = match role {
            Role::Replica { primary } => primary,
            Role::Primary { .. } => None,
        };
        Err(Refusal::not_primary("this node", primary))
    }

    fn request(&mut self, request: FollowRequest) -> Result<(), Malformed> {
        match request {
            FollowRequest::Acks(acks) => {
                for ack in acks.into_iter().filter(|ack| self.view.contains(ack.db)) {
                    self.peer().acked(ack);
                    self.store.follower_needs(self.peer().caller.node, ack.db, ack.durable);
                }
            }
            FollowRequest::Resume { db, pos, run } => self.schedule.resume(db, pos, run),
            FollowRequest::Hello { .. } => return Err(Malformed::Unexpected("a second hello")),
            FollowRequest::Have { .. } => return Err(Malformed::Unexpected("a position list")),
        }
        Ok(())
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
                CatalogChange::Named { id, name } => {
                    self.schedule.add(id, Pos::ZERO);
                    self.events.push_back(FollowEvent::Named { db: id, name });
                }
                CatalogChange::Dropped { id } => {
                    self.schedule.remove(id);
                    self.peer().dropped(id);
                    self.events.push_back(FollowEvent::Dropped { db: id });
                }
            }
        }
        for db in announcement.changed {
            self.schedule.changed(db);
        }
    }

    /// Sends one message: a change of the catalog, or one turn of a database.
    async fn step(
        &mut self,
        permit: mpsc::Permit<'_, Result<FollowEvent, LinkError>>,
    ) -> Result<(), LinkError> {
        if let Some(event) = self.events.pop_front() {
            permit.send(Ok(event));
            return Ok(());
        }
        self.listen();
        if let Some(event) = self.events.pop_front() {
            permit.send(Ok(event));
            return Ok(());
        }
        let Some(turn) = self.schedule.next() else { return Ok(()) };
        let Some(db) = self.store.by_id(turn.db) else {
            // The announcement of its end is under way.
            return Ok(());
        };
        match blocking(move || read_turn(&db, turn)).await? {
            Found::Nothing => self.schedule.sent(turn, turn.sent, false),
            Found::Records { records, pos, more } => {
                self.schedule.sent(turn, pos, more);
                let Turn { db, run, .. } = turn;
                permit.send(Ok(FollowEvent::Transactions { db, run, records, sync_now: false }));
            }
            Found::Behind => {
                self.schedule.behind(turn);
                permit.send(Ok(FollowEvent::Behind { db: turn.db, run: turn.run }));
            }
        }
        Ok(())
    }
}

async fn pause_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}

enum Found {
    Nothing,
    Records { records: Vec<Record>, pos: Pos, more: bool },
    Behind,
}

/// What one turn sends. A log that cannot be read is as good as one that does not reach back.
fn read_turn(db: &Database, turn: Turn) -> Found {
    match try_turn(db, turn) {
        Ok(found) => found,
        Err(error) => {
            error!(db = %db.name(), %error, "read the log for a follower");
            Found::Behind
        }
    }
}

fn try_turn(db: &Database, turn: Turn) -> Result<Found, OpError> {
    let newest = db.position();
    let mut records = match look(turn.sent, newest) {
        Look::Nothing => return Ok(Found::Nothing),
        Look::Read => match db.read_log(turn.sent, TURN_BYTES)? {
            LogRead::Records(records) if records.is_empty() => return Ok(Found::Nothing),
            LogRead::Records(records) => records,
            LogRead::NeedsSnapshot => return Ok(Found::Behind),
        },
        Look::Merge => match db.merge_log(turn.sent, LIVE_MERGE_BYTES)? {
            Some(record) => vec![record],
            None => return Ok(Found::Behind),
        },
    };
    // What is not in memory is too large for the live stream.
    let size = |record: &LogRecord| record.ltx.memory().map_or(usize::MAX, Bytes::len);
    records.truncate(fitting(records.iter().map(size)));
    debug_assert!(records.iter().all(|record| record.ltx.memory().is_some()));
    let Some(pos) = records.last().map(|record| record.pos) else { return Ok(Found::Behind) };
    let in_memory = |r: LogRecord| Some(Record { epoch: r.epoch, ltx: r.ltx.memory()?.clone() });
    let records = records.into_iter().filter_map(in_memory).collect();
    // What was committed since is announced.
    let more = pos.txid_raw() < newest.txid_raw();
    Ok(Found::Records { records, pos, more })
}
