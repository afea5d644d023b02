//! What a lane knows of one database: its session, its queue, and how to carry a request out.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::api::{Answer, ClientError, Request};
use super::files::{MainFile, Paths, Step, at, open_to_read, remove};
use super::lane::Job;
use super::lock::{self, Holder};
use super::publish::publish;
use super::session::Session;
use crate::sqlite::LockRange;
use crate::types::DbName;

/// One database on a lane.
#[derive(Debug)]
pub(super) struct Slot {
    session: Option<Session>,
    /// Whether somebody asked for the fence: a file that replaces the open one is fenced too.
    wants_fence: bool,
    /// The open file of a `WaitUnlocked`.
    probe: Option<MainFile>,
    pub(super) jobs: VecDeque<Job>,
    /// When to try the first job again, and how long to pause after that.
    pub(super) retry: Option<(Instant, Duration)>,
    /// When the last request ended.
    pub(super) used: Instant,
}

impl Slot {
    pub(super) fn new() -> Self {
        Self {
            session: None,
            wants_fence: false,
            probe: None,
            jobs: VecDeque::new(),
            retry: None,
            used: Instant::now(),
        }
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_empty(&self) -> bool {
        self.session.is_none() && self.jobs.is_empty() && !self.wants_fence
    }

    /// Whether the session is there to stay.
    pub(super) fn is_fenced(&self) -> bool {
        self.wants_fence
    }

    /// Whether the session may be closed unasked.
    pub(super) fn is_quiet(&self) -> bool {
        let needed = self.session.as_ref().is_some_and(Session::is_torn);
        self.jobs.is_empty() && !self.wants_fence && !needed
    }

    /// Closes the session for good.
    pub(super) fn close(mut self) {
        // There is nobody to tell. What is not written back stays in the WAL, or is in the log.
        let _closed = self.session.take().map(Session::close);
    }

    /// Tidies up after a request that is not tried again.
    pub(super) fn end_of_request(&mut self, failed: bool) {
        self.retry = None;
        self.probe = None;
        self.used = Instant::now();
        let Some(session) = &mut self.session else { return };
        // An unlock that fails leaves a lock; closing the files drops it.
        let clean = !failed || session.give_up().is_ok();
        if !clean || !session.may_stay_open() {
            let _closed = self.session.take().map(Session::close);
        }
    }

    /// Tries to carry a request out.
    pub(super) fn step(&mut self, mount: &Path, request: &Request) -> Step<Answer> {
        match request {
            Request::Fence { name } => {
                let state = self.session(mount, name, false)?.fence()?;
                self.wants_fence = true;
                Ok(Answer::State(state))
            }
            Request::Unfence | Request::Detach => {
                self.wants_fence = false;
                let closed = self.session.take().map_or(Ok(true), Session::close);
                Ok(Answer::Closed { clean: closed? })
            }
            Request::Apply { name, change } => {
                let fence = self.wants_fence;
                let session = self.session(mount, name, true)?;
                if fence && !session.is_fenced() {
                    session.fence()?;
                }
                Ok(Answer::State(session.apply(change)?))
            }
            Request::Checkpoint { name } => {
                Ok(Answer::State(self.session(mount, name, false)?.checkpoint()?))
            }
            Request::PublishAbandoned { name, abandoned } => {
                Ok(Answer::Published(publish(&Paths::new(mount, name), *abandoned)?))
            }
            Request::WaitUnlocked { name, .. } => self.wait_unlocked(&mount.join(name.as_path())),
            Request::WriteLockHolder { name } => {
                Ok(Answer::Holder(write_lock_holder(&Paths::new(mount, name))?))
            }
            Request::Remove { name } => {
                self.wants_fence = false;
                self.session = None;
                remove_all(&Paths::new(mount, name))?;
                Ok(Answer::Done)
            }
            Request::MakeParents { name } => {
                make_parents(&mount.join(name.as_path()))?;
                Ok(Answer::Done)
            }
            Request::Rename { from, to } => {
                rename_all(&Paths::new(mount, from), &Paths::new(mount, to))?;
                if let Some(session) = &mut self.session {
                    session.is_about(mount, to);
                }
                Ok(Answer::Done)
            }
        }
    }

    /// The session on the file that has this name now. A session on another file is dropped, and its locks with it.
    fn session(
        &mut self,
        mount: &Path,
        name: &DbName,
        create: bool,
    ) -> Result<&mut Session, ClientError> {
        let about = |mut session: Session| session.is_about(mount, name).then_some(session);
        let session = match self.session.take().and_then(about) {
            Some(session) => session,
            None => Session::open(mount, name, create)?,
        };
        Ok(self.session.insert(session))
    }

    fn wait_unlocked(&mut self, path: &Path) -> Step<Answer> {
        let probe = match self.probe.take() {
            Some(probe) => probe,
            None => match open_to_read(path) {
                Ok(file) => MainFile::new(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Answer::Done),
                Err(error) => return Err(at("open", path)(error).into()),
            },
        };
        self.probe.insert(probe).lock_shared(path)?;
        self.probe = None;
        Ok(Answer::Done)
    }
}

/// Who holds WRITE in the wal-index; nobody if there is none.
fn write_lock_holder(paths: &Paths) -> Result<Option<Holder>, ClientError> {
    let shm = match open_to_read(&paths.shm) {
        Ok(shm) => shm,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("open", &paths.shm)(error)),
    };
    lock::holder(&shm, LockRange::WRITE).map_err(at("lock", &paths.shm))
}

/// Removes a database; the companions go first, since without it they would be files like any other.
fn remove_all(paths: &Paths) -> Result<(), ClientError> {
    [&paths.shm, &paths.wal, &paths.journal, &paths.main]
        .into_iter()
        .try_for_each(|path| remove(path))
}

fn make_parents(path: &Path) -> Result<(), ClientError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    std::fs::create_dir_all(parent).map_err(at("create directory", parent))
}

/// Renames a database and those of its companions that did not come along by themselves. Companions of a database that
/// is replaced go away first: they must not be taken for the new one's.
fn rename_all(from: &Paths, to: &Paths) -> Result<(), ClientError> {
    make_parents(&to.main)?;
    [&to.shm, &to.wal, &to.journal].into_iter().try_for_each(|path| remove(path))?;
    rename(&from.main, &to.main)?;
    for (from, to) in [(&from.wal, &to.wal), (&from.shm, &to.shm), (&from.journal, &to.journal)] {
        match std::fs::symlink_metadata(from) {
            Ok(_) => rename(from, to)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(error) => return Err(at("stat", from)(error)),
        }
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), ClientError> {
    rustix::fs::rename(from, to).map_err(|error| at("rename", from)(error.into()))
}
