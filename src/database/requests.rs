//! What the kernel asks of a database's files, and where a transaction ends.
//!
//! Runs on the threads that serve the mount, under the database's mutex; touches backing files only.
//! Order of a commit: log, then the write that completes it, then the new position. An error at any of
//! them is an error of that request, so SQLite rolls back, and neither log nor file keeps the transaction.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::commit::{self, Prepared, Transaction};
use super::mend::JournalledPages;
use super::state::State;
use super::verify::RolledBack;
use super::{Database, Event, FileRole, OpError, OpenOutcome, Origin, disk_error};
use crate::disk::{self, clock, fault};
use crate::sqlite::DatabaseHeader;
use crate::types::{PageNo, PageSize};

/// Length of the journal header that `journal_mode=PERSIST` overwrites with zeros to commit.
const JOURNAL_HEADER_LEN: usize = 28;
/// What journal headers begin with, and the record that names a super-journal ends with.
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

impl Database {
    /// A file of the database is being opened. `truncate` is `O_TRUNC`; the truncation itself is a
    /// [`Database::set_len`] that follows.
    ///
    /// # Errors
    /// [`OpError::NotPrimary`] or [`OpError::ReplicaJournal`] where a replica refuses the open.
    pub fn open(
        &self,
        role: FileRole,
        origin: Origin,
        writable: bool,
        truncate: bool,
    ) -> Result<OpenOutcome, OpError> {
        let mut state = self.state.lock();
        let application = origin == Origin::Application;
        let is_primary = self.shared.is_primary();
        let mut outcome = OpenOutcome::Ready;
        if application && !is_primary {
            match role {
                FileRole::Journal if writable => return Err(OpError::ReplicaJournal(self.name())),
                FileRole::Main if state.tracked.is_some() => {
                    if writable && (self.shared.readonly_replica || truncate) {
                        return Err(OpError::NotPrimary(self.name()));
                    }
                    outcome = OpenOutcome::AttachFirst;
                }
                FileRole::Main | FileRole::Wal | FileRole::Shm | FileRole::Journal => (),
            }
        }
        if is_primary {
            if truncate && role == FileRole::Main && state.tracked.is_some() {
                state.foreign_writer = true;
            }
            if role == FileRole::Wal && state.wal.captured() > 0 && !self.has_wal_file() {
                // The database was renamed and its WAL was not: what was only in there is lost to the application.
                state.wal.removed();
                state.last_wal_pages.clear();
                state.foreign_writer = true;
                state.written_without_journal = true;
                self.capture_main(&mut state)?;
            }
            if role == FileRole::Wal && !state.wal_is_known && state.quarantine.is_none() {
                self.take_over_wal(&mut state)?;
            }
            if application && role == FileRole::Main && state.recovery_needs_space {
                outcome = OpenOutcome::AttachFirst;
            }
        }
        state.open_files += 1;
        state.open_by_application += u32::from(application);
        Ok(outcome)
    }

    /// The last descriptor of one open is gone.
    pub fn release(&self, _role: FileRole, origin: Origin, _writable: bool) {
        let mut state = self.state.lock();
        state.open_files = state.open_files.saturating_sub(1);
        if origin == Origin::Application {
            state.open_by_application = state.open_by_application.saturating_sub(1);
        }
    }

    /// Writes to a file of the database. When the write completes a commit, the transaction is in the
    /// log when this returns.
    ///
    /// # Errors
    /// The write did not happen, and a transaction that it would have committed is not in the log.
    pub fn write(
        &self,
        role: FileRole,
        origin: Origin,
        file: &File,
        offset: u64,
        data: &[u8],
    ) -> Result<(), OpError> {
        let mut put = || {
            disk::write_all_at(role.class(), file, data, offset)
                .map_err(disk_error("write file", self.name().as_path()))
        };
        if role == FileRole::Shm {
            return put();
        }
        let mut state = self.state.lock();
        if state.is_removed {
            return put();
        }
        if !self.shared.is_primary() {
            if origin == Origin::Application {
                self.check_replica_write(&state, role, offset, data)?;
            }
            if role == FileRole::Main {
                if self.is_for_show(origin, offset, data) {
                    return Ok(());
                }
                self.before_checkpoint_write(&mut state)?;
                state.touch(offset, data.len());
                if offset == 0 {
                    self.shown.clear();
                }
            }
            return put();
        }
        if role == FileRole::Journal && zeroes_journal_header(offset, data) {
            return self.end_journal(&mut state, &mut put);
        }
        self.check_writable(&state, role)?;
        match role {
            FileRole::Main => {
                self.before_main_write(&mut state)?;
                put()?;
                if offset == 0 {
                    self.shown.clear();
                }
                self.wrote_main(&mut state, offset, data);
                Ok(())
            }
            FileRole::Wal => self.write_wal(&mut state, file, offset, data),
            FileRole::Journal => {
                put()?;
                state.rollback.journal_started();
                // SQLite pager.c, writeSuperJournal: the magic alone ends the record with the name.
                if offset != 0 && data == JOURNAL_MAGIC {
                    state.rollback.super_journal_named();
                }
                Ok(())
            }
            FileRole::Shm => put(),
        }
    }

