//! Group commit: one `fdatasync` for all who wait.
//!
//! The first caller becomes the leader, the others wait for it; whoever came too late for its
//! `fdatasync` elects the next leader. Closed segments are synced before the active one, so records
//! become durable in order. After a failure nothing is durable ever again: the kernel has forgotten
//! which pages were dirty, a second `fdatasync` would lie.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use super::LogError;
use super::segment::{Seal, SegmentId};
use super::state::{Shared, Unsynced, disk, write_seal};
use crate::disk::sync_dir;
use crate::types::Pos;

/// After so many durable bytes the active segment is sealed again: opening scans at most about this.
const SEAL_EVERY_BYTES: u64 = 1 << 20;

/// Makes a log durable; shared by all threads that commit.
#[derive(Debug)]
pub struct LogSync {
    shared: Arc<Shared>,
    state: Mutex<State>,
    done: Condvar,
    fdatasyncs: AtomicU64,
    #[cfg(test)]
    pub(super) fail_next: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct State {
    durable: Pos,
    /// `Index::sequence` that `durable` stands for.
    sequence: u64,
    leader: bool,
}

/// What one round of `fdatasync` covered.
struct Round {
    generation: u64,
    sequence: u64,
    seal: Seal,
}

impl LogSync {
    /// `sequence` is that of the index if all of it is durable, else 0.
    pub(super) fn new(shared: Arc<Shared>, durable: Pos, sequence: u64) -> Self {
        shared.durable_txid.store(durable.txid_raw(), Ordering::Relaxed);
        Self {
            shared,
            state: Mutex::new(State { durable, sequence, leader: false }),
            done: Condvar::new(),
            fdatasyncs: AtomicU64::new(0),
            #[cfg(test)]
            fail_next: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// Everything appended before the call is durable when it returns. Returns the durable position.
    ///
    /// # Errors
    /// [`LogError::Disk`] for the one whose `fdatasync` failed, [`LogError::Failed`] for all others and
    /// all later calls.
    pub fn sync(&self) -> Result<Pos, LogError> {
        self.shared.sync_calls.fetch_add(1, Ordering::Relaxed);
        let wanted = self.shared.index.read().sequence;
        let mut state = self.state.lock();
        loop {
            if self.shared.failed.load(Ordering::Acquire) {
                return Err(LogError::Failed { path: self.shared.dir.clone() });
            }
            if state.sequence >= wanted {
                return Ok(state.durable);
            }
            if state.leader {
                self.done.wait(&mut state);
                continue;
            }
            state.leader = true;
            drop(state);
            let round = self.round();
            state = self.state.lock();
            state.leader = false;
            self.done.notify_all();
            self.finish(&mut state, &round?);
        }
    }

    /// What is known to be durable. After opening a log that was not closed in order it is less than
    /// the log holds until the first [`LogSync::sync`].
    #[must_use]
    pub fn durable(&self) -> Pos {
        self.state.lock().durable
    }

    /// Whether an `fsync` failed: the log takes no more records before it is opened anew.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Number of `fdatasync` calls on segments so far.
    #[must_use]
    pub fn fdatasyncs(&self) -> u64 {
        self.fdatasyncs.load(Ordering::Relaxed)
    }

    /// Whether all that was appended is durable.
    pub(super) fn is_settled(&self) -> bool {
        let sequence = self.shared.index.read().sequence;
        !self.has_failed() && self.state.lock().sequence >= sequence
    }

    /// The writer removed the records behind `to`.
    pub(super) fn retracted(&self, to: Pos) {
        let mut state = self.state.lock();
        if state.durable.txid_raw() > to.txid_raw() {
            state.durable = to;
            self.shared.durable_txid.store(to.txid_raw(), Ordering::Relaxed);
        }
    }

    /// The writer began a new history; its beginning is durable.
    pub(super) fn restarted(&self, base: Pos, sequence: u64) {
        let mut state = self.state.lock();
        state.durable = base;
        state.sequence = sequence;
        self.shared.durable_txid.store(base.txid_raw(), Ordering::Relaxed);
        self.shared.failed.store(false, Ordering::Release);
        self.done.notify_all();
    }

    /// Makes all that is in the log now durable.
    fn round(&self) -> Result<Round, LogError> {
        let shared = &self.shared;
        let (round, unsynced, active, dir_is_dirty) = {
            let mut index = shared.index.write();
            let round = Round {
                generation: index.generation,
                sequence: index.sequence,
                seal: index.seal(),
            };
            let unsynced = std::mem::take(&mut index.unsynced);
            let dir_is_dirty = std::mem::take(&mut index.dir_is_dirty);
            (round, unsynced, (index.active.id, Arc::clone(&index.active.file)), dir_is_dirty)
        };
        for closed in &unsynced {
            self.fdatasync(&closed.file)
                .map_err(self.fail(shared.disk("sync closed segment", &closed.id)))?;
        }
        if dir_is_dirty {
            sync_dir(&shared.dir).map_err(self.fail(disk("sync log directory", &shared.dir)))?;
        }
        let (id, file) = active;
        self.fdatasync(&file).map_err(self.fail(shared.disk("sync segment", &id)))?;

        self.seal(&round, &unsynced, &id);
        Ok(round)
    }

    /// Notes in the files what is durable: a shortcut for the next opening, so it may fail.
    fn seal(&self, round: &Round, unsynced: &[Unsynced], active: &SegmentId) {
        let sealed_to = self.shared.index.read().active.sealed_to;
        let active_is_due = round.seal.end > sealed_to + SEAL_EVERY_BYTES;
        if unsynced.is_empty() && !active_is_due {
            return;
        }
        // Under the lock, so that a seal never speaks of records that are being removed.
        let mut index = self.shared.index.write();
        if index.generation != round.generation {
            return;
        }
        for closed in unsynced {
            drop(write_seal(&closed.file, &closed.id, &closed.seal));
        }
        let is_active = index.active.id == *active;
        if is_active && active_is_due && write_seal(&index.active.file, active, &round.seal).is_ok()
        {
            index.active.sealed_to = round.seal.end;
        }
    }

    fn finish(&self, state: &mut State, round: &Round) {
        // Records were removed meanwhile: what was synced may not be what is there.
        if self.shared.index.read().generation != round.generation {
            return;
        }
        if round.sequence > state.sequence {
            state.sequence = round.sequence;
            state.durable = round.seal.position;
            let txid = state.durable.txid_raw();
            self.shared.durable_txid.store(txid, Ordering::Relaxed);
        }
    }

    pub(super) fn fdatasync(&self, file: &std::fs::File) -> std::io::Result<()> {
        self.fdatasyncs.fetch_add(1, Ordering::Relaxed);
        #[cfg(test)]
        if self.fail_next.swap(false, Ordering::Relaxed) {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        crate::disk::sync_data("log", file)
    }

    /// Marks the log as failed before the error is made.
    pub(super) fn fail<'a>(
        &'a self,
        make: impl FnOnce(std::io::Error) -> LogError + 'a,
    ) -> impl FnOnce(std::io::Error) -> LogError + 'a {
        move |source| {
            self.shared.failed.store(true, Ordering::Release);
            make(source)
        }
    }
}
