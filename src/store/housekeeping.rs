//! What a node does beside serving: waits for writers without a journal, writes back, trims logs, closes
//! what nobody uses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::Store;
use crate::client::{ClientError, Request};
use crate::database::{Database, OpError, WriterIs};
use crate::disk::{clock, memory};

/// How often housekeeping looks around.
const ROUND: Duration = Duration::from_secs(1);
/// Log that may have to be redone after a crash before the file is synced.
const REDO_BYTES_MAX: u64 = 64 << 20;
/// Rounds after which a database is written back however little there is.
const WRITE_BACK_ROUNDS: u64 = 15;
/// Rounds after which unused memory is given back to the system.
const GIVE_BACK_ROUNDS: u64 = 10;
/// How often a writer without a journal is asked for.
const UNLOCK_ROUND: Duration = Duration::from_millis(10);
/// Rounds between two attempts to recover what did not fit on the disk.
const RECOVERY_ROUNDS: u64 = 3;
/// A file that is no known database yet is taken once it has not changed for so long and looks complete.
const QUIET: Duration = Duration::from_secs(1);

impl Store {
    /// The housekeeping thread.
    pub(super) fn run_housekeeping(self: &Arc<Self>) {
        let mut round = 0u64;
        while !self.stop.wait_for(ROUND) {
            round += 1;
            if !self.shared.is_primary() {
                self.detach_unused();
            }
            for db in self.databases() {
                self.keep_house(&db, round);
            }
            if round.is_multiple_of(GIVE_BACK_ROUNDS) {
                memory::give_back();
            }
        }
    }

    fn keep_house(&self, db: &Arc<Database>, round: u64) {
        let Some(id) = db.id() else { return };
        let due = round % WRITE_BACK_ROUNDS == id.get() % WRITE_BACK_ROUNDS;
        if round.is_multiple_of(RECOVERY_ROUNDS) {
            self.recover_again(db, 0);
        }
        let unused = db.is_unused();
        if due || unused || db.redo_bytes() > REDO_BYTES_MAX {
            if due && !self.shared.is_primary() && self.used.lock().contains_key(&id) {
                self.checkpoint(db);
            }
            if let Err(error) = db.write_back() {
                warn!(db = %db.name(), %error, "write back");
            }
        }
        if due {
            let retention = self.retention;
            let age_ms = i64::try_from(retention.age.as_millis()).unwrap_or(i64::MAX);
            let keep_after_ms = clock::wall_ms().saturating_sub(age_ms);
            let needed = self.needed_by_followers(id);
            if let Err(error) =
                db.trim_log(keep_after_ms, retention.bytes, retention.bytes_max, needed)
            {
                warn!(db = %db.name(), %error, "trim log");
            }
        }
        if unused && due {
            let _was_closed = db.close_if_idle();
        }
    }

    /// Recovers what did not fit on the disk at the start, unless more than `openers` have it open.
    pub(super) fn recover_again(&self, db: &Database, openers: u32) {
        if !db.recover_again(openers) {
            return;
        }
        let name = db.name();
        let companions = ["-wal", "-shm", "-journal"].map(|suffix| name.with_suffix(suffix));
        companions.iter().flatten().for_each(|companion| self.invalidate(companion));
        self.invalidate(&name);
    }

    /// The thread that waits for writers without a journal to release their locks.
    pub(super) fn run_watcher(self: &Arc<Self>) {
        let mut watched: Vec<(Arc<Database>, Instant)> = Vec::new();
        loop {
            let wait = if watched.is_empty() { None } else { Some(UNLOCK_ROUND) };
            let Some(new) = self.unlogged.take(wait) else { return };
            watched.extend(new.into_iter().map(|db| (db, Instant::now())));
            watched.retain(|(db, since)| self.watch(db, *since));
        }
    }

    /// Looks at one database; `false` once there is nothing to wait for any more.
    fn watch(&self, db: &Arc<Database>, since: Instant) -> bool {
        if !db.is_written_without_journal() || !self.shared.is_primary() {
            return false;
        }
        // A file that a program copies has no locks, so nothing says that it is complete but its close.
        if db.id().is_none() && (since.elapsed() < QUIET || !db.looks_complete()) {
            return true;
        }
        let Some(client) = self.shared.client() else { return true };
        let id = db.id().unwrap_or(crate::types::DbId::new(0));
        // No waiting in there: the close of a file may be waiting behind.
        let request = Request::WaitUnlocked { name: db.name(), timeout: Duration::ZERO };
        let writes = db.unlogged_writes();
        match client.call(id, request) {
            Ok(_) => match db.capture_unlogged(WriterIs::Unlocked, Some(writes)) {
                Ok(()) => db.is_written_without_journal(),
                // It is quarantined.
                Err(OpError::TooLarge { .. }) => false,
                Err(error) => {
                    warn!(db = %db.name(), %error, "capture what was written without a journal");
                    true
                }
            },
            Err(ClientError::Busy { .. }) => true,
            Err(error) => {
                warn!(db = %db.name(), %error, "wait for a writer without a journal");
                false
            }
        }
    }
}
