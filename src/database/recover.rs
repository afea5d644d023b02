//! Brings a database to one consistent state when the daemon starts; no application has it open.
//!
//! The log is redo: the result is the longest of log and WAL. Order: undo a hot journal, bring the page sums
//! to the end of the log, take commits of the WAL that the log lacks, write everything newer than the last
//! write-back into the database file, remove WAL and wal-index. Costs O(tail of the log).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use super::idle::is_clean;
use super::meta::Meta;
use super::occupied::Occupied;
use super::requests::{database_size, open_regular, read_or_zeros};
use super::state::{Files, State, Tracked, sums_path};
use super::undo::Undone;
use super::unlogged::WriterIs;
use super::wal::salt_pair;
use super::{Database, OpError, Shared, disk_error};
use crate::capture::WalEvent;
use crate::disk::{fault, set_len, write_all_at};
use crate::log::{Log, PageSums, Payload, Read};
use crate::ltx::{self, Decoder, LtxFile};
use crate::sqlite::WalHeader;
use crate::types::{Checksum, DbId, DbName, PageNo, PageSize, Pos, Txid};

/// Bytes of log that are read at a time.
pub(super) const STEP_BYTES: usize = 8 << 20;
/// Bytes of a large record that are read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Who wrote the WAL files that a crash left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalOwner {
    /// Applications, on a primary: commits in them count.
    Applications,
    /// This daemon, on a replica: they hold nothing that the log does not.
    Daemon,
}

/// What became of a log directory.
#[derive(Debug)]
pub enum Recovered {
    /// The database, ready for use; perhaps quarantined.
    Database(Arc<Database>),
    /// Its file is gone: the name it had, if known.
    FileIsGone(Option<DbName>),
}

impl Database {
    /// The name that a log directory's database takes by a rename whose file operation is done, though perhaps nothing
    /// else: other databases of that name were replaced by it.
    #[must_use]
    pub fn renamed_over(shared: &Shared, id: DbId) -> Option<DbName> {
        let meta = Meta::load(&Tracked::log_dir(shared, id)).ok()?;
        let exists = |name: &DbName| shared.files.join(name.as_path()).is_file();
        match meta.names() {
            (Some(name), Some(before)) if exists(&name) && !exists(&before) => Some(name),
            _ => None,
        }
    }

    /// The name that a log directory's database had when it was last written.
    #[must_use]
    pub fn noted_name(shared: &Shared, id: DbId) -> Option<DbName> {
        Meta::load(&Tracked::log_dir(shared, id)).ok()?.names().0
    }

