//! The `weir` command.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    weir::disk::memory::limit();
    weir::cli::run()
}
