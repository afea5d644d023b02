//! `weir import`: brings a database file under the mount of a running node.
//!
//! Runs as an ordinary client of the mount, so the daemon captures one transaction: a new database is written
//! under a temporary name and renamed into place, an existing one is replaced by SQLite's backup interface.

use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::export::{database_name, with_suffix};
use super::{Global, output};
use crate::config::Config;
use crate::node::admin::Client;
use crate::sqlite::DatabaseHeader;
use crate::types::DbName;

const EXAMPLES: &str = "\
Examples:
  weir import ./app.db app.db                on the primary; a new database
  weir import ./app.db tenants/7.db
  weir import ./app.db app.db --force        replace all content in one transaction

FILE is checked with PRAGMA integrity_check first; a WAL beside it counts.
Connections that have DB open go on and see the new content.";

/// Pages that one step copies.
const STEP_PAGES: i32 = 1024;

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The SQLite database to bring in
    file: PathBuf,
    /// Its name from now on, as a path below the mount point
    db: OsString,
    /// Replace the content of DB if it exists
    #[arg(short, long)]
    force: bool,
    /// Seconds to wait for other writers of DB
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    busy_timeout: u16,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let name = database_name(&config, &args.db)?;
    let mut client = Client::connect(&config.node.data)?;
    let status = client.status()?;
    if status.role != "primary" {
        let primary = match &status.primary {
            Some(primary) => format!("import on the primary, {primary}"),
            None => "import on the primary; none is known now".to_owned(),
        };
        bail!("node {} is a replica and takes no writes; {primary}", status.node.name);
    }
    let source = open_source(&args.file)?;
    let target = status.node.mount.join(name.as_path());
    let wait = Duration::from_secs(args.busy_timeout.into());
    let pages = match fs::symlink_metadata(&target) {
        Ok(found) if !found.is_file() => bail!("{} is not a regular file", target.display()),
        Ok(found) if found.len() > 0 && !has_header(&target) => {
            bail!(
                "{name} is there and is no SQLite database; remove it first, or choose another name"
            )
        }
        Ok(found) if found.len() > 0 && !args.force => {
            bail!("{name} exists; --force replaces its content")
        }
        Ok(_) => replace(&source, &target, wait).with_context(|| format!("replace {name}"))?,
        Err(_) => create(&source, &target, wait).with_context(|| format!("create {name}"))?,
    };
    output::print(&format!(
        "imported {} as {name} ({pages} pages){}\n",
        args.file.display(),
        position(&config, &name)
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a file begins as a SQLite database does.
fn has_header(path: &Path) -> bool {
    let mut first = [0; DatabaseHeader::MAGIC.len()];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut first));
    read.is_ok() && first == *DatabaseHeader::MAGIC
}

/// Opens the source without changing it, and checks it.
fn open_source(file: &Path) -> anyhow::Result<Connection> {
    let found = fs::metadata(file).with_context(|| format!("read {}", file.display()))?;
    if !found.is_file() {
        bail!("{} is not a regular file", file.display());
    }
    if found.len() == 0 {
        bail!("{} is empty: no SQLite database", file.display());
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(file, flags)
        .with_context(|| format!("open {}", file.display()))?;
    let connection = match check(&connection, file) {
        Ok(()) => connection,
        // A WAL-mode file in a directory that cannot be written, without a WAL: nobody writes it.
        Err(error)
            if is_code(&error, ErrorCode::CannotOpen) && !with_suffix(file, "-wal").exists() =>
        {
            let uri = format!("file:{}?immutable=1", percent(file));
            let connection = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?;
            check(&connection, file)?;
            connection
        }
        Err(error) if is_code(&error, ErrorCode::ReadOnly) => {
            bail!(
                "{} was not closed cleanly: its journal must be rolled back first; open it once with \
                 `sqlite3 {} .tables`",
                file.display(),
                file.display()
            )
        }
        Err(error) => return Err(error),
    };
    // Holds one state of the source until the copy is complete.
    connection.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")?;
    Ok(connection)
}

fn check(connection: &Connection, file: &Path) -> anyhow::Result<()> {
    let bar = output::progress(0, "integrity check");
    bar.enable_steady_tick(Duration::from_millis(200));
    let checked = connection.prepare("PRAGMA integrity_check(10)").and_then(|mut statement| {
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.collect::<Result<Vec<_>, _>>()
    });
    bar.finish_and_clear();
    match checked {
        Ok(lines) if lines == ["ok"] => Ok(()),
        Ok(lines) => bail!("{}", damaged(file, &lines.join("; "))),
        Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::NotADatabase => {
            bail!("{} is no SQLite database", file.display())
        }
        Err(rusqlite::Error::SqliteFailure(error, _))
            if error.code == ErrorCode::DatabaseCorrupt =>
        {
            bail!("{}", damaged(file, "it cannot be read"))
        }
        Err(error) => Err(error).with_context(|| format!("check {}", file.display())),
    }
}

fn damaged(file: &Path, finding: &str) -> String {
    let file = file.display();
    format!("{file} is damaged: {finding}; repair it with `sqlite3 {file} .recover`")
}

fn is_code(error: &anyhow::Error, code: ErrorCode) -> bool {
    let sqlite = error.downcast_ref::<rusqlite::Error>();
    sqlite.and_then(rusqlite::Error::sqlite_error_code) == Some(code)
}

/// A path inside a `file:` URI.
fn percent(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push_str(&format!("%{byte:02x}"));
        }
    }
    text
}

