//! The WAL of a database on a primary: which write commits, and what became of the last commit when the WAL ends.
//!
//! Called by `requests` (and by `recover` for a WAL that a crash left), under the database's mutex.
//! Not here: finding the commit in the bytes (`capture`), making the change set (`commit`).

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::commit::{self, Prepared, Transaction};
use super::requests::{open_regular, read_or_zeros};
use super::state::State;
use super::{Database, OpError, disk_error};
use crate::capture::{WalCapture, WalCommit, WalEvent};
use crate::disk::{self, fault};
use crate::log::WalSpan;
use crate::ltx;
use crate::sqlite::Salts;
use crate::types::PageNo;

/// Pages up to which the last commit of a WAL is compared with the database file when the WAL ends.
const UNSEEN_PAGES_MAX: usize = 1 << 16;

impl Database {
    pub(super) fn write_wal(
        &self,
        state: &mut State,
        file: &File,
        offset: u64,
        data: &[u8],
    ) -> Result<(), OpError> {
        let name = self.name();
        let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
        let put = |wal: &mut WalCapture, place: &str| {
            fault::fail(place)
                .and_then(|()| disk::write_all_at("wal", file, data, offset))
                .inspect_err(|_| wal.refused(offset))
                .map_err(disk_error("write WAL", name.as_path()))
        };
        state.wal_is_known = true;
        let event =
            state.wal.write(offset, data, &read).map_err(disk_error("read WAL", name.as_path()))?;
        let commit = match event {
            WalEvent::None => return put(&mut state.wal, ""),
            WalEvent::Restarted => {
                put(&mut state.wal, "")?;
                state.wal_is_synced = false;
                let unseen = self.unseen_pages(state)?;
                if unseen.is_empty() {
                    state.all_is_backfilled();
                } else {
                    state.wal.abandon(unseen);
                }
                return Ok(());
            }
            WalEvent::Commit(commit) => commit,
        };
        // What was written to the file itself before this commit comes first; the file shows it still.
        if state.written_without_journal && !state.rollback.journal_is_live() {
            self.capture_main(state).inspect_err(|_| state.wal.refused(offset))?;
        }
        let prepared = match self.prepare_wal(state, file, &commit) {
            Ok(prepared) => prepared,
            Err(error) => {
                state.wal.refused(offset);
                return Err(error);
            }
        };
        fault::kill_daemon("kill-daemon-logged");
        if let Err(error) = put(&mut state.wal, "wal-write") {
            self.cancel(state, prepared.is_some());
            return Err(error);
        }
        self.finish_wal(state, &commit, prepared);
        fault::kill_daemon("kill-daemon-written");
        fault::kill_requester("kill-writer");
        Ok(())
    }

    fn finish_wal(&self, state: &mut State, commit: &WalCommit, prepared: Option<Prepared>) {
        state.wal.committed(commit);
        state.wal_commits += 1;
        state.last_wal_pages.clear();
        state.last_wal_pages.extend(commit.pages.iter().map(|(page, _)| *page));
        if let Some(prepared) = prepared {
            self.finish(state, prepared);
        }
    }

    fn prepare_wal(
        &self,
        state: &mut State,
        file: &File,
        commit: &WalCommit,
    ) -> Result<Option<Prepared>, OpError> {
        let name = self.name();
        let (Some(page_size), Some(salts)) = (state.wal.page_size(), state.wal.salts()) else {
            return Ok(None);
        };
        if state.tracked.is_none() && name.is_being_imported() {
            return Ok(None);
        }
        self.track(state, page_size)?;
        let State { tracked, wal, .. } = &mut *state;
        let tracked = tracked.as_mut().expect("BUG: just tracked");
        let main = tracked.main(&self.shared, &name)?;
        let mut pages: Vec<PageNo> = commit.pages.iter().map(|(page, _)| *page).collect();
        if !commit.abandoned.is_empty() {
            pages.extend(&commit.abandoned);
            pages.sort_unstable();
        }
        let mut image = |page: PageNo, buffer: &mut [u8]| {
            let written = commit.pages.binary_search_by_key(&page, |(page, _)| *page);
            let frame = match written {
                Ok(index) => Some(commit.pages[index].1),
                Err(_) => wal.frame_of(page),
            };
            match frame {
                Some(frame) => match wal.tail_image(frame) {
                    Some(bytes) => {
                        buffer.copy_from_slice(bytes);
                        Ok(())
                    }
                    None => wal.read_image(frame, buffer, &|at, buffer: &mut [u8]| {
                        file.read_exact_at(buffer, at)
                    }),
                },
                None => read_or_zeros(&main, page, page_size, buffer),
            }
        };
        let mut before = |page: PageNo, buffer: &mut [u8]| {
            match wal.frame_of(page) {
                Some(frame) => wal.read_image(frame, buffer, &|at, buffer: &mut [u8]| {
                    file.read_exact_at(buffer, at)
                })?,
                None => read_or_zeros(&main, page, page_size, buffer)?,
            }
            Ok(true)
        };
        let _occupied = self.occupy(pages.len());
        let transaction = Transaction {
            page_size,
            commit: commit.commit,
            pages,
            image: &mut image,
            before: Some(&mut before),
            wal: Some(WalSpan {
                salts: salt_pair(salts),
                start_frame: commit.start_frame,
                end_frame: commit.end_frame,
            }),
            skip_unchanged: false,
            knows_nothing: false,
        };
        let result = commit::prepare(tracked, &self.shared, &name, transaction);
        self.refuse_damage(state, result)
    }