    /// Recovers the database of a log directory.
    ///
    /// # Errors
    /// Nothing is known about the directory, not even a name. All other damage quarantines the database.
    pub fn recover(shared: &Arc<Shared>, id: DbId, owner: WalOwner) -> Result<Recovered, OpError> {
        let dir = Tracked::log_dir(shared, id);
        let mut meta = Meta::load(&dir).map_err(disk_error("read meta", &dir))?;
        let Some(name) = existing_name(shared, &mut meta) else {
            return Ok(Recovered::FileIsGone(meta.names().0));
        };
        let opened = Log::open(&dir, shared.log).map_err(OpError::from);
        let log = match opened {
            Ok(log) => log,
            Err(error) => return Ok(Recovered::Database(damaged(shared, id, name, meta, &error))),
        };
        let pos = log.position();
        let sums = PageSums::open(&sums_path(&dir));
        let as_of = sums.as_ref().map_or(0, |sums| sums.as_of().txid_raw());
        let cut_to = log.cut().map(|cut| {
            warn!(db = %name, ?cut, "cut a damaged tail off the log");
            if cut.was_durable { pos.txid_raw() + 1 } else { 0 }
        });
        let promised = meta.promised_txid().max(as_of).max(cut_to.unwrap_or(0));
        let lacks_redo = log.base().txid_raw() > meta.durable_txid;
        if !meta.installing && (pos.txid_raw() < promised || lacks_redo) {
            meta.lost_from_txid = promised.max(log.base().txid_raw());
            meta.save(&dir).map_err(disk_error("write meta", &dir))?;
            let error = OpError::LogLost { path: dir, promised: meta.lost_from_txid, found: pos };
            return Ok(Recovered::Database(damaged(shared, id, name, meta, &error)));
        }
        let last = log.last();
        let (page_size, pages) = match (&last, &sums) {
            (Some(last), _) => (last.page_size, last.commit),
            (None, Ok(sums)) => (sums.page_size(), sums.pages()),
            (None, Err(_)) => (PageSize::MIN, 0),
        };
        let main = shared.files.join(name.as_path());
        let clean = is_clean(&meta, pos, &main)
            && sums.as_ref().is_ok_and(|sums| sums.as_of() == pos)
            && !companion(&main, "-wal").exists()
            && !companion(&main, "-journal").exists();
        let sums = match sums {
            Ok(sums) => sums,
            Err(error) => {
                warn!(db = %name, %error, "rebuild the page sums");
                match PageSums::create(&sums_path(&dir), page_size).map_err(OpError::from) {
                    Ok(sums) => sums,
                    Err(error) => {
                        return Ok(Recovered::Database(damaged(shared, id, name, meta, &error)));
                    }
                }
            }
        };
        let installing = meta.installing;
        let may_lead = meta.may_lead_after_power_loss();
        let changed_offline = meta.unlogged || (meta.clean.is_some() && !clean);
        let tracked = Tracked {
            id,
            pos,
            page_size,
            pages,
            backfilled: pos,
            timestamp_ms: last.map_or(0, |last| last.timestamp_ms),
            meta,
            files: (!clean).then(|| Files::new(log, sums)),
            main: None,
        };
        let state = State { tracked: Some(tracked), applied: pos, ..State::default() };
        let db = Self::with_state(shared, name, Some(id), state);
        if installing {
            db.quarantine("its replacement by a fresh copy from the primary was interrupted", true);
            return Ok(Recovered::Database(db));
        }
        let recovered =
            if clean { Ok(()) } else { db.recover_files(owner, changed_offline, may_lead) };
        if let Err(error) = recovered {
            let reseed = owner == WalOwner::Daemon;
            let is_full = error.is_disk_full() && !reseed;
            let remedy = if is_full {
                "; make room on the disk: it is tried again once nobody has the database open"
            } else {
                "; a restart of the daemon tries again"
            };
            db.quarantine(&format!("recovery failed: {}{remedy}", Chain(&error)), reseed);
            let mut state = db.state.lock();
            state.recovery_needs_space = is_full;
            // Who reads first rolls a hot journal back, which even a quarantined database lets happen.
            if companion(&main, "-journal").metadata().is_ok_and(|journal| journal.len() > 0) {
                state.rollback.journal_started();
                state.journal_is_hot = true;
            }
            drop(state);
        }
        Ok(Recovered::Database(db))
    }

    /// Recovers a database whose disk was too full for it at the start, if nobody has it open now but the `openers`
    /// that wait for this. Returns whether its files have changed, which the kernel does not know.
    pub fn recover_again(&self, openers: u32) -> bool {
        let Some(id) = self.id() else { return false };
        let _occupied = Occupied::new(&self.occupied, &self.shared);
        // Held to the end: nobody opens it meanwhile.
        let mut state = self.state.lock();
        if !state.recovery_needs_space || state.open_files > openers {
            return false;
        }
        if let Some(tracked) = &mut state.tracked {
            tracked.files = None;
            tracked.main = None;
        }
        match Self::recover(&self.shared, id, WalOwner::Applications) {
            Ok(Recovered::Database(fresh)) => {
                let fresh = std::mem::take(&mut *fresh.state.lock());
                *state = State {
                    open_files: state.open_files,
                    open_by_application: state.open_by_application,
                    ..fresh
                };
                self.publish(&state);
                if state.quarantine.is_none() {
                    info!(db = %self.name(), "recovered");
                }
                true
            }
            Ok(Recovered::FileIsGone(_)) | Err(_) => false,
        }
    }

