//! `weir bench`: Weir next to plain SQLite, on this machine, in one run.
//!
//! Every workload runs in turns on a plain directory and on the mount, so that both meet the same
//! machine. The figures are the applications': this process is the application, the daemons are others.

mod big;
mod lag;
mod machine;
mod measure;
mod report;
mod workload;

pub(crate) use lag::measure_lag;
pub(crate) use measure::{Pace, Percentiles, per_second};

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::output;
use super::playground::{Interrupt, Playground};
use report::{Report, Row};
use workload::{Place, Workload};

const EXAMPLES: &str = "\
Examples:
  weir bench                     starts a primary and a replica of its own, takes some minutes
  weir bench --quick             the same in less than a minute, less exact
  weir bench --replicas 0        a primary alone
  weir bench --plain /var/tmp --mount /mnt/db --json
                                 a mount that is there already";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A plain directory, on the same disk as the data directory
    #[arg(long, value_name = "DIR", requires = "mount")]
    plain: Option<PathBuf>,
    /// A mount of a primary [default: starts nodes of its own]
    #[arg(long, value_name = "DIR", requires = "plain")]
    mount: Option<PathBuf>,
    /// The mount of a replica of that primary
    #[arg(long, value_name = "DIR", requires = "mount")]
    replica: Option<PathBuf>,
    /// Replicas to start where no mount is given
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "mount")]
    replicas: usize,
    /// Where the nodes of its own live [default: the system's temporary directory]
    #[arg(long, value_name = "DIR", conflicts_with = "mount")]
    dir: Option<PathBuf>,
    /// Shorter rounds and smaller databases
    #[arg(long)]
    quick: bool,
    /// Everything once for a moment: shows in seconds that all of it works, the figures mean nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Only workloads whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where the sides of the comparison are.
