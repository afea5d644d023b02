//! One connection to a primary, from the hello to its end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tracing::info;

use super::dial::{Primary, dial, within};
use super::fetch::{Fetcher, Parts};
use super::image::Place;
use super::lanes::{Event, Item, Session};
use super::{Link, Shared};
use crate::disk::clock;
use crate::replication::convert::Incoming;
use crate::replication::error::{LinkError, Malformed};
use crate::replication::level::Levels;
use crate::replication::limits::{
    ACK_PAUSE, APPLIED_POLL, BEAT_TIMEOUT, DATABASES_MAX, EARLY_REPORTS_MAX, ENTRIES_PER_MESSAGE,
    HELLO_TIMEOUT, REQUESTS_QUEUED, SETTLE_WAIT, STALL_TIMEOUT,
};
use crate::replication::link::{blocking, receive};
use crate::replication::message::{FollowEvent, FollowRequest, Welcome};
use crate::types::{DbId, DbName, Pos};

/// The live stream is silent as long as nothing happens; pings and beats notice a dead peer.
const QUIET: Duration = Duration::from_secs(365 * 24 * 3600);
/// Looking for applied positions gets rarer while nothing moves.
const APPLIED_POLL_MAX: Duration = Duration::from_millis(100);

/// How often databases are asked whether they are damaged.
const MEND_INTERVAL: Duration = Duration::from_secs(2);

/// Marks the session as over however it ends.
struct Over(Arc<Session>, Arc<Shared>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.1.keeper.end();
        self.1.store.lost_primary();
    }
}

