//! The command line as a user meets it: help, exit codes, error texts.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Output};

fn weir(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.current_dir(dir).args(arguments).env_clear();
    command.envs(environment.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_subcommand_has_help_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    for command in [
        &["--help"][..],
        &["mount", "--help"],
        &["config", "check", "--help"],
        &["status", "--help"],
        &["export", "--help"],
        &["import", "--help"],
        &["verify", "--help"],
        &["demo", "--help"],
        &["bench", "--help"],
    ] {
        let output = weir(dir.path(), command, &[]);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(stdout(&output).contains("Examples:\n  weir"), "{command:?}: {}", stdout(&output));
    }
}

#[test]
fn the_version_is_the_crate_s() {
    let dir = tempfile::tempdir().unwrap();
    let output = weir(dir.path(), &["--version"], &[]);
    assert_eq!(stdout(&output), format!("weir {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&[][..], &["nonsense"], &["export", "only-one"], &["mount", "--no-such-flag"]]
    {
        assert_eq!(weir(dir.path(), arguments, &[]).status.code(), Some(2), "{arguments:?}");
    }
    let output = weir(dir.path(), &["--log", "weir=loud", "mount"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).starts_with("weir: --log \"weir=loud\": "), "{}", stderr(&output));
}

#[test]
fn a_wrong_configuration_exits_2_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("weir.toml"), "[node]\ndata = 'd'\nmuont = 'm'\n").unwrap();
    let output = weir(dir.path(), &["config", "check"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "weir: ./weir.toml:3: unknown key node.muont; did you mean node.mount?\n"
    );
    let output = weir(dir.path(), &["mount", "--config", "nowhere.toml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "weir: read configuration: nowhere.toml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn config_check_tells_where_each_value_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.toml");
    std::fs::write(&file, "[node]\nname = 'n'\ndata = 'd'\nmount = 'm'\n").unwrap();
    let file = file.to_str().unwrap();
    let environment = [("WEIR_CONFIG", file), ("WEIR_NODE_NAME", "other")];
    let output = weir(Path::new("/"), &["config", "check", "--json"], &environment);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = &json["settings"];
    assert_eq!(settings["node.name"]["value"], "other");
    assert_eq!(settings["node.name"]["origin"]["environment"], "WEIR_NODE_NAME");
    assert_eq!(settings["node.data"]["value"], dir.path().join("d").to_str().unwrap());
    assert_eq!(settings["node.data"]["origin"]["line"], 3);
    assert_eq!(settings["replica.writes"]["origin"], "default");
    let text = stdout(&weir(Path::new("/"), &["config", "check"], &environment));
    assert!(
        text.lines().any(|line| line.starts_with("node.name") && line.ends_with("WEIR_NODE_NAME")),
        "{text}"
    );
}

#[test]
fn what_the_readme_says_to_type_works() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (_, rest) = readme.split_once("```toml\n").expect("a configuration");
    let (config, _) = rest.split_once("```").unwrap();
    std::fs::write(dir.path().join("weir.toml"), config).unwrap();
    let output = weir(dir.path(), &["config", "check"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    // The same file serves on the other node.
    let output = weir(dir.path(), &["config", "check"], &[("WEIR_NODE_NAME", "b")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut commands = 0;
    for piece in readme.split(['`', '\n']) {
        let piece = piece.trim_start_matches("$ ");
        let Some(words) =
            piece.strip_prefix("weir ").or_else(|| piece.split("cargo run --release -- ").nth(1))
        else {
            continue;
        };
        let words: Vec<&str> = words
            .split_whitespace()
            .take_while(|word| *word != "#")
            .map(|word| word.trim_matches(['[', ']']))
            .filter(|word| {
                !word.is_empty()
                    && (word.starts_with('-') || word.chars().all(|c| c.is_ascii_lowercase()))
            })
            .chain(["--help"])
            .collect();
        let output = weir(dir.path(), &words, &[]);
        assert_eq!(output.status.code(), Some(0), "{piece}: {words:?}: {}", stderr(&output));
        commands += 1;
    }
    assert!(commands > 10, "only {commands} commands found");
}
