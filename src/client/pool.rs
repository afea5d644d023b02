//! The threads, and the way to them.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::Change;
use super::api::{Abandoned, Answer, ClientError, FileState, Request};
use super::lane::{self, Job, Message};
use super::lock::Holder;
use crate::types::{DbId, DbName};

/// How long lanes wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// For a lock that others hold, before [`ClientError::Busy`].
    pub lock_wait: Duration,
    /// Before the files of a database that is not fenced are closed.
    pub idle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lock_wait: Duration::from_secs(5), idle: Duration::from_secs(2) }
    }
}

#[derive(Debug)]
struct Lane {
    thread_id: u32,
    messages: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Threads that open, lock, map and write files through the mount.
#[derive(Debug)]
pub struct Pool {
    lanes: Vec<Lane>,
}

impl Pool {
    /// Starts the threads. They touch nothing under the mount before the first request.
    ///
    /// # Errors
    /// A thread could not be started, or not be given a table of descriptors of its own.
    pub fn start(mount: PathBuf, lanes: usize) -> io::Result<Self> {
        Self::start_with(mount, lanes, Timing::default())
    }

    /// Starts the threads with other waiting times.
    ///
    /// # Errors
    /// As for [`Pool::start`].
    pub fn start_with(mount: PathBuf, lanes: usize, timing: Timing) -> io::Result<Self> {
        let start = |number: usize| {
            let (messages, received) = channel();
            let (started, report) = channel();
            let mount = mount.clone();
            let thread = std::thread::Builder::new()
                .name(format!("weir-lane-{number}"))
                .spawn(move || lane::run(mount, timing, &received, &started))?;
            let thread_id = report.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
            Ok(Lane { thread_id, messages, thread: Mutex::new(Some(thread)) })
        };
        Ok(Self { lanes: (0..lanes.max(1)).map(start).collect::<io::Result<_>>()? })
    }

    /// Whether a thread, by the number the kernel gives in requests to the mount, is one of ours.
    #[must_use]
    pub fn is_lane(&self, thread_id: u32) -> bool {
        self.lanes.iter().any(|lane| lane.thread_id == thread_id)
    }

    #[cfg(test)]
    pub(super) fn lane_threads(&self) -> Vec<u32> {
        self.lanes.iter().map(|lane| lane.thread_id).collect()
    }

    /// Has a request carried out and waits for the answer. Requests about one database are carried out in order.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if a lock was not to be had in time; others as they say.
    pub fn call(&self, db: DbId, request: Request) -> Result<Answer, ClientError> {
        let lane = db.get() % self.lanes.len() as u64;
        let lane = usize::try_from(lane).expect("BUG: a lane's number is an index");
        let (answer, answered) = sync_channel(1);
        let job = Job::new(request, answer);
        let sent = self.lanes[lane].messages.send(Message::Call(db, job));
        sent.map_err(|_| ClientError::Stopped)?;
        answered.recv().map_err(|_| ClientError::Stopped)?
    }

    /// Closes all databases (as by [`Pool::detach`]) and ends the threads. Later calls fail with
    /// [`ClientError::Stopped`].
    pub fn stop(&self) {
        for lane in &self.lanes {
            // A lane that is gone is stopped.
            let _sent = lane.messages.send(Message::Stop);
        }
        for lane in &self.lanes {
            if let Some(thread) = lane.thread.lock().take() {
                // A lane that panicked has said so on standard error.
                let _joined = thread.join();
            }
        }
    }
}

/// The requests, one method each; errors are those of [`Pool::call`].
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
impl Pool {
    /// See [`Request::Fence`].
    pub fn fence(&self, db: DbId, name: DbName) -> Result<FileState, ClientError> {
        self.call_for_state(db, Request::Fence { name })
    }

    /// See [`Request::Unfence`].
    pub fn unfence(&self, db: DbId) -> Result<bool, ClientError> {
        self.call_for_closed(db, Request::Unfence)
    }

    /// See [`Request::Apply`].
    pub fn apply(&self, db: DbId, name: DbName, change: Change) -> Result<FileState, ClientError> {
        self.call_for_state(db, Request::Apply { name, change })
    }

    /// See [`Request::Checkpoint`].
    pub fn checkpoint(&self, db: DbId, name: DbName) -> Result<FileState, ClientError> {
        self.call_for_state(db, Request::Checkpoint { name })
    }

    /// See [`Request::Detach`]: whether the WAL is copied back and gone.
    pub fn detach(&self, db: DbId) -> Result<bool, ClientError> {
        self.call_for_closed(db, Request::Detach)
    }

    /// See [`Request::PublishAbandoned`]: whether there was something to make visible.
    pub fn publish_abandoned(
        &self,
        db: DbId,
        name: DbName,
        abandoned: Abandoned,
    ) -> Result<bool, ClientError> {
        match self.call(db, Request::PublishAbandoned { name, abandoned })? {
            Answer::Published(published) => Ok(published),
            other => unreachable!("BUG: {other:?} answers no publication"),
        }
    }

    /// See [`Request::WaitUnlocked`].
    pub fn wait_unlocked(
        &self,
        db: DbId,
        name: DbName,
        timeout: Duration,
    ) -> Result<(), ClientError> {
        self.call(db, Request::WaitUnlocked { name, timeout }).map(|_| ())
    }

    /// See [`Request::WriteLockHolder`].
    pub fn write_lock_holder(&self, db: DbId, name: DbName) -> Result<Option<Holder>, ClientError> {
        match self.call(db, Request::WriteLockHolder { name })? {
            Answer::Holder(holder) => Ok(holder),
            other => unreachable!("BUG: {other:?} names no holder"),
        }
    }

    /// See [`Request::Remove`].
    pub fn remove(&self, db: DbId, name: DbName) -> Result<(), ClientError> {
        self.call(db, Request::Remove { name }).map(|_| ())
    }

    /// See [`Request::MakeParents`].
    pub fn make_parents(&self, db: DbId, name: DbName) -> Result<(), ClientError> {
        self.call(db, Request::MakeParents { name }).map(|_| ())
    }

    /// See [`Request::Rename`].
    pub fn rename(&self, db: DbId, from: DbName, to: DbName) -> Result<(), ClientError> {
        self.call(db, Request::Rename { from, to }).map(|_| ())
    }

    fn call_for_state(&self, db: DbId, request: Request) -> Result<FileState, ClientError> {
        match self.call(db, request)? {
            Answer::State(state) => Ok(state),
            other => unreachable!("BUG: {other:?} is no state"),
        }
    }

    fn call_for_closed(&self, db: DbId, request: Request) -> Result<bool, ClientError> {
        match self.call(db, request)? {
            Answer::Closed { clean } => Ok(clean),
            other => unreachable!("BUG: {other:?} closes nothing"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}