    fn recover_files(
        &self,
        owner: WalOwner,
        changed_offline: bool,
        may_lead: bool,
    ) -> Result<(), OpError> {
        let name = self.name();
        let main = self.shared.files.join(name.as_path());
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let undone = self.undo_hot_journal(state, &main)?;
        let redone = self.pages_to_redo(state, &main)?;
        let sums_are_whole = self.replay_sums(state)?;
        let may_lead = owner == WalOwner::Applications && may_lead;
        // What may lag as well as lead is compared after the log is redone.
        let is_known_to_differ = !may_lead && (changed_offline || undone == Undone::WasCommitted);
        if !may_lead
            && !is_known_to_differ
            && sums_are_whole
            && self.file_leads(state, &main, &redone)?
        {
            drop(guard);
            return match owner {
                WalOwner::Applications => {
                    info!(db = %name, "changed while the daemon did not run");
                    self.recover_without_log()
                }
                WalOwner::Daemon => Err(OpError::ChangedOffline(name)),
            };
        }
        let has_pages = state.tracked.as_ref().is_some_and(|tracked| tracked.pages > 0);
        if changed_offline && has_pages {
            let file = open_regular(&main, false).map_err(disk_error("open database", &main))?;
            let size = file.map_or(Ok(None), |file| database_size(&file));
            if size.map_err(disk_error("read header", &main))?.is_none() {
                // Taken for a removal it would remove the database from every replica.
                return Err(OpError::HeaderIsGone(name));
            }
        }
        if is_known_to_differ {
            // The file differs from the log in ways that only a comparison finds.
            state.foreign_writer = true;
            state.written_without_journal = true;
        }
        if owner == WalOwner::Applications && sums_are_whole {
            if state.written_without_journal {
                drop(guard);
                self.capture_unlogged(WriterIs::Gone, None)?;
                guard = self.state.lock();
            }
            self.take_wal(&mut guard, &main)?;
        }
        let state = &mut *guard;
        // The file must not be durable beyond the log, and the companions must not go before both are.
        self.sync_recovered_log(state)?;
        self.redo(state, &main, sums_are_whole)?;
        if may_lead && sums_are_whole {
            drop(guard);
            self.take_what_leads(&main)?;
            guard = self.state.lock();
        }
        let state = &mut *guard;
        self.sync_recovered_log(state)?;
        if undone == Undone::RolledBack && owner == WalOwner::Applications && sums_are_whole {
            self.take_free_pages(state)?;
            self.sync_recovered_log(state)?;
        }
        remove_companions(&main)?;
        state.wal.removed();
        state.wal_is_known = true;
        state.rollback.finished();
        if !sums_are_whole || (changed_offline && owner == WalOwner::Daemon) {
            self.rebuild_sums(state, owner)?;
        }
        state.applied = state.tracked.as_ref().map_or(Pos::ZERO, |tracked| tracked.pos);
        state.all_is_backfilled();
        self.publish(state);
        drop(guard);
        self.write_back_recovered()
    }

    fn sync_recovered_log(&self, state: &mut State) -> Result<(), OpError> {
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        tracked.files(&self.shared)?.syncer.sync()?;
        Ok(())
    }

    /// Recovers as SQLite would, from the file, its journal and its WAL alone, because somebody else wrote the file.
    /// What differs from the rest of the log becomes a new transaction.
    fn recover_without_log(&self) -> Result<(), OpError> {
        let main = self.shared.files.join(self.name().as_path());
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.undo_hot_journal(state, &main)?;
        self.copy_wal_back(state, &main)?;
        remove_companions(&main)?;
        state.wal.removed();
        state.wal_is_known = true;
        self.rebuild_sums(state, WalOwner::Applications)?;
        state.applied = state.tracked.as_ref().map_or(Pos::ZERO, |tracked| tracked.pos);
        state.all_is_backfilled();
        self.publish(state);
        drop(guard);
        self.write_back_recovered()
    }

