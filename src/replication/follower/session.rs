//! One connection to a primary, from the hello to its end.

use std::collections::HashMap;
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
use crate::database::OpError;
use crate::disk::clock;
use crate::replication::convert::Incoming;
use crate::replication::error::{LinkError, Malformed};
use crate::replication::level::Levels;
use crate::replication::limits::{
    ACK_PAUSE, APPLIED_POLL, BEAT_TIMEOUT, DATABASES_MAX, ENTRIES_PER_MESSAGE, HELLO_TIMEOUT,
    REQUESTS_QUEUED, STALL_TIMEOUT,
};
use crate::replication::link::{blocking, receive};
use crate::replication::message::{FollowEvent, FollowRequest, Welcome};
use crate::replication::naming::{Naming, naming_plan};
use crate::store::Store;
use crate::types::{DbId, DbName, Pos};

/// The live stream is silent as long as nothing happens; pings and beats notice a dead peer.
const QUIET: Duration = Duration::from_secs(365 * 24 * 3600);
/// Looking for applied positions gets rarer while nothing moves.
const APPLIED_POLL_MAX: Duration = Duration::from_millis(100);

/// Threads that make new databases when a replica starts.
const ADOPTERS: usize = 8;
/// How often databases are asked whether they are damaged.
const MEND_INTERVAL: Duration = Duration::from_secs(2);

/// Marks the session as over however it ends.
struct Over(Arc<Session>, Arc<Store>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
        self.1.lost_primary();
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
    let _over = Over(Arc::clone(&session), Arc::clone(store));
    shared.connected(Link {
        address: address.to_owned(),
        primary: welcome.name.clone(),
        node: welcome.node,
        epoch: welcome.epoch,
        since_ms: clock::wall_ms(),
    });
    *shared.peer.lock() = Some((primary.clone(), id));
    let wanted = catalog(&mut events).await?;
    reconcile(shared, wanted).await?;
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
    }
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

/// Removes what the primary does not have, names and makes what it has.
async fn reconcile(shared: &Arc<Shared>, wanted: HashMap<DbId, DbName>) -> Result<(), LinkError> {
    let shared = Arc::clone(shared);
    let done = blocking(move || -> Result<(), OpError> {
        let _one_at_a_time = shared.catalog.lock();
        let store = &shared.store;
        let mut local = HashMap::new();
        for db in store.databases() {
            let Some(id) = db.id() else { continue };
            if wanted.contains_key(&id) {
                local.insert(id, db.name());
            } else {
                info!(db = %db.name(), %id, "the primary does not have it: removing");
                store.forget(id)?;
            }
        }
        let (old, new): (Vec<_>, Vec<_>) =
            naming_plan(&local, &wanted, &HashMap::new()).steps.into_iter().partition(|step| local.contains_key(&step.id));
        for step in old {
            if local.get(&step.id) != Some(&step.name) {
                store.adopt(step.id, &step.name)?;
                local.insert(step.id, step.name);
            }
        }
        adopt_new(store, new)?;
        Place::sweep(&shared.options.tmp, |id| wanted.contains_key(&id));
        Ok(())
    });
    done.await?.map_err(LinkError::Catalog)
}

/// Makes databases that this node does not have. Each costs a few syncs, so several go at a time.
fn adopt_new(store: &Store, new: Vec<Naming>) -> Result<(), OpError> {
    let left = Mutex::new(new.into_iter());
    std::thread::scope(|scope| {
        let work = || -> Result<(), OpError> {
            while let Some(step) = { left.lock().next() } {
                store.adopt(step.id, &step.name)?;
            }
            Ok(())
        };
        let others: Vec<_> = (1..ADOPTERS).map(|_| scope.spawn(work)).collect();
        let mine = work();
        others.into_iter().fold(mine, |result, other| {
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            result.and(other)
        })
    })
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
            FollowEvent::Transactions { db, run, records, sync_now } => {
                push(db, Event::Records { run, records, sync_now }).await;
            }
            FollowEvent::Behind { db, run } => push(db, Event::Behind { run }).await,
            FollowEvent::Named { db, name } => {
                change(shared, move |store| {
                    info!(db = %name, id = %db, "named by the primary");
                    store.adopt(db, &name).map(drop)
                })
                .await?;
            }
            FollowEvent::Dropped { db } => {
                push(db, Event::Dropped).await;
                change(shared, move |store| {
                    let name = store.by_id(db).map(|db| db.name().to_string());
                    info!(db = name, id = %db, "dropped by the primary");
                    store.forget(db)
                })
                .await?;
            }
            FollowEvent::Welcome(_) => return Err(Malformed::Unexpected("a second welcome").into()),
            FollowEvent::Catalog { .. } => {
                return Err(Malformed::Unexpected("a second catalog").into());
            }
        }
    }
}

async fn change(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Store) -> Result<(), OpError> + Send + 'static,
) -> Result<(), LinkError> {
    let shared = Arc::clone(shared);
    let done = blocking(move || {
        let _one_at_a_time = shared.catalog.lock();
        work(&shared.store)
    });
    done.await?.map_err(LinkError::Catalog)
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
    loop {
        let beat = receive(&mut beats, BEAT_TIMEOUT).await?;
        shared.see_epoch(beat.epoch)?;
        let level_at = {
            let mut levels = levels.lock();
            for (db, pos) in beat.databases {
                levels.reported(db, pos);
                if let Some(database) = shared.store.by_id(db) {
                    levels.applied(db, database.applied());
                }
            }
            let count = levels.len();
            if count > DATABASES_MAX {
                return Err(Malformed::TooMany { what: "a beat", count, max: DATABASES_MAX }.into());
            }
            for db in beat.gone {
                levels.gone(db);
            }
            if beat.more {
                continue;
            }
            levels.beat(clock::boottime());
            levels.level_at()
        };
        shared.heard(&welcome.name, level_at);
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
