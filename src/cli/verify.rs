//! `weir verify`: do the databases hold what their positions promise?

use std::ffi::OsString;
use std::process::ExitCode;

use super::export::database_name;
use super::{Global, output};
use crate::config::Config;
use crate::node::admin::{AdminError, Client, Reply, Request, Verified, WireName};

const EXAMPLES: &str = "\
Examples:
  weir verify                  all databases of this node
  weir verify app.db
  weir verify --json

Compares every page with its stored sum, and all together with the checksum of the position;
on a replica, also each page with the primary's at that position. Writers go on meanwhile.
A replica's database that differs is quarantined, and the pages that differ are fetched from
the primary. Exit code 1 if anything differs; a comparison with the primary that could not be
made is named, and is no difference.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The database, as a path below the mount point [default: all]
    db: Option<OsString>,
    /// Print one JSON object for each database
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(global.config.as_deref())?;
    let name = args.db.as_ref().map(|db| database_name(&config, db)).transpose()?;
    let mut client = Client::connect(&config.node.data)?;
    client.send(&Request::Verify { db: name.as_ref().map(WireName::from) })?;
    let bar = output::progress(0, "verify");
    let mut all_ok = true;
    loop {
        match client.receive()? {
            Reply::Progress { what, done, total } => {
                bar.set_message(what);
                bar.set_length(total);
                bar.set_position(done);
            }
            Reply::Verified(verified) => {
                all_ok &= verified.ok;
                let line =
                    if args.json { serde_json::to_string(&verified)? } else { as_text(&verified) };
                bar.suspend(|| output::print(&format!("{line}\n")))?;
            }
            Reply::End => break,
            Reply::Status(_)
            | Reply::Copy { .. }
            | Reply::Pages { .. }
            | Reply::Copied { .. }
            | Reply::Error { .. } => return Err(AdminError::Unknown.into()),
        }
    }
    bar.finish_and_clear();
    Ok(if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_text(verified: &Verified) -> String {
    let mut text = format!("{}: ", verified.name);
    text += if verified.ok { "ok" } else { "DIFFERS" };
    text += &format!(" at {}, {} pages", verified.position, verified.pages);
    if !verified.ok && !verified.checksum && verified.pages > 0 {
        text += "; the pages' checksum is not the position's";
    }
    text += &pages("pages that differ from their sums", &verified.differing_pages);
    if let Some(primary) = &verified.primary {
        text += &format!("; primary: {}", primary.result);
        text += &pages("pages that differ from the primary's", &primary.differing_pages);
    }
    if let Some(note) = &verified.note {
        text += &format!("; {note}");
    }
    text
}

fn pages(what: &str, pages: &[u32]) -> String {
    if pages.is_empty() {
        return String::new();
    }
    let pages: Vec<_> = pages.iter().map(u32::to_string).collect();
    format!("; {what}: {}", pages.join(" "))
}
