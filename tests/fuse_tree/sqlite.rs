//! SQLite on the mount: two processes, each journal mode; what it costs in requests; locks.

use std::path::Path;
use std::process::{Command, Stdio};

use weir::mount::{RequestCounts, RequestKind};

use crate::serve::{Served, has_program, shell};

#[test]
fn fuse_two_sqlite_processes_share_a_database() {
    let Some(served) = Served::start() else { return };
    if !has_program("sqlite3") {
        return;
    }
    for mode in ["wal", "delete", "truncate", "persist"] {
        let db = served.path(&format!("{mode}.db"));
        let db = db.to_str().unwrap();
        shell(
            served.dir.path(),
            &format!("sqlite3 '{db}' 'PRAGMA journal_mode={mode}; CREATE TABLE t(writer, n);'"),
        );
        let insert = |writer: u32| {
            let script: String =
                (0..50).map(|n| format!("INSERT INTO t VALUES({writer}, {n});")).collect();
            Command::new("sqlite3")
                .args(["-cmd", ".timeout 20000", db, &script])
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        for writer in [insert(1), insert(2)] {
            let output = writer.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{mode}: {said}");
        }
        let check = "SELECT count(*), count(DISTINCT writer) FROM t; PRAGMA integrity_check;";
        let found = shell(served.dir.path(), &format!("sqlite3 '{db}' '{check}'"));
        assert_eq!(found, "100|2\nok\n", "{mode}");
        let backing = served.backing(&format!("{mode}.db"));
        let found = shell(served.dir.path(), &format!("sqlite3 '{}' '{check}'", backing.display()));
        assert_eq!(found, "100|2\nok\n", "{mode}: the plain file");
    }
}

fn database(path: &Path, mode: &str) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.pragma_update(None, "journal_mode", mode).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(1, 'x'), (2, 'y');",
        )
        .unwrap();
    connection
}

/// Requests that a SELECT can cause. A child process of another test closes what it inherited, and the
/// kernel writes the shm back when it likes.
fn of_the_reader(sent: &RequestCounts) -> u64 {
    sent.total() - sent.of(RequestKind::Flush) - sent.of(RequestKind::Write)
}

#[test]
fn fuse_a_repeated_select_sends_no_request() {
    let Some(served) = Served::start() else { return };
    for mode in ["wal", "delete"] {
        let path = served.path(&format!("{mode}.db"));
        let writer = database(&path, mode);
        let reader = rusqlite::Connection::open(&path).unwrap();
        let mut select = reader.prepare("SELECT v FROM t WHERE id = ?1").unwrap();
        let mut read = || -> String { select.query_row([1], |row| row.get(0)).unwrap() };
        for _ in 0..3 {
            read();
        }
        let before = served.mount().requests();
        for _ in 0..1000 {
            read();
        }
        let sent = served.mount().requests().since(&before);
        assert_eq!(of_the_reader(&sent), 0, "{mode}: {sent:?}");
        // After a write of another connection the reader pays once.
        writer.execute("UPDATE t SET v = 'z' WHERE id = 1", []).unwrap();
        let before = served.mount().requests();
        for _ in 0..1000 {
            assert_eq!(read(), "z");
        }
        let sent = served.mount().requests().since(&before);
        println!("{mode}: 1000 SELECTs after a write: {sent:?}");
        assert!(of_the_reader(&sent) <= 4, "{mode}: {sent:?}");
    }
}

#[test]
fn fuse_what_a_transaction_costs_in_requests() {
    let Some(served) = Served::start() else { return };
    for (mode, synchronous) in
        [("wal", "normal"), ("wal", "full"), ("delete", "full"), ("persist", "full")]
    {
        let path = served.path(&format!("{mode}-{synchronous}.db"));
        let connection = database(&path, mode);
        connection.pragma_update(None, "synchronous", synchronous).unwrap();
        connection.execute("UPDATE t SET v = v || 'a'", []).unwrap();
        let before = served.mount().requests();
        for _ in 0..100 {
            connection.execute("UPDATE t SET v = v || 'a' WHERE id = 1", []).unwrap();
        }
        let sent = served.mount().requests().since(&before);
        println!("{mode} {synchronous}, 100 transactions: {sent:?}");
        if mode == "wal" {
            // A frame's header and page are two writes; the kernel splits the page where it crosses a page
            // of its cache that was never read.
            // (A child process of another test closes what it inherited, which writes the shm back, and makes the
            // daemon open the files to see who holds the write lock.)
            assert_eq!(sent.of(RequestKind::Getxattr), 0, "{sent:?}");
            assert!(sent.of(RequestKind::Getattr) <= sent.of(RequestKind::Open), "{sent:?}");
            assert!(sent.of(RequestKind::Write) <= 330, "{sent:?}");
        }
    }
}
