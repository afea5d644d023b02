//! All keys: the one list behind the file, the environment, `weir config check` and the error texts.

/// What a key holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A string.
    Text,
    /// A path; relative ones count from the configuration file.
    Path,
    /// `true` or `false`.
    Bool,
    /// A number without a unit.
    Count,
    /// An array of strings.
    List,
    /// A table of strings.
    Map,
}

impl Kind {
    /// For error texts.
    pub(crate) fn expected(self) -> &'static str {
        match self {
            Self::Text | Self::Path => "a string",
            Self::Bool => "true or false",
            Self::Count => "a whole number",
            Self::List => "an array of strings",
            Self::Map => "a table of strings",
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// `section.key`.
    pub(crate) name: &'static str,
    /// What it holds.
    pub(crate) kind: Kind,
    /// Its value when it is not given, if that is a constant.
    pub(crate) default: Option<&'static str>,
}

const fn key(name: &'static str, kind: Kind, default: Option<&'static str>) -> Key {
    Key { name, kind, default }
}

/// Every key, in the order in which they are shown.
pub(crate) const KEYS: &[Key] = &[
    key("node.name", Kind::Text, None),
    key("node.data", Kind::Path, None),
    key("node.mount", Kind::Path, None),
    key("replication.listen", Kind::Text, None),
    key("replication.advertise", Kind::Text, None),
    key("replication.databases", Kind::List, Some("**")),
    key("lease.type", Kind::Text, Some("static")),
    key("lease.primary", Kind::Text, None),
    key("lease.peers", Kind::Map, None),
    key("mount.allow_other", Kind::Bool, Some("false")),
    key("mount.threads", Kind::Count, Some("4")),
    key("log.retention_age", Kind::Text, Some("24h")),
    key("log.retention_bytes", Kind::Text, Some("1GiB")),
    key("log.retention_bytes_max", Kind::Text, Some("4GiB")),
    key("replica.writes", Kind::Text, Some("busy")),
];

/// The key with a name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// All sections, each once.
pub(crate) fn sections() -> Vec<&'static str> {
    let mut all: Vec<_> = KEYS
        .iter()
        .filter_map(|key| key.name.split_once('.'))
        .map(|(section, _)| section)
        .collect();
    all.dedup();
    all
}

/// The variable that overrides a key: `node.name` is `WEIR_NODE_NAME`.
pub(crate) fn variable(name: &str) -> String {
    format!("WEIR_{}", name.replace('.', "_").to_ascii_uppercase())
}

/// `; did you mean …?` for the nearest of the candidates, or nothing if none is near.
pub(crate) fn hint<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    // Comparing takes the product of both lengths.
    if wrong.len() > 100 {
        return String::new();
    }
    let near = candidates
        .map(|candidate| (strsim::damerau_levenshtein(wrong, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3));
    near.map(|(_, candidate)| format!("; did you mean {candidate}?")).unwrap_or_default()
}
