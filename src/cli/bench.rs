//! `weir bench`

use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  weir bench";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("bench: not built yet")
}