    pub(super) fn has_wal_file(&self) -> bool {
        self.name().with_suffix("-wal").is_some_and(|wal| {
            let path = self.shared.files.join(wal.as_path());
            path.metadata().is_ok_and(|metadata| metadata.len() > 0)
        })
    }

    /// Takes over a WAL that is there before this daemon saw any write to it.
    pub(super) fn take_over_wal(&self, state: &mut State) -> Result<(), OpError> {
        let name = self.name();
        let Some(wal_name) = name.with_suffix("-wal") else { return Ok(()) };
        let path = self.shared.files.join(wal_name.as_path());
        let Some(file) = open_regular(&path, false).map_err(disk_error("open WAL", &path))? else {
            return Ok(());
        };
        let len = file.metadata().map_err(disk_error("read length of WAL", &path))?.len();
        let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
        state.wal_is_known = true;
        let event = state.wal.resume(0, len, &read).map_err(disk_error("read WAL", &path))?;
        if let WalEvent::Commit(commit) = event {
            self.take_wal_commit(state, &file, &commit)?;
        }
        Ok(())
    }

    /// Logs a transaction that is in the WAL file already.
    pub(super) fn take_wal_commit(
        &self,
        state: &mut State,
        file: &File,
        commit: &WalCommit,
    ) -> Result<(), OpError> {
        if state.written_without_journal && !state.rollback.journal_is_live() {
            self.capture_main(state)?;
        }
        let prepared = self.prepare_wal(state, file, commit)?;
        self.finish_wal(state, commit, prepared);
        Ok(())
    }

    /// The WAL was emptied or removed, which SQLite does when every commit it knows of is in the database. A commit that
    /// no connection ever saw is taken back by a transaction of its own.
    pub(super) fn wal_is_gone(&self, state: &mut State) -> Result<(), OpError> {
        let unseen = self.unseen_pages(state)?;
        state.wal.removed();
        state.wal_is_known = true;
        state.wal_is_synced = false;
        if unseen.is_empty() {
            state.all_is_backfilled();
            return Ok(());
        }
        if let Some(tracked) = &state.tracked {
            let page_size = tracked.page_size;
            for page in unseen {
                state.rollback.wrote(page_size, page.offset(page_size), page_size.bytes());
            }
        }
        state.rollback.resized();
        self.capture_main(state)
    }

    /// Pages of the last commit in the WAL that the database file does not have although the WAL ends: its writer died,
    /// or failed, before any connection could see the commit. Empty as a rule.
    fn unseen_pages(&self, state: &mut State) -> Result<Vec<PageNo>, OpError> {
        let pages = std::mem::take(&mut state.last_wal_pages);
        let name = self.name();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(Vec::new()) };
        if pages.is_empty() || pages.len() > UNSEEN_PAGES_MAX {
            return Ok(Vec::new());
        }
        let page_size = tracked.page_size;
        let main = tracked.main(&self.shared, &name)?;
        let sums = &mut tracked.files(&self.shared)?.sums;
        let mut image = vec![0; page_size.bytes()];
        let mut unseen = Vec::new();
        for page in pages {
            read_or_zeros(&main, page, page_size, &mut image)
                .map_err(disk_error("read page", name.as_path()))?;
            if sums.get(page)? != Some(ltx::page_sum(page, &image)) {
                unseen.push(page);
            }
        }
        Ok(unseen)
    }
}

/// The salts of a WAL as the log's records keep them.
pub(super) fn salt_pair(salts: Salts) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = salts.0;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}