    /// Writes the committed pages of the WAL into the database file.
    fn copy_wal_back(&self, state: &mut State, main: &Path) -> Result<(), OpError> {
        let path = companion(main, "-wal");
        let Ok(Some(wal)) = open_regular(&path, false) else { return Ok(()) };
        let fail = disk_error("read WAL", &path);
        let len = wal.metadata().map_err(&fail)?.len();
        let read = |at: u64, buffer: &mut [u8]| wal.read_exact_at(buffer, at);
        let event = state.wal.resume(0, len, &read).map_err(&fail)?;
        let (WalEvent::Commit(commit), Some(page_size)) = (event, state.wal.page_size()) else {
            return Ok(());
        };
        let write = disk_error("copy WAL into database", main);
        let file = open_main(main)?;
        let mut image = vec![0; page_size.bytes()];
        for (page, frame) in &commit.pages {
            state.wal.read_image(*frame, &mut image, &read).map_err(&fail)?;
            write_all_at("main", &file, &image, page.offset(page_size)).map_err(&write)?;
        }
        let len = u64::from(commit.commit) * u64::from(page_size.get());
        file.set_len(len).and_then(|()| file.sync_all()).map_err(&write)
    }

    /// Brings the page sums to the end of the log. `false` if they must be computed anew.
    fn replay_sums(&self, state: &mut State) -> Result<bool, OpError> {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(true) };
        let end = tracked.pos;
        let files = tracked.files(&self.shared)?;
        let mut from = files.sums.as_of();
        loop {
            if from == end {
                return Ok(true);
            }
            let Read::Records(records) = files.reader.read_lazily(from, STEP_BYTES)? else {
                return Ok(false);
            };
            if records.is_empty() {
                return Ok(false);
            }
            for (info, ltx) in &records {
                if info.page_size != files.sums.page_size() {
                    files.sums.reset(info.page_size);
                }
                files.sums.truncate(info.commit);
                each_page(&name, ltx, |page, data| {
                    files.sums.set(page, ltx::page_sum(page, data));
                    Ok::<_, OpError>(())
                })?;
                from = info.pos();
            }
        }
    }

    /// Takes commits of the WAL that the log does not have.
    fn take_wal(&self, state: &mut State, main: &Path) -> Result<(), OpError> {
        let path = companion(main, "-wal");
        let opened = open_regular(&path, false).map_err(disk_error("open WAL", &path))?;
        let Some(file) = opened else { return Ok(()) };
        let fail = disk_error("read WAL", &path);
        let len = file.metadata().map_err(&fail)?.len();
        let mut bytes = [0; WalHeader::SIZE];
        if read_up_to(&file, 0, &mut bytes).map_err(&fail)? < bytes.len() {
            return Ok(());
        }
        let Ok(header) = WalHeader::parse(&bytes) else { return Ok(()) };
        let Some(captured) = self.captured_of(state, salt_pair(header.salts))? else {
            info!(db = %self.name(), "the WAL is older than the log");
            return Ok(());
        };
        let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
        if let WalEvent::Commit(commit) = state.wal.resume(captured, len, &read).map_err(&fail)? {
            info!(
                db = %self.name(),
                frames = commit.end_frame - captured,
                "commits in the WAL that the log does not have"
            );
            self.take_wal_commit(state, &file, &commit)?;
        }
        Ok(())
    }

    /// How many frames of a WAL with these salts are in the log; `None` if it is an old generation.
    fn captured_of(&self, state: &mut State, salts: (u32, u32)) -> Result<Option<u32>, OpError> {
        let Some(tracked) = state.tracked.as_mut() else { return Ok(None) };
        let durable = tracked.meta.durable_txid;
        let noted = tracked.meta.wal_salts;
        let end = tracked.pos;
        let files = tracked.files(&self.shared)?;
        let mut from = start_of_redo(files, durable)?;
        let mut newest = noted.map(|salts| (salts, 0));
        if let Some(info) = from.txid.map_or(Ok(None), |txid| files.reader.info_at(txid))?
            && let Some(span) = info.wal
        {
            newest = Some((span.salts, span.end_frame));
        }
        let mut is_old = false;
        while from != end {
            let Read::Records(records) = files.reader.read_lazily(from, STEP_BYTES)? else { break };
            let Some((last, _)) = records.last() else { break };
            from = last.pos();
            for span in records.iter().filter_map(|(info, _)| info.wal) {
                is_old |= newest.is_some_and(|(known, _)| known == salts) && span.salts != salts;
                newest = Some((span.salts, span.end_frame));
            }
        }
        Ok(match newest {
            Some((known, frames)) if known == salts => Some(frames),
            _ if is_old => None,
            Some(_) | None => Some(0),
        })
    }

    /// Writes every record newer than the last write-back into the database file: of each page the last image only, so
    /// that a file which has it already stays as it is when this fails half-way.
    fn redo(&self, state: &mut State, main: &Path, sums_are_whole: bool) -> Result<(), OpError> {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let end = tracked.pos;
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let durable = tracked.meta.durable_txid;
        let files = tracked.files(&self.shared)?;
        let mut from = start_of_redo(files, durable)?;
        if from == end {
            return Ok(());
        }
        let file = open_main(main)?;
        let write = disk_error("redo into database", main);
        let mut records_done = 0u64;
        while from != end {
            let Read::Records(records) = files.reader.read_lazily(from, STEP_BYTES)? else { break };
            let Some((last, _)) = records.last() else { break };
            from = last.pos();
            records_done += records.len() as u64;
            for (info, ltx) in &records {
                if info.page_size != page_size {
                    continue;
                }
                each_page(&name, ltx, |page, data| {
                    let sum = if sums_are_whole { files.sums.get(page)? } else { None };
                    if page.get() > pages || sum.is_some_and(|sum| sum != ltx::page_sum(page, data))
                    {
                        return Ok(());
                    }
                    write_all_at("main", &file, data, page.offset(page_size)).map_err(&write)?;
                    Ok::<_, OpError>(())
                })?;
            }
        }
        let len = u64::from(pages) * u64::from(page_size.get());
        set_len("main", &file, len).map_err(&write)?;
        fault::step("main", "sync").map_err(&write)?;
        file.sync_all().map_err(&write)?;
        info!(db = %name, records = records_done, pos = %end, "redid the log");
        Ok(())
    }

    /// Computes all page sums from the file, O(database), and checks them against the position.
    fn rebuild_sums(&self, state: &mut State, owner: WalOwner) -> Result<(), OpError> {
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        let file = tracked.main(&self.shared, &name)?;
        let path = self.shared.files.join(name.as_path());
        let Some((page_size, pages)) =
            database_size(&file).map_err(disk_error("read header", &path))?
        else {
            return Err(OpError::NotTracked(name));
        };
        let promised = tracked.pos.checksum;
        let files = tracked.files(&self.shared)?;
        files.sums.reset(page_size);
        let actual = sum_pages(&file, page_size, pages, |page, sum| files.sums.set(page, sum))
            .map_err(disk_error("read database", &path))?;
        if actual == promised {
            tracked.page_size = page_size;
            tracked.pages = pages;
            return Ok(());
        }
        match owner {
            WalOwner::Daemon => Err(OpError::WrongImage { db: name, promised, actual }),
            WalOwner::Applications => {
                warn!(db = %name, "the file differs from the log: taken as a new transaction with all pages");
                self.take_everything(state)
            }
        }
    }

    /// Like [`Database::write_back`], for a file that recovery has just made whole.
    fn write_back_recovered(&self) -> Result<(), OpError> {
        let dir = {
            let mut state = self.state.lock();
            let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
            tracked.meta.unlogged = false;
            tracked.meta.unsynced_boot = None;
            tracked.meta.wal_salts = None;
            Tracked::log_dir(&self.shared, tracked.id)
        };
        // Whatever is noted: sums and file are at the end of the log now.
        self.write_back_if(true)?;
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        tracked.meta.rename_is_done();
        tracked.meta.save(&dir).map_err(disk_error("write meta", &dir))
    }
}

