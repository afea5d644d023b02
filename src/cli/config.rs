//! `weir config`

use std::process::ExitCode;

use super::Global;

const EXAMPLES: &str = "\
Examples:
  weir config check
  weir --config ./weir.toml config check --json";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Check the configuration, and print each value with where it came from
    #[command(after_help = EXAMPLES)]
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(_global: &Global, _command: &Command) -> anyhow::Result<ExitCode> {
    anyhow::bail!("config: not built yet")
}
