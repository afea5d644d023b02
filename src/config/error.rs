//! What can be wrong with a configuration. Each text names the place, the thing and the remedy.

use std::fmt;
use std::path::PathBuf;

use super::expand::ExpandError;

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// Not given.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment { variable } => write!(f, "environment {variable}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Why there is no usable configuration. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("read configuration: {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: {message}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// No such section or key.
    #[error("{origin}: unknown {what} {key}{hint}")]
    Unknown {
        /// Where.
        origin: Origin,
        /// `key` or `section`.
        what: &'static str,
        /// As written, with its section.
        key: String,
        /// `; did you mean …?` or nothing.
        hint: String,
    },
    /// The value has another type than the key needs.
    #[error("{origin}: {key} is {found}, it must be {expected}")]
    Type {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// What TOML type it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A variable in a value cannot be expanded.
    #[error("{origin}: {key}: {source}")]
    Expand {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// Which variable, and why. Part of the text, so no `source()`.
        source: ExpandError,
    },
    /// The value cannot be used.
    #[error("{origin}: {key} = {value:?}: {reason}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// After expansion.
        value: String,
        /// What is wrong and what to write.
        reason: String,
    },
    /// A key that must be given.
    #[error("{key} is not set; {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// Where to set it.
        remedy: String,
    },
    /// Two values that exclude each other.
    #[error("{origin}: {text}")]
    Contradiction {
        /// Where one of them stands.
        origin: Origin,
        /// Both keys, their values, and what to change.
        text: String,
    },
}
