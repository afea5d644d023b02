//! Reads raw values: the TOML file, then the environment over it, variables expanded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::expand::expand;
use super::keys::{self, KEYS, Key, Kind};

/// A value before its own syntax is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Raw {
    Scalar(String),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) raw: Raw,
    pub(crate) origin: Origin,
}

/// The environment: the variables that count, as pairs.
pub type Environment = BTreeMap<String, String>;

/// What the file and the environment give, by key name.
pub(crate) type Entries = BTreeMap<&'static str, Entry>;

/// Reads the values of a file's text.
pub(crate) fn read_file(
    path: &Path,
    text: &str,
    environment: &Environment,
) -> Result<Entries, ConfigError> {
    let file = FileText { path, text, environment };
    let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: file.line(error.span().map_or(0, |span| span.start)),
        message: error.message().replace('\n', "; "),
    })?;
    let mut entries = Entries::new();
    for (section, value) in root.get_ref() {
        let name = section.get_ref().as_ref();
        if !keys::sections().contains(&name) {
            return Err(file.unknown_section(section, value));
        }
        let DeValue::Table(table) = value.get_ref() else {
            return Err(file.wrong_type(section.span().start, name, value, "a section"));
        };
        for (key, value) in table {
            let full = format!("{name}.{}", key.get_ref());
            let Some(known) = keys::find(&full) else {
                return Err(file.unknown_key(key.span().start, full));
            };
            let origin = file.origin(key.span().start);
            entries.insert(known.name, Entry { raw: file.raw(known, value)?, origin });
        }
    }
    Ok(entries)
}

/// Puts `WEIR_SECTION_KEY` variables over the file's values. Returns warnings about variables that look
/// like keys but are none; they are no errors because service managers set variables of their own.
pub(crate) fn overlay(
    entries: &mut Entries,
    environment: &Environment,
) -> Result<Vec<String>, ConfigError> {
    let mut warnings = Vec::new();
    for (variable, value) in environment {
        if let Some(key) = KEYS.iter().find(|key| keys::variable(key.name) == *variable) {
            let origin = Origin::Environment { variable: variable.clone() };
            let raw = environment_raw(key, value, &origin)?;
            entries.insert(key.name, Entry { raw, origin });
        } else if looks_like_key(variable) {
            let names: Vec<_> = KEYS.iter().map(|key| keys::variable(key.name)).collect();
            let hint = keys::hint(variable, names.iter().map(String::as_str));
            warnings.push(format!("the environment variable {variable} sets no key{hint}"));
        }
    }
    Ok(warnings)
}

fn looks_like_key(variable: &str) -> bool {
    const COMMAND_LINE: [&str; 3] = ["WEIR_CONFIG", "WEIR_LOG", "WEIR_LOG_FORMAT"];
    !COMMAND_LINE.contains(&variable)
        && keys::sections()
            .iter()
            .any(|section| variable.starts_with(&format!("WEIR_{}_", section.to_ascii_uppercase())))
}

fn environment_raw(key: &Key, value: &str, origin: &Origin) -> Result<Raw, ConfigError> {
    let parts = || value.split(',').map(str::trim).filter(|part| !part.is_empty());
    match key.kind {
        Kind::Text | Kind::Path | Kind::Bool | Kind::Count => Ok(Raw::Scalar(value.to_owned())),
        Kind::List => Ok(Raw::List(parts().map(str::to_owned).collect())),
        Kind::Map => {
            let mut map = BTreeMap::new();
            for part in parts() {
                let (name, value) = part.split_once('=').ok_or_else(|| ConfigError::Value {
                    origin: origin.clone(),
                    key: key.name.to_owned(),
                    value: part.to_owned(),
                    reason: "write name=value, separated by commas".to_owned(),
                })?;
                map.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            Ok(Raw::Map(map))
        }
    }
}

struct FileText<'a> {
    path: &'a Path,
    text: &'a str,
    environment: &'a Environment,
}

