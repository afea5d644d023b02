//! Gives raw values their types, and lists them for people.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use globset::GlobBuilder;
use tonic::transport::Uri;

use super::error::{ConfigError, Origin};
use super::keys::{self, KEYS};
use super::source::{Entries, Raw, base};
use super::units::{ByteSize, parse_duration};
use super::{
    Config, LeaseConfig, MountConfig, NodeConfig, ReplicationConfig, SEARCH_PATH, Setting,
};
use crate::store::{ReplicaWrites, Retention};

/// An address to listen on: `host:port`, or `:port` for all addresses of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// A name or address; `::` for all.
    pub host: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "write host:port or [address]:port, for example \"[::]:7400\"";
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { host: address.ip().to_string(), port: address.port() });
        }
        let (host, port) = text.rsplit_once(':').ok_or(SHAPE)?;
        let port = port.parse().map_err(|_| SHAPE)?;
        if host.contains([':', '/', '[', ']', ' ']) {
            return Err(SHAPE);
        }
        Ok(Self { host: if host.is_empty() { "::".to_owned() } else { host.to_owned() }, port })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Builds the configuration from raw values.
pub(super) fn build(entries: &Entries, file: Option<&Path>) -> Result<Config, ConfigError> {
    let values = Values { entries, file };
    let name = values.parse("node.name", node_name)?.unwrap_or_else(host_name);
    let peers = values.peers()?;
    let primary = values.primary(&name, &peers)?;
    let advertise = values.parse("replication.advertise", url)?;
    let node = NodeConfig {
        data: values.path("node.data")?,
        mount: values.path("node.mount")?,
        name: name.clone(),
    };
    values.parse("lease.type", |text| choice(text, &[("static", ())]))?;
    let config = Config {
        replication: ReplicationConfig {
            listen: values.parse("replication.listen", Listen::from_str)?,
            advertise: advertise.or_else(|| peers.get(&name).cloned()),
            databases: values.globs("replication.databases")?,
        },
        mount: MountConfig {
            allow_other: values.required("mount.allow_other", |t| {
                choice(t, &[("true", true), ("false", false)])
            })?,
            threads: values.required("mount.threads", threads)?,
        },
        log: Retention {
            age: values.required("log.retention_age", parse_duration)?,
            bytes: values.required("log.retention_bytes", ByteSize::from_str)?.0,
            bytes_max: values.required("log.retention_bytes_max", ByteSize::from_str)?.0,
        },
        replica_writes: values.required("replica.writes", |text| {
            choice(text, &[("busy", ReplicaWrites::Busy), ("readonly", ReplicaWrites::Readonly)])
        })?,
        lease: LeaseConfig::Static { primary, peers },
        node,
        file: file.map(Path::to_owned),
        settings: Vec::new(),
        warnings: Vec::new(),
    };
    Ok(Config { settings: settings(entries, &config), ..config })
}

struct Values<'a> {
    entries: &'a Entries,
    file: Option<&'a Path>,
}

impl Values<'_> {
    /// The value of a scalar key, given or default; `None` if neither.
    fn parse<T, E: fmt::Display>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let (text, origin) = match self.entries.get(key) {
            Some(entry) => match &entry.raw {
                Raw::Scalar(text) => (text.as_str(), entry.origin.clone()),
                Raw::List(_) | Raw::Map(_) => return Ok(None),
            },
            None => match keys::find(key).and_then(|key| key.default) {
                Some(text) => (text, Origin::Default),
                None => return Ok(None),
            },
        };
        read(text).map(Some).map_err(|error| value_error(&origin, key, text, &error))
    }

    fn required<T, E: fmt::Display>(
        &self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T, ConfigError> {
        self.parse(key, read)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &'static str) -> ConfigError {
        let variable = keys::variable(key);
        let remedy = match self.file {
            Some(path) => format!("add it to {} or set {variable}", path.display()),
            None => format!(
                "there is no configuration file (looked for {}); write one, name it with --config, \
                 or set {variable}",
                SEARCH_PATH.join(" and ")
            ),
        };
        ConfigError::Missing { key, remedy }
    }

    fn path(&self, key: &'static str) -> Result<PathBuf, ConfigError> {
        let text = self.required(key, |text| {
            if text.is_empty() { Err("the path is empty") } else { Ok(text.to_owned()) }
        })?;
        let origin = self.origin(key);
        let joined = base(&origin).join(&text);
        let absolute = std::path::absolute(&joined)
            .map_err(|error| value_error(&origin, key, &text, &error))?;
        Ok(normalize(&absolute))
    }

    fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    fn globs(&self, key: &'static str) -> Result<Vec<String>, ConfigError> {
        let Some(Raw::List(globs)) = self.entries.get(key).map(|entry| &entry.raw) else {
            let default = keys::find(key).and_then(|key| key.default);
            return Ok(default.map(str::to_owned).into_iter().collect());
        };
        for glob in globs {
            if let Err(error) = GlobBuilder::new(glob).literal_separator(true).build() {
                return Err(value_error(&self.origin(key), key, glob, &error.kind()));
            }
        }
        Ok(globs.clone())
    }

    fn peers(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        let Some(Raw::Map(map)) = self.entries.get("lease.peers").map(|entry| &entry.raw) else {
            return Ok(BTreeMap::new());
        };
        let origin = self.origin("lease.peers");
        let mut peers = BTreeMap::new();
        for (name, text) in map {
            let key = format!("lease.peers.{name}");
            node_name(name).map_err(|error| value_error(&origin, &key, name, &error))?;
            let url = url(text).map_err(|error| value_error(&origin, &key, text, &error))?;
            peers.insert(name.clone(), url);
        }
        Ok(peers)
    }

    /// The primary's name. A node without peers is a cluster of its own.
    fn primary(&self, name: &str, peers: &BTreeMap<String, String>) -> Result<String, ConfigError> {
        match self.parse("lease.primary", node_name)? {
            Some(primary) => Ok(primary),
            None if peers.keys().all(|peer| peer == name) => Ok(name.to_owned()),
            None => Err(self.missing("lease.primary")),
        }
    }
}

