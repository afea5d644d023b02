//! The system's `sqlite3`, a second version of SQLite beside the bundled one.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs statements and dot-commands in a process of its own. `Err` holds what it said.
pub(crate) fn sqlite3(path: &Path, input: &str) -> Result<String, String> {
    let mut child = Command::new("sqlite3")
        .args(["-batch", "-bail", "-cmd", ".timeout 10000"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("sqlite3 is installed (./ci.sh setup)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim_end().to_owned())
    }
}

/// As `sqlite3`; panics on an error.
pub(crate) fn sqlite3_ok(path: &Path, input: &str) -> String {
    sqlite3(path, input).unwrap_or_else(|error| panic!("{}: {input}: {error}", path.display()))
}