    /// Sets the length of a file of the database (`ftruncate`, `O_TRUNC`, `fallocate`).
    ///
    /// # Errors
    /// As for [`Database::write`].
    pub fn set_len(
        &self,
        role: FileRole,
        origin: Origin,
        file: &File,
        len: u64,
    ) -> Result<(), OpError> {
        let mut put = || {
            disk::set_len(role.class(), file, len)
                .map_err(disk_error("set length of file", self.name().as_path()))
        };
        if role == FileRole::Shm {
            return put();
        }
        let mut state = self.state.lock();
        if state.is_removed {
            return put();
        }
        if !self.shared.is_primary() {
            if origin == Origin::Application {
                self.check_replica_write(&state, role, len, &[])?;
            }
            return put();
        }
        if role == FileRole::Journal && len == 0 {
            return self.end_journal(&mut state, &mut put);
        }
        self.check_writable(&state, role)?;
        match role {
            FileRole::Main => {
                let before = file.metadata().map_or(0, |metadata| metadata.len());
                // In rollback mode SQLite cuts the file after the journal is gone: nothing changes by that.
                let is_known_size = state.rollback.is_clean()
                    && state.tracked.as_ref().is_some_and(|tracked| {
                        u64::from(tracked.pages) * u64::from(tracked.page_size.get()) == len
                    });
                if before == len || is_known_size {
                    return put();
                }
                self.before_main_write(&mut state)?;
                put()?;
                self.resized_main(&mut state);
                Ok(())
            }
            FileRole::Wal => {
                put()?;
                if len == 0 {
                    return self.wal_is_gone(&mut state);
                }
                if !state.wal.truncated(len) {
                    state.quarantine(
                        "something that is not SQLite cut the WAL: restart the daemon to compare file and log",
                        false,
                    );
                }
                Ok(())
            }
            FileRole::Journal | FileRole::Shm => put(),
        }
    }