/// The position behind which the log must be written into the file again.
pub(super) fn start_of_redo(files: &Files, durable_txid: u64) -> Result<Pos, OpError> {
    let base = files.log.base();
    let Some(txid) = Txid::new(durable_txid).filter(|_| durable_txid > base.txid_raw()) else {
        return Ok(base);
    };
    Ok(files.reader.info_at(txid)?.map_or(base, |info| info.pos()))
}

/// A database whose log cannot be opened: it serves reads and says what is wrong.
fn damaged(
    shared: &Arc<Shared>,
    id: DbId,
    name: DbName,
    meta: Meta,
    error: &OpError,
) -> Arc<Database> {
    let tracked = Tracked {
        id,
        pos: Pos::ZERO,
        page_size: PageSize::MIN,
        pages: 0,
        backfilled: Pos::ZERO,
        timestamp_ms: 0,
        meta,
        files: None,
        main: None,
    };
    let state = State { tracked: Some(tracked), ..State::default() };
    let db = Database::with_state(shared, name, Some(id), state);
    let dir = Tracked::log_dir(shared, id);
    db.quarantine(
        &format!(
            "{}. If the database itself is as it should be, remove {} while the daemon is stopped: a new history begins with it",
            Chain(error),
            dir.display()
        ),
        true,
    );
    db
}

