//! Threads for requests that must wait: for a disk, a replica, or work that goes through the mount.
//!
//! A request that waits here has left its FUSE thread, which goes on serving. Threads start on demand, up
//! to a bound, and end when idle; beyond the bound requests queue, each holding only its own reply.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::error;

/// Most requests that wait at one time. One thread costs about 20 KB while it waits.
const THREADS_MAX: usize = 64;

/// How long a thread waits for the next request before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    threads_idle: usize,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    has_job: Condvar,
    has_ended: Condvar,
}

/// The pool of waiting requests.
#[derive(Clone, Default)]
pub(super) struct Workers {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queue = self.shared.queue.lock();
        f.debug_struct("Workers")
            .field("threads", &queue.threads)
            .field("queued", &queue.jobs.len())
            .finish()
    }
}

impl Workers {
    /// Runs a request elsewhere. It is dropped unanswered, which means EIO, if no thread can be had.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(Box::new(job));
        if queue.threads_idle >= queue.jobs.len() || queue.threads >= THREADS_MAX {
            self.shared.has_job.notify_one();
            return;
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.shared);
        let spawned =
            std::thread::Builder::new().name("weir-wait".to_owned()).spawn(move || shared.work());
        if let Err(error) = spawned {
            let mut queue = self.shared.queue.lock();
            queue.threads -= 1;
            if queue.threads == 0 {
                error!(%error, "start thread for a waiting request");
                let unanswered = std::mem::take(&mut queue.jobs);
                drop(queue);
                drop(unanswered);
            }
        }
    }

    /// Lets the queued requests finish and the threads end, for at most `timeout`.
    pub(super) fn close(&self, timeout: Duration) {
        let mut queue = self.shared.queue.lock();
        queue.is_closed = true;
        self.shared.has_job.notify_all();
        while queue.threads > 0 {
            if self.shared.has_ended.wait_for(&mut queue, timeout).timed_out() {
                return;
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    error!("BUG: a request panicked; it was answered with EIO");
                }
                queue = self.queue.lock();
                continue;
            }
            if queue.is_closed {
                break;
            }
            queue.threads_idle += 1;
            let waited = self.has_job.wait_for(&mut queue, IDLE);
            queue.threads_idle -= 1;
            if waited.timed_out() && queue.jobs.is_empty() {
                break;
            }
        }
        queue.threads -= 1;
        self.has_ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn requests_beyond_the_bound_wait_for_a_thread() {
        let workers = Workers::default();
        let (gate, opened) = mpsc::channel::<()>();
        let opened = Arc::new(Mutex::new(opened));
        let (done, results) = mpsc::channel();
        for n in 0..THREADS_MAX + 10 {
            let (opened, done) = (Arc::clone(&opened), done.clone());
            workers.run(move || {
                opened.lock().recv().unwrap();
                done.send(n).unwrap();
            });
        }
        assert!(workers.shared.queue.lock().threads <= THREADS_MAX);
        for _ in 0..THREADS_MAX + 10 {
            gate.send(()).unwrap();
        }
        let mut seen: Vec<_> = results.iter().take(THREADS_MAX + 10).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..THREADS_MAX + 10).collect::<Vec<_>>());
        workers.close(Duration::from_secs(10));
        assert_eq!(workers.shared.queue.lock().threads, 0);
    }

    #[test]
    fn a_panicking_request_does_not_end_the_pool() {
        let workers = Workers::default();
        workers.run(|| panic!("on purpose"));
        let (done, result) = mpsc::channel();
        workers.run(move || done.send(1).unwrap());
        assert_eq!(result.recv_timeout(Duration::from_secs(10)), Ok(1));
    }
}