/// Follows the primary at an address until that ends; says why.
pub(super) async fn follow(shared: &Arc<Shared>, address: &str) -> LinkError {
    match try_follow(shared, address).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn try_follow(
    shared: &Arc<Shared>,
    address: &str,
) -> Result<std::convert::Infallible, LinkError> {
    let primary = dial(address).await?;
    let (requests, sent) = mpsc::channel(REQUESTS_QUEUED);
    let id = rand::random();
    let store = &shared.store;
    let have: Vec<(DbId, Pos)> =
        store.databases().iter().filter_map(|db| Some((db.id()?, db.position()))).collect();
    let hello = async {
        let caller = shared.me.caller(id);
        let filters = shared.options.filters.clone();
        push(&requests, FollowRequest::Hello { caller, filters }).await?;
        let count = have.len().div_ceil(ENTRIES_PER_MESSAGE).max(1);
        for n in 0..count {
            let part = have.chunks(ENTRIES_PER_MESSAGE).nth(n).unwrap_or_default();
            let (databases, complete) = (part.to_vec(), n + 1 == count);
            push(&requests, FollowRequest::Have { databases, complete }).await?;
        }
        Ok(())
    };
    let both = async { tokio::try_join!(primary.follow(sent), hello) };
    let (mut events, ()) = within(HELLO_TIMEOUT, both).await?;
    let welcome = welcome(shared, &mut events).await?;
    info!(peer = %welcome.name, address, epoch = %welcome.epoch, "following");

    let (jobs, orders) = mpsc::unbounded_channel();
    let is_over = AtomicBool::new(false);
    let session = Arc::new(Session { id, requests, jobs, is_over });
    let _over = Over(Arc::clone(&session), Arc::clone(shared));
    shared.connected(Link {
        address: address.to_owned(),
        primary: welcome.name.clone(),
        node: welcome.node,
        epoch: welcome.epoch,
        since_ms: clock::wall_ms(),
    });
    *shared.peer.lock() = Some((primary.clone(), id));
    let wanted = catalog(&mut events).await?;
    let ids: HashSet<DbId> = wanted.keys().copied().collect();
    let (adopted, new) = mpsc::unbounded_channel();
    let generation = shared.keeper.begin(wanted, adopted);
    // What is not there in time is fetched later; what is there need not be.
    if tokio::time::timeout(SETTLE_WAIT, shared.keeper.settled(generation)).await.is_err() {
        info!(count = ids.len(), "databases are still being made");
    }
    let tmp = shared.options.tmp.clone();
    blocking(move || Place::sweep(&tmp, |id| ids.contains(&id))).await?;
    let databases = store.databases();
    shared.acks.restart(databases.iter().filter_map(|db| Some((db.id()?, db.position()))));
    drop(databases);

    let levels = Mutex::new(Levels::default());
    let fetcher = Fetcher::new(Parts {
        store: Arc::clone(store),
        me: Arc::clone(&shared.me),
        session: Arc::clone(&session),
        primary: primary.clone(),
        lanes: Arc::clone(&shared.lanes),
        acks: Arc::clone(&shared.acks),
        claims: Arc::clone(&shared.claims),
        copying: Arc::clone(&shared.copying),
        tmp: shared.options.tmp.clone(),
    });
    tokio::select! {
        ended = take_events(shared, &session, &mut events) => ended,
        ended = take_beats(shared, &session, &primary, &welcome, &levels) => ended,
        ended = send_acks(shared, &session, &welcome, &levels) => ended,
        ended = fetcher.run(orders) => Err(ended),
        ended = mend(shared, &session) => ended,
        ended = hand_on(shared, &session, new) => ended,
    }
}

/// Tells the lanes which databases were made: of some of them they have missed transactions.
async fn hand_on(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    mut new: mpsc::UnboundedReceiver<DbId>,
) -> Result<std::convert::Infallible, LinkError> {
    while let Some(db) = new.recv().await {
        let session = Arc::clone(session);
        shared.lanes.push(Item { session, db, event: Event::Adopted }).await;
    }
    // The keeper has been stopped.
    Err(LinkError::Stopping)
}

/// Has damaged databases fetched anew, also those that no transaction would find out about.
async fn mend(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
) -> Result<std::convert::Infallible, LinkError> {
    let mut interval = tokio::time::interval(MEND_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let store = Arc::clone(&shared.store);
        let damaged = blocking(move || {
            let databases = store.databases();
            let damaged = databases.iter().filter(|db| db.needs_reseed());
            damaged.filter_map(|db| db.id()).collect::<Vec<_>>()
        });
        for db in damaged.await? {
            let session = Arc::clone(session);
            shared.lanes.push(Item { session, db, event: Event::Mend }).await;
        }
    }
}

async fn push(
    requests: &mpsc::Sender<FollowRequest>,
    request: FollowRequest,
) -> Result<(), LinkError> {
    match tokio::time::timeout(STALL_TIMEOUT, requests.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(LinkError::Closed),
        Err(_) => Err(LinkError::Silent(STALL_TIMEOUT)),
    }
}

async fn welcome(
    shared: &Arc<Shared>,
    events: &mut Incoming<FollowEvent>,
) -> Result<Welcome, LinkError> {
    let FollowEvent::Welcome(welcome) = receive(events, HELLO_TIMEOUT).await? else {
        return Err(Malformed::Missing("the welcome").into());
    };
    shared.me.accept(&welcome)?;
    shared.see_epoch(welcome.epoch)?;
    let (me, cluster) = (Arc::clone(&shared.me), welcome.cluster);
    blocking(move || me.join(cluster)).await?.map_err(LinkError::Join)?;
    Ok(welcome)
}

async fn catalog(events: &mut Incoming<FollowEvent>) -> Result<HashMap<DbId, DbName>, LinkError> {
    let mut wanted = HashMap::new();
    loop {
        let FollowEvent::Catalog { databases, complete } = receive(events, HELLO_TIMEOUT).await?
        else {
            return Err(Malformed::Missing("the catalog").into());
        };
        wanted.extend(databases);
        if wanted.len() > DATABASES_MAX {
            let count = wanted.len();
            return Err(
                Malformed::TooMany { what: "the catalog", count, max: DATABASES_MAX }.into()
            );
        }
        if complete {
            return Ok(wanted);
        }
    }
}

/// Takes the live stream: transactions go to the lanes, the catalog is changed in order.
async fn take_events(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    events: &mut Incoming<FollowEvent>,
) -> Result<std::convert::Infallible, LinkError> {
    let push = async |db, event| {
        shared.lanes.push(Item { session: Arc::clone(session), db, event }).await;
    };
    loop {
        match receive(events, QUIET).await? {
            FollowEvent::Transactions { db, .. } | FollowEvent::Behind { db, .. }
                if !shared.keeper.wants(db) =>
            {
                let what = "a database that is not in the catalog";
                return Err(Malformed::Unexpected(what).into());
            }
            FollowEvent::Transactions { db, run, records, sync_now } => {
                push(db, Event::Records { run, records, sync_now }).await;
            }
            FollowEvent::Behind { db, run } => push(db, Event::Behind { run }).await,
            FollowEvent::Named { db, name } => {
                shared.keeper.named(db, name);
                let count = shared.keeper.count();
                if count > DATABASES_MAX {
                    let (what, max) = ("the catalog", DATABASES_MAX);
                    return Err(Malformed::TooMany { what, count, max }.into());
                }
            }
            FollowEvent::Dropped { db } => {
                info!(id = %db, "dropped by the primary");
                push(db, Event::Dropped).await;
                shared.keeper.dropped(db);
            }
            FollowEvent::Welcome(_) => return Err(Malformed::Unexpected("a second welcome").into()),
            FollowEvent::Catalog { .. } => {
                return Err(Malformed::Unexpected("a second catalog").into());
            }
        }
    }
}

/// Takes the heartbeat.
async fn take_beats(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    primary: &Primary,
    welcome: &Welcome,
    levels: &Mutex<Levels>,
) -> Result<std::convert::Infallible, LinkError> {
    let mut beats = primary.heartbeat(shared.me.caller(session.id)).await?;
    // Databases that the catalog does not name yet: it comes on another connection.
    let mut early = HashMap::new();
    // Databases without which this node counts as level: they are aside, and said to be.
    let mut left_out = HashMap::new();
    loop {
        let beat = receive(&mut beats, BEAT_TIMEOUT).await?;
        shared.see_epoch(beat.epoch)?;
        let level_at = {
            let mut levels = levels.lock();
            early.retain(|db, _| !beat.gone.contains(db));
            early.extend(beat.databases);
            let now_known: Vec<DbId> =
                early.keys().copied().filter(|db| shared.keeper.wants(*db)).collect();
            for db in now_known {
                let Some(pos) = early.remove(&db) else { continue };
                levels.reported(db, pos);
                if let Some(database) = shared.store.by_id(db) {
                    levels.applied(db, database.applied());
                }
            }
            if early.len() > EARLY_REPORTS_MAX {
                let (count, max) = (early.len(), EARLY_REPORTS_MAX);
                let what = "beats about databases that are not in the catalog";
                return Err(Malformed::TooMany { what, count, max }.into());
            }
            for db in beat.gone {
                levels.gone(db);
            }
            leave_out(shared, &mut levels, &mut left_out);
            if beat.more {
                continue;
            }
            levels.beat(clock::boottime());
            levels.level_at()
        };
        shared.heard(&welcome.name, level_at);
    }
}

/// A database that cannot be made here does not hold the others' level back.
fn leave_out(shared: &Shared, levels: &mut Levels, left_out: &mut HashMap<DbId, Option<Pos>>) {
    let aside = shared.keeper.aside();
    let missing: HashSet<DbId> = aside
        .into_iter()
        .map(|aside| aside.id)
        .filter(|db| shared.store.by_id(*db).is_none())
        .collect();
    left_out.retain(|db, pos| {
        let is_missing = missing.contains(db);
        if let Some(pos) = pos.filter(|_| !is_missing) {
            levels.reported(*db, pos);
        }
        is_missing
    });
    for db in missing {
        let before = left_out.get(&db).copied().flatten();
        left_out.insert(db, levels.target(db).or(before));
        levels.gone(db);
    }
}

/// Tells the primary what is durable and what is applied.
async fn send_acks(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    welcome: &Welcome,
    levels: &Mutex<Levels>,
) -> Result<std::convert::Infallible, LinkError> {
    let acks = &shared.acks;
    let mut poll = APPLIED_POLL;
    loop {
        let unapplied = acks.unapplied();
        tokio::select! {
            () = acks.news.notified() => poll = APPLIED_POLL,
            () = tokio::time::sleep(poll), if !unapplied.is_empty() => (),
        }
        let (mut is_news, mut level_at) = (false, None);
        for db in acks.unapplied() {
            let Some(database) = shared.store.by_id(db) else {
                acks.dropped(db);
                continue;
            };
            let applied = database.applied();
            is_news |= acks.applied(db, applied, applied == database.position());
            let mut levels = levels.lock();
            if levels.applied(db, applied) {
                level_at = levels.level_at();
            }
        }
        if level_at.is_some() {
            shared.heard(&welcome.name, level_at);
        }
        poll = if is_news { APPLIED_POLL } else { (poll * 2).min(APPLIED_POLL_MAX) };
        loop {
            let batch = acks.take();
            if batch.is_empty() {
                break;
            }
            push(&session.requests, FollowRequest::Acks(batch)).await?;
        }
        tokio::time::sleep(ACK_PAUSE).await;
    }
}
