//! `weir verify`

use std::process::ExitCode;

use super::Global;

const EXAMPLES: &str = "\
Examples:
  weir verify";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(_global: &Global, _args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("verify: not built yet")
}