/// The name under which the file exists; a rename that was in progress is settled by it.
fn existing_name(shared: &Shared, meta: &mut Meta) -> Option<DbName> {
    let (name, before) = meta.names();
    let exists = |name: &DbName| shared.files.join(name.as_path()).is_file();
    if let Some(name) = name.filter(exists) {
        return Some(name);
    }
    let before = before.filter(exists)?;
    meta.rename(&before);
    Some(before)
}

/// Hands out the pages of a change set one after another.
pub(super) fn each_page<E: From<OpError>>(
    name: &DbName,
    ltx: &Payload,
    mut each: impl FnMut(PageNo, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let decode = |source| OpError::Decode { db: name.clone(), source };
    let Some(bytes) = ltx.memory() else {
        ltx.check().map_err(OpError::from)?;
        let source = io::BufReader::with_capacity(PIECE_BYTES, ltx.reader());
        let mut decoder = Decoder::new(source).map_err(decode)?;
        while let Some(page) = decoder.next_page().map_err(decode)? {
            each(page.page, page.data)?;
        }
        return Ok(());
    };
    let file = LtxFile::parse_trusted(bytes).map_err(decode)?;
    let mut data = vec![0; file.header().page_size.bytes()];
    for entry in file.entries() {
        file.read(*entry, &mut data).map_err(decode)?;
        each(entry.page, &data)?;
    }
    Ok(())
}

/// Sums every page of a file; returns the database's checksum.
pub(super) fn sum_pages(
    file: &File,
    page_size: PageSize,
    pages: u32,
    mut each: impl FnMut(PageNo, Checksum),
) -> io::Result<Checksum> {
    let mut checksum = Checksum::EMPTY;
    let mut data = vec![0; page_size.bytes()];
    for page in (1..=pages).filter_map(PageNo::new) {
        if page == page_size.lock_page() {
            continue;
        }
        read_or_zeros(file, page, page_size, &mut data)?;
        let sum = ltx::page_sum(page, &data);
        each(page, sum);
        checksum = checksum.toggle(sum);
    }
    Ok(checksum)
}

fn remove_companions(main: &Path) -> Result<(), OpError> {
    for suffix in ["-journal", "-wal", "-shm"] {
        let path = companion(main, suffix);
        match fault::step("wal", "remove").and_then(|()| fs::remove_file(&path)) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(disk_error("remove file", &path)(error)),
        }
    }
    // What is removed must stay so before anything is said to be durable without it.
    let parent = main.parent().unwrap_or(Path::new("/"));
    crate::disk::sync_dir(parent).map_err(disk_error("sync directory", parent))
}

/// Opens the database file itself, which must be there.
pub(super) fn open_main(main: &Path) -> Result<File, OpError> {
    let fail = disk_error("open database", main);
    open_regular(main, true).map_err(&fail)?.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))
}

pub(super) fn companion(main: &Path, suffix: &str) -> PathBuf {
    let mut path = main.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Fills the buffer as far as the file goes.
pub(super) fn read_up_to(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// An error with its causes, for a text that is kept.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}
