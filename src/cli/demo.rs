//! `weir demo`

use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  weir demo";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("demo: not built yet")
}
