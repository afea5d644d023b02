//! Housekeeping: writes back what a crash would have to redo, trims the log, closes what nobody uses.

use std::os::unix::fs::MetadataExt as _;

use tracing::warn;

use super::meta::{Clean, Meta};
use super::state::{State, Tracked};
use super::wal::salt_pair;
use super::{Database, OpError, disk_error};
use crate::disk::sync_data;
use crate::types::{Pos, Txid};

impl Database {
    /// Bytes of log that a crash now would have to write into the database file again.
    #[must_use]
    pub fn redo_bytes(&self) -> u64 {
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else { return 0 };
        if tracked.backfilled.txid_raw() <= tracked.meta.durable_txid {
            return 0;
        }
        tracked.files.as_ref().map_or(0, |files| files.log.bytes())
    }

    /// Makes everything that is in the database file durable and notes how far that is, so that recovery
    /// begins there. Blocks on the disk, without holding up commits for long.
    ///
    /// # Errors
    /// The disk refused; recovery begins where it would have.
    pub fn write_back(&self) -> Result<(), OpError> {
        self.write_back_if(false)
    }

    /// As [`Database::write_back`]; `always` if what is noted may be wrong.
    pub(super) fn write_back_if(&self, always: bool) -> Result<(), OpError> {
        let name = self.name();
        let path = self.shared.files.join(name.as_path());
        let (main, syncer, target, wal_salts, writes, unsynced_writes) = {
            let mut state = self.state.lock();
            if state.quarantine.is_some() && !always {
                // What a failed sync forgot would be noted as durable; a restart redoes it.
                return Ok(());
            }
            let wal_salts = state.wal.salts().map(salt_pair);
            let (unlogged, writes) = (state.written_without_journal, state.unlogged_writes);
            let unsynced_writes = state.rollback.is_clean().then_some(state.unsynced_writes);
            let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
            let target = tracked.backfilled;
            let clears_unlogged = (tracked.meta.unlogged && !unlogged)
                || (tracked.meta.unsynced_boot.is_some() && unsynced_writes.is_some());
            // Salts of a WAL that is gone would look as if somebody else had removed it.
            let is_current =
                tracked.meta.wal_salts.is_none() || tracked.meta.wal_salts == wal_salts;
            let is_done = target.txid_raw() <= tracked.meta.durable_txid;
            if !always && is_done && is_current && !clears_unlogged {
                return Ok(());
            }
            let main = tracked.main(&self.shared, &name)?;
            let syncer = tracked.files(&self.shared)?.syncer.clone();
            (main, syncer, target, wal_salts, writes, unsynced_writes)
        };
        // The log first: neither file nor sums may be durable beyond it.
        let synced = syncer
            .sync()
            .map_err(OpError::from)
            .and_then(|_| sync_data("main", &main).map_err(disk_error("sync database", &path)));
        if let Err(error) = synced {
            // The kernel may have forgotten dirty pages, so a second attempt would lie; the log redoes them.
            let reason = format!("{error}: restart the daemon once the disk is well");
            self.quarantine(&reason, !self.shared.is_primary());
            return Err(error);
        }
        if let Some(wal) = name.with_suffix("-wal") {
            // A WAL found after a crash is then not older than the salts noted below.
            let wal_path = self.shared.files.join(wal.as_path());
            if let Ok(Some(file)) = super::requests::open_regular(&wal_path, false) {
                file.sync_data().map_err(disk_error("sync WAL", wal.as_path()))?;
            }
        }
        let mut state = self.state.lock();
        let unlogged = state.written_without_journal || state.unlogged_writes != writes;
        // An open transaction of `synchronous=OFF` is durable now, the journal that undoes it perhaps not.
        let may_lead = unsynced_writes != Some(state.unsynced_writes) || !state.rollback.is_clean();
        let is_installing = state.is_installing;
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let pos = tracked.pos;
        let files = tracked.files(&self.shared)?;
        files.syncer.sync()?;
        files.sums.flush(pos)?;
        // What is noted in memory must be what the disk has: the log is trimmed by it.
        let mut meta = tracked.meta.clone();
        if !unlogged {
            meta.unlogged = false;
        }
        if !may_lead {
            meta.unsynced_boot = None;
        }
        if !is_installing && meta.installing && target.txid.is_some() {
            // A copy from the primary went through the WAL; now it is in the file.
            meta.installing = false;
        }
        meta.durable_txid = target.txid_raw();
        meta.is_for(&main.metadata().map_err(disk_error("read attributes", &path))?);
        meta.wal_salts = wal_salts;
        meta.clean = None;
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        tracked.meta = meta;
        Ok(())
    }

