//! `weir demo` and `weir bench` as a user runs them: they end well, and leave nothing behind.
//!
//! Real mounts, a minute at most; whatever hangs is killed with its whole process group, and the test fails.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than any of it takes, also on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A run of this program whose output is read line by line.
struct Run {
    child: Child,
    lines: Receiver<String>,
    seen: String,
    dir: tempfile::TempDir,
}

impl Run {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(arguments)
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = sender.clone();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|l| errors.send(l))
        });
        Self { child, lines, seen: String::new(), dir }
    }

    /// Waits for a line with `text`.
    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen += &format!("{line}\n"),
                Err(_) => panic!("no {text:?} came, but:\n{}", self.seen),
            }
        }
    }

    /// Waits for the end, and looks for what is left.
    fn finish(mut self) -> (ExitStatus, String) {
        // Both pipes are at their end once the last line was read: nothing that was started holds them.
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.seen += &format!("{line}\n");
        }
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.seen);
            std::thread::park_timeout(Duration::from_millis(10));
        };
        let directory = self.dir.path();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(directory.to_str().unwrap()), "mounts are left:\n{}", self.seen);
        assert_eq!(processes(directory), Vec::<String>::new(), "processes are left");
        let left: Vec<_> = fs::read_dir(directory).unwrap().collect();
        assert!(left.is_empty(), "{left:?} is left:\n{}", self.seen);
        (status, std::mem::take(&mut self.seen))
    }
}

impl Drop for Run {
    /// A test that failed leaves no daemons to those that follow.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _told = kill_process(Pid::from_child(&self.child), Signal::INT);
        let end = Instant::now() + Duration::from_secs(40);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Processes that name a directory in their arguments.
fn processes(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok()))
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(directory))
        .collect()
}

#[test]
fn fuse_the_demo_ends_with_equal_bytes_and_leaves_nothing() {
    let (status, text) = Run::start(&["demo"]).finish();
    assert!(status.success(), "{text}");
    for needle in [
        "Three nodes on this machine",
        "Replica c was killed with -9",
        "a, b and c hold the same bytes",
        "The nodes are stopped, unmounted and removed.",
    ] {
        assert!(text.contains(needle), "no {needle:?} in:\n{text}");
    }
}

#[test]
fn fuse_an_interrupted_demo_leaves_nothing() {
    // While the nodes start, while they are written to, and by the other signal.
    let moments =
        [("", Signal::INT), ("1. Unmodified", Signal::INT), ("3. Throughput", Signal::TERM)];
    for (line, signal) in moments {
        let mut run = Run::start(&["demo"]);
        let end = Instant::now() + PATIENCE;
        while line.is_empty() && processes(run.dir.path()).len() < 2 {
            assert!(Instant::now() < end, "no node starts:\n{}", run.seen);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        run.wait_for(line);
        kill_process(Pid::from_child(&run.child), signal).unwrap();
        let (status, text) = run.finish();
        assert!(!status.success(), "at {line:?}: {text}");
        assert!(text.contains("interrupted"), "at {line:?}: {text}");
        assert!(!text.contains("The nodes are stopped"), "at {line:?}, it ran to its end: {text}");
    }
}

#[test]
fn fuse_a_bench_measures_everything_and_leaves_nothing() {
    let (status, text) = Run::start(&["bench", "--smoke", "--json"]).finish();
    assert!(status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect(&text);
    for needle in [
        "INSERT",
        "SELECT",
        "UPDATE",
        "bulk load, 2 MB",
        "commit, 10 MB and 20 MB database",
        "lag at 500 tx/s",
        "memory, 5 idle databases, replica",
    ] {
        assert!(report.to_string().contains(needle), "no {needle:?} in:\n{text}");
    }
}
