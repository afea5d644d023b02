//! `weir ltx` as a user meets it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/ltx").join(name)
}

fn ltx(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.current_dir(dir).arg("ltx").args(arguments).env_clear().output().unwrap()
}

/// A directory with copies of the golden files under their own names.
fn goldens() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

fn check(dir: &Path, arguments: &[&str], code: i32, needles: &[&str]) {
    let output = ltx(dir, arguments);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    for needle in needles {
        assert!(text.contains(needle), "{arguments:?}: no {needle:?} in: {text}");
    }
}

#[test]
fn every_subcommand_has_help_with_examples() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["dump", "verify", "merge", "checksum", "encode", "apply"] {
        check(dir.path(), &[command, "--help"], 0, &["Examples:\n  weir ltx "]);
    }
}

#[test]
fn dump_shows_header_pages_and_trailer() {
    let dir = goldens();
    let needles = [
        "transactions  0000000000000002 to 0000000000000004",
        "pre-apply     8000000000001234",
        "file checksum d1f8ea546c262bd3",
        "3          134      34",
    ];
    check(dir.path(), &["dump", "reference-increment-v3.ltx"], 0, &needles);

    let output = ltx(dir.path(), &["dump", "--json", "reference-increment-v3.ltx"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value[0]["header"]["max_txid"], "0000000000000004");
    assert_eq!(value[0]["pages"][1]["page"], 3);
    assert_eq!(value[0]["trailer"]["post_apply"], "8000000000005678");
    assert_eq!(value[0]["error"], serde_json::Value::Null);
}

#[test]
fn verify_names_file_offset_and_fault() {
    let dir = goldens();
    let mut bytes = fs::read(golden("reference-increment-v3.ltx")).unwrap();
    bytes[85] ^= 1;
    fs::write(dir.path().join("damaged.ltx"), &bytes).unwrap();
    fs::write(dir.path().join("cut.ltx"), &bytes[..150]).unwrap();
    let files = ["verify", "weir-block.ltx", "damaged.ltx", "cut.ltx", "missing.ltx", "README.md"];
    let needles = [
        "weir-block.ltx: ok, transactions 0000000000000002 to 0000000000000004, 2 pages\n",
        "damaged.ltx: at byte 198: the file checksum is ",
        "cut.ltx: at byte 150: the file ends within the page\n",
        "missing.ltx: No such file",
        "README.md: at byte 0: it does not begin with 'LTX1', so it is no LTX file\n",
    ];
    check(dir.path(), &files, 1, &needles);

    let output = ltx(dir.path(), &["verify", "--json", "weir-block.ltx", "cut.ltx"]);
    assert_eq!(output.status.code(), Some(1));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value[0]["ok"], &value[1]["ok"]), (&true.into(), &false.into()));
}

#[test]
fn a_litefs_file_is_recognised() {
    let dir = goldens();
    for name in ["reference-plain-v1.ltx", "reference-compressed-v1.ltx"] {
        check(dir.path(), &["verify", name], 1, &["LTX file of LiteFS, v1: give --format v1"]);
        check(dir.path(), &["verify", "--format", "v1", name], 0, &["ok"]);
    }
    let v3 = ["verify", "--format", "v1", "weir-block.ltx"];
    check(dir.path(), &v3, 1, &["LTX file of Weir or Litestream, v3"]);
}

#[test]
fn merge_converts_and_never_overwrites_by_accident() {
    let dir = goldens();
    let merge = ["merge", "--format", "v1", "-o", "new.ltx", "reference-plain-v1.ltx"];
    check(dir.path(), &merge, 0, &["new.ltx: written, bc0361007f9bec47"]);
    check(dir.path(), &["verify", "new.ltx"], 0, &["new.ltx: ok, snapshot"]);
    check(dir.path(), &merge, 1, &["new.ltx: exists already, give --force to replace it"]);
    let onto_itself = ["merge", "--force", "-o", "new.ltx", "new.ltx"];
    check(dir.path(), &onto_itself, 1, &["new.ltx: is also an input"]);
    let gap = ["merge", "-o", "gap.ltx", "weir-block.ltx", "weir-plain.ltx"];
    let message = "weir-plain.ltx: input 1 begins at transaction 0000000000000002, \
                   0000000000000005 would follow";
    check(dir.path(), &gap, 1, &[message]);
    assert!(!dir.path().join("gap.ltx").exists());
}

#[test]
fn encode_and_apply_give_the_database_back() {
    let dir = goldens();
    let database = "reference-snapshot.db";
    for encoding in ["block", "plain", "frame"] {
        let encode = ["encode", "--force", "--page-encoding", encoding, "-o", "s.ltx", database];
        check(dir.path(), &encode, 0, &["s.ltx: written, bc0361007f9bec47"]);
        check(dir.path(), &["apply", "copy.db", "s.ltx"], 0, &["3 pages, bc0361007f9bec47"]);
        let copy = fs::read(dir.path().join("copy.db")).unwrap();
        assert!(copy == fs::read(golden(database)).unwrap());
    }
    check(dir.path(), &["checksum", "copy.db"], 0, &["bc0361007f9bec47\n"]);
}

