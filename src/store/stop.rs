//! Signals between the store's own threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::database::Database;

/// Tells threads to end.
#[derive(Default, Debug)]
pub(super) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; `true` if the store stops.
    pub(super) fn wait_for(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut stopped = self.stopped.lock();
        while !*stopped {
            if self.changed.wait_until(&mut stopped, deadline).timed_out() {
                break;
            }
        }
        *stopped
    }

    pub(super) fn stop(&self) {
        *self.stopped.lock() = true;
        self.changed.notify_all();
    }
}

/// Databases that were written without a journal, for the thread that looks after them.
#[derive(Default, Debug)]
pub(super) struct Unlogged {
    inner: Mutex<(Vec<Arc<Database>>, bool)>,
    changed: Condvar,
}

impl Unlogged {
    pub(super) fn push(&self, db: Arc<Database>) {
        self.inner.lock().0.push(db);
        self.changed.notify_all();
    }

    pub(super) fn close(&self) {
        self.inner.lock().1 = true;
        self.changed.notify_all();
    }

    /// Waits for new ones, at most `wait`; `None` once closed.
    pub(super) fn take(&self, wait: Option<Duration>) -> Option<Vec<Arc<Database>>> {
        let mut inner = self.inner.lock();
        if inner.0.is_empty() && !inner.1 {
            match wait {
                Some(wait) => drop(self.changed.wait_for(&mut inner, wait)),
                None => self.changed.wait(&mut inner),
            }
        }
        if inner.1 { None } else { Some(std::mem::take(&mut inner.0)) }
    }
}
