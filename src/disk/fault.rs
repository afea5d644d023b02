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
//! | `CLASS.STEP` | that step on a file fails with EIO; `CLASS.STEP=ENOSPC` with ENOSPC |
//!
//! Classes are `log`, `sums`, `meta`, `main` (the database file), `wal`, `journal`; steps are `create`, `read`, `write`,
//! `half` (half of a write is done), `sync`, `truncate`, `rename`, `remove`, `dirsync`. Which of them exist is what
//! `tests/faults/matrix.rs` goes through.
//!
//! `WEIR_FAULT_BOOT` stands for the machine's boot: another value is another boot. `pause` waits where it is armed until
//! it is no more.
//!
//! With `WEIR_FAULT_CONTROL=FILE` the faults are what that file, once it exists, holds at the moment, so that a test can arm a running
//! daemon; every hit is noted in `FILE.hit`.

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
    if let Some(full) = armed::hit(place, "") {
        let number = if full || place == "log-append" { libc::ENOSPC } else { libc::EIO };
        return Err(io::Error::from_raw_os_error(number));
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
    Ok(())
}

/// Fails if this step on a file of this class is armed.
///
/// # Errors
/// The error to fail with.
#[inline]
pub fn step(class: &str, step: &str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(full) = armed::hit(class, step) {
        return Err(io::Error::from_raw_os_error(if full { libc::ENOSPC } else { libc::EIO }));
    }
    #[cfg(not(debug_assertions))]
    let _ = (class, step);
    Ok(())
}

/// Waits while the place is armed.
#[inline]
pub fn pause(place: &str) {
    #[cfg(debug_assertions)]
    while armed::hit(place, "").is_some() {
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// Kills the process whose request this thread serves if the place is armed.
#[inline]
pub fn kill_requester(place: &str) {
    #[cfg(debug_assertions)]
    if armed::hit(place, "").is_some() {
        armed::kill(armed::REQUEST_FROM.get());
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

/// Kills this process if the place is armed.
#[inline]
pub fn kill_daemon(place: &str) {
    #[cfg(debug_assertions)]
    if armed::hit(place, "").is_some() {
        armed::kill(std::process::id());
        std::thread::park();
    }
    #[cfg(not(debug_assertions))]
    let _ = place;
}

#[cfg(debug_assertions)]
mod armed {
    use std::cell::Cell;
    use std::ffi::OsString;
    use std::sync::LazyLock;

    use parking_lot::Mutex;
    use rustix::process::{Pid, Signal, kill_process};

    thread_local! {
        pub(super) static REQUEST_FROM: Cell<u32> = const { Cell::new(0) };
    }

    struct Fault {
        place: String,
        disk_is_full: bool,
        nth: u64,
        stays: bool,
        visits: u64,
    }

    #[derive(Default)]
    struct Faults {
        text: String,
        faults: Vec<Fault>,
    }

    static CONTROL: LazyLock<Option<OsString>> =
        LazyLock::new(|| std::env::var_os("WEIR_FAULT_CONTROL"));
    static FAULTS: LazyLock<Mutex<Faults>> = LazyLock::new(|| {
        let text = std::env::var("WEIR_FAULT").unwrap_or_default();
        Mutex::new(Faults { faults: parse(&text), text })
    });

    fn parse(text: &str) -> Vec<Fault> {
        text.trim()
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| {
                let (place, count) = part.split_once(':').unwrap_or((part, "1"));
                let (place, number) = place.split_once('=').unwrap_or((place, ""));
                let stays = count.ends_with('+');
                let nth = count.trim_end_matches('+').parse().unwrap_or(1);
                let disk_is_full = number == "ENOSPC";
                Fault { place: place.to_owned(), disk_is_full, nth, stays, visits: 0 }
            })
            .collect()
    }

    /// Whether a place is hit, and if so whether by a full disk.
    pub(super) fn hit(class: &str, step: &str) -> Option<bool> {
        let mut faults = FAULTS.lock();
        if let Some(control) = &*CONTROL
            && let Ok(text) = std::fs::read_to_string(control)
            && text != faults.text
        {
            faults.faults = parse(&text);
            faults.text = text;
        }
        let is_place = |place: &str| match place.split_once('.') {
            Some(parts) => parts == (class, step),
            None => step.is_empty() && place == class,
        };
        // Every fault of the place counts the visit, also when an earlier one is hit.
        let mut hit = None;
        for fault in faults.faults.iter_mut().filter(|fault| is_place(&fault.place)) {
            fault.visits += 1;
            if fault.visits == fault.nth || (fault.stays && fault.visits > fault.nth) {
                hit = Some(fault.disk_is_full);
            }
        }
        if let (Some(_), Some(control)) = (hit, &*CONTROL) {
            let mut path = control.clone();
            path.push(".hit");
            // For the test only; that it cannot be written shows there.
            std::fs::write(path, format!("{class}.{step}")).ok();
        }
        hit
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
            let faults = super::parse("a,b:3,log.write=ENOSPC:2+");
            let seen: Vec<_> =
                faults.iter().map(|f| (f.place.as_str(), f.nth, f.stays, f.disk_is_full)).collect();
            let expected = [("a", 1, false, false), ("b", 3, false, false)];
            assert_eq!(seen[..2], expected);
            assert_eq!(seen[2], ("log.write", 2, true, true));
        }
    }
}
