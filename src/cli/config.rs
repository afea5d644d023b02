//! `weir config`: what the configuration comes to.

use std::process::ExitCode;

use serde_json::json;

use super::{Global, output};
use crate::config::{Config, Origin};

const EXAMPLES: &str = "\
Examples:
  weir config check
  weir --config ./weir.toml config check --json
  WEIR_NODE_NAME=b weir config check

Every key can be set in the environment: [node] name is WEIR_NODE_NAME, [lease] peers is
WEIR_LEASE_PEERS=a=http://a:7400,b=http://b:7400.
Values in the file may use ${VAR} and ${VAR:-default}.";

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

pub(crate) fn run(global: &Global, command: &Command) -> anyhow::Result<ExitCode> {
    let Command::Check { json } = command;
    let config = Config::load(global.config.as_deref())?;
    let text = if *json { format!("{:#}\n", as_json(&config)) } else { as_text(&config) };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn as_text(config: &Config) -> String {
    let value = |setting: &crate::config::Setting| setting.value.clone().unwrap_or("-".to_owned());
    let width = config.settings.iter().map(|s| value(s).len().min(48)).max().unwrap_or(0);
    let mut text = match &config.file {
        Some(path) => format!("{}: valid\n", path.display()),
        None => "no configuration file; valid\n".to_owned(),
    };
    for setting in &config.settings {
        let line = format!("{:<30} {:<width$}  {}", setting.key, value(setting), setting.origin);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for warning in &config.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

fn as_json(config: &Config) -> serde_json::Value {
    let settings = config.settings.iter().map(|setting| {
        let origin = match &setting.origin {
            Origin::File { path, line } => json!({ "file": path, "line": line }),
            Origin::Environment { variable } => json!({ "environment": variable }),
            Origin::Default => json!("default"),
        };
        (setting.key.to_owned(), json!({ "value": setting.value, "origin": origin }))
    });
    json!({
        "file": config.file,
        "settings": settings.collect::<serde_json::Map<_, _>>(),
        "warnings": config.warnings,
    })
}
