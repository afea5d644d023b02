//! `weir demo`: three nodes on this machine, and what they do, in a minute.
//!
//! Real mounts, a separate SQLite process as the application, a replica killed with -9. The exit code
//! is 0 only if all nodes end with the same bytes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rusqlite::Connection;

use super::bench::{Pace, Percentiles, per_second};
use super::output;
use super::playground::{Interrupt, Playground, compare};

const EXAMPLES: &str = "\
Examples:
  weir demo
  weir demo --keep      leave the three nodes running and say what to try";

const DB: &str = "shop.db";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Leave the nodes running and print what to try
    #[arg(long)]
    keep: bool,
    /// Directory for the demo's own directory [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Be the application where sqlite3 is not installed: run the SQL of standard input on a file
    #[arg(long, value_name = "FILE", hide = true)]
    run_sql: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.run_sql {
        return run_sql(path);
    }
    let interrupt = Interrupt::listen()?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let start = Instant::now();
    let mut stage = Playground::start(&parent, "demo", 3, &interrupt)?;
    introduce(&stage, start.elapsed())?;
    insert_and_read(&stage)?;
    lag(&stage, &interrupt)?;
    throughput(&stage, &interrupt)?;
    kill_a_replica(&mut stage, &interrupt)?;
    let equal = all_equal(&stage)?;
    if args.keep {
        say_what_to_try(&stage)?;
        stage.keep();
    } else {
        drop(stage);
        output::print("\nThe nodes are stopped, unmounted and removed.\n")?;
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn introduce(stage: &Playground, took: Duration) -> anyhow::Result<()> {
    let mut text = format!("Three nodes on this machine, up in {} ms:\n", took.as_millis());
    for (index, node) in stage.nodes.iter().enumerate() {
        let role = if index == 0 { "primary" } else { "replica" };
        let pid = node.pid().unwrap_or(0);
        text += &format!("  {}  {role}  pid {pid:<8} {}\n", node.name, node.mount.display());
    }
    if cfg!(debug_assertions) {
        text +=
            "This is a debug build: expect figures several times worse than those of --release.\n";
    }
    output::print(&text)?;
    Ok(())
}

/// The SQL shell of this system, or this program in its place.
fn application(path: &Path, sql: &str) -> anyhow::Result<String> {
    let (name, mut command) = match sqlite3_version() {
        Some(_) => ("sqlite3", Command::new("sqlite3")),
        None => {
            let mut command = Command::new(std::env::current_exe().context("find this program")?);
            command.args(["demo", "--run-sql"]);
            ("weir demo --run-sql", command)
        }
    };
    let mut child = command
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(sql.as_bytes()).with_context(|| format!("write to {name}"))?;
    }
    let done = child.wait_with_output().with_context(|| format!("wait for {name}"))?;
    if !done.status.success() {
        bail!("{name} {}: {}", path.display(), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}

fn sqlite3_version() -> Option<String> {
    let output = Command::new("sqlite3").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.split(' ').next()?.to_owned())
}

/// The hidden other side of [`application`].
fn run_sql(path: &Path) -> anyhow::Result<ExitCode> {
    let db = Connection::open(path).with_context(|| format!("open {}", path.display()))?;
    let sql = std::io::read_to_string(std::io::stdin())?;
    for statement in sql.split_inclusive(';').filter(|text| !text.trim().is_empty()) {
        let mut statement = db.prepare(statement)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let texts: Result<Vec<String>, _> =
                (0..columns).map(|column| text(row, column)).collect();
            output::print(&format!("{}\n", texts?.join("|")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A value as the SQL shell shows it.
fn text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    use rusqlite::types::Value;
    Ok(match row.get(column)? {
        Value::Null => String::new(),
        Value::Integer(number) => number.to_string(),
        Value::Real(number) => number.to_string(),
        Value::Text(text) => text,
        Value::Blob(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
    })
}

fn insert_and_read(stage: &Playground) -> anyhow::Result<()> {
    let program = sqlite3_version()
        .map_or_else(|| "SQLite in a process of its own".to_owned(), |v| format!("sqlite3 {v}"));
    let setup =
        "PRAGMA journal_mode=WAL;\nCREATE TABLE orders(id INTEGER PRIMARY KEY, what TEXT);\n";
    let insert = "INSERT INTO orders(what) VALUES ('tea'), ('coffee'), ('chocolate');";
    let primary = stage.primary();
    application(&primary.path(DB), &format!("{setup}{insert}"))?;
    let position = primary.position(DB).context("the primary shows no position")?;
    let mut text = format!("\n1. Unmodified {program} writes on {}:\n   {insert}\n", primary.name);
    for node in stage.replicas() {
        node.wait_position(DB, &position)?;
        let rows = application(&node.path(DB), "SELECT id || ' ' || what FROM orders;")?;
        text += &format!("   read on {}: {}\n", node.name, rows.replace('\n', ", "));
        if rows.lines().count() != 3 {
            bail!("node {} shows {rows:?}", node.name);
        }
    }
    output::print(&text)?;
    Ok(())
}

/// Time from the return of a COMMIT on the primary to the moment a reader on a replica sees it.
fn lag(stage: &Playground, interrupt: &Arc<Interrupt>) -> anyhow::Result<()> {
    let measured =
        super::bench::measure_lag(stage.primary(), &stage.replicas()[0], interrupt, 500, 500)?;
    output::print(&format!(
        "\n2. Lag, from the return of COMMIT on a to the row seen by a reader on b, \
         {} commits at {}/s:\n   {measured}\n",
        500, 500
    ))?;
    Ok(())
}

fn throughput(stage: &Playground, interrupt: &Arc<Interrupt>) -> anyhow::Result<()> {
    output::print(
        "\n3. Throughput next to plain SQLite in a plain directory, taken in turns, two replicas attached:\n",
    )?;
    output::print(&format!("   {:<28}{:>12}{:>12}{:>8}\n", "", "plain", "weir", "ratio"))?;
    let plain = stage.root().join("plain");
    std::fs::create_dir_all(&plain).with_context(|| format!("create {}", plain.display()))?;
    let pace = Pace { rounds: 3, round: Duration::from_millis(400) };
    for row in super::bench::demo_rows(&plain, &stage.primary().mount, pace, interrupt)? {
        output::print(&format!(
            "   {:<28}{:>12}{:>12}{:>8.2}\n",
            row.name,
            per_second(row.plain),
            per_second(row.weir),
            row.weir / row.plain
        ))?;
    }
    Ok(())
}

fn kill_a_replica(stage: &mut Playground, interrupt: &Arc<Interrupt>) -> anyhow::Result<()> {
    let db = Connection::open(stage.primary().path(DB))?;
    db.busy_timeout(Duration::from_secs(5))?;
    let before = stage.primary().position(DB).context("the primary shows no position")?;
    stage.nodes[2].wait_position(DB, &before)?;
    stage.nodes[2].kill()?;
    for number in 0..1000 {
        interrupt.check()?;
        db.execute("INSERT INTO orders(what) VALUES ('order ' || ?1)", [number])?;
    }
    drop(db);
    let target = stage.primary().position(DB).context("the primary shows no position")?;
    let start = Instant::now();
    stage.nodes[2].spawn()?;
    stage.nodes[2].wait_ready()?;
    stage.nodes[2].wait_position(DB, &target)?;
    output::print(&format!(
        "\n4. Replica c was killed with -9, missed 1000 transactions, was started again:\n   \
         level with a {} ms after the start\n",
        start.elapsed().as_millis()
    ))?;
    Ok(())
}

fn all_equal(stage: &Playground) -> anyhow::Result<bool> {
    let found = compare(stage, DB)?;
    let verdict = if found.different.is_empty() {
        "a, b and c hold the same bytes".to_owned()
    } else {
        format!("DIFFERENT BYTES on {}", found.different.join(", "))
    };
    output::print(&format!(
        "\n5. All three nodes compared byte by byte:\n   {DB}, {} bytes, position {}: {verdict}\n",
        found.bytes, found.position
    ))?;
    Ok(found.different.is_empty())
}

fn say_what_to_try(stage: &Playground) -> anyhow::Result<()> {
    let (a, b) = (stage.primary(), &stage.replicas()[0]);
    let weir = std::env::current_exe().context("find this program")?;
    let mut pids = String::new();
    for node in &stage.nodes {
        pids += &format!(" {}", node.pid().unwrap_or(0));
    }
    output::print(&format!(
        "\nThe nodes keep running. Try:\n\
         \x20 sqlite3 {a_db} \"INSERT INTO orders(what) VALUES ('cake')\"\n\
         \x20 sqlite3 {b_db} \"SELECT * FROM orders ORDER BY id DESC LIMIT 3\"\n\
         \x20 sqlite3 {b_db} \"DELETE FROM orders\"        (a replica says: database is locked)\n\
         \x20 cat {a_db}-pos {b_db}-pos {b_mount}/.primary {b_mount}/.lag\n\
         \x20 {weir} --config {a_config} status\n\
         \x20 {weir} --config {b_config} verify\n\
         When done:\n\
         \x20 kill{pids}; sleep 1; rm -r {root}\n",
        a_db = a.path(DB).display(),
        b_db = b.path(DB).display(),
        b_mount = b.mount.display(),
        weir = weir.display(),
        a_config = a.config.display(),
        b_config = b.config.display(),
        root = stage.root().display(),
    ))?;
    Ok(())
}

/// One line of percentiles.
impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(
            f,
            "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            ms(self.p50),
            ms(self.p99),
            ms(self.max)
        )
    }
}
