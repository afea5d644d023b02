//! What reaches the terminal: results on standard output, one error line on standard error.

use std::io::{self, Write as _};

use crate::config::ConfigError;

/// A mistake in how the command was called; exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Writes to standard output. A reader that went away (`weir status | head -1`) is no error.
///
/// # Errors
/// Standard output could not be written.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Prints an error with its causes on one line. There is nobody left to tell if that fails.
pub(crate) fn error(error: &anyhow::Error) {
    drop(writeln!(io::stderr().lock(), "weir: {error:#}"));
}

/// 2 for wrong usage or configuration, 1 for everything else.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Usage>() || error.is::<ConfigError>() { 2 } else { 1 }
}