    /// Removes a companion by calling `remove`: the end of a journal is a commit.
    ///
    /// # Errors
    /// The file is still there, and nothing was committed.
    pub fn unlink_companion(
        &self,
        role: FileRole,
        origin: Origin,
        remove: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<(), OpError> {
        let mut put = || {
            fault::step(role.class(), "remove")
                .and_then(|()| remove())
                .map_err(disk_error("remove file", self.name().as_path()))
        };
        let mut state = self.state.lock();
        if state.is_removed {
            return put();
        }
        if !self.shared.is_primary() {
            let tracked = state.tracked.is_some() && role != FileRole::Shm;
            if origin == Origin::Application && tracked {
                return Err(OpError::NotPrimary(self.name()));
            }
            return put();
        }
        match role {
            FileRole::Journal => self.end_journal(&mut state, &mut put),
            FileRole::Wal => {
                put()?;
                self.wal_is_gone(&mut state)
            }
            FileRole::Main | FileRole::Shm => put(),
        }
    }

    /// `fsync`: what was answered before is durable when this returns. Blocks on the disk.
    ///
    /// The log is redo, so for a WAL, and for the database inside a journalled transaction, it is the log
    /// that is synced (the latter at the commit).
    ///
    /// # Errors
    /// The kernel may have forgotten dirty pages: the database takes no more writes.
    pub fn sync(&self, role: FileRole, file: &File) -> Result<(), OpError> {
        let syncer = {
            let mut state = self.state.lock();
            let in_transaction = state.rollback.journal_is_live() && !state.rollback.is_clean();
            match (role, state.tracked.is_some()) {
                (FileRole::Main, true) if in_transaction && self.shared.is_primary() => {
                    state.rollback.synced();
                    if !state.rollback.spans_databases() {
                        return Ok(());
                    }
                    // The removal of the super-journal commits, before anything is in this log.
                    None
                }
                (FileRole::Wal, true) => {
                    state.wal_is_synced = true;
                    let tracked = state.tracked.as_mut().expect("BUG: checked above");
                    Some(tracked.files(&self.shared)?.syncer.clone())
                }
                (FileRole::Journal, _) => {
                    state.rollback.journal_synced();
                    None
                }
                (FileRole::Main | FileRole::Wal | FileRole::Shm, _) => None,
            }
        };
        let result = match syncer {
            Some(syncer) => fault::fail("log-sync")
                .map_err(disk_error("sync log", &self.shared.logs))
                .and_then(|()| syncer.sync().map(drop).map_err(OpError::Log)),
            None => disk::sync_data(role.class(), file)
                .map_err(disk_error("sync file", self.name().as_path())),
        };
        result.inspect_err(|error| {
            if matches!(role, FileRole::Main | FileRole::Wal) {
                self.quarantine(
                    &format!("{error}: restart the daemon once the disk is well"),
                    false,
                );
            }
        })
    }

    /// On a replica: the database file must not be durable beyond the log, which redoes it.
    fn before_checkpoint_write(&self, state: &mut State) -> Result<(), OpError> {
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let pos = tracked.pos;
        let syncer = &tracked.files(&self.shared)?.syncer;
        if syncer.durable() != pos {
            syncer.sync()?;
        }
        Ok(())
    }

    /// A quarantined database takes no writes but those that roll a transaction back, which readers need.
    fn check_writable(&self, state: &State, role: FileRole) -> Result<(), OpError> {
        let may_roll_back = match role {
            FileRole::Main => state.rollback.journal_is_live(),
            FileRole::Journal | FileRole::Wal | FileRole::Shm => false,
        };
        if state.quarantine.is_some() && !may_roll_back {
            return Err(OpError::Quarantined(self.name()));
        }
        Ok(())
    }

    /// The last defence on a replica; the locks held by `client` stop SQLite long before.
    fn check_replica_write(
        &self,
        state: &State,
        role: FileRole,
        offset: u64,
        data: &[u8],
    ) -> Result<(), OpError> {
        let is_database = state.tracked.is_some()
            || (role == FileRole::Main && offset == 0 && data.starts_with(DatabaseHeader::MAGIC));
        if is_database { Err(OpError::NotPrimary(self.name())) } else { Ok(()) }
    }

    /// The journal ends, by whichever of the three ways `put` is: a commit if pages changed.
    fn end_journal(
        &self,
        state: &mut State,
        put: &mut dyn FnMut() -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        if state.rollback.is_clean() {
            put()?;
            state.rollback.finished();
            return Ok(());
        }
        if state.quarantine.is_some() {
            // Behind a hot journal nobody has a transaction, and the sums may not be replayed.
            let rolled_back = if state.journal_is_hot {
                RolledBack::ButForFreePages
            } else {
                self.rolled_back(state)?
            };
            match rolled_back {
                RolledBack::No => return Err(OpError::Quarantined(self.name())),
                RolledBack::Wholly => (),
                RolledBack::ButForFreePages => self.note_unlogged(state)?,
            }
            put()?;
            state.journal_is_hot = false;
            state.rollback.finished();
            return Ok(());
        }
        let pages = state.rollback.pages().count();
        let prepared = self.prepare_main(state)?;
        if prepared.is_some() && state.rollback.database_is_synced() {
            let tracked = state.tracked.as_mut().expect("BUG: it was prepared");
            let files = tracked.files(&self.shared)?;
            let _occupied = self.occupy(pages);
            let synced = fault::fail("log-sync")
                .map_err(disk_error("sync log", &self.shared.logs))
                .and_then(|()| files.syncer.sync().map(drop).map_err(OpError::Log));
            if let Err(error) = synced {
                self.cancel(state, true);
                state.quarantine(
                    &format!("{error}: restart the daemon once the disk is well"),
                    false,
                );
                return Err(error);
            }
        }
        if prepared.is_some() {
            fault::kill_daemon("kill-daemon-logged");
        }
        if let Err(error) = put() {
            self.cancel(state, prepared.is_some());
            return Err(error);
        }
        if prepared.is_some() {
            fault::kill_daemon("kill-daemon-written");
        }
        state.rollback.finished();
        state.written_without_journal = false;
        if let Some(prepared) = prepared {
            self.finish(state, prepared);
        }
        state.all_is_backfilled();
        self.quiet.notify_all();
        Ok(())
    }

    /// Prepares what was written to the database file itself. `None` if nothing changed, or if the file
    /// is not a database yet.
    pub(super) fn prepare_main(&self, state: &mut State) -> Result<Option<Prepared>, OpError> {
        let name = self.name();
        let path = self.shared.files.join(name.as_path());
        let Some(file) = open_regular(&path, false).map_err(disk_error("open database", &path))?
        else {
            return Ok(None);
        };
        let Some((page_size, commit)) =
            database_size(&file).map_err(disk_error("read header", &path))?
        else {
            return Ok(None);
        };
        if state.tracked.is_none() && name.is_being_imported() {
            return Ok(None);
        }
        self.track(state, page_size)?;
        let State { tracked, rollback, foreign_writer, .. } = &mut *state;
        let tracked = tracked.as_mut().expect("BUG: just tracked");
        let all = *foreign_writer || page_size != tracked.page_size;
        let pages: Vec<PageNo> = if all {
            (1..=commit).filter_map(PageNo::new).collect()
        } else {
            rollback.pages().collect()
        };
        let mut image =
            |page: PageNo, buffer: &mut [u8]| read_or_zeros(&file, page, page_size, buffer);
        let mut journal = None;
        let mut before = |page: PageNo, buffer: &mut [u8]| {
            if journal.is_none() {
                journal = Some(JournalledPages::read(&path, page_size)?);
            }
            match &journal {
                Some(journal) if journal.fill(page, buffer)? => Ok(true),
                // Free pages are written without being journalled.
                _ if rollback.is_written(page) => Ok(false),
                _ => read_or_zeros(&file, page, page_size, buffer).map(|()| true),
            }
        };
        let _occupied = self.occupy(pages.len()).inspect(|_| fault::pause("pause-occupied"));
        let transaction = Transaction {
            page_size,
            commit,
            pages,
            image: &mut image,
            // All pages may have changed then, without a journal.
            before: if all { None } else { Some(&mut before) },
            wal: None,
            skip_unchanged: true,
            knows_nothing: false,
        };
        match commit::prepare(tracked, &self.shared, &name, transaction) {
            Err(OpError::SumUnknown { .. }) if all => self.prepare_everything(state),
            result => self.refuse_damage(state, result),
        }
    }

    /// Logs the whole file as one transaction because nothing is known about what changed.
    pub(super) fn take_everything(&self, state: &mut State) -> Result<(), OpError> {
        if let Some(prepared) = self.prepare_everything(state)? {
            self.finish(state, prepared);
        }
        Ok(())
    }

    fn prepare_everything(&self, state: &mut State) -> Result<Option<Prepared>, OpError> {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(None) };
        let file = tracked.main(&self.shared, &name)?;
        let Some((page_size, commit)) =
            database_size(&file).map_err(disk_error("read header", name.as_path()))?
        else {
            return Ok(None);
        };
        let mut image =
            |page: PageNo, buffer: &mut [u8]| read_or_zeros(&file, page, page_size, buffer);
        let _occupied = self.occupy(commit as usize).inspect(|_| fault::pause("pause-occupied"));
        let transaction = Transaction {
            page_size,
            commit,
            pages: Vec::new(),
            image: &mut image,
            before: None,
            wal: None,
            skip_unchanged: false,
            knows_nothing: true,
        };
        commit::prepare(tracked, &self.shared, &name, transaction)
    }

