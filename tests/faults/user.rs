//! The whole daemon as an ordinary user, who mounts with `fusermount3`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::harness::{Cluster, Node, binary};

/// `nobody`
const USER: u32 = 65534;

/// Runs a program as the user; what it prints if it succeeds.
fn as_user(program: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir("/").uid(USER).gid(USER).output();
    let output = output.ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Why the test cannot run here.
fn hindrance() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root can become another user; all other tests run as this one");
    }
    if as_user(Path::new("fusermount3"), &["--version"]).is_none() {
        return Some("no fusermount3 (./ci.sh setup)");
    }
    let may_open =
        fs::metadata("/dev/fuse").is_ok_and(|device| device.permissions().mode() & 6 == 6);
    if !may_open {
        return Some("only root may open /dev/fuse here");
    }
    if as_user(&binary(), &["--version"]).is_none() {
        return Some("another user cannot run the program where it lies");
    }
    None
}

fn rows(node: &Node, sql: &str) -> String {
    let path = node.path("x.db");
    as_user(Path::new("sqlite3"), &["-batch", path.to_str().unwrap(), sql])
        .unwrap_or_else(|| panic!("{sql} as the user"))
}

#[test]
fn fuse_an_ordinary_user_runs_all_of_it() {
    if let Some(hindrance) = hindrance() {
        println!("left out: {hindrance}");
        return;
    }
    let mut cluster = Cluster::prepare();
    fs::set_permissions(cluster.outside(), fs::Permissions::from_mode(0o755)).unwrap();
    for path in [&cluster.a.data, &cluster.a.mount] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    cluster.a.user = Some(USER);
    cluster.a.start();
    assert_eq!(
        rows(&cluster.a, "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1)"),
        "wal"
    );
    // The mount that a killed daemon leaves is replaced without root as well.
    cluster.a.restart();
    assert_eq!(rows(&cluster.a, "INSERT INTO t VALUES (2); SELECT count(*) FROM t"), "2");
    assert!(cluster.a.stop().unwrap().success());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(cluster.a.mount.to_str().unwrap()), "it is unmounted");
}
