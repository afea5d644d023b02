//! Mounting and unmounting: what a crash left, what is in the way, who keeps it busy.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weir::mount::MountError;

use crate::serve::{Served, can_mount, options, start};

/// Set in the child of the crash tests: the directory that it is to serve.
const CHILD: &str = "WEIR_TEST_SERVE";

/// Not a test of its own: what the child process of the crash tests does.
#[test]
fn fuse_child_serves_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let served = start(&dir.join("data"), options(&dir.join("mnt"))).unwrap();
    println!("SERVING");
    let mut rest = String::new();
    std::io::stdin().read_to_string(&mut rest).unwrap();
    drop(served);
}

fn spawn_server(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mounting::fuse_child_serves_until_killed", "--nocapture"])
        .env(CHILD, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_serving = lines.map_while(Result::ok).any(|line| line.ends_with("SERVING"));
    assert!(is_serving, "the child did not come up");
    child
}

#[test]
fn fuse_a_mount_left_by_a_killed_daemon_is_replaced() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mnt = dir.path().join("mnt");
    for round in 0..3 {
        let mut child = spawn_server(dir.path());
        fs::write(mnt.join(format!("file{round}")), b"x").unwrap();
        // A file that stays open must not keep the dead mount in place.
        let held = File::open(mnt.join(format!("file{round}"))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // Not the attributes: those the kernel may still have.
        let error = File::create(mnt.join("new")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        let (mount, _store) = start(&dir.path().join("data"), options(&mnt)).unwrap();
        assert_eq!(fs::read(mnt.join(format!("file{round}"))).unwrap(), b"x");
        drop(held);
        mount.unmount().unwrap();
        assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0, "nothing is left over it");
    }
}

#[test]
fn fuse_what_is_in_the_way_is_named() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (data, mnt) = (dir.path().join("data"), dir.path().join("mnt"));
    let (other_data, other) = (dir.path().join("other"), dir.path().join("other-mnt"));
    let (first, _store) = start(&other_data, options(&other)).unwrap();
    let error = start(&data, options(&other)).unwrap_err();
    assert!(matches!(error, MountError::Occupied { .. }), "{error}");
    assert!(error.to_string().contains("umount"), "{error}");
    first.unmount().unwrap();
    fs::create_dir(&mnt).unwrap();
    fs::write(mnt.join("x"), b"").unwrap();
    let error = start(&data, options(&mnt)).unwrap_err();
    assert!(matches!(error, MountError::NotEmpty { .. }), "{error}");
    let error = start(&data, options(&data.join("files/mnt"))).unwrap_err();
    assert!(matches!(error, MountError::Overlap { .. }), "{error}");
}

#[test]
fn fuse_a_busy_mount_is_taken_away_in_bounded_time() {
    let Some(mut served) = Served::start() else { return };
    fs::write(served.path("x"), b"content").unwrap();
    let held = File::open(served.path("x")).unwrap();
    let begin = Instant::now();
    let mount = served.mount.take().unwrap();
    mount.unmount().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    assert_eq!(fs::read_dir(served.path("")).unwrap().count(), 0);
    if rustix::process::geteuid().is_root() {
        assert!(held.sync_all().is_err(), "the file is cut off");
    }
}

#[test]
fn fuse_an_unmount_by_somebody_else_is_noticed() {
    let Some(served) = Served::start() else { return };
    assert!(served.mount().is_serving());
    let point = served.mount().path().to_owned();
    rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty())
        .or_else(|_| match Command::new("fusermount3").arg("-u").arg(&point).status() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(rustix::io::Errno::PERM),
        })
        .unwrap();
    assert!(served.mount().wait_end(Duration::from_secs(10)));
    assert!(!served.mount().is_serving());
}
