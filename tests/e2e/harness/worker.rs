//! A process of its own with the bundled SQLite: this test binary, running only `worker_entry`.
//! Requests and answers are lines of JSON; lines of the worker start with `@`, because the test
//! runner of that process prints lines too.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde::{Deserialize, Serialize};

use super::PATIENCE;

const VARIABLE: &str = "WEIR_E2E_WORKER";

#[derive(Serialize, Deserialize)]
enum Request {
    Open {
        connection: u32,
        path: String,
    },
    Close {
        connection: u32,
    },
    /// Runs all statements; answers the rows of the last.
    Run {
        connection: u32,
        sql: String,
    },
    /// Runs one statement again and again with ?1 = first, first + 1, … and acknowledges each.
    Count {
        connection: u32,
        sql: String,
        first: i64,
        count: i64,
    },
    /// Runs the random workload of `model`.
    Model {
        path: String,
        seed: u64,
        steps: u32,
    },
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Rows(Vec<Vec<String>>),
    Error { code: i32, message: String },
    Ack(i64),
}

/// What SQLite answered instead of rows: the extended code and the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SqlError {
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl SqlError {
    /// The primary code, such as `rusqlite::ffi::SQLITE_BUSY`.
    pub(crate) fn primary(&self) -> i32 {
        self.code & 0xff
    }
}

/// The process. Dropping it closes its connections, as an orderly end does.
pub(crate) struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: Receiver<Answer>,
}

/// Acknowledgements of a counting worker, read while it runs.
pub(crate) struct Acks {
    worker: Worker,
    /// The numbers whose statement returned success.
    pub(crate) acked: Vec<i64>,
    /// Why it stopped before the end, if it did.
    pub(crate) error: Option<SqlError>,
    done: bool,
}

