//! Values that exclude each other. Each text names both keys and what to change.

use std::path::{Path, PathBuf};

use super::{Config, ConfigError, LeaseConfig};

/// Finds the first contradiction.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    paths(config)?;
    lease(config)?;
    log(config)
}

fn paths(config: &Config) -> Result<(), ConfigError> {
    let (data, mount) = (&config.node.data, &config.node.mount);
    if mount == Path::new("/") {
        return Err(contradiction(
            config,
            "node.mount",
            "node.mount is /: nothing can be mounted over the root; name a directory of its own"
                .into(),
        ));
    }
    for (data, mount) in [(data.clone(), mount.clone()), (resolve(data), resolve(mount))] {
        let text = if data == mount {
            format!("node.data and node.mount are both {}", data.display())
        } else if mount.starts_with(&data) {
            format!("node.mount {} is inside node.data {}", mount.display(), data.display())
        } else if data.starts_with(&mount) {
            format!("node.data {} is inside node.mount {}", data.display(), mount.display())
        } else {
            continue;
        };
        let text = format!("{text}; they must be directories apart from each other");
        return Err(contradiction(config, "node.mount", text));
    }
    Ok(())
}

pub(super) fn resolve(path: &Path) -> PathBuf {
    match (path.parent().and_then(|parent| parent.canonicalize().ok()), path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

fn lease(config: &Config) -> Result<(), ConfigError> {
    let LeaseConfig::Static { primary, peers } = &config.lease;
    let name = &config.node.name;
    let replication = &config.replication;
    if primary != name && !peers.contains_key(primary) {
        let text = format!(
            "lease.primary is {primary:?}, but lease.peers does not say where it is; add \
             {primary} = \"http://HOST:PORT\" to lease.peers, or set node.name (now {name:?}) if this \
             node is meant"
        );
        return Err(contradiction(config, "lease.primary", text));
    }
    let others = peers.keys().any(|peer| peer != name);
    if primary == name && others && replication.listen.is_none() {
        let text = format!(
            "lease.peers lists other nodes and lease.primary is this node ({name:?}), but \
             replication.listen is not set; set it, for example to \"[::]:7400\""
        );
        return Err(contradiction(config, "lease.peers", text));
    }
    let Some(advertise) = &replication.advertise else {
        if others && replication.listen.is_some() {
            let text = format!(
                "replication.listen is set, but neither replication.advertise nor lease.peers.{name} \
                 says where other nodes reach this one; set replication.advertise"
            );
            return Err(contradiction(config, "replication.listen", text));
        }
        return Ok(());
    };
    match peers.get(name) {
        Some(url) if url != advertise => {
            let text = format!(
                "replication.advertise is {advertise}, but lease.peers.{name} is {url}; make them equal"
            );
            Err(contradiction(config, "replication.advertise", text))
        }
        Some(_) | None => Ok(()),
    }
}

fn log(config: &Config) -> Result<(), ConfigError> {
    if config.log.bytes_max < config.log.bytes {
        let text = "log.retention_bytes_max is less than log.retention_bytes; it is the hard cap, raise it";
        return Err(contradiction(config, "log.retention_bytes_max", text.to_owned()));
    }
    Ok(())
}

fn contradiction(config: &Config, key: &str, text: String) -> ConfigError {
    ConfigError::Contradiction { origin: config.origin(key), text }
}