struct Sides {
    plain: PathBuf,
    mount: PathBuf,
    replica: Option<PathBuf>,
    stage: Option<Playground>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
struct Size {
    pace: Pace,
    update_megabytes: u32,
    bulk_megabytes: u32,
    big_megabytes: u32,
    lag_commits: u32,
    databases: u32,
    /// How long nobody touches the databases before memory is measured.
    idle: Duration,
}

const FULL: Size = Size {
    pace: Pace { rounds: 5, round: Duration::from_secs(2) },
    update_megabytes: 100,
    bulk_megabytes: 1000,
    big_megabytes: 4096,
    lag_commits: 5000,
    databases: 1000,
    idle: Duration::from_secs(10),
};

const QUICK: Size = Size {
    pace: Pace { rounds: 3, round: Duration::from_millis(400) },
    update_megabytes: 30,
    bulk_megabytes: 100,
    big_megabytes: 1024,
    lag_commits: 1000,
    databases: 200,
    idle: Duration::from_secs(10),
};

const SMOKE: Size = Size {
    pace: Pace { rounds: 1, round: Duration::from_millis(50) },
    update_megabytes: 1,
    bulk_megabytes: 2,
    big_megabytes: 20,
    lag_commits: 50,
    databases: 5,
    idle: Duration::from_millis(100),
};

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let sides = sides(args, &interrupt)?;
    let size = match (args.smoke, args.quick) {
        (true, _) => SMOKE,
        (false, true) => QUICK,
        (false, false) => FULL,
    };
    let replicas = match (&sides.stage, &sides.replica) {
        (Some(stage), _) => stage.replicas().len().to_string(),
        (None, Some(_)) => "at least one".to_owned(),
        (None, None) => "unknown".to_owned(),
    };
    let mut report = Report::new(machine::describe(&sides.plain), replicas);
    if !args.json {
        output::print(&report.head())?;
    }
    let mut add = |row: Row| -> anyhow::Result<()> {
        if !args.json {
            output::print(&row.line())?;
        }
        report.rows.push(row);
        Ok(())
    };
    let wanted = |name: &str| args.only.as_ref().is_none_or(|text| name.contains(text.as_str()));
    for workload in workload::all(size.update_megabytes) {
        if wanted(workload.name) {
            add(rate(&workload, &sides, size.pace, &interrupt)?)?;
        }
    }
    if wanted("bulk load") {
        add(workload::bulk(
            &sides.plain,
            &sides.mount,
            size.bulk_megabytes,
            size.pace,
            &interrupt,
        )?)?;
    }
    if wanted("commit, large database") {
        add(big::commit_cost(&sides.mount, size.big_megabytes, size.pace, &interrupt)?)?;
    }
    if let Some(stage) = sides.stage.as_ref().filter(|stage| !stage.replicas().is_empty())
        && wanted("lag")
    {
        let measured =
            measure_lag(stage.primary(), &stage.replicas()[0], &interrupt, size.lag_commits, 500)?;
        add(Row::lag("lag at 500 tx/s", measured))?;
    }
    if sides.stage.is_some() && wanted("memory") {
        // Nodes that have done nothing else: what is measured is the databases.
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let stage = Playground::start(&parent, "bench-memory", args.replicas + 1, &interrupt)?;
        for row in memory(&stage, size, &interrupt)? {
            add(row)?;
        }
    }
    if args.json {
        output::print(&format!("{}\n", report.json()?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn sides(args: &Args, interrupt: &Arc<Interrupt>) -> anyhow::Result<Sides> {
    if let (Some(plain), Some(mount)) = (&args.plain, &args.mount) {
        for directory in [plain, mount] {
            if !directory.is_dir() {
                bail!("{}: not a directory", directory.display());
            }
        }
        let (plain, mount) = (plain.clone(), mount.clone());
        return Ok(Sides { plain, mount, replica: args.replica.clone(), stage: None });
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let stage = Playground::start(&parent, "bench", args.replicas + 1, interrupt)?;
    let plain = stage.root().join("plain");
    std::fs::create_dir_all(&plain).with_context(|| format!("create {}", plain.display()))?;
    Ok(Sides {
        plain,
        mount: stage.primary().mount.clone(),
        replica: stage.replicas().first().map(|node| node.mount.clone()),
        stage: Some(stage),
    })
}

/// Runs one workload in turns on both sides, and where it reads also on the replica.
fn rate(
    workload: &Workload,
    sides: &Sides,
    pace: Pace,
    interrupt: &Interrupt,
) -> anyhow::Result<Row> {
    let mut places = vec![Place::new(&sides.plain, workload)?, Place::new(&sides.mount, workload)?];
    if let Some(replica) = sides.replica.as_ref().filter(|_| workload.is_read) {
        places.push(Place::existing(replica, workload, interrupt)?);
    }
    let mut measured = measure::in_turns(&mut places, pace, interrupt)?;
    let replica = if measured.len() == 3 { measured.pop() } else { None };
    let (Some(weir), Some(plain)) = (measured.pop(), measured.pop()) else {
        bail!("BUG: two places give two results");
    };
    for place in places.drain(..).take(2) {
        place.remove()?;
    }
    Ok(Row::rates(workload.name, &plain, &weir, replica.as_ref()))
}

/// Plain's and Weir's operations per second, for the demo's short table.
pub(crate) struct DemoRow {
    pub(crate) name: &'static str,
    pub(crate) plain: f64,
    pub(crate) weir: f64,
}

/// The workloads that the demo shows.
///
/// # Errors
/// SQLite failed, or the user interrupts.
pub(crate) fn demo_rows(
    plain: &Path,
    mount: &Path,
    pace: Pace,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<DemoRow>> {
    let mut rows = Vec::new();
    for workload in workload::all(10).into_iter().filter(|workload| workload.is_in_demo) {
        let mut places = vec![Place::new(plain, &workload)?, Place::new(mount, &workload)?];
        let measured = measure::in_turns(&mut places, pace, interrupt)?;
        for place in places {
            place.remove()?;
        }
        let (plain, weir) = (measured[0].per_second, measured[1].per_second);
        rows.push(DemoRow { name: workload.name, plain, weir });
    }
    Ok(rows)
}

/// Resident memory of each node that holds many databases which nobody uses.
fn memory(stage: &Playground, size: Size, interrupt: &Interrupt) -> anyhow::Result<Vec<Row>> {
    let count = size.databases;
    let directory = stage.primary().path("idle");
    std::fs::create_dir(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut last = String::new();
    for number in 0..count {
        interrupt.check()?;
        last = format!("idle/{number}.db");
        let db = rusqlite::Connection::open(stage.primary().path(&last))?;
        db.execute_batch("PRAGMA synchronous=OFF; CREATE TABLE t(a); INSERT INTO t VALUES (1)")?;
    }
    let position = stage.primary().position(&last).context("the last database has no position")?;
    for node in stage.replicas() {
        node.wait_position(&last, &position)?;
    }
    interrupt.wait(size.idle)?;
    let mut rows = Vec::new();
    for node in &stage.nodes {
        let bytes = node.resident_bytes().context("read the daemon's memory")?;
        let role = if node.name == "a" { "primary" } else { "replica" };
        rows.push(Row::memory(format!("memory, {count} idle databases, {role}"), bytes));
    }
    Ok(rows)
}
