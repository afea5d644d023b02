//! `weir ltx`

use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Show what an LTX file holds
    Dump {
        /// The file
        file: PathBuf,
    },
}

pub(crate) fn run(_command: &Command) -> anyhow::Result<ExitCode> {
    anyhow::bail!("ltx: not built yet")
}
