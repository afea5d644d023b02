//! Writes received transactions into the files of a replica.
//!
//! A few threads take databases from a queue; each writes batches through the mount by way of `client`.
//! Databases apply in parallel, the transactions of one in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::Store;
use crate::client::{Answer, ClientError, FileState, Pool, Request};
use crate::database::Database;
use crate::types::DbId;

/// Wait before a batch that found the database locked by readers is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// For how long a reader may hold a database back before it is said.
const HELD_BACK_MAX: Duration = Duration::from_secs(5);
/// Wait after an error that is not a lock.
const RETRY_ERROR: Duration = Duration::from_secs(1);

impl Store {
    /// One applying thread.
    pub(super) fn run_applier(self: &Arc<Self>) {
        while let Some(id) = self.to_apply.pop() {
            let retry = match (self.by_id(id), self.shared.client()) {
                (Some(db), Some(client)) if !self.shared.is_primary() && self.is_mounted() => {
                    self.apply_all(&db, client)
                }
                // Without a mount there is nowhere to write; `mounted` queues everything again.
                _ => None,
            };
            self.to_apply.done(id);
            if let Some(delay) = retry {
                self.to_apply.push_later(id, delay);
            }
        }
    }

    fn is_mounted(&self) -> bool {
        self.invalidate.get().is_some()
    }

    /// Applies what is there. Returns when to try again if something is left.
    fn apply_all(&self, db: &Arc<Database>, client: &Pool) -> Option<Duration> {
        let id = db.id()?;
        loop {
            if self.to_apply.is_claimed(id) {
                // A stream of transactions must not keep a rename waiting.
                return Some(Duration::ZERO);
            }
            let batch = match db.next_batch() {
                Ok(Some(batch)) => batch,
                Ok(None) => return None,
                Err(error) if error.is_damage() => {
                    db.quarantine(&format!("received transactions cannot be read: {error}"), true);
                    return None;
                }
                Err(error) => {
                    warn!(db = %db.name(), %error, "read received transactions");
                    return Some(RETRY_ERROR);
                }
            };
            self.used_through_mount(id);
            let (before, after, transactions) = (batch.before, batch.after, batch.transactions);
            match client.call(id, Request::Apply { name: db.name(), change: batch.change }) {
                Ok(answer) => {
                    self.held_back.lock().remove(&id);
                    db.batch_applied(before, after);
                    if let Answer::State(state) = answer
                        && state.is_written_back()
                    {
                        db.checkpointed(after);
                    }
                    debug!(db = %db.name(), txid = ?after.txid, transactions, "applied");
                }
                Err(busy @ ClientError::Busy { .. }) => {
                    self.is_held_back(db, id, &busy);
                    return Some(RETRY);
                }
                Err(error) => {
                    warn!(db = %db.name(), %error, "apply");
                    return Some(RETRY_ERROR);
                }
            }
        }
    }

    /// Says once, after a while, that somebody who reads keeps received transactions from being applied.
    fn is_held_back(&self, db: &Database, id: DbId, busy: &ClientError) {
        let mut held_back = self.held_back.lock();
        let (since, is_said) = held_back.entry(id).or_insert_with(|| (Instant::now(), false));
        if !*is_said && since.elapsed() > HELD_BACK_MAX {
            *is_said = true;
            warn!(db = %db.name(), error = %busy, "a reader holds back received transactions: end its transaction");
        }
    }

    /// On a replica: takes the write lock of a database through the mount so that an application gets
    /// SQLite's "busy". On a primary: finishes a recovery for which there was no space. Blocks; never call it on a thread that serves kernel requests.
    ///
    /// # Errors
    /// The lock could not be taken in time.
    pub fn attach(&self, db: &Arc<Database>) -> Result<(), crate::database::OpError> {
        db.wait_for_install();
        let (Some(id), Some(client)) = (db.id(), self.shared.client()) else { return Ok(()) };
        if self.shared.is_primary() {
            self.recover_again(db, 1);
            return Ok(());
        }
        self.fenced.lock().insert(id);
        self.used_through_mount(id);
        client.call(id, Request::Fence { name: db.name() }).map_err(|source| {
            crate::database::OpError::Client { db: db.name(), step: "take the write lock", source }
        })?;
        if self.shared.is_primary() && self.fenced.lock().remove(&id) {
            // The node was promoted meanwhile: nobody else will release this lock.
            drop(client.call(id, Request::Unfence));
        }
        Ok(())
    }

    /// Closes what `client` holds of databases that no application uses, which also brings their WAL back.
    pub(super) fn detach_unused(&self) {
        let Some(client) = self.shared.client() else { return };
        let idle: Vec<DbId> = {
            let used = self.used.lock();
            used.iter()
                .filter(|(_, at)| at.elapsed() > super::DETACH_AFTER)
                .map(|(id, _)| *id)
                .collect()
        };
        for id in idle {
            let Some(db) = self.by_id(id) else {
                self.used.lock().remove(&id);
                continue;
            };
            if !db.is_unused() || db.applied() != db.position() {
                continue;
            }
            self.detach(&db, id, client);
            if !db.is_unused()
                && let Err(error) = self.attach(&db)
            {
                warn!(db = %db.name(), %error, "take the write lock again");
            }
        }
    }

    pub(super) fn detach(&self, db: &Database, id: DbId, client: &Pool) {
        let at = db.applied();
        self.used.lock().remove(&id);
        self.fenced.lock().remove(&id);
        match client.call(id, Request::Detach) {
            Ok(Answer::Closed { clean: true }) if db.applied() == at && !self.has_wal(db) => {
                db.checkpointed(at);
            }
            Ok(_) => (),
            Err(error) => warn!(db = %db.name(), %error, "close"),
        }
    }

    /// Whether a WAL with something in it lies beside a database.
    fn has_wal(&self, db: &Database) -> bool {
        let wal = db.name().with_suffix("-wal");
        wal.is_some_and(|wal| {
            let path = self.shared.files.join(wal.as_path());
            path.metadata().is_ok_and(|metadata| metadata.len() > 0)
        })
    }

    /// On a replica: copies the WAL back as far as readers allow.
    pub fn checkpoint(&self, db: &Database) {
        let (Some(client), Some(id)) = (self.shared.client(), db.id()) else { return };
        if self.shared.is_primary() {
            return;
        }
        let at = db.applied();
        if !self.has_wal(db) {
            // There is nothing to copy, and opening it would make a WAL.
            if db.applied() == at {
                db.checkpointed(at);
            }
            return;
        }
        self.used_through_mount(id);
        if let Ok(Answer::State(state)) = client.call(id, Request::Checkpoint { name: db.name() })
            && FileState::is_written_back(&state)
            && db.applied() == at
        {
            db.checkpointed(at);
        }
    }
}
