//! `weir mount`: the daemon in the foreground.

use std::process::ExitCode;

use super::Global;
use crate::config::Config;
use crate::node::Node;

const EXAMPLES: &str = "\
Examples:
  weir mount                                    with ./weir.toml or /etc/weir.toml
  weir --config node-a.toml --log debug mount
  WEIR_NODE_DATA=/var/lib/weir WEIR_NODE_MOUNT=/mnt/db weir mount     no file at all

SIGTERM and SIGINT drain, unmount and exit; a second one does so without waiting for replicas.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

pub(crate) fn run(global: &Global, _args: &Args) -> anyhow::Result<ExitCode> {
    global.start_logging()?;
    let config = Config::load(global.config.as_deref())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Node::start(config)?.run()?;
    Ok(ExitCode::SUCCESS)
}