/// Writes a new database beside its place and renames it there.
fn create(source: &Connection, target: &Path, wait: Duration) -> anyhow::Result<u32> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    // Under such a name it is no database yet: replicas see it when it is complete and in place.
    let temporary =
        target.with_file_name(format!("{}{:016x}", DbName::IMPORT, rand::random::<u64>()));
    let done = replace(source, &temporary, wait).and_then(|pages| {
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        let here = rustix::fs::CWD;
        rustix::fs::renameat_with(here, &temporary, here, target, flags)
            .with_context(|| format!("rename to {}", target.display()))?;
        Ok(pages)
    });
    if done.is_err() {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            drop(fs::remove_file(with_suffix(&temporary, suffix))); // Most of them are not there.
        }
    }
    done
}

/// Copies all pages in one transaction of the target.
fn replace(source: &Connection, target: &Path, wait: Duration) -> anyhow::Result<u32> {
    let mut connection = Connection::open(target)?;
    connection.busy_timeout(wait)?;
    match_page_size(source, &connection)?;
    let deadline = Instant::now() + wait;
    let pages = {
        let backup = Backup::new(source, &mut connection)?;
        let bar = output::progress(0, "import");
        loop {
            match backup.step(STEP_PAGES)? {
                StepResult::Done => break,
                StepResult::More => {}
                _ if Instant::now() < deadline => {}
                _ => bail!(
                    "the database is busy; end the transaction that writes it, or wait longer with --busy-timeout"
                ),
            }
            let progress = backup.progress();
            bar.set_length(u64::try_from(progress.pagecount).unwrap_or(0));
            bar.set_position(u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0));
        }
        bar.finish_and_clear();
        u32::try_from(backup.progress().pagecount).unwrap_or(0)
    };
    connection.close().map_err(|(_, error)| error)?;
    Ok(pages)
}

/// SQLite cannot change the page size of a database in WAL mode, so such a target leaves it first.
fn match_page_size(source: &Connection, target: &Connection) -> anyhow::Result<()> {
    let size = |connection: &Connection| {
        connection.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0))
    };
    let pages: u32 = target.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let mode: String = target.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if pages == 0 || mode != "wal" || size(source)? == size(target)? {
        return Ok(());
    }
    target.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(())).context(
        "the new content has another page size, and other connections keep the database in WAL mode; \
         close them and try again",
    )
}

/// Where the database is after the import, if the daemon says so.
fn position(config: &Config, name: &DbName) -> String {
    let status = Client::connect(&config.node.data).and_then(|mut client| client.status());
    let name = name.to_string();
    let found = status.ok().and_then(|s| s.databases.into_iter().find(|db| db.name == name));
    found.map(|db| format!(", now at {}", db.position)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1), (2);").unwrap();
        connection
    }

    fn rows(path: &Path) -> i64 {
        let connection = Connection::open(path).unwrap();
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn what_is_no_database_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        let error = |file: &Path| format!("{:#}", open_source(file).unwrap_err());
        assert!(error(&file).contains("No such file"), "{}", error(&file));
        fs::write(&file, "").unwrap();
        assert!(error(&file).ends_with("/x is empty: no SQLite database"));
        fs::write(&file, [b'x'; 5000]).unwrap();
        assert!(error(&file).ends_with("/x is no SQLite database"), "{}", error(&file));
        assert!(error(dir.path()).ends_with("is not a regular file"));
    }

    #[test]
    fn a_damaged_database_is_refused_with_the_finding() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.db");
        database(&file).close().unwrap();
        let mut bytes = fs::read(&file).unwrap();
        let length = bytes.len();
        bytes[length - 4096..].fill(0xff);
        fs::write(&file, bytes).unwrap();
        let error = format!("{:#}", open_source(&file).unwrap_err());
        assert!(error.contains("x.db is damaged: "), "{error}");
    }

    #[test]
    fn a_wal_beside_the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b%.db");
        let writer = database(&file);
        writer.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
        writer.execute_batch("INSERT INTO t VALUES (3);").unwrap();
        let source = open_source(&file).unwrap();
        let target = dir.path().join("sub/new.db");
        create(&source, &target, Duration::from_secs(1)).unwrap();
        assert_eq!(rows(&target), 3);
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_database_is_replaced_under_its_readers() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t.db");
        let reader = database(&target);
        let file = dir.path().join("s.db");
        database(&file).execute_batch("INSERT INTO t VALUES (3), (4);").unwrap();
        replace(&open_source(&file).unwrap(), &target, Duration::from_secs(1)).unwrap();
        let count: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 4);
    }

    #[test]
    fn a_busy_database_is_named_after_the_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t.db");
        let writer = database(&target);
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        let file = dir.path().join("s.db");
        database(&file).close().unwrap();
        let source = open_source(&file).unwrap();
        let error = replace(&source, &target, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with("the database is busy"), "{error}");
    }

    #[test]
    fn another_page_size_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t.db");
        let writer = database(&target);
        writer.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
        writer.close().unwrap();
        let file = dir.path().join("s.db");
        let small = Connection::open(&file).unwrap();
        small.execute_batch("PRAGMA page_size = 1024; CREATE TABLE t(x);").unwrap();
        small.close().unwrap();
        replace(&open_source(&file).unwrap(), &target, Duration::from_secs(1)).unwrap();
        assert_eq!(rows(&target), 0);
        let size: u32 = Connection::open(&target)
            .unwrap()
            .pragma_query_value(None, "page_size", |row| row.get(0))
            .unwrap();
        assert_eq!(size, 1024);
    }
}
