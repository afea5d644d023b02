//! A lane: one thread that works through the requests of its databases, in order for each of them.
//!
//! # Why a lane has its own table of descriptors
//! A request on a file under the mount is answered by this very process. When the process is killed while a lane is
//! inside such a request, or closes such a file, the kernel must be able to tear down the threads that answer, and with
//! them `/dev/fuse`, *without* waiting for the lane. With one shared table that is a deadlock: the table is closed by
//! the last thread to go, and that is the lane, which waits for an answer from `/dev/fuse`, which is in the table. So a
//! lane unshares the table first of all and closes its copy of everything but 0 to 2.
//!
//! For the same reason nothing under the mount is ever mapped into this process's memory (see [`super::index`]).
//!
//! What follows from that: a lane may use only descriptors that it opened itself. No file, socket or runtime from
//! elsewhere comes near it, and nothing that wakes a task through a descriptor (tokio). Requests and answers are memory,
//! and are waited for with futexes. It does not log.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use super::api::{Answer, ClientError, Request};
use super::files::Stop;
use super::pool::Timing;
use super::slot::Slot;
use crate::types::DbId;

const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// What comes through a lane's channel.
#[derive(Debug)]
pub(super) enum Message {
    /// Do something, and answer.
    Call(DbId, Job),
    /// Close everything and end.
    Stop,
}

/// A request with the way back.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: Request,
    answer: SyncSender<Result<Answer, ClientError>>,
    /// Set when the request is first tried.
    deadline: Option<Instant>,
}

impl Job {
    pub(super) fn new(request: Request, answer: SyncSender<Result<Answer, ClientError>>) -> Self {
        Self { request, answer, deadline: None }
    }
}

#[derive(Debug)]
struct Lane {
    mount: PathBuf,
    timing: Timing,
    slots: HashMap<DbId, Slot>,
    /// Databases whose first job waits for a lock.
    waiting: Vec<DbId>,
    /// Databases that may have an open session that nobody uses.
    maybe_idle: Vec<DbId>,
    swept: Instant,
}

/// The body of a lane's thread. Reports its thread id, or why it cannot work, then serves until told to stop.
pub(super) fn run(
    mount: PathBuf,
    timing: Timing,
    messages: &Receiver<Message>,
    started: &Sender<std::io::Result<u32>>,
) {
    let prepared = leave_descriptors_behind().map(|()| thread_id());
    let failed = prepared.is_err();
    if started.send(prepared).is_err() || failed {
        return;
    }
    let swept = Instant::now();
    let (slots, waiting, maybe_idle) = (HashMap::new(), Vec::new(), Vec::new());
    let mut lane = Lane { mount, timing, slots, waiting, maybe_idle, swept };
    lane.serve(messages);
}

/// Gives this thread a table of descriptors of its own, with nothing in it but 0 to 2.
fn leave_descriptors_behind() -> std::io::Result<()> {
    // SAFETY: CLONE_FILES changes nothing but which table this thread uses.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the table is this thread's own since the call above, and this thread owns no descriptor yet, so what is
    // closed here is a copy that no value refers to from this thread.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// The number by which the kernel names this thread in requests to the mount.
fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

impl Lane {
    fn serve(&mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.next_wake() {
                Some(wake) => messages.recv_timeout(wake.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Call(db, job)) => {
                    let slot = self.slots.entry(db).or_insert_with(Slot::new);
                    slot.jobs.push_back(job);
                    if slot.retry.is_none() {
                        self.work(db);
                    }
                }
                Err(RecvTimeoutError::Timeout) => (),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.retry_due();
            self.close_idle();
        }
        self.slots.drain().for_each(|(_, slot)| slot.close());
    }

    /// When to look again without a message: at the next retry, or when a session may have become idle.
    fn next_wake(&self) -> Option<Instant> {
        let retries = self.waiting.iter().filter_map(|db| self.slots.get(db)?.retry);
        let retry = retries.map(|(when, _)| when).min();
        let sweep = (!self.maybe_idle.is_empty()).then(|| self.swept + self.timing.idle / 2);
        [retry, sweep].into_iter().flatten().min()
    }

    fn retry_due(&mut self) {
        let now = Instant::now();
        for db in std::mem::take(&mut self.waiting) {
            match self.slots.get(&db).and_then(|slot| slot.retry) {
                Some((when, _)) if when <= now => self.work(db),
                Some(_) => self.waiting.push(db),
                None => (),
            }
        }
    }

    fn close_idle(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.swept) < self.timing.idle / 2 {
            return;
        }
        self.swept = now;
        for db in std::mem::take(&mut self.maybe_idle) {
            let Some(slot) = self.slots.get(&db) else { continue };
            if now.saturating_duration_since(slot.used) < self.timing.idle || !slot.is_quiet() {
                self.maybe_idle.push(db);
            } else if let Some(slot) = self.slots.remove(&db) {
                slot.close();
            }
        }
    }

    /// Works on a database until its queue is empty or its first request must wait.
    fn work(&mut self, db: DbId) {
        let Some(slot) = self.slots.get_mut(&db) else { return };
        while let Some(mut job) = slot.jobs.pop_front() {
            let now = Instant::now();
            let wait = match &job.request {
                Request::WaitUnlocked { timeout, .. } => *timeout,
                _ => self.timing.lock_wait,
            };
            let deadline = *job.deadline.get_or_insert(now + wait);
            let result = match slot.step(&self.mount, &job.request) {
                Ok(answer) => Ok(answer),
                Err(Stop::Blocked { .. }) if now < deadline => {
                    let pause = slot.retry.map_or(PAUSE_MIN, |(_, pause)| pause);
                    slot.retry = Some((now + pause, (pause * 2).min(PAUSE_MAX)));
                    slot.jobs.push_front(job);
                    self.waiting.push(db);
                    return;
                }
                Err(Stop::Blocked { lock, holder }) => {
                    let path = job.request.name().map(|name| self.mount.join(name.as_path()));
                    let path = path.unwrap_or_else(|| self.mount.clone());
                    Err(ClientError::Busy { path, lock, holder })
                }
                Err(Stop::Failed(error)) => Err(error),
            };
            slot.end_of_request(result.is_err());
            // Who asked may have gone.
            let _sent = job.answer.send(result);
        }
        if slot.is_empty() {
            self.slots.remove(&db);
        } else if !slot.is_fenced() && !self.maybe_idle.contains(&db) {
            self.maybe_idle.push(db);
        }
    }
}
