//! The threads that take received transactions into the logs.
//!
//! Each database belongs to one lane, so its transactions stay in order while databases go in parallel.
//! Lanes outlive connections; what an ended session left in a queue is skipped.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::acks::{Acks, lane_of};
use crate::database::{Database, OpError, ReceiveError};
use crate::replication::flow::{Flow, Order, Trouble};
use crate::replication::limits::{LANE_QUEUED, LANES};
use crate::replication::message::{FollowRequest, Record};
use crate::store::Store;
use crate::types::DbId;

/// A Fetch to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) db: DbId,
    pub(crate) order: Order,
}

/// One connection to a primary, as the lanes know it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) requests: mpsc::Sender<FollowRequest>,
    /// Unbounded in form; each database has at most one job at a time.
    pub(crate) jobs: mpsc::UnboundedSender<Job>,
    pub(crate) is_over: AtomicBool,
}

/// How a Fetch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fetched {
    /// The database is level enough for the live stream.
    Done,
    /// The database is gone.
    Gone,
    /// It did not work.
    Failed(Trouble),
}

/// What happens to a database.
#[derive(Debug)]
pub(crate) enum Event {
    Records {
        run: u32,
        records: Vec<Record>,
        sync_now: bool,
    },
    Behind {
        run: u32,
    },
    Fetched(Fetched),
    /// Its pages are known to be damaged.
    Mend,
    /// It was made here.
    Adopted,
    Dropped,
}

/// An event on its way.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) session: Arc<Session>,
    pub(crate) db: DbId,
    pub(crate) event: Event,
}

/// All lanes.
#[derive(Debug)]
pub(crate) struct Lanes {
    queues: Vec<mpsc::Sender<Item>>,
}

impl Lanes {
    /// Starts the receiving and the syncing threads. They end when the lanes are dropped and
    /// [`Acks::stop`] is called.
    pub(crate) fn start(
        store: &Arc<Store>,
        acks: &Arc<Acks>,
    ) -> io::Result<(Self, Vec<JoinHandle<()>>)> {
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for lane in 0..LANES {
            let (queue, items) = mpsc::channel(LANE_QUEUED);
            queues.push(queue);
            let worker = Lane {
                store: Arc::clone(store),
                acks: Arc::clone(acks),
                session: 0,
                flows: HashMap::new(),
                missed: HashSet::new(),
            };
            let name = format!("weir-receive-{lane}");
            threads.push(std::thread::Builder::new().name(name).spawn(move || worker.run(items))?);
            let (store, acks) = (Arc::clone(store), Arc::clone(acks));
            let name = format!("weir-sync-{lane}");
            let syncer = move || acks.run_syncer(lane, &store);
            threads.push(std::thread::Builder::new().name(name).spawn(syncer)?);
        }
        Ok((Self { queues }, threads))
    }

    /// Queues an event, waiting for room: that is the backpressure on the stream.
    pub(crate) async fn push(&self, item: Item) {
        if let Some(queue) = self.queues.get(lane_of(item.db)) {
            // A lane ends only after everything that pushes.
            drop(queue.send(item).await);
        }
    }
}

struct Lane {
    store: Arc<Store>,
    acks: Arc<Acks>,
    session: u64,
    flows: HashMap<DbId, Flow>,
    /// Databases of which something arrived before they were made here.
    missed: HashSet<DbId>,
}

impl Lane {
    fn run(mut self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.blocking_recv() {
            if item.session.is_over.load(Ordering::Acquire) {
                continue;
            }
            if item.session.id != self.session {
                self.session = item.session.id;
                self.flows.clear();
                self.missed.clear();
            }
            self.take(item);
        }
    }

    fn take(&mut self, item: Item) {
        let Item { session, db, event } = item;
        match event {
            Event::Records { run, records, sync_now } => {
                self.receive(&session, db, run, &records, sync_now);
            }
            Event::Behind { .. } if self.store.by_id(db).is_none() => drop(self.missed.insert(db)),
            Event::Behind { run } => {
                if let Some(order) = self.flow(db).behind(run) {
                    start(&session, db, order);
                }
            }
            Event::Fetched(Fetched::Done) => self.resume(&session, db),
            Event::Fetched(Fetched::Failed(trouble)) => {
                let order = self.flow(db).failed(trouble);
                start(&session, db, order);
            }
            Event::Mend => {
                if let Some(order) = self.flow(db).mend() {
                    start(&session, db, order);
                }
            }
            Event::Adopted => {
                if self.missed.remove(&db)
                    && let Some(order) = self.flow(db).missed()
                {
                    start(&session, db, order);
                }
            }
            Event::Fetched(Fetched::Gone) if self.store.by_id(db).is_some() => {
                // It has come back meanwhile, or the primary will say that it is gone.
                let order = self.flow(db).failed(Trouble::Network);
                start(&session, db, order);
            }
            Event::Fetched(Fetched::Gone) => {
                // If it comes back, the primary waits to hear where to go on.
                self.flow(db).gone();
                self.missed.insert(db);
                self.acks.dropped(db);
            }
            Event::Dropped => {
                self.flows.remove(&db);
                self.missed.remove(&db);
                self.acks.dropped(db);
            }
        }
    }

    fn flow(&mut self, db: DbId) -> &mut Flow {
        self.flows.entry(db).or_default()
    }

    fn receive(
        &mut self,
        session: &Session,
        db: DbId,
        run: u32,
        records: &[Record],
        sync_now: bool,
    ) {
        let Some(database) = self.store.by_id(db) else {
            self.missed.insert(db);
            return;
        };
        if !self.flow(db).takes(run) {
            return;
        }
        for record in records {
            match database.receive(record.epoch, &record.ltx) {
                Ok(_) => {
                    self.acks.received(db, sync_now);
                    self.flow(db).received();
                }
                Err(error) => {
                    let order = self.flow(db).failed(trouble(&database, &error));
                    start(session, db, order);
                    return;
                }
            }
        }
    }

    fn resume(&mut self, session: &Session, db: DbId) {
        let Some(database) = self.store.by_id(db) else {
            self.flow(db).gone();
            self.missed.insert(db);
            return;
        };
        let run = self.flow(db).fetched();
        self.acks.received(db, false);
        let request = FollowRequest::Resume { db, pos: database.position(), run };
        // If the session has ended, the next one says all positions again.
        drop(session.requests.blocking_send(request));
    }
}

fn start(session: &Session, db: DbId, order: Order) {
    if session.jobs.send(Job { db, order }).is_err() {
        debug!(%db, "the session has ended: the next one says all positions again");
    }
}

/// What a refused change set means; says so once.
pub(crate) fn trouble(database: &Database, error: &ReceiveError) -> Trouble {
    let db = database.name();
    match error {
        ReceiveError::OutOfOrder { .. } => {
            warn!(%db, %error, "a gap in the stream: fetching");
            Trouble::Gap
        }
        ReceiveError::Invalid { source, .. } => {
            error!(%db, error = %source, "a damaged change set: fetching again");
            Trouble::Invalid
        }
        ReceiveError::NoChecksums(_) => {
            error!(%db, %error, "fetching again");
            Trouble::Invalid
        }
        ReceiveError::ChecksumMismatch { .. } => {
            error!(%db, %error, "this copy has diverged: fetching the pages that differ");
            Trouble::Mismatch
        }
        ReceiveError::Op(OpError::Quarantined(_)) => {
            warn!(%db, %error, "fetching the pages that differ");
            Trouble::Mismatch
        }
        ReceiveError::Op(source) => {
            error!(%db, error = %source, "take a change set into the log");
            Trouble::Disk
        }
    }
}
