//! What a database tells an operator.

use std::time::Duration;

use serde::Serialize;

use super::state::State;
use super::{Database, Positions};

/// How long to wait for a busy database.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// State of one database for people and scripts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DatabaseStatus {
    /// Path below the mount.
    pub name: String,
    /// Identity, 16 hex digits.
    pub id: String,
    /// `TXID/CHECKSUM` at the end of the log.
    pub position: String,
    /// Last transaction.
    pub txid: u64,
    /// Epoch of the primary that wrote it.
    pub epoch: u64,
    /// `TXID/CHECKSUM` that readers of this node see.
    pub applied: String,
    /// Bytes per page.
    pub page_size: u32,
    /// Size in pages.
    pub pages: u32,
    /// Size in bytes.
    pub bytes: u64,
    /// `wal`, or `rollback` for all others.
    pub journal_mode: &'static str,
    /// Bytes of log; `None` while the log is closed because nobody uses the database.
    pub log_bytes: Option<u64>,
    /// Milliseconds since the Unix epoch of the newest transaction.
    pub timestamp_ms: i64,
    /// Why it takes no transactions, if it does not.
    pub quarantine: Option<String>,
}

impl Database {
    /// Its state; `None` if it is not tracked. While it is busy for long with one transaction: how it was last seen.
    #[must_use]
    pub fn status(&self) -> Option<DatabaseStatus> {
        let Some(state) = self.state.try_lock_for(WAIT_MAX) else {
            let Positions { logged, applied } = *self.positions.borrow();
            let last = self.last_status.lock().clone().unwrap_or_default();
            return self.id().map(|id| DatabaseStatus {
                name: self.name().to_string(),
                id: id.to_string(),
                position: logged.to_string(),
                txid: logged.txid_raw(),
                epoch: logged.epoch.get(),
                applied: applied.to_string(),
                ..last
            });
        };
        let status = self.status_of(&state);
        self.last_status.lock().clone_from(&status);
        status
    }

    fn status_of(&self, state: &State) -> Option<DatabaseStatus> {
        let name = self.name();
        let tracked = state.tracked.as_ref()?;
        Some(DatabaseStatus {
            name: name.to_string(),
            id: tracked.id.to_string(),
            position: tracked.pos.to_string(),
            txid: tracked.pos.txid_raw(),
            epoch: tracked.pos.epoch.get(),
            applied: state.applied.to_string(),
            page_size: tracked.page_size.get(),
            pages: tracked.pages,
            bytes: u64::from(tracked.pages) * u64::from(tracked.page_size.get()),
            journal_mode: self.journal_mode(state),
            log_bytes: tracked.files.as_ref().map(|files| files.log.bytes()),
            timestamp_ms: tracked.timestamp_ms,
            quarantine: state.quarantine.as_ref().map(|quarantine| quarantine.reason.clone()),
        })
    }

    fn journal_mode(&self, state: &State) -> &'static str {
        if state.wal.salts().is_some() {
            return "wal";
        }
        let path = self.shared.files.join(self.name().as_path());
        let mut bytes = [0; crate::sqlite::DatabaseHeader::SIZE];
        let header = super::requests::open_regular(&path, false)
            .ok()
            .flatten()
            .and_then(|file| std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).ok())
            .and_then(|()| crate::sqlite::DatabaseHeader::parse(&bytes).ok());
        if header.is_some_and(|header| header.is_wal()) { "wal" } else { "rollback" }
    }
}
