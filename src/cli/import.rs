//! `weir import`

use std::process::ExitCode;

use super::Global;

const EXAMPLES: &str = "\
Examples:
  weir import";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(_global: &Global, _args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("import: not built yet")
}
