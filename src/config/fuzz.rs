//! What must hold for any configuration at all; a fuzz target and the property test below call it.

use std::path::Path;

use super::keys::{KEYS, variable};
use super::{ByteSize, Config, Environment, format_duration, parse_duration};

/// A file's text, a NUL byte, then values for the environment, a NUL byte behind each: the first byte of a value
/// chooses the variable.
///
/// # Panics
/// If two readings differ: a bug.
pub fn fuzz_config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or("");
    let mut environment = Environment::new();
    for part in parts {
        let mut letters = part.chars();
        let chosen = letters.next().map_or(0, |letter| letter as usize);
        let name = KEYS.get(chosen % (KEYS.len() + 2)).map(|key| variable(key.name));
        let name = name.unwrap_or_else(|| format!("WEIR_NODE_{}", chosen % 7));
        environment.insert(name, letters.as_str().to_owned());
        environment.insert(format!("V{}", chosen % 3), letters.as_str().to_owned());
    }
    let path = Path::new("/nowhere/weir.toml");
    let read = || Config::parse(Some((path, file)), &environment);
    match (read(), read()) {
        (Ok(config), Ok(again)) => {
            assert_eq!(format!("{config:?}"), format!("{again:?}"), "BUG: another reading");
            assert!(config.node.data.is_absolute() && config.node.mount.is_absolute());
            assert!(config.mount.threads > 0);
        }
        (Err(error), Err(_)) => assert!(error.to_string().len() < 2 * data.len() + 10_000),
        (one, other) => panic!("BUG: {one:?}, then {other:?}"),
    }
    if let Ok(time) = parse_duration(file) {
        assert_eq!(parse_duration(&format_duration(time)), Ok(time), "BUG: another time");
    }
    if let Ok(size) = file.parse::<ByteSize>() {
        assert!(!size.to_string().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of configurations, which chance would not put together.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            prop::sample::select(KEYS.iter().map(|key| key.name.to_owned()).collect::<Vec<_>>()),
            prop::sample::select(
                [
                    "[node]",
                    "[lease]",
                    "[log]",
                    "[mount]",
                    "name",
                    "data",
                    "peers",
                    " = ",
                    "\n",
                    "\"",
                    "'",
                    "{",
                    "}",
                    "[",
                    "]",
                    ",",
                    "\"/a\"",
                    "\"/b\"",
                    "true",
                    "1",
                    "4",
                    "${V0}",
                    "${V1:-x}",
                    "${V0 == 'a'}",
                    "$$",
                    "${",
                    "1h",
                    "2GiB",
                    "\0a/x",
                    "\0b/y",
                    "\0",
                    "#",
                    "18446744073709551615",
                    "99999999999999999999h",
                    "1.5",
                    "\"\"\"",
                ]
                .map(str::to_owned)
                .to_vec()
            ),
            "[ -~\n\u{0}é]{0,6}",
        ];
        prop::collection::vec(piece, 0..25).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn configurations(text in pieces()) {
            fuzz_config(text.as_bytes());
        }
    }
}
