//! The configuration: read, checked and typed once, then trusted.
//!
//! Sources, later ones win: default, `weir.toml`, `WEIR_SECTION_KEY` in the environment. `keys` is the one
//! list of keys; `source` reads raw values; this file gives them types; `check` finds contradictions.
//! Called by `cli` before anything starts. Nothing here touches the network or creates a file.

#![forbid(unsafe_code)]

mod check;
mod error;
mod expand;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod keys;
mod source;
mod typed;
mod units;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{ReplicaWrites, Retention};

pub use error::{ConfigError, Origin};
pub use expand::ExpandError;
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_config;
pub use source::Environment;
pub use typed::Listen;
pub use units::{ByteSize, UnitError, format_duration, parse_duration};

/// Where a configuration is looked for when none is named.
pub const SEARCH_PATH: [&str; 2] = ["./weir.toml", "/etc/weir.toml"];

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[replication]`
    pub replication: ReplicationConfig,
    /// `[lease]`
    pub lease: LeaseConfig,
    /// `[mount]`
    pub mount: MountConfig,
    /// `[log]`
    pub log: Retention,
    /// `[replica] writes`
    pub replica_writes: ReplicaWrites,
    /// The file it was read from, if any.
    pub file: Option<PathBuf>,
    /// Every key with its value as text, for people.
    pub settings: Vec<Setting>,
    /// What looks wrong but does not prevent a start.
    pub warnings: Vec<String>,
}

/// `[node]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Name of this node, as `lease.peers` knows it.
    pub name: String,
    /// The data directory, absolute.
    pub data: PathBuf,
    /// The mount point, absolute.
    pub mount: PathBuf,
}

/// `[replication]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicationConfig {
    /// Where to serve replicas; `None` for a node that nobody follows.
    pub listen: Option<Listen>,
    /// The URL under which other nodes reach this one.
    pub advertise: Option<String>,
    /// Globs of the databases that a replica takes.
    pub databases: Vec<String>,
}

/// `[lease]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseConfig {
    /// The primary is named here and never changes.
    Static {
        /// Its name.
        primary: String,
        /// All nodes: name to URL.
        peers: BTreeMap<String, String>,
    },
}

/// `[mount]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountConfig {
    /// Other users than the daemon's may use the mount.
    pub allow_other: bool,
    /// Threads that answer kernel requests.
    pub threads: usize,
}

/// One key as it is in force.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    /// Its value as text; `None` if it is not set and has no default.
    pub value: Option<String>,
    /// Where the value comes from.
    pub origin: Origin,
}

impl Config {
    /// Loads the configuration: the named file, else the first of [`SEARCH_PATH`] that is there, else
    /// none (the environment may say everything).
    ///
    /// # Errors
    /// [`ConfigError`] names the place and the remedy.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let environment = source::process_environment();
        if let Some(path) = named {
            let text = read(path)?;
            return Self::parse(Some((path, &text)), &environment);
        }
        for path in SEARCH_PATH.map(Path::new) {
            match read(path) {
                Ok(text) => return Self::parse(Some((path, &text)), &environment),
                Err(ConfigError::Read { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Self::parse(None, &environment)
    }

    /// Makes a configuration from a file's text (with the path for error texts) and an environment.
    ///
    /// # Errors
    /// [`ConfigError`] names the place and the remedy.
    pub fn parse(
        file: Option<(&Path, &str)>,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let mut entries = match file {
            Some((path, text)) => source::read_file(path, text, environment)?,
            None => source::Entries::new(),
        };
        let warnings = source::overlay(&mut entries, environment)?;
        let path = file.map(|(path, _)| path);
        let mut config = typed::build(&entries, path)?;
        config.warnings.extend(warnings);
        check::check(&config)?;
        Ok(config)
    }

    /// Where a key's value comes from.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        setting.map_or(Origin::Default, |setting| setting.origin.clone())
    }
}

/// A path as the kernel knows it: symbolic links above the last component followed. The last one is left
/// alone because a mount point may belong to a daemon that does not answer.
#[must_use]
pub fn resolve(path: &Path) -> PathBuf {
    check::resolve(path)
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
