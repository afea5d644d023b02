//! One database, opened through the mount: which locks are held, in which mode it is, what changes either.
//!
//! Every method may stop with "blocked" and is then called again with the same arguments; locks taken so far stay.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Change;
use super::api::{ClientError, FileState};
use super::checkpoint::FRAMES_MAX;
use super::files::{
    MainFile, OPEN_FLAGS, Paths, Step, Stop, at, leads_to, len_or_zero, regular, remove,
};
use super::rollback;
use super::wal::Wal;
use crate::sqlite::DatabaseHeader;
use crate::types::{DbName, PageNo, PageSize};

/// How the database is written.
#[derive(Debug)]
enum Mode {
    /// Not looked at yet.
    Unknown,
    /// In place, under EXCLUSIVE.
    Rollback,
    /// Through the WAL.
    Wal { wal: Box<Wal>, page_size: PageSize },
}

/// An open database.
#[derive(Debug)]
pub(super) struct Session {
    paths: Paths,
    main: MainFile,
    mode: Mode,
    fenced: bool,
    /// A write in place failed half-way: readers stay locked out until another one succeeds.
    torn: bool,
    /// The database is in rollback mode but is still written through its WAL, because others have that open.
    leaving_wal: bool,
}

impl Session {
    /// Opens the main file; nothing is locked yet.
    pub(super) fn open(mount: &Path, name: &DbName, create: bool) -> Result<Self, ClientError> {
        let paths = Paths::new(mount, name);
        let mut options = File::options();
        options.read(true).write(true).create(create).custom_flags(OPEN_FLAGS);
        let opened = options.open(&paths.main).or_else(|error| {
            let parent = paths.main.parent().filter(|_| create);
            match (error.kind(), parent) {
                (io::ErrorKind::NotFound, Some(parent)) => {
                    std::fs::create_dir_all(parent)?;
                    options.open(&paths.main)
                }
                (_, _) => Err(error),
            }
        });
        let main = MainFile::new(opened.and_then(regular).map_err(at("open", &paths.main))?);
        Ok(Self {
            paths,
            main,
            mode: Mode::Unknown,
            fenced: false,
            torn: false,
            leaving_wal: false,
        })
    }

    /// Whether the session is still about the file that has this name now. Takes the name over if the file was renamed.
    pub(super) fn is_about(&mut self, mount: &Path, name: &DbName) -> bool {
        let paths = Paths::new(mount, name);
        let same = leads_to(&paths.main, &self.main.file);
        if same {
            self.paths = paths;
        }
        same
    }

    /// Whether other processes are kept from writing.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether a write in place failed half-way, so that readers must stay locked out.
    pub(super) fn is_torn(&self) -> bool {
        self.torn
    }

    /// Whether the session is worth keeping while nothing is asked: a WAL with its mappings is; in rollback mode the
    /// lock would only be in other writers' way.
    pub(super) fn may_stay_open(&self) -> bool {
        self.fenced || self.torn || matches!(self.mode, Mode::Wal { .. })
    }

    /// Becomes the only writer, and stays it.
    pub(super) fn fence(&mut self) -> Step<FileState> {
        self.enter()?;
        match &mut self.mode {
            Mode::Wal { wal, .. } => {
                wal.lock_writer(&self.paths)?;
                wal.valid_header(&self.paths)?;
            }
            Mode::Rollback => self.main.lock_reserved(&self.paths.main)?,
            Mode::Unknown => unreachable!("BUG: entered without finding out the mode"),
        }
        self.fenced = true;
        self.state()
    }

    /// Writes a change as a legal writer.
    pub(super) fn apply(&mut self, change: &Change) -> Step<FileState> {
        if !change.is_valid() {
            return Err(ClientError::InvalidChange { path: self.paths.main.clone() }.into());
        }
        if self.write_alone(change)? {
            return self.state();
        }
        self.enter()?;
        self.leave_wal_for(change)?;
        match &mut self.mode {
            Mode::Wal { .. } => self.apply_to_wal(change)?,
            Mode::Rollback => self.apply_in_place(change)?,
            Mode::Unknown => unreachable!("BUG: entered without finding out the mode"),
        }
        self.state()
    }

