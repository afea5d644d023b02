//! An application: a process of its own that inserts rows with the bundled SQLite, one transaction each,
//! and says which of them were acknowledged. It is this test binary, running only `body`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use super::PATIENCE;

const VARIABLE: &str = "WEIR_FAULTS_WRITER";

/// What a writer does.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Before the first insert.
    pub(crate) pragmas: String,
    /// First key.
    pub(crate) first: i64,
    /// Number of rows.
    pub(crate) count: i64,
    /// Bytes per row.
    pub(crate) bytes: u32,
    /// Goes on with the next key after an error.
    pub(crate) goes_on: bool,
}

impl Plan {
    /// Rows from `first` on in a journal mode until somebody stops it.
    pub(crate) fn endless(mode: &str, synchronous: &str, first: i64) -> Self {
        let pragmas = format!("PRAGMA journal_mode={mode}; PRAGMA synchronous={synchronous};");
        Self { pragmas, first, count: i64::MAX - first, bytes: 200, goes_on: false }
    }
}

#[derive(Serialize, Deserialize)]
enum Line {
    Acked(i64),
    Failed { key: i64, code: i32, message: String },
    Done,
}

/// The process.
pub(crate) struct Writer {
    child: Child,
    lines: Receiver<Line>,
    /// Keys whose insert returned success.
    pub(crate) acked: Vec<i64>,
    /// Keys whose insert failed, with the extended code and the text.
    pub(crate) failed: Vec<(i64, i32, String)>,
    is_over: bool,
}

impl Writer {
    /// Starts a process that writes into `path`.
    pub(crate) fn start(path: &Path, plan: &Plan) -> Self {
        let plan = serde_json::to_string(&(path, plan)).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["harness::writer::body", "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, plan)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // A killed writer may leave half a line.
                if let Some(json) = line.strip_prefix('@')
                    && let Ok(line) = serde_json::from_str(json)
                    && sender.send(line).is_err()
                {
                    return;
                }
            }
        });
        Self { child, lines, acked: Vec::new(), failed: Vec::new(), is_over: false }
    }

    /// Waits until `count` more inserts are acknowledged, or the writer has stopped.
    pub(crate) fn wait(&mut self, count: usize) {
        let wanted = self.acked.len().saturating_add(count);
        while !self.is_over && self.acked.len() < wanted {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.take(line),
                Err(RecvTimeoutError::Timeout) => panic!("the writer hangs"),
                Err(RecvTimeoutError::Disconnected) => self.is_over = true,
            }
        }
    }

    /// Waits until the writer ends.
    pub(crate) fn finish(&mut self) {
        self.wait(usize::MAX);
        self.child.wait().unwrap();
    }

    /// Kills the process; everything that it acknowledged is in `acked` then.
    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        super::until("a killed writer is gone", || self.child.try_wait().unwrap());
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
            self.take(line);
        }
        self.is_over = true;
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Acked(key) => self.acked.push(key),
            Line::Failed { key, code, message } => self.failed.push((key, code, message)),
            Line::Done => self.is_over = true,
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Not a test: the body of a writer's process. Returns at once in an ordinary run.
#[test]
fn body() {
    let Ok(plan) = std::env::var(VARIABLE) else { return };
    println!();
    let (path, plan): (std::path::PathBuf, Plan) = serde_json::from_str(&plan).unwrap();
    if let Err(error) = write(&path, &plan) {
        say_failed(-1, &error);
    }
    say(&Line::Done);
}

fn write(path: &Path, plan: &Plan) -> rusqlite::Result<()> {
    let db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.execute_batch(&plan.pragmas)?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)")?;
    let mut insert = db.prepare("INSERT INTO t VALUES (?1, randomblob(?2))")?;
    for key in plan.first..plan.first + plan.count {
        match insert.execute((key, plan.bytes)) {
            Ok(_) => say(&Line::Acked(key)),
            Err(error) => {
                say_failed(key, &error);
                if !plan.goes_on {
                    break;
                }
            }
        }
    }
    Ok(())
}

fn say_failed(key: i64, error: &rusqlite::Error) {
    let code = error.sqlite_error().map_or(-1, |inner| inner.extended_code);
    say(&Line::Failed { key, code, message: error.to_string() });
}

fn say(line: &Line) {
    println!("@{}", serde_json::to_string(line).unwrap());
}
