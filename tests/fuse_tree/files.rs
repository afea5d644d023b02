//! What applications do with files, beyond the random operations of `model`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use weir::mount::RequestKind;
use weir::types::DbName;

use crate::serve::{Served, has_program, shell};

fn code<T>(result: std::io::Result<T>) -> i32 {
    result.map(|_| 0).unwrap_or_else(|error| error.raw_os_error().unwrap_or(-1))
}

/// Makes a small database.
fn sqlite(path: &std::path::Path) {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE t(a); INSERT INTO t VALUES (1)").unwrap();
}

#[test]
fn fuse_an_unlinked_file_lives_while_it_is_open() {
    let Some(served) = Served::start() else { return };
    let path = served.path("x");
    fs::write(&path, b"before").unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b"behind").unwrap();
    file.set_len(3).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "beh");
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.len(), metadata.mode() & 0o777), (0, 3, 0o600));
    // Opened anew through /proc, as `lsof` users rescue files.
    use std::os::fd::AsRawFd as _;
    let rescued = fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert_eq!(rescued, b"beh");
    // A new file with the same name, and perhaps the same backing inode later, is another file.
    fs::write(&path, b"new").unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), metadata.ino());
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn fuse_a_database_named_like_a_companion_stays_one_when_the_other_appears() {
    // `x-journal` was a database; then `x` came, and the removal of `x-journal` went to `x`: what was open of it failed with EIO.
    let Some(served) = Served::start() else { return };
    let name = DbName::new(b"x-journal").unwrap();
    sqlite(&served.path("x-journal"));
    let id = served.store.by_name(&name).and_then(|db| db.id()).expect("a database");
    let file = OpenOptions::new().read(true).write(true).open(served.path("x-journal")).unwrap();
    fs::write(served.path("x"), b"an ordinary file").unwrap();
    let second = OpenOptions::new().write(true).open(served.path("x-journal")).unwrap();
    second.write_all_at(b"!", 4000).unwrap();
    drop(second);
    assert!(served.store.by_id(id).is_some(), "still the database it was");
    fs::remove_file(served.path("x-journal")).unwrap();
    file.write_all_at(&[7; 5000], 0).unwrap();
    assert!(served.store.by_id(id).is_none(), "removed");
    assert_eq!(fs::read(served.path("x")).unwrap(), b"an ordinary file");
    // From now on the name is what it is for SQLite.
    sqlite(&served.path("x2"));
    fs::write(served.path("x2-journal"), b"").unwrap();
    fs::remove_file(served.path("x2-journal")).unwrap();
}

