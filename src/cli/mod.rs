//! The `weir` command line: one file per subcommand, errors printed once, exit codes.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 wrong usage or configuration.
//! A subcommand returns its exit code, or an error that `run` prints as `weir: …` on one line.

#![forbid(unsafe_code)]

mod bench;
mod config;
mod demo;
mod export;
mod import;
mod ltx;
mod mount;
mod output;
mod playground;
mod status;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry;

const EXAMPLES: &str = "\
Examples:
  weir demo                            three nodes on this machine, no configuration
  weir --config ./weir.toml mount      serve in the foreground until SIGTERM
  weir config check                    what the configuration comes to, and from where
  weir status                          a running node: role, databases, replicas
  weir import app.db app.db            bring an existing database under the mount
  weir export app.db - > backup.db     a consistent copy while writers go on";

/// A FUSE file system that replicates SQLite.
#[derive(Parser, Debug)]
#[command(name = "weir", version, about, after_help = EXAMPLES, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(clap::Args, Debug)]
pub(crate) struct Global {
    /// Configuration file [default: ./weir.toml, then /etc/weir.toml]
    #[arg(long, global = true, env = "WEIR_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What to log: a level, or directives such as `info,weir::replication=debug`
    #[arg(long, global = true, env = "WEIR_LOG", value_name = "LEVEL", default_value = "info")]
    pub(crate) log: String,
    /// How log lines look
    #[arg(
        long,
        global = true,
        env = "WEIR_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Global {
    /// Starts logging as the options say.
    pub(crate) fn start_logging(&self) -> anyhow::Result<()> {
        let format = match self.log_format {
            LogFormat::Text => telemetry::Format::Text,
            LogFormat::Json => telemetry::Format::Json,
        };
        telemetry::init(&self.log, format).map_err(|error| output::Usage(error.to_string()).into())
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Mount the file system and serve until SIGTERM or SIGINT
    Mount(mount::Args),
    /// Work with the configuration file
    #[command(subcommand)]
    Config(config::Command),
    /// Show a running node: role, databases, replicas
    Status(status::Args),
    /// Copy a database out of a running node, consistently and without blocking writers
    Export(export::Args),
    /// Bring a database file under the mount of a running node
    Import(import::Args),
    /// Compare databases with their page sums, and with the primary's
    Verify(verify::Args),
    /// Look into LTX change-set files
    #[command(subcommand)]
    Ltx(ltx::Command),
    /// Run three nodes on this machine and show what they do
    Demo(demo::Args),
    /// Measure Weir next to plain SQLite on this machine
    Bench(bench::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::from(output::exit_code(&error))
        }
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Mount(args) => mount::run(global, &args),
        Command::Config(command) => config::run(global, &command),
        Command::Status(args) => status::run(global, &args),
        Command::Export(args) => export::run(global, &args),
        Command::Import(args) => import::run(global, &args),
        Command::Verify(args) => verify::run(global, &args),
        Command::Ltx(command) => ltx::run(&command),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn help_that_is_broken_into_lines_by_hand_fits() {
        use clap::CommandFactory as _;
        let mut todo = vec![Cli::command()];
        while let Some(command) = todo.pop() {
            let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in text.lines() {
                assert!(line.chars().count() <= 98, "{}: {line}", command.get_name());
            }
            todo.extend(command.get_subcommands().cloned());
        }
    }
}
