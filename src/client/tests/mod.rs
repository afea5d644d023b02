//! The client against real SQLite processes, on a plain directory in the mount's place.
//!
//! Changes come from a database in another directory that SQLite writes: its pages before and after are compared.
//! Other connections are `sqlite3` processes, which are another version of SQLite, too.

mod descriptors;
mod fuse;
mod modes;
mod recovery;
mod wal_mode;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Change, ClientError, FileState, Pool, Timing, WalState};
use crate::sqlite::DatabaseHeader;
use crate::types::{DbId, DbName, PageNo};

const DB: DbId = DbId::new(7);

fn name() -> DbName {
    DbName::new(b"sub/x.db").unwrap()
}

/// A directory as the mount (or a real mount, see `fuse`), and a client of it.
struct Node {
    pool: Arc<Pool>,
    /// Before the directory: it is unmounted first.
    served: Option<fuse::Served>,
    mount: TempDir,
}

impl Node {
    fn new() -> Self {
        Self::with(Timing { lock_wait: Duration::from_secs(10), idle: Duration::from_secs(60) })
    }

    fn impatient() -> Self {
        Self::with(Timing { lock_wait: Duration::from_millis(50), idle: Duration::from_secs(60) })
    }

    fn with(timing: Timing) -> Self {
        let mount = tempfile::tempdir().unwrap();
        let pool = Arc::new(Pool::start_with(mount.path().to_owned(), 2, timing).unwrap());
        let served = fuse::serve_if_asked(mount.path(), &pool);
        Self { pool, served, mount }
    }

    fn path(&self) -> PathBuf {
        self.mount.path().join("sub/x.db")
    }

    fn companion(&self, suffix: &str) -> PathBuf {
        self.mount.path().join(format!("sub/x.db{suffix}"))
    }

    fn apply(&self, change: Change) -> FileState {
        self.pool.apply(DB, name(), change).unwrap()
    }

    fn fence(&self) -> FileState {
        self.pool.fence(DB, name()).unwrap()
    }

    fn shell(&self) -> Shell {
        Shell::open(&self.path())
    }

    /// The bytes of the file, once nothing has it open.
    fn bytes(&self) -> Vec<u8> {
        self.pool.detach(DB).unwrap();
        assert!(!self.companion("-wal").exists(), "the WAL is gone");
        std::fs::read(self.path()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.pool.stop();
        drop(self.served.take());
    }
}

fn wal(state: FileState) -> WalState {
    match state {
        FileState::Wal(state) => state,
        FileState::Main => panic!("not in WAL mode"),
    }
}

/// A database whose changes are replicated.
struct Source {
    dir: TempDir,
    db: rusqlite::Connection,
    last: Vec<u8>,
}

impl Source {
    fn new(setup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = rusqlite::Connection::open(dir.path().join("x.db")).unwrap();
        db.execute_batch("pragma synchronous=off").unwrap();
        db.execute_batch(setup).unwrap();
        Self { dir, db, last: Vec::new() }
    }

    fn wal() -> Self {
        Self::new("pragma journal_mode=wal; create table t(k integer primary key, v);")
    }

    fn rollback() -> Self {
        Self::new("pragma journal_mode=delete; create table t(k integer primary key, v);")
    }

    fn run(&mut self, sql: &str) -> Change {
        self.db.execute_batch(sql).unwrap();
        self.change()
    }

    /// What changed since the last call.
    fn change(&mut self) -> Change {
        // In rollback mode this does nothing.
        self.db.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
        let now = std::fs::read(self.dir.path().join("x.db")).unwrap();
        let page_size = DatabaseHeader::parse(&now).unwrap().page_size;
        let old: Vec<&[u8]> = self.last.chunks_exact(page_size.bytes()).collect();
        let differs = |(n, page): &(usize, &[u8])| old.get(*n) != Some(page);
        let number = |n: usize| PageNo::new(u32::try_from(n).unwrap() + 1).unwrap();
        let pages = now.chunks_exact(page_size.bytes()).enumerate().filter(differs);
        let pages = pages
            .map(|(n, page)| (number(n), bytes::Bytes::copy_from_slice(page)))
            .collect::<Vec<_>>();
        let commit = u32::try_from(now.len() / page_size.bytes()).unwrap();
        self.last = now;
        Change { page_size, commit, pages: pages.into() }
    }

    fn query(&self, sql: &str) -> String {
        self.db.query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

/// A `sqlite3` process.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn open(path: &Path) -> Self {
        let mut child = Command::new("sqlite3")
            .args(["-batch", "-noheader"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the tests need the sqlite3 program");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output }
    }

    /// Runs SQL and returns what it prints. A statement that fails prints nothing; the next one runs all the same.
    fn run(&mut self, sql: &str) -> String {
        let lines = sql.replace("; ", ";\n");
        writeln!(self.input, "{lines}\n.print =end=").unwrap();
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "sqlite3 ended: {printed}");
            if line == "=end=\n" {
                return printed.trim_end().to_owned();
            }
            printed.push_str(&line);
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

fn assert_busy(result: Result<FileState, ClientError>) {
    match result {
        Err(ClientError::Busy { .. }) => (),
        other => panic!("expected busy, got {other:?}"),
    }
}

/// Tries until something holds, for ten seconds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::yield_now();
    }
}

/// A cheap source of numbers that repeats for a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % sides
    }
}
