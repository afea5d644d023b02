//! A queue of databases for a few threads: each at most once, and never on two threads at a time.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::types::DbId;

#[derive(Default, Debug)]
struct Inner {
    ready: VecDeque<DbId>,
    later: Vec<(Instant, DbId)>,
    queued: HashSet<DbId>,
    running: HashSet<DbId>,
    /// How many wait for a claim: those that work make room for them.
    claimants: HashMap<DbId, usize>,
    is_closed: bool,
}

#[derive(Default, Debug)]
pub(super) struct WorkQueue {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// A database on which no thread of the queue works.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    queue: &'a WorkQueue,
    id: DbId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.queue.done(self.id);
    }
}

impl WorkQueue {
    /// Work for a database; what is queued already stays as it is.
    pub(super) fn push(&self, id: DbId) {
        let mut inner = self.inner.lock();
        if inner.queued.insert(id) {
            inner.ready.push_back(id);
            self.changed.notify_all();
        }
    }

    /// Work for a database in a while.
    pub(super) fn push_later(&self, id: DbId, delay: Duration) {
        let mut inner = self.inner.lock();
        if inner.queued.insert(id) {
            inner.later.push((Instant::now() + delay, id));
            self.changed.notify_all();
        }
    }

    /// Waits for work; `None` once the queue is closed. The caller says [`WorkQueue::done`].
    pub(super) fn pop(&self) -> Option<DbId> {
        let mut inner = self.inner.lock();
        loop {
            if inner.is_closed {
                return None;
            }
            let now = Instant::now();
            let due: Vec<DbId> =
                inner.later.extract_if(.., |(at, _)| *at <= now).map(|(_, id)| id).collect();
            inner.ready.extend(due);
            let free = inner
                .ready
                .iter()
                .position(|id| !inner.running.contains(id) && !inner.claimants.contains_key(id));
            if let Some(id) = free.and_then(|index| inner.ready.remove(index)) {
                inner.queued.remove(&id);
                inner.running.insert(id);
                return Some(id);
            }
            match inner.later.iter().map(|(at, _)| *at).min() {
                Some(at) => drop(self.changed.wait_until(&mut inner, at)),
                None => self.changed.wait(&mut inner),
            }
        }
    }

    pub(super) fn done(&self, id: DbId) {
        let mut inner = self.inner.lock();
        inner.running.remove(&id);
        // Those who claim wait on the same condition as the threads that work.
        self.changed.notify_all();
    }

    /// Waits until no thread works on a database, and keeps it so while the claim lives.
    pub(super) fn claim(&self, id: DbId) -> Claim<'_> {
        let mut inner = self.inner.lock();
        *inner.claimants.entry(id).or_default() += 1;
        while !inner.running.insert(id) {
            self.changed.wait(&mut inner);
        }
        if let Some(count) = inner.claimants.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                inner.claimants.remove(&id);
            }
        }
        Claim { queue: self, id }
    }

    /// Whether somebody waits for a claim.
    pub(super) fn is_claimed(&self, id: DbId) -> bool {
        self.inner.lock().claimants.contains_key(&id)
    }

    pub(super) fn close(&self) {
        self.inner.lock().is_closed = true;
        self.changed.notify_all();
    }
}