impl Worker {
    pub(crate) fn spawn() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["harness::worker::worker_entry", "--exact", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let requests = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(json) = line.strip_prefix('@')
                    && sender.send(serde_json::from_str(json).unwrap()).is_err()
                {
                    return;
                }
            }
        });
        Self { child, requests, answers }
    }

    /// A process with connection 0 on `path`, which waits 10 s for locks.
    pub(crate) fn on(path: &Path) -> Self {
        let mut worker = Self::spawn();
        worker.open(0, path).unwrap();
        worker
    }

    pub(crate) fn open(&mut self, connection: u32, path: &Path) -> Result<(), SqlError> {
        let path = path.to_str().unwrap().to_owned();
        self.ask(&Request::Open { connection, path }).map(drop)
    }

    pub(crate) fn close(&mut self, connection: u32) {
        self.ask(&Request::Close { connection }).unwrap();
    }

    /// Runs statements on a connection; the rows of the last one, as text.
    pub(crate) fn run_on(
        &mut self,
        connection: u32,
        sql: &str,
    ) -> Result<Vec<Vec<String>>, SqlError> {
        self.ask(&Request::Run { connection, sql: sql.to_owned() })
    }

    /// Runs statements on connection 0.
    pub(crate) fn run(&mut self, sql: &str) -> Result<Vec<Vec<String>>, SqlError> {
        self.run_on(0, sql)
    }

    /// Runs statements on connection 0, which must succeed.
    pub(crate) fn ok(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.run(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The single value of a query on connection 0, which must succeed.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        self.ok(sql).into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_default()
    }

    /// Starts a statement with ?1 = `first`… on connection 0, `count` times.
    pub(crate) fn count(mut self, sql: &str, first: i64, count: i64) -> Acks {
        self.send(&Request::Count { connection: 0, sql: sql.to_owned(), first, count });
        Acks { worker: self, acked: Vec::new(), error: None, done: false }
    }

    /// Starts the random workload; wait for it with [`Worker::finish`].
    pub(crate) fn start_model(&mut self, path: &Path, seed: u64, steps: u32) {
        let path = path.to_str().unwrap().to_owned();
        self.send(&Request::Model { path, seed, steps });
    }

    /// Waits for the answer of something that was started.
    pub(crate) fn finish(&mut self, patience: Duration) -> Result<Vec<Vec<String>>, SqlError> {
        match self.answers.recv_timeout(patience) {
            Ok(Answer::Rows(rows)) => Ok(rows),
            Ok(Answer::Error { code, message }) => Err(SqlError { code, message }),
            Ok(Answer::Ack(_)) => panic!("an acknowledgement nobody asked for"),
            Err(RecvTimeoutError::Timeout) => panic!("the worker does not answer"),
            Err(RecvTimeoutError::Disconnected) => panic!("the worker died"),
        }
    }

    /// Sends statements without waiting; the answer is fetched by [`Worker::finish`].
    pub(crate) fn start(&mut self, sql: &str) {
        self.send(&Request::Run { connection: 0, sql: sql.to_owned() });
    }

    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn send(&mut self, request: &Request) {
        let mut line = serde_json::to_string(request).unwrap();
        line.push('\n');
        let requests = self.requests.as_mut().unwrap();
        requests.write_all(line.as_bytes()).expect("the worker lives");
    }

    fn ask(&mut self, request: &Request) -> Result<Vec<Vec<String>>, SqlError> {
        self.send(request);
        self.finish(PATIENCE)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its input makes it close its connections and exit.
        drop(self.requests.take());
        let start = std::time::Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(5) || std::thread::panicking() {
                let killed = self.child.kill();
                let waited = self.child.wait();
                drop((killed, waited));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Acks {
    /// Reads acknowledgements until `count` have come or the worker stopped.
    pub(crate) fn wait(&mut self, count: usize) {
        while !self.done && self.acked.len() < count {
            match self.worker.answers.recv_timeout(PATIENCE) {
                Ok(answer) => self.take(answer),
                Err(RecvTimeoutError::Timeout) => panic!("no acknowledgement in {PATIENCE:?}"),
                Err(RecvTimeoutError::Disconnected) => self.done = true,
            }
        }
    }

    /// Reads everything that the worker said until it stops by itself.
    pub(crate) fn finish(&mut self) {
        self.wait(usize::MAX);
    }

    /// Kills the worker; everything it acknowledged before that is in `acked`.
    pub(crate) fn kill9(&mut self) {
        self.worker.kill9();
        while let Ok(answer) = self.worker.answers.recv_timeout(PATIENCE) {
            self.take(answer);
        }
        self.done = true;
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Ack(number) => self.acked.push(number),
            Answer::Rows(_) => self.done = true,
            Answer::Error { code, message } => {
                self.error = Some(SqlError { code, message });
                self.done = true;
            }
        }
    }
}

// ---- inside the process ----

/// Not a test: the body of a worker process. Returns at once in an ordinary run.
#[test]
fn worker_entry() {
    if std::env::var_os(VARIABLE).is_none() {
        return;
    }
    println!();
    let mut connections = HashMap::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let request = serde_json::from_str(&line).unwrap();
        let answer = match serve(&mut connections, request) {
            Ok(rows) => Answer::Rows(rows),
            Err(error) => describe(&error),
        };
        say(&answer);
    }
    connections.clear();
    std::process::exit(0);
}

fn say(answer: &Answer) {
    println!("@{}", serde_json::to_string(answer).unwrap());
}

fn describe(error: &rusqlite::Error) -> Answer {
    let code = error.sqlite_error().map_or(-1, |inner| inner.extended_code);
    Answer::Error { code, message: error.to_string() }
}

fn serve(
    connections: &mut HashMap<u32, Connection>,
    request: Request,
) -> rusqlite::Result<Vec<Vec<String>>> {
    match request {
        Request::Open { connection, path } => {
            let db = Connection::open(path)?;
            db.busy_timeout(Duration::from_secs(10))?;
            connections.insert(connection, db);
            Ok(Vec::new())
        }
        Request::Close { connection } => {
            connections.remove(&connection);
            Ok(Vec::new())
        }
        Request::Run { connection, sql } => rows_of_last(&connections[&connection], &sql),
        Request::Count { connection, sql, first, count } => {
            let db = &connections[&connection];
            let mut statement = db.prepare(&sql)?;
            for number in first..first + count {
                statement.query([number])?.next()?;
                say(&Answer::Ack(number));
            }
            Ok(Vec::new())
        }
        Request::Model { path, seed, steps } => {
            crate::model::workload(Path::new(&path), seed, steps)?;
            Ok(Vec::new())
        }
    }
}

fn rows_of_last(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<String>>> {
    let mut result = Vec::new();
    let mut batch = rusqlite::Batch::new(db, sql);
    while let Some(mut statement) = rusqlite::fallible_iterator::FallibleIterator::next(&mut batch)?
    {
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        result.clear();
        while let Some(row) = rows.next()? {
            let texts = (0..columns).map(|column| text(row.get_ref_unwrap(column)));
            result.push(texts.collect());
        }
    }
    Ok(result)
}

fn text(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
    }
}