#[test]
fn fuse_a_reused_inode_shows_no_old_content() {
    let Some(served) = Served::start() else { return };
    for round in 0..200 {
        let path = served.path("x");
        let text = format!("round {round}");
        fs::write(&path, &text).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn fuse_a_rename_over_an_open_file() {
    let Some(served) = Served::start() else { return };
    fs::write(served.path("old"), b"old").unwrap();
    fs::write(served.path("new"), b"new").unwrap();
    let old = File::open(served.path("old")).unwrap();
    let new = OpenOptions::new().write(true).open(served.path("new")).unwrap();
    fs::rename(served.path("new"), served.path("old")).unwrap();
    let mut buffer = [0; 3];
    old.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!(&buffer, b"old");
    new.write_all_at(b"NEW", 0).unwrap();
    assert_eq!(fs::read(served.path("old")).unwrap(), b"NEW");
    assert_eq!(new.metadata().unwrap().ino(), fs::metadata(served.path("old")).unwrap().ino());
    assert_eq!(code(fs::metadata(served.path("new"))), libc::ENOENT);
}

#[test]
fn fuse_hard_links_are_one_file() {
    let Some(served) = Served::start() else { return };
    fs::write(served.path("a"), b"one").unwrap();
    fs::create_dir(served.path("d")).unwrap();
    fs::hard_link(served.path("a"), served.path("d/b")).unwrap();
    let (a, b) =
        (fs::metadata(served.path("a")).unwrap(), fs::metadata(served.path("d/b")).unwrap());
    assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    fs::write(served.path("a"), b"two!").unwrap();
    assert_eq!(fs::read(served.path("d/b")).unwrap(), b"two!");
    fs::remove_file(served.path("a")).unwrap();
    assert_eq!(fs::read(served.path("d/b")).unwrap(), b"two!");
    assert_eq!(fs::metadata(served.path("d/b")).unwrap().nlink(), 1);
}

#[test]
fn fuse_directories_with_thousands_of_entries() {
    let Some(served) = Served::start() else { return };
    let directory = served.path("many");
    fs::create_dir(&directory).unwrap();
    for n in 0..5000 {
        File::create(directory.join(format!("file-with-a-longer-name-{n}"))).unwrap();
    }
    let count = || fs::read_dir(&directory).unwrap().map(Result::unwrap).count();
    assert_eq!(count(), 5000);
    // Removing while listing: everything that stays is listed.
    let mut seen = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        seen += 1;
        if seen % 2 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!((seen, count()), (5000, 2500));
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(code(fs::metadata(&directory)), libc::ENOENT);
}

#[test]
fn fuse_strange_names() {
    let Some(served) = Served::start() else { return };
    let long = vec![b'n'; 255];
    let names: [&[u8]; 6] = [&long, b"not utf-8 \xff\xfe", b"new\nline", b" ", b"\xc3\xbc", b"..."];
    for name in names {
        let path = served.path("").join(OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        assert_eq!(fs::read(&path).unwrap(), name);
        assert!(served.backing("").join(OsStr::from_bytes(name)).exists());
    }
    assert_eq!(fs::read_dir(served.path("")).unwrap().count(), names.len() + 1);
    let too_long = served.path("").join(OsStr::from_bytes(&[b'n'; 256]));
    assert_eq!(code(fs::write(&too_long, b"")), libc::ENAMETOOLONG);
    assert_eq!(code(fs::metadata(&too_long)), libc::ENAMETOOLONG);
}

#[test]
fn fuse_renaming_directories_moves_what_is_below() {
    let Some(served) = Served::start() else { return };
    fs::create_dir_all(served.path("a/b/c")).unwrap();
    fs::write(served.path("a/b/c/file"), b"x").unwrap();
    let file = OpenOptions::new().write(true).open(served.path("a/b/c/file")).unwrap();
    fs::create_dir(served.path("t")).unwrap();
    fs::rename(served.path("a/b"), served.path("t/m")).unwrap();
    file.write_all_at(b"y", 0).unwrap();
    assert_eq!(fs::read(served.path("t/m/c/file")).unwrap(), b"y");
    assert_eq!(code(fs::metadata(served.path("a/b"))), libc::ENOENT);
    assert_eq!(code(fs::rename(served.path("t"), served.path("t/m/t"))), libc::EINVAL);
    assert_eq!(code(fs::remove_dir(served.path("t"))), libc::ENOTEMPTY);
}

#[test]
fn fuse_lookups_survive_a_directory_that_keeps_being_renamed() {
    let Some(served) = Served::start() else { return };
    fs::create_dir_all(served.path("a/d")).unwrap();
    let inside = File::open(served.path("a/d")).unwrap();
    std::thread::scope(|scope| {
        // Gone also when an assertion fails, or the other thread would go on for ever.
        let running = std::sync::Arc::new(());
        let seen = std::sync::Arc::downgrade(&running);
        let served = &served;
        scope.spawn(move || {
            while seen.strong_count() > 0 {
                fs::rename(served.path("a"), served.path("b")).unwrap();
                fs::rename(served.path("b"), served.path("a")).unwrap();
            }
        });
        for n in 0..500 {
            let name = format!("f{n}");
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let result = rustix::fs::openat(&inside, name.as_str(), flags, mode);
            assert!(result.is_ok(), "{n}: {result:?}");
        }
    });
    assert_eq!(fs::read_dir(served.path("a/d")).unwrap().count(), 500);
}

#[test]
fn fuse_permissions_are_checked_for_other_users() {
    if !rustix::process::geteuid().is_root() || !has_program("setpriv") {
        println!("SKIPPED: needs root and setpriv");
        return;
    }
    let Some(served) = Served::with(|options| options.allow_other = true) else { return };
    fs::set_permissions(served.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = served.path("");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(served.path("secret"), b"x").unwrap();
    fs::set_permissions(served.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let nobody = |script: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-ec", script])
            .current_dir(&root)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (is_allowed, said) = nobody("cat secret");
    assert!(!is_allowed && said.contains("Permission denied"), "{said}");
    let (is_allowed, said) =
        nobody("umask 027; echo x > own; mkdir dir; ln -s own link; mkfifo fifo");
    assert!(is_allowed, "{said}");
    for (name, mode) in [("own", 0o640), ("dir", 0o750), ("link", 0o777), ("fifo", 0o640)] {
        let metadata = fs::symlink_metadata(served.path(name)).unwrap();
        let found = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
        assert_eq!(found, (65534, 65534, mode), "{name}");
        let backing = fs::symlink_metadata(served.backing(name)).unwrap();
        assert_eq!((backing.uid(), backing.gid()), (65534, 65534), "{name}");
    }
    // In a directory with the set-group-id bit, new files get its group.
    fs::create_dir(served.path("shared")).unwrap();
    std::os::unix::fs::chown(served.path("shared"), None, Some(1234)).unwrap();
    fs::set_permissions(served.path("shared"), fs::Permissions::from_mode(0o2777)).unwrap();
    let (is_allowed, said) = nobody("echo x > shared/file; mkdir shared/dir");
    assert!(is_allowed, "{said}");
    assert_eq!(fs::metadata(served.path("shared/file")).unwrap().gid(), 1234);
    let below = fs::metadata(served.path("shared/dir")).unwrap();
    assert_eq!((below.gid(), below.mode() & 0o2000), (1234, 0o2000));
    // A write by somebody else than root takes the set-user-id bit away.
    fs::write(served.path("tool"), b"x").unwrap();
    std::os::unix::fs::chown(served.path("tool"), Some(65534), Some(65534)).unwrap();
    fs::set_permissions(served.path("tool"), fs::Permissions::from_mode(0o4777)).unwrap();
    assert_eq!(fs::metadata(served.path("tool")).unwrap().mode() & 0o7777, 0o4777);
    let (is_allowed, said) = nobody("echo y >> tool");
    assert!(is_allowed, "{said}");
    assert_eq!(fs::metadata(served.backing("tool")).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn fuse_without_allow_other_nobody_else_gets_in() {
    let Some(served) = Served::start() else { return };
    if !rustix::process::geteuid().is_root() || !has_program("setpriv") {
        println!("SKIPPED: needs root and setpriv");
        return;
    }
    fs::set_permissions(served.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let status = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "ls"])
        .arg(served.path(""))
        .output()
        .unwrap();
    assert!(!status.status.success());
}

#[test]
fn fuse_appends_of_two_processes_do_not_overwrite_each_other() {
    let Some(served) = Served::start() else { return };
    let script = "for i in $(seq 500); do echo $1-$i >> log; done";
    let spawn = |name: &str| {
        Command::new("sh")
            .args(["-ec", script, "sh", name])
            .current_dir(served.path(""))
            .spawn()
            .unwrap()
    };
    for mut child in [spawn("a"), spawn("b")] {
        assert!(child.wait().unwrap().success());
    }
    let mut lines: Vec<String> =
        fs::read_to_string(served.path("log")).unwrap().lines().map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), 1000);
}

#[test]
fn fuse_mappings_are_shared_between_processes() {
    let Some(served) = Served::start() else { return };
    if !has_program("python3") {
        return;
    }
    fs::write(served.path("map"), vec![0; 8192]).unwrap();
    let script = "
import mmap, os, time, sys
f = os.open('map', os.O_RDWR)
m = mmap.mmap(f, 8192)
if sys.argv[1] == 'a':
    m[0] = 1
    while m[4096] != 2: time.sleep(0.001)
    m[100:103] = b'abc'
    m[1] = 3
else:
    while m[0] != 1: time.sleep(0.001)
    m[4096] = 2
    while m[1] != 3: time.sleep(0.001)
    assert m[100:103] == b'abc'
m.flush()
";
    let spawn = |name: &str| {
        Command::new("timeout")
            .args(["20", "python3", "-c", script, name])
            .current_dir(served.path(""))
            .spawn()
            .unwrap()
    };
    for mut child in [spawn("a"), spawn("b")] {
        assert!(child.wait().unwrap().success());
    }
    let backing = fs::read(served.backing("map")).unwrap();
    assert_eq!((backing[0], backing[1], backing[4096], &backing[100..103]), (1, 3, 2, &b"abc"[..]));
}

#[test]
fn fuse_kernel_locks_work_across_processes_without_requests() {
    let Some(served) = Served::start() else { return };
    if !has_program("python3") {
        return;
    }
    fs::write(served.path("locked"), b"x").unwrap();
    // POSIX against POSIX, POSIX against OFD, flock against flock, between a parent and its child.
    let script = "
import fcntl, os, struct, sys
F_OFD_SETLK = 37
def ofd(fd, kind, start):
    fcntl.fcntl(fd, F_OFD_SETLK, struct.pack('hhqqi4x', kind, 0, start, 1, 0))
def busy(call):
    try:
        call()
    except (BlockingIOError, PermissionError):
        return True
    return False
fd = os.open('locked', os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 10)
ofd(fd, fcntl.F_WRLCK, 20)
fcntl.flock(fd, fcntl.LOCK_EX)
pid = os.fork()
if pid == 0:
    other = os.open('locked', os.O_RDWR)
    ok = busy(lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 10))
    ok = ok and busy(lambda: ofd(other, fcntl.F_WRLCK, 10))
    ok = ok and busy(lambda: ofd(other, fcntl.F_WRLCK, 20))
    ok = ok and busy(lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 20))
    ok = ok and busy(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))
    ok = ok and not busy(lambda: fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 30))
    os._exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
";
    let before = served.mount().requests();
    let status = Command::new("python3")
        .args(["-I", "-c", script])
        .current_dir(served.path(""))
        .status()
        .unwrap();
    assert!(status.success());
    let sent = served.mount().requests().since(&before);
    println!("requests of two processes that lock: {sent:?}");
    assert_eq!(sent.of(RequestKind::Other), 0);
    assert!(sent.total() <= 12, "opens and closes only: {sent:?}");
}