    /// Logs what was written to the database file outside a journal, and notes that it is.
    pub(super) fn capture_main(&self, state: &mut State) -> Result<(), OpError> {
        let prepared = self.prepare_main(state)?;
        state.rollback.finished();
        state.written_without_journal = false;
        state.foreign_writer = false;
        if let Some(prepared) = prepared {
            self.finish(state, prepared);
        }
        state.all_is_backfilled();
        self.quiet.notify_all();
        Ok(())
    }

    pub(super) fn finish(&self, state: &mut State, prepared: Prepared) {
        state.settle(prepared.pages());
        let Some(tracked) = state.tracked.as_mut() else { return };
        commit::finish(tracked, prepared);
        state.applied = tracked.pos;
        let id = tracked.id;
        self.publish(state);
        self.shared.tell(Event::Committed(id));
    }

    pub(super) fn cancel(&self, state: &mut State, logged: bool) {
        let Some(tracked) = state.tracked.as_mut().filter(|_| logged) else { return };
        if let Err(error) = commit::cancel(tracked) {
            state.quarantine(
                &format!(
                    "a failed transaction may still be in the log ({error}): restart the daemon"
                ),
                false,
            );
        }
    }

    /// The database file was written: by a checkpoint, under a journal, or under nothing.
    fn wrote_main(&self, state: &mut State, offset: u64, data: &[u8]) {
        // What a checkpoint writes is in the log.
        if state.wal.captured() > 0 {
            return;
        }
        state.touch(offset, data.len());
        match &state.tracked {
            Some(tracked) => state.rollback.wrote(tracked.page_size, offset, data.len()),
            // All pages of a new database are new.
            None => state.rollback.resized(),
        }
        self.changed_main(state);
    }

