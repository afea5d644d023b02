//! Tells those who follow a node's databases what changed, in bounded memory.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::types::{DbId, DbName};

/// Catalog changes that are kept for one subscriber.
const CATALOG_MAX: usize = 4096;

/// A change in the set of databases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogChange {
    /// A database exists, or has a new name.
    Named {
        /// Which.
        id: DbId,
        /// Its name from now on.
        name: DbName,
    },
    /// A database is gone.
    Dropped {
        /// Which.
        id: DbId,
    },
}

/// What happened since a [`Subscription`] was last asked.
#[derive(Default, Debug)]
pub struct Announcement {
    /// In order. A rename over another database is `Dropped` then `Named`.
    pub catalog: Vec<CatalogChange>,
    /// The catalog changes overflowed: read the whole catalog again.
    pub catalog_lost: bool,
    /// Databases with new transactions, each once.
    pub changed: Vec<DbId>,
}

#[derive(Default, Debug)]
struct Waiting {
    announcement: Announcement,
    seen: HashSet<DbId>,
}

#[derive(Default, Debug)]
struct Subscriber {
    waiting: Mutex<Waiting>,
    notify: Notify,
}

/// A receiver of announcements. Bounded: each database appears at most once.
#[derive(Debug)]
pub struct Subscription {
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// Waits until there is something to report. Cancellation-safe.
    pub async fn next(&self) -> Announcement {
        loop {
            let notified = self.subscriber.notify.notified();
            {
                let mut waiting = self.subscriber.waiting.lock();
                let announcement = std::mem::take(&mut waiting.announcement);
                waiting.seen.clear();
                if announcement.catalog_lost
                    || !announcement.catalog.is_empty()
                    || !announcement.changed.is_empty()
                {
                    return announcement;
                }
            }
            notified.await;
        }
    }
}

/// All subscriptions.
#[derive(Default, Debug)]
pub(super) struct Announcer {
    subscribers: RwLock<Vec<Weak<Subscriber>>>,
}

impl Announcer {
    pub(super) fn subscribe(&self) -> Subscription {
        let subscriber = Arc::new(Subscriber::default());
        let mut subscribers = self.subscribers.write();
        subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        subscribers.push(Arc::downgrade(&subscriber));
        Subscription { subscriber }
    }

    /// A database has a new transaction.
    pub(super) fn changed(&self, id: DbId) {
        self.each(|waiting| {
            if waiting.seen.insert(id) {
                waiting.announcement.changed.push(id);
            }
        });
    }

    /// The set of databases changed.
    pub(super) fn catalog(&self, change: &CatalogChange) {
        self.each(|waiting| {
            if waiting.announcement.catalog.len() < CATALOG_MAX {
                waiting.announcement.catalog.push(change.clone());
            } else {
                waiting.announcement.catalog.clear();
                waiting.announcement.catalog_lost = true;
            }
        });
    }

    fn each(&self, tell: impl Fn(&mut Waiting)) {
        for subscriber in self.subscribers.read().iter().filter_map(Weak::upgrade) {
            tell(&mut subscriber.waiting.lock());
            subscriber.notify.notify_one();
        }
    }
}
