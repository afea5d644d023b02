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

/// Lines up columns; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let padding = width - cell.chars().count();
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', padding + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A progress bar on standard error, invisible where that is no terminal.
pub(crate) fn progress(total: u64, what: &str) -> indicatif::ProgressBar {
    const SHAPE: &str = "{msg} {wide_bar} {percent:>3} % {eta:>4}";
    let bar = indicatif::ProgressBar::new(total).with_message(what.to_owned());
    match indicatif::ProgressStyle::with_template(SHAPE) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["A", "B"]), row(["long", "é"]), row(["x", ""])]);
        assert_eq!(text, "A     B\nlong  é\nx\n");
    }
}