#[test]
fn fuse_copies_and_tools_work() {
    let Some(served) = Served::start() else { return };
    // cp tries copy_file_range and FICLONE first; both must fall back.
    shell(
        &served.path(""),
        "head -c 3000000 /dev/urandom > a; cp a b; cmp a b; mkdir d; cp -a a d/; mv d/a d/c; cmp a d/c; \
         dd if=a of=e bs=4096 oflag=direct conv=notrunc 2>/dev/null || true; tar cf t.tar d; tar tf t.tar >/dev/null; \
         truncate -s 100 a; test $(stat -c %s a) = 100; touch -d 2001-02-03 b; test $(date -r b +%Y) = 2001; \
         df . > /dev/null; ln b hard; test $(stat -c %h b) = 2; rm -r d; test ! -e d; sync b; sync -f .",
    );
}

#[test]
fn fuse_a_name_that_the_daemon_makes_itself_is_seen_after_invalidation() {
    let Some(served) = Served::start() else { return };
    fs::create_dir(served.path("d")).unwrap();
    let invalidate = served.mount().invalidate();
    for name in ["x.db", "d/x.db", "missing/x.db"] {
        assert_eq!(code(fs::metadata(served.path(name))), libc::ENOENT);
        if name.starts_with("missing") {
            invalidate(&DbName::new(name.as_bytes()).unwrap());
            continue;
        }
        fs::write(served.backing(name), b"new").unwrap();
        assert_eq!(code(fs::metadata(served.path(name))), libc::ENOENT, "the kernel remembers");
        invalidate(&DbName::new(name.as_bytes()).unwrap());
        assert_eq!(fs::read(served.path(name)).unwrap(), b"new");
        fs::write(served.backing(name), b"changed").unwrap();
        invalidate(&DbName::new(name.as_bytes()).unwrap());
        assert_eq!(fs::read(served.path(name)).unwrap(), b"changed");
    }
}

#[test]
fn fuse_forgotten_nodes_leave_the_table() {
    let Some(served) = Served::start() else { return };
    for n in 0..300 {
        fs::write(served.path(&format!("f{n}")), b"x").unwrap();
    }
    assert!(served.mount().nodes() >= 300);
    for n in 0..300 {
        fs::remove_file(served.path(&format!("f{n}"))).unwrap();
    }
    // The kernel forgets in its own time; another request makes it send what is queued.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while served.mount().nodes() > 10 && std::time::Instant::now() < deadline {
        fs::metadata(served.path("nothing")).ok();
        std::thread::yield_now();
    }
    assert!(served.mount().nodes() <= 10, "{}", served.mount().nodes());
}
