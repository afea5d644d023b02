//! Rules about the source that no compiler checks.
#![allow(clippy::unwrap_used, reason = "a failed test panics")]

use std::path::{Path, PathBuf};

/// Rooms that take values and return values.
const PURE: [&str; 5] = ["types", "sqlite", "ltx", "capture", "cluster"];

/// What a pure room must not name.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::time",
    "std::process",
    "tokio",
    "fuser",
    "tonic",
    "tracing",
];

/// Rooms that may hold unsafe code; all others forbid it.
const UNSAFE: [&str; 3] = ["disk", "client", "mount"];

const LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a directory, with their text.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

/// The code of a file without its inline tests, which may do what they like.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]").next().unwrap_or(text)
}

fn is_test_file(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().contains("test"))
}

#[test]
fn pure_rooms_do_no_io() {
    let mut broken = Vec::new();
    for room in PURE {
        for (path, text) in sources(&root().join("src").join(room)) {
            if is_test_file(path.strip_prefix(root()).unwrap()) {
                continue;
            }
            for (number, line) in without_tests(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or(line);
                for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                    broken.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(broken.is_empty(), "pure rooms name what they must not:\n{}", broken.join("\n"));
}

#[test]
fn rooms_without_unsafe_code_forbid_it() {
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path().join("mod.rs");
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let room = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let forbids = text.contains("#![forbid(unsafe_code)]");
        let is_built = text.lines().count() > 20 && !text.contains("unimplemented!()");
        assert!(
            forbids || UNSAFE.contains(&&*room) || !is_built,
            "src/{room}/mod.rs does not start with #![forbid(unsafe_code)]"
        );
    }
}

#[test]
fn every_file_says_what_it_is() {
    for directory in ["src", "tests"] {
        for (path, text) in sources(&root().join(directory)) {
            assert!(text.starts_with("//!"), "{}: no module documentation", path.display());
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for directory in ["src", "tests"] {
        for (path, text) in sources(&root().join(directory)) {
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{}: {lines} lines, cut it", path.display());
        }
    }
}

#[test]
fn architecture_fits_its_promise() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    assert!(text.lines().count() <= 200, "ARCHITECTURE.md: {} lines", text.lines().count());
}

#[test]
fn the_readme_lists_exactly_the_configuration_keys() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("### Configuration").nth(1).unwrap().split("###").next().unwrap();
    let listed: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .collect();
    let source = std::fs::read_to_string(root().join("src/config/keys.rs")).unwrap();
    let keys: Vec<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("key(\""))
        .filter_map(|line| line.split('"').next())
        .collect();
    assert!(!keys.is_empty());
    assert_eq!(listed, keys, "README.md and src/config/keys.rs, in the same order");
}