#[test]
fn apply_refuses_a_database_of_another_state_and_leaves_it_alone() {
    let dir = goldens();
    let before = fs::read(golden("reference-snapshot.db")).unwrap();
    let apply = ["apply", "reference-snapshot.db", "reference-increment-v3.ltx"];
    let needle = "wants a database with the checksum 8000000000001234";
    check(dir.path(), &apply, 1, &[needle]);
    assert!(fs::read(dir.path().join("reference-snapshot.db")).unwrap() == before);
}

/// Runs `weir ltx` with little memory and little time: a failure must be an answer.
fn check_bounded(dir: &Path, arguments: &[&str], needle: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 1000000; exec timeout -s KILL 60 \"$@\"", "sh"]);
    command.arg(env!("CARGO_BIN_EXE_weir")).arg("ltx").args(arguments).current_dir(dir);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert!(text.contains(needle) && !text.contains("panicked"), "{arguments:?}: {text}");
}

#[test]
fn whatever_is_no_ltx_file_is_refused_with_its_name() {
    let dir = goldens();
    let whole = fs::read(golden("weir-block.ltx")).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("empty.ltx", b"");
    put(
        "garbage.ltx",
        &(0..1_000_000u32).map(|n| n.wrapping_mul(n).to_be_bytes()[2]).collect::<Vec<_>>(),
    );
    put("cut.ltx", &whole[..whole.len() - 9]);
    put("longer.ltx", &[&whole[..], b"x"].concat());
    let mut huge = whole.clone();
    huge[8..12].copy_from_slice(&65536u32.to_be_bytes());
    huge[12..16].fill(0xff);
    put("huge-database.ltx", &huge);
    let mut huge = whole.clone();
    huge[104..112].fill(0xff);
    put("huge-page.ltx", &huge);
    put("sparse.ltx", &whole[..whole.len() - 30]);
    let sparse = fs::OpenOptions::new().write(true).open(dir.path().join("sparse.ltx")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    fs::create_dir(dir.path().join("directory.ltx")).unwrap();
    for file in [
        "empty.ltx",
        "garbage.ltx",
        "cut.ltx",
        "longer.ltx",
        "huge-database.ltx",
        "huge-page.ltx",
        "sparse.ltx",
        "directory.ltx",
        "missing.ltx",
        "/dev/zero",
        "/dev/null",
        // Of all users it is the one file that even root cannot read.
        "/proc/self/mem",
    ] {
        check_bounded(dir.path(), &["dump", file], file);
        check_bounded(dir.path(), &["verify", file], file);
        check_bounded(dir.path(), &["merge", "-o", "out.ltx", file], file);
        check_bounded(dir.path(), &["apply", "out.db", file], file);
        assert!(!dir.path().join("out.ltx").exists() && !dir.path().join("out.db").exists());
    }
    for file in ["garbage.ltx", "directory.ltx", "missing.ltx", "/dev/zero", "/proc/self/mem"] {
        check_bounded(dir.path(), &["checksum", file], file);
        check_bounded(dir.path(), &["encode", "-o", "out.ltx", file], file);
        assert!(!dir.path().join("out.ltx").exists());
    }
}

// The target was emptied first, and removed after an error: a device as well.
#[test]
fn a_failed_write_leaves_what_was_there() {
    let dir = goldens();
    fs::write(dir.path().join("old.ltx"), b"old").unwrap();
    let merge = ["merge", "--force", "-o", "old.ltx", "weir-block.ltx", "weir-plain.ltx"];
    check(dir.path(), &merge, 1, &["would follow"]);
    assert_eq!(fs::read(dir.path().join("old.ltx")).unwrap(), b"old");
    let merge = ["merge", "--force", "-o", "old.ltx", "weir-block.ltx"];
    check(dir.path(), &merge, 0, &["written"]);
    check(dir.path(), &["verify", "old.ltx"], 0, &["ok"]);
    std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let merge = ["merge", "--force", "-o", "socket", "weir-block.ltx"];
    check(dir.path(), &merge, 1, &["socket: not a regular file"]);
    let left = fs::read_dir(dir.path()).unwrap().flatten();
    assert_eq!(left.filter(|e| e.path().extension().is_some_and(|e| e == "partial")).count(), 0);
}

#[test]
fn what_is_no_finished_database_is_refused() {
    let dir = goldens();
    check(dir.path(), &["checksum", "README.md"], 1, &["README.md: not a SQLite database"]);
    fs::write(dir.path().join("short.db"), b"SQLite").unwrap();
    check(dir.path(), &["checksum", "short.db"], 1, &["shorter than a SQLite header"]);
    fs::write(dir.path().join("empty.db"), b"").unwrap();
    check(dir.path(), &["checksum", "empty.db"], 0, &["8000000000000000\n"]);
    fs::write(dir.path().join("reference-snapshot.db-wal"), b"frames").unwrap();
    let needle = "reference-snapshot.db-wal is not empty, so the file alone is not the database";
    check(dir.path(), &["checksum", "reference-snapshot.db"], 1, &[needle]);
}