fn value_error(origin: &Origin, key: &str, value: &str, reason: &impl fmt::Display) -> ConfigError {
    ConfigError::Value {
        origin: origin.clone(),
        key: key.to_owned(),
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(name, _)| *name == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("it must be {}", names.join(" or "))
    })
}

fn threads(text: &str) -> Result<usize, &'static str> {
    match text.parse() {
        Ok(count @ 2..=64) => Ok(count),
        Ok(_) | Err(_) => Err("it must be a number from 2 to 64"),
    }
}

/// A name that fits into a file, a log line and a host name.
fn node_name(text: &str) -> Result<String, &'static str> {
    let valid = (1..=253).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if valid {
        Ok(text.to_owned())
    } else {
        Err("a node's name has 1 to 253 letters, digits, '.', '-' or '_'")
    }
}

fn url(text: &str) -> Result<String, &'static str> {
    const SHAPE: &str = "write a URL with a port, for example \"http://a.internal:7400\"";
    let uri: Uri = text.parse().map_err(|_| SHAPE)?;
    if uri.scheme_str() == Some("https") {
        return Err(
            "https is not supported; write http:// and keep the traffic on a private network",
        );
    }
    let plain = uri.scheme_str() == Some("http")
        && uri.host().is_some_and(|host| !host.is_empty())
        && uri.port_u16().is_some_and(|port| port != 0)
        && matches!(uri.path(), "" | "/")
        && uri.query().is_none();
    if plain { Ok(text.trim_end_matches('/').to_owned()) } else { Err(SHAPE) }
}

fn host_name() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    node_name(text.trim()).unwrap_or_else(|_| "localhost".to_owned())
}

/// Removes `.` and `..` from an absolute path without looking at the disk.
fn normalize(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) | Component::Normal(_) => out.push(part),
        }
    }
    out
}

fn settings(entries: &Entries, config: &Config) -> Vec<Setting> {
    let LeaseConfig::Static { primary, .. } = &config.lease;
    let shown = |key: &keys::Key| {
        let derived = match key.name {
            "node.name" => Some(config.node.name.clone()),
            "node.data" => Some(config.node.data.display().to_string()),
            "node.mount" => Some(config.node.mount.display().to_string()),
            "lease.primary" => Some(primary.clone()),
            "replication.advertise" => config.replication.advertise.clone(),
            _ => None,
        };
        let given = entries.get(key.name).map(|entry| text(&entry.raw));
        derived.or(given).or_else(|| key.default.map(str::to_owned))
    };
    KEYS.iter()
        .map(|key| Setting {
            key: key.name,
            value: shown(key),
            origin: entries.get(key.name).map_or(Origin::Default, |entry| entry.origin.clone()),
        })
        .collect()
}

fn text(raw: &Raw) -> String {
    match raw {
        Raw::Scalar(text) => text.clone(),
        Raw::List(list) => list.join(", "),
        Raw::Map(map) => {
            let pairs: Vec<_> = map.iter().map(|(name, value)| format!("{name}={value}")).collect();
            pairs.join(", ")
        }
    }
}
