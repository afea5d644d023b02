//! What this follower has received, made durable and applied, and what of that the primary knows.
//!
//! Syncing has threads of its own: one `fsync` covers all transactions that were received meanwhile, and
//! receiving goes on. A pause between two rounds keeps the disk free for others under load.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tracing::error;

use crate::replication::limits::{ENTRIES_PER_MESSAGE, LANES};
use crate::replication::message::Ack;
use crate::store::Store;
use crate::types::{DbId, Pos};

/// How long a transaction waits under load before the log is synced, at most.
const SYNC_PAUSE: Duration = Duration::from_millis(20);
/// Pause after a sync that failed.
const SYNC_RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Inner {
    /// Databases with received transactions that may not be durable, per lane.
    dirty: [HashSet<DbId>; LANES],
    is_urgent: bool,
    /// Databases with durable positions that may not be applied.
    unapplied: HashSet<DbId>,
    known: HashMap<DbId, (Pos, Pos)>,
    changed: HashSet<DbId>,
    is_stopped: bool,
}

/// The lane of a database.
pub(crate) fn lane_of(db: DbId) -> usize {
    usize::try_from(db.get() % LANES as u64).unwrap_or(0)
}

/// The follower's acknowledgements.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    inner: Mutex<Inner>,
    to_sync: Condvar,
    /// There may be something to say, or to look at.
    pub(crate) news: Notify,
}

impl Acks {
    /// Begins anew: the primary knows nothing of these databases. What is durable here stays so, which
    /// spares idle databases from being opened.
    pub(crate) fn restart(&self, databases: impl Iterator<Item = (DbId, Pos)>) {
        let mut inner = self.inner.lock();
        inner.changed.clear();
        inner.unapplied.clear();
        for (db, pos) in databases {
            inner.unapplied.insert(db);
            if inner.known.get(&db).is_some_and(|(durable, _)| *durable == pos) {
                inner.changed.insert(db);
            } else {
                inner.dirty[lane_of(db)].insert(db);
            }
        }
        drop(inner);
        self.to_sync.notify_all();
        self.news.notify_one();
    }

    /// A database has a new position that may be neither durable nor applied.
    pub(crate) fn received(&self, db: DbId, is_urgent: bool) {
        let mut inner = self.inner.lock();
        let is_first = inner.dirty[lane_of(db)].insert(db);
        let is_new = inner.unapplied.insert(db);
        let becomes_urgent = is_urgent && !std::mem::replace(&mut inner.is_urgent, is_urgent);
        drop(inner);
        if is_first || becomes_urgent {
            self.to_sync.notify_all();
        }
        if is_new {
            self.news.notify_one();
        }
    }

    /// A database is gone.
    pub(crate) fn dropped(&self, db: DbId) {
        let mut inner = self.inner.lock();
        inner.dirty[lane_of(db)].remove(&db);
        inner.unapplied.remove(&db);
        inner.known.remove(&db);
        inner.changed.remove(&db);
    }

    /// Ends the syncing threads.
    pub(crate) fn stop(&self) {
        self.inner.lock().is_stopped = true;
        self.to_sync.notify_all();
    }

    /// Databases whose applied position may move.
    pub(crate) fn unapplied(&self) -> Vec<DbId> {
        self.inner.lock().unapplied.iter().copied().collect()
    }

    /// A database's readers see a position, which may be all there is. Whether that is news.
    pub(crate) fn applied(&self, db: DbId, applied: Pos, is_all: bool) -> bool {
        let mut inner = self.inner.lock();
        if is_all {
            inner.unapplied.remove(&db);
        }
        let known = inner.known.entry(db).or_insert((Pos::ZERO, Pos::ZERO));
        let is_news = known.1 != applied;
        known.1 = applied;
        if is_news {
            inner.changed.insert(db);
        }
        is_news
    }