    /// Copies the WAL back as far as readers allow.
    pub(super) fn checkpoint(&mut self) -> Step<FileState> {
        self.enter()?;
        if let Mode::Wal { wal, .. } = &mut self.mode {
            wal.lock_writer(&self.paths)?;
            wal.checkpoint(&self.main, &self.paths)?;
        }
        self.relax()?;
        self.state()
    }

    /// Gives up a request that took too long: what it locked is dropped, what the session held before is kept.
    pub(super) fn give_up(&mut self) -> Result<(), ClientError> {
        if !self.torn {
            self.main.unlock_exclusive(&self.paths.main)?;
        }
        self.relax()
    }

    /// Closes the files; `true` if no other connection was open and the WAL is copied back whole and gone.
    pub(super) fn close(mut self) -> Result<bool, ClientError> {
        match self.try_leave_wal() {
            Ok(()) => Ok(matches!(self.mode, Mode::Rollback | Mode::Unknown)),
            Err(Stop::Blocked { .. }) => Ok(false),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn state(&mut self) -> Step<FileState> {
        match &mut self.mode {
            Mode::Wal { wal, .. } => Ok(FileState::Wal(wal.state(&self.paths)?)),
            Mode::Rollback | Mode::Unknown => Ok(FileState::Main),
        }
    }

    /// Drops the writer's locks unless the database is fenced.
    fn relax(&mut self) -> Result<(), ClientError> {
        if self.fenced {
            return Ok(());
        }
        if let Mode::Wal { wal, .. } = &mut self.mode {
            wal.unlock_writer(&self.paths)?;
        }
        self.main.unlock_reserved(&self.paths.main)
    }

    /// Becomes a connection like any other: SHARED on the main file, the journal mode known, the WAL open if there is
    /// one. SQLite pager.c, `sqlite3PagerSharedLock`.
    fn enter(&mut self) -> Step<()> {
        self.main.lock_shared(&self.paths.main)?;
        if !matches!(self.mode, Mode::Unknown) {
            return Ok(());
        }
        rollback::roll_back_if_hot(&mut self.main, &self.paths)?;
        let header = self.main.header(&self.paths.main)?;
        let has_wal = len_or_zero(&self.paths.wal)? != 0;
        // A file without a header is no database yet, or a damaged one that is about to be restored.
        self.mode = match header {
            Some(header) if header.is_wal() || has_wal => {
                self.leaving_wal = !header.is_wal();
                let wal = Box::new(Wal::open(&self.paths, &self.main)?);
                Mode::Wal { wal, page_size: header.page_size }
            }
            Some(_) | None => Mode::Rollback,
        };
        Ok(())
    }

    /// The short way for a database that nobody else has open: write in place, whatever its mode. `false` if that is
    /// not possible now.
    fn write_alone(&mut self, change: &Change) -> Step<bool> {
        if self.fenced || !matches!(self.mode, Mode::Unknown) {
            return Ok(false);
        }
        self.main.lock_shared(&self.paths.main)?;
        rollback::roll_back_if_hot(&mut self.main, &self.paths)?;
        if len_or_zero(&self.paths.wal)? != 0 && self.main.len(&self.paths.main)? != 0 {
            return Ok(false);
        }
        match self.main.lock_exclusive(&self.paths.main) {
            Ok(()) => (),
            Err(Stop::Blocked { .. }) => {
                self.main.unlock_exclusive(&self.paths.main)?;
                return Ok(false);
            }
            Err(failed) => return Err(failed),
        }
        self.mode = Mode::Rollback;
        self.apply_in_place(change)?;
        Ok(true)
    }

    fn apply_to_wal(&mut self, change: &Change) -> Step<()> {
        let Mode::Wal { wal, page_size } = &mut self.mode else {
            unreachable!("BUG: not in WAL mode")
        };
        wal.lock_writer(&self.paths)?;
        if change.page_size != *page_size {
            // All frames of a WAL have one size, so it must begin anew: that waits for readers that are reading, but not
            // for open connections. They take the size over, as from any page 1 that they read.
            wal.checkpoint(&self.main, &self.paths)?;
            wal.append(change, &self.paths)?;
            *page_size = change.page_size;
        } else if change.pages.is_empty() {
            // A commit needs a frame: page 1 as it is.
            let image = wal.read_page(PageNo::FIRST, *page_size, &self.main, &self.paths)?;
            let pages = vec![(PageNo::FIRST, image.into())].into();
            let Change { page_size, commit, .. } = *change;
            wal.append(&Change { page_size, commit, pages }, &self.paths)?;
        } else {
            wal.append(change, &self.paths)?;
        }
        if FRAMES_MAX <= wal.state(&self.paths)?.frames {
            wal.checkpoint(&self.main, &self.paths)?;
        }
        Ok(self.relax()?)
    }

    fn apply_in_place(&mut self, change: &Change) -> Step<()> {
        self.main.lock_reserved(&self.paths.main)?;
        self.main.lock_exclusive(&self.paths.main)?;
        // What lies there belongs to a database that is gone: nobody may take it for a part of the new one.
        remove_if_any(&self.paths.wal)?;
        remove_if_any(&self.paths.shm)?;
        if self.torn {
            self.main.forget_len();
        }
        let before = self.main.header(&self.paths.main)?;
        self.torn = true;
        rollback::write_pages(change, &mut self.main, &self.paths)?;
        if let Some(before) = before {
            self.main.move_counter(&before, &self.paths.main)?;
        }
        self.torn = false;
        let header = self.main.header(&self.paths.main)?;
        if let Some(header) = header.filter(|header| self.fenced && header.is_wal()) {
            self.enter_wal(&header)?;
        }
        self.main.unlock_exclusive(&self.paths.main)?;
        Ok(self.relax()?)
    }

    /// Follows the database from rollback to WAL mode. The caller holds EXCLUSIVE, so both files are ours alone.
    fn enter_wal(&mut self, header: &DatabaseHeader) -> Step<()> {
        // If this fails, the next request must look again: others take the database for a WAL database already.
        self.mode = Mode::Unknown;
        let mut wal = Box::new(Wal::open(&self.paths, &self.main)?);
        wal.lock_writer(&self.paths)?;
        wal.valid_header(&self.paths)?;
        self.mode = Mode::Wal { wal, page_size: header.page_size };
        self.leaving_wal = false;
        Ok(self.main.unlock_reserved(&self.paths.main)?)
    }

    /// Goes from WAL to rollback mode if a change asks for it. While other connections are open that cannot be done:
    /// then the change goes through the WAL, even one of another page size, if it has every page.
    fn leave_wal_for(&mut self, change: &Change) -> Step<()> {
        let Mode::Wal { page_size, .. } = &self.mode else { return Ok(()) };
        let must = change.page_size != *page_size || change.commit == 0;
        let first = change.first_page().map_err(at("read a change of", &self.paths.main))?;
        if let Some(page) = first {
            self.leaving_wal = DatabaseHeader::parse(&page).is_ok_and(|header| !header.is_wal());
        }
        if !must && !self.leaving_wal {
            return Ok(());
        }
        match self.try_leave_wal() {
            Err(Stop::Blocked { .. }) if !must || change.is_whole() => {
                Ok(self.main.unlock_exclusive(&self.paths.main)?)
            }
            left => left,
        }
    }

    /// Copies the WAL back whole, removes it, and is in rollback mode, if no other connection is open. EXCLUSIVE is then
    /// held. SQLite wal.c, `sqlite3WalClose`.
    fn try_leave_wal(&mut self) -> Step<()> {
        let Mode::Wal { wal, .. } = &mut self.mode else { return Ok(()) };
        let ours =
            leads_to(&self.paths.wal, &wal.wal) && leads_to(&self.paths.shm, &wal.index.file);
        if !ours {
            // The database was renamed or replaced: the WAL is somebody else's to remove.
            return Err(Stop::Blocked { lock: "the name of the WAL", holder: None });
        }
        self.main.lock_exclusive(&self.paths.main)?;
        wal.lock_writer(&self.paths)?;
        wal.checkpoint(&self.main, &self.paths)?;
        let state = wal.state(&self.paths)?;
        if state.backfilled < state.frames {
            // A reader in the WAL without SHARED on the database: no SQLite does that.
            return Err(self.paths.damaged("-shm").into());
        }
        self.mode = Mode::Unknown;
        remove(&self.paths.wal)?;
        remove(&self.paths.shm)?;
        self.mode = Mode::Rollback;
        self.leaving_wal = false;
        Ok(())
    }
}

fn remove_if_any(path: &Path) -> Result<(), ClientError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => remove(path),
        Err(_) => Ok(()),
    }
}
