//! Logs. Standard error carries them, as text for people or as JSON lines.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives cannot be read.
    #[error(
        "--log {directives:?}: {source}; write a level (error, warn, info, debug, trace) or \
         directives such as info,weir::replication=debug"
    )]
    Directives {
        /// As given.
        directives: String,
        /// What is wrong; part of the text, so no `source()`.
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Starts logging for this process. A second call changes nothing.
///
/// # Errors
/// The directives cannot be read.
pub fn init(directives: &str, format: Format) -> Result<(), LogError> {
    // An answer for a process that was killed meanwhile finds nobody; fuser calls that an error.
    let filter = EnvFilter::try_new(format!("fuser::reply=off,{directives}"))
        .map_err(|source| LogError::Directives { directives: directives.to_owned(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let done = match format {
        Format::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    drop(done); // Fails only where logging is already on.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_directives_are_named() {
        let error = init("weir=loud", Format::Text).unwrap_err().to_string();
        assert!(error.starts_with("--log \"weir=loud\": "), "{error}");
    }
}