impl FileText<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.line(offset) }
    }

    fn raw(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Raw, ConfigError> {
        let wrong = || self.wrong_type(value.span().start, key.name, value, key.kind.expected());
        match (key.kind, value.get_ref()) {
            (Kind::List, DeValue::Array(array)) => {
                let texts = array.iter().map(|item| self.string(key.name, item));
                texts.collect::<Result<_, _>>().map(Raw::List)
            }
            (Kind::Map, DeValue::Table(table)) => {
                let mut map = BTreeMap::new();
                for (name, value) in table {
                    let place = format!("{}.{}", key.name, name.get_ref());
                    map.insert(name.get_ref().to_string(), self.string(&place, value)?);
                }
                Ok(Raw::Map(map))
            }
            (Kind::List | Kind::Map, _) => Err(wrong()),
            // A string serves every scalar: that is what a variable expands to.
            (_, DeValue::String(_)) => self.string(key.name, value).map(Raw::Scalar),
            (Kind::Bool, DeValue::Boolean(flag)) => Ok(Raw::Scalar(flag.to_string())),
            (Kind::Count, DeValue::Integer(number)) => Ok(Raw::Scalar(number.to_string())),
            // `retention_age = 24`: the unit's own error says what is missing.
            (Kind::Text, DeValue::Integer(number)) if number.radix() == 10 => {
                Ok(Raw::Scalar(number.to_string()))
            }
            (Kind::Text | Kind::Path | Kind::Bool | Kind::Count, _) => Err(wrong()),
        }
    }

    fn string(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, ConfigError> {
        let at = value.span().start;
        let DeValue::String(text) = value.get_ref() else {
            return Err(self.wrong_type(at, key, value, "a string"));
        };
        let lookup = |name: &str| self.environment.get(name).cloned();
        let expanded = expand(text, &lookup).map_err(|source| ConfigError::Expand {
            origin: self.origin(at),
            key: key.to_owned(),
            source,
        })?;
        Ok(expanded.into_owned())
    }

    fn wrong_type(
        &self,
        offset: usize,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        expected: &'static str,
    ) -> ConfigError {
        let name = value.get_ref().type_str();
        let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
        ConfigError::Type {
            origin: self.origin(offset),
            key: key.to_owned(),
            found: format!("{article} {name}"),
            expected,
        }
    }

    fn unknown_section(
        &self,
        section: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> ConfigError {
        let name = section.get_ref().to_string();
        let origin = self.origin(section.span().start);
        if value.get_ref().is_table() {
            let all: Vec<_> = keys::sections().iter().map(|name| format!("[{name}]")).collect();
            let key = format!("[{name}]");
            let hint = keys::hint(&key, all.iter().map(String::as_str));
            return ConfigError::Unknown { origin, what: "section", key, hint };
        }
        // A key without its section: the full name of a key that ends so is the best guess.
        let full = KEYS
            .iter()
            .map(|key| key.name)
            .find(|key| key.split_once('.').is_some_and(|(_, last)| last == name));
        let hint = full.map(|full| format!("; did you mean {full}?")).unwrap_or_default();
        ConfigError::Unknown { origin, what: "key", key: name, hint }
    }

    fn unknown_key(&self, offset: usize, full: String) -> ConfigError {
        let hint = keys::hint(&full, KEYS.iter().map(|key| key.name));
        ConfigError::Unknown { origin: self.origin(offset), what: "key", key: full, hint }
    }
}

/// Where a relative path of this origin counts from.
pub(crate) fn base(origin: &Origin) -> PathBuf {
    match origin {
        Origin::File { path, .. } => path.parent().map(Path::to_owned).unwrap_or_default(),
        Origin::Environment { .. } | Origin::Default => PathBuf::new(),
    }
}

/// The environment of this process; variables that are not UTF-8 cannot be values.
pub(crate) fn process_environment() -> Environment {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
