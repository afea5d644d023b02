//! `weir status`: a running node, for people or as JSON.

use std::collections::HashMap;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar};

use super::{Global, output};
use crate::config::{ByteSize, Config};
use crate::disk::clock;
use crate::node::admin::Client;
use crate::node::format_wall_ms;
use crate::node::status::{CopyStatus, DatabaseStatus, ReplicaStatus, Status};

const EXAMPLES: &str = "\
Examples:
  weir status
  weir status --json | jq '.databases[] | {name, position, state}'
  weir --config node-b.toml status
  weir status --wait           shows the copies under way, ends when replication is level";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// First wait until replication is level: a replica with its primary, a primary's replicas with it
    #[arg(long)]
    wait: bool,
}

/// How often a node is asked while it is waited for.
const WAIT_POLL: Duration = Duration::from_millis(200);

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let mut client = Client::connect(&config.node.data)?;
    let mut status = client.status()?;
    if args.wait {
        let bars = MultiProgress::new();
        let mut shown = HashMap::new();
        let begin = clock::boottime();
        // What was committed before this command began must be here.
        while !status.is_level(clock::boottime().saturating_sub(begin)) {
            show_copies(&bars, &mut shown, &status.copies);
            thread::park_timeout(WAIT_POLL);
            status = client.status()?;
        }
        bars.clear()?;
    }
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&status)?)
    } else {
        as_text(&status)
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A bar for each database that is being copied.
fn show_copies(
    bars: &MultiProgress,
    shown: &mut HashMap<String, ProgressBar>,
    copies: &[CopyStatus],
) {
    shown.retain(|name, bar| {
        let goes_on = copies.iter().any(|copy| copy.name == *name);
        if !goes_on {
            bars.remove(bar);
        }
        goes_on
    });
    for copy in copies {
        let bar = shown.entry(copy.name.clone()).or_insert_with(|| {
            bars.add(output::progress(copy.pages_total.into(), &format!("copy {}", copy.name)))
        });
        bar.set_length(copy.pages_total.into());
        bar.set_position(copy.pages.into());
    }
}

fn as_text(status: &Status) -> String {
    let node = &status.node;
    let mut text = format!("node {} ({}), {}", node.name, node.id, status.role);
    match &status.primary {
        Some(primary) if status.role == "replica" => text += &format!(" of {primary}"),
        _ => {}
    }
    text += &format!(", epoch {}, up {}\n", status.epoch, duration(node.uptime_ms));
    text += &format!("cluster {}\n", node.cluster.as_deref().unwrap_or("none yet"));
    text += &format!("mount {}, data {}\n", node.mount.display(), node.data.display());
    if let Some(listen) = &node.listen {
        text += &format!("serving replicas on {listen}\n");
    }
    if status.role == "replica" {
        text += &match status.lag_ms {
            Some(0) => "level with the primary\n".to_owned(),
            Some(ms) => {
                format!("level with the primary {} ago\n", duration(u64::try_from(ms).unwrap_or(0)))
            }
            None => "not yet level with the primary\n".to_owned(),
        };
    }
    for copy in &status.copies {
        let percent = u64::from(copy.pages) * 100 / u64::from(copy.pages_total.max(1));
        text += &format!("copying {}: {percent} % of {} pages\n", copy.name, copy.pages_total);
    }
    for aside in &status.aside {
        text += &format!("not as on the primary: {}: {}\n", aside.name, aside.reason);
    }
    if let Some(error) = &status.follower_error {
        text += &format!("not following: {error}\n");
    }
    text += "\n";
    text += &databases(&status.databases);
    if status.role == "primary" {
        text += "\n";
        text += &replicas(&status.replicas);
    }
    text
}

fn databases(databases: &[DatabaseStatus]) -> String {
    if databases.is_empty() {
        return "no databases\n".to_owned();
    }
    let mut rows = vec![row(["DATABASE", "POSITION", "SIZE", "PAGES", "MODE", "LOG", "STATE"])];
    for db in databases {
        let state = match &db.reason {
            Some(reason) => format!("{}: {reason}", db.state),
            None if db.applied == db.position => db.state.clone(),
            None => format!("{}, applied {}", db.state, db.applied),
        };
        let state = match db.lost_files {
            0 => state,
            files => format!("{state}; {files} files in lost+found"),
        };
        rows.push(row([
            &db.name,
            &db.position,
            &ByteSize(db.bytes).to_string(),
            &db.pages.to_string(),
            &db.journal_mode,
            &ByteSize(db.log_bytes).to_string(),
            &state,
        ]));
    }
    output::table(&rows)
}

fn replicas(replicas: &[ReplicaStatus]) -> String {
    if replicas.is_empty() {
        return "no replicas connected\n".to_owned();
    }
    let mut rows = vec![row(["REPLICA", "SINCE", "DATABASE", "RECEIVED", "APPLIED", "LAG"])];
    for replica in replicas {
        let since = format_wall_ms(replica.connected_since_ms);
        let lag = lag(replica.lag_transactions, Some(replica.lag_bytes), Some(replica.lag_ms));
        rows.push(row([&replica.name, &since, "", "", "", &lag]));
        for db in &replica.databases {
            let lag = lag_of(db.lag_transactions, db.lag_bytes);
            rows.push(row(["", "", &db.name, &db.received, &db.applied, &lag]));
        }
    }
    output::table(&rows)
}

fn lag_of(transactions: u64, bytes: Option<u64>) -> String {
    lag(transactions, bytes, None)
}

fn lag(transactions: u64, bytes: Option<u64>, ms: Option<u64>) -> String {
    if transactions == 0 {
        return "level".to_owned();
    }
    let mut text = format!("{transactions} transactions");
    if let Some(bytes) = bytes {
        text += &format!(", {}", ByteSize(bytes));
    }
    if let Some(ms) = ms {
        text += &format!(", {}", duration(ms));
    }
    text
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

/// The two largest units: `3h 12m`.
fn duration(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms} ms");
    }
    let seconds = ms / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_show_their_two_largest_units() {
        for (ms, text) in
            [(7, "7 ms"), (61_000, "1m 1s"), (3_600_000, "1h 0m"), (90_000_000, "1d 1h")]
        {
            assert_eq!(duration(ms), text);
        }
    }
}