    fn resized_main(&self, state: &mut State) {
        if state.wal.captured() > 0 {
            return;
        }
        state.rollback.resized();
        self.changed_main(state);
    }

    /// Notes durably, before the first write outside every journal, that only a comparison will tell what changed.
    fn before_main_write(&self, state: &mut State) -> Result<(), OpError> {
        if state.rollback.journal_is_live() {
            let is_synced = state.rollback.journal_is_synced();
            return if is_synced { Ok(()) } else { self.note_unsynced(state) };
        }
        if state.wal.captured() > 0 {
            let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
            let pos = tracked.pos;
            let is_synced = tracked.files(&self.shared)?.syncer.durable() == pos;
            let is_synced = is_synced || state.wal_is_synced;
            return if is_synced { Ok(()) } else { self.note_unsynced(state) };
        }
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut().filter(|tracked| !tracked.meta.unlogged) else {
            return Ok(());
        };
        // The comparison must not find anything missing that the log has: all of it is durable first.
        let _occupied = self.occupy(tracked.pages as usize);
        let main = tracked.main(&self.shared, &name)?;
        tracked.files(&self.shared)?.syncer.sync()?;
        disk::sync_data("main", &main).map_err(disk_error("sync database", name.as_path()))?;
        let mut meta = tracked.meta.clone();
        meta.unlogged = true;
        meta.durable_txid = tracked.backfilled.txid_raw();
        let dir = super::Tracked::log_dir(&self.shared, tracked.id);
        meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        tracked.meta = meta;
        Ok(())
    }

    /// Notes durably that only a comparison will tell what changed, without any other change of the notes.
    fn note_unlogged(&self, state: &mut State) -> Result<(), OpError> {
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let mut meta = tracked.meta.clone();
        meta.unlogged = true;
        let dir = super::Tracked::log_dir(&self.shared, tracked.id);
        meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        tracked.meta = meta;
        Ok(())
    }

    /// Notes durably, before the first write of `synchronous=OFF`, that a power failure may leave the file ahead of
    /// the log. `write_back` takes the note away.
    fn note_unsynced(&self, state: &mut State) -> Result<(), OpError> {
        state.unsynced_writes += 1;
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        if tracked.meta.unsynced_boot.is_some() {
            return Ok(());
        }
        let mut meta = tracked.meta.clone();
        meta.unsynced_boot = Some(clock::boot_id().unwrap_or_default());
        let dir = super::Tracked::log_dir(&self.shared, tracked.id);
        meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        tracked.meta = meta;
        Ok(())
    }

    fn changed_main(&self, state: &mut State) {
        if state.rollback.journal_is_live() {
            return;
        }
        state.unlogged_writes += 1;
        if state.written_without_journal {
            return;
        }
        state.written_without_journal = true;
        if let Some(me) = self.me.upgrade() {
            self.shared.tell(Event::WrittenWithoutJournal(me));
        }
    }
}

/// The write by which `journal_mode=PERSIST` ends a journal.
fn zeroes_journal_header(offset: u64, data: &[u8]) -> bool {
    offset == 0 && data.len() == JOURNAL_HEADER_LEN && data.iter().all(|byte| *byte == 0)
}

/// Opens a file by its name; `None` if there is none, or something else that has the name now.
pub(super) fn open_regular(path: &Path, writable: bool) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(writable)
        // A FIFO would wait for its other end.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path);
    match opened {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Page size and size in pages of a database file; `None` if it is not one.
pub(super) fn database_size(file: &File) -> io::Result<Option<(PageSize, u32)>> {
    let mut bytes = [0; DatabaseHeader::SIZE];
    let len = file.metadata()?.len();
    if len < bytes.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut bytes, 0)?;
    Ok(DatabaseHeader::parse(&bytes).ok().map(|header| (header.page_size, header.pages(len))))
}

/// A page of the database file; what the file lacks reads as zeros.
pub(super) fn read_or_zeros(
    file: &File,
    page: PageNo,
    page_size: PageSize,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut filled = 0;
    let offset = page.offset(page_size);
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}