    /// Removes log that neither recovery nor a snapshot nor a follower needs: segments whose newest record is
    /// older than `keep_after_ms`, or as many as exceed `bytes`; a follower at `needed` holds back up to
    /// `bytes_max`.
    ///
    /// # Errors
    /// The disk refused.
    pub fn trim_log(
        &self,
        keep_after_ms: i64,
        bytes: u64,
        bytes_max: u64,
        needed: Option<Txid>,
    ) -> Result<u64, OpError> {
        let mut state = self.state.lock();
        let is_copied = state.snapshots.iter().any(|snapshot| snapshot.strong_count() > 0);
        let applied = state.applied.txid_raw();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(0) };
        let redo_from = tracked.meta.durable_txid.min(applied);
        let Some(files) = tracked.files.as_mut() else { return Ok(0) };
        let mut total = files.log.bytes();
        let mut keep_after = None;
        for segment in files.log.oldest_segments() {
            let is_needed = is_copied || needed.is_some_and(|needed| segment.last > needed);
            let may_go = if is_needed {
                total > bytes_max
            } else {
                total > bytes || segment.newest_timestamp_ms < keep_after_ms
            };
            if !may_go || segment.last.get() > redo_from {
                break;
            }
            total -= segment.bytes.min(total);
            keep_after = Some(segment.last);
        }
        match keep_after {
            Some(txid) => Ok(files.log.trim(txid)?),
            None => Ok(0),
        }
    }

    /// Closes the log of a database that nobody has open and that is written back. Returns whether it did.
    #[must_use]
    pub fn close_if_idle(&self) -> bool {
        let mut state = self.state.lock();
        let is_copied = state.snapshots.iter().any(|snapshot| snapshot.strong_count() > 0);
        if state.open_files > 0 || !state.pending.is_empty() || is_copied || state.is_installing {
            return false;
        }
        let applied = state.applied;
        let Some(tracked) = state.tracked.as_mut() else { return false };
        if tracked.files.is_none()
            || tracked.backfilled.txid_raw() > tracked.meta.durable_txid
            || tracked.pos != applied
        {
            return false;
        }
        self.note_clean(&mut state);
        let Some(tracked) = state.tracked.as_mut() else { return false };
        tracked.files = None;
        tracked.main = None;
        true
    }

    /// Whether no application has a file of it open.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.state.lock().open_by_application == 0
    }

    /// Orderly stop: everything durable, and noted as such if the file holds the newest transaction.
    pub fn close(&self) {
        if let Err(error) = self.write_back() {
            warn!(db = %self.name(), %error, "write back");
            return;
        }
        let mut state = self.state.lock();
        self.note_clean(&mut state);
        if let Some(tracked) = state.tracked.as_mut() {
            tracked.files = None;
            tracked.main = None;
        }
    }

    /// Notes what the file looks like, if it holds the newest transaction, so that a change by somebody else is seen.
    fn note_clean(&self, state: &mut State) {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return };
        let path = self.shared.files.join(name.as_path());
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        let has_wal = name.with_suffix("-wal").is_some_and(|wal| {
            self.shared.files.join(wal.as_path()).metadata().is_ok_and(|m| m.size() > 0)
        });
        let has_journal = name
            .with_suffix("-journal")
            .is_some_and(|journal| self.shared.files.join(journal.as_path()).exists());
        let all_is_in_the_file = tracked.backfilled == tracked.pos
            && tracked.meta.durable_txid == tracked.pos.txid_raw();
        let needs_comparison = tracked.meta.unlogged
            || tracked.meta.installing
            || tracked.meta.unsynced_boot.is_some();
        if all_is_in_the_file
            && !has_wal
            && !has_journal
            && !needs_comparison
            && state.quarantine.is_none()
        {
            let tracked = state.tracked.as_mut().expect("BUG: just seen");
            if tracked.files.is_some() {
                tracked.meta.clean =
                    path.metadata().ok().map(|metadata| Clean::of(tracked.pos.txid, &metadata));
                if let Err(error) = tracked.meta.save(&dir) {
                    warn!(db = %name, %error, "write meta");
                }
            }
        }
    }
}

/// Whether a database was stopped in an orderly way and its file was not touched since.
pub(super) fn is_clean(meta: &Meta, pos: Pos, main: &std::path::Path) -> bool {
    let Some(clean) = meta.clean else { return false };
    main.metadata().is_ok_and(|metadata| Clean::of(pos.txid, &metadata) == clean)
}