    fn durable(&self, db: DbId, durable: Pos) {
        let mut inner = self.inner.lock();
        inner.known.entry(db).or_insert((Pos::ZERO, Pos::ZERO)).0 = durable;
        inner.changed.insert(db);
        drop(inner);
        self.news.notify_one();
    }

    /// What the primary does not know yet, as much as fits in a message.
    pub(crate) fn take(&self) -> Vec<Ack> {
        let mut inner = self.inner.lock();
        let chosen: Vec<DbId> = inner.changed.iter().copied().take(ENTRIES_PER_MESSAGE).collect();
        chosen
            .into_iter()
            .filter_map(|db| {
                inner.changed.remove(&db);
                let (durable, applied) = *inner.known.get(&db)?;
                Some(Ack { db, durable, applied })
            })
            .collect()
    }

    /// One syncing thread, until [`Acks::stop`].
    pub(crate) fn run_syncer(&self, lane: usize, store: &Store) {
        while let Some(dirty) = self.wait_dirty(lane) {
            let started = Instant::now();
            let mut pause = SYNC_PAUSE;
            for db in dirty {
                let Some(database) = store.by_id(db) else { continue };
                match database.sync_log() {
                    Ok(pos) => self.durable(db, pos),
                    Err(error) => {
                        error!(db = %database.name(), %error, "sync the log");
                        self.inner.lock().dirty[lane].insert(db);
                        pause = SYNC_RETRY;
                    }
                }
            }
            // At least half of the time the disk is free.
            let spent = started.elapsed();
            self.rest(pause.saturating_sub(spent).max(spent.min(pause)));
        }
    }

    fn wait_dirty(&self, lane: usize) -> Option<HashSet<DbId>> {
        let mut inner = self.inner.lock();
        loop {
            if inner.is_stopped {
                return None;
            }
            if !inner.dirty[lane].is_empty() {
                inner.is_urgent = false;
                return Some(std::mem::take(&mut inner.dirty[lane]));
            }
            self.to_sync.wait(&mut inner);
        }
    }

    fn rest(&self, pause: Duration) {
        let deadline = Instant::now() + pause;
        let mut inner = self.inner.lock();
        while !inner.is_stopped && !inner.is_urgent {
            if self.to_sync.wait_until(&mut inner, deadline).timed_out() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Epoch, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::new(txid) }
    }

    #[test]
    fn the_primary_is_told_each_change_once_and_the_newest_only() {
        let acks = Acks::default();
        let db = DbId::new(1);
        acks.received(db, false);
        acks.durable(db, pos(1));
        acks.durable(db, pos(2));
        assert!(acks.applied(db, pos(1), false));
        assert!(!acks.applied(db, pos(1), false));
        assert_eq!(acks.take(), [Ack { db, durable: pos(2), applied: pos(1) }]);
        assert_eq!(acks.take(), []);
        assert_eq!(acks.unapplied(), [db]);
        acks.applied(db, pos(2), true);
        assert!(acks.unapplied().is_empty());
        acks.dropped(db);
        assert_eq!(acks.take(), []);
    }

    #[test]
    fn a_new_connection_hears_what_is_durable_without_another_sync() {
        let acks = Acks::default();
        let (known, moved) = (DbId::new(0), DbId::new(LANES as u64));
        acks.durable(known, pos(1));
        acks.durable(moved, pos(1));
        acks.applied(known, pos(1), true);
        assert_eq!(acks.take().len(), 2);
        acks.restart([(known, pos(1)), (moved, pos(2))].into_iter());
        assert_eq!(acks.take(), [Ack { db: known, durable: pos(1), applied: pos(1) }]);
        assert_eq!(acks.wait_dirty(0), Some(HashSet::from([moved])));
    }

    #[test]
    fn a_message_of_acks_is_bounded() {
        let acks = Acks::default();
        for id in 0..3000 {
            acks.durable(DbId::new(id), pos(1));
        }
        let sizes: Vec<usize> = (0..4).map(|_| acks.take().len()).collect();
        assert_eq!(sizes, [1024, 1024, 952, 0]);
    }
}
