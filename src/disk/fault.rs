//! Named places where a test makes something go wrong. Debug builds only; in a release build they are nothing.
//!
//! `WEIR_FAULT=name:n` arms the place `name` for its `n`-th visit (`name` alone for the first), `name:n+` for that and
//! every later one; several are separated by commas. The places:
//!
//! | name | what happens there |
//! |---|---|
//! | `kill-writer` | a commit in the WAL is logged and written, not yet answered: its writer is killed with SIGKILL |
//! | `kill-daemon-logged` | a transaction is in the log, the write that completes it is not done: the daemon is killed |
//! | `kill-daemon-written` | that write is done, not yet answered: the daemon is killed |
//! | `log-append` | appending to the log fails with ENOSPC |
//! | `log-sync` | syncing the log fails with EIO |
//! | `wal-write` | the write that completes a commit in the WAL fails with EIO |

use std::io;

/// Remembers for this thread which thread's request it serves.
#[inline]
pub fn request_from(tid: u32) {
    #[cfg(debug_assertions)]
    armed::REQUEST_FROM.set(tid);
    #[cfg(not(debug_assertions))]
    let _ = tid;
}

/// Fails if the place is armed.
///
/// # Errors
/// The error to fail with.
#[inline]
pub fn fail(place: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    if armed::is_hit(place) {
        let number = if place == "log-append" { libc::ENOSPC } else { libc::EIO };
        return Err(io::Error::from_raw_os_error(number));
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
    Ok(())
}

/// Kills the process whose request this thread serves if the place is armed.
#[inline]
pub fn kill_requester(place: &str) {
    #[cfg(debug_assertions)]
    if armed::is_hit(place) {
        armed::kill(armed::REQUEST_FROM.get());
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// Kills this process if the place is armed.
#[inline]
pub fn kill_daemon(place: &str) {
    #[cfg(debug_assertions)]
    if armed::is_hit(place) {
        armed::kill(std::process::id());
        std::thread::park();
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

#[cfg(debug_assertions)]
mod armed {
    use std::cell::Cell;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Pid, Signal, kill_process};

    thread_local! {
        pub(super) static REQUEST_FROM: Cell<u32> = const { Cell::new(0) };
    }

    struct Fault {
        place: String,
        nth: u64,
        stays: bool,
        visits: AtomicU64,
    }

    static FAULTS: OnceLock<Vec<Fault>> = OnceLock::new();

    fn parse(text: &str) -> Vec<Fault> {
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (place, count) = part.split_once(':').unwrap_or((part, "1"));
                let stays = count.ends_with('+');
                let nth = count.trim_end_matches('+').parse().unwrap_or(1);
                Fault { place: place.to_owned(), nth, stays, visits: AtomicU64::new(0) }
            })
            .collect()
    }

    pub(super) fn is_hit(place: &str) -> bool {
        let faults = FAULTS.get_or_init(|| parse(&std::env::var("WEIR_FAULT").unwrap_or_default()));
        // Every fault of the place counts the visit, also when an earlier one is hit.
        faults.iter().filter(|fault| fault.place == place).fold(false, |hit, fault| {
            let visit = fault.visits.fetch_add(1, Ordering::Relaxed) + 1;
            hit | (visit == fault.nth || (fault.stays && visit > fault.nth))
        })
    }

    pub(super) fn kill(pid: u32) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // The process may be gone already; then there is nothing to do.
            kill_process(pid, Signal::KILL).ok();
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn faults_are_parsed() {
            let faults = super::parse("a,b:3,c:2+");
            let seen: Vec<_> = faults.iter().map(|f| (f.place.as_str(), f.nth, f.stays)).collect();
            assert_eq!(seen, [("a", 1, false), ("b", 3, false), ("c", 2, true)]);
        }
    }
}
