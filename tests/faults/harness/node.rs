//! Nodes of one cluster in a temporary directory.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Disk, Image, PATIENCE, sqlite3, until};

/// A test that takes longer hangs; without its daemons every request on the mounts fails.
const HANGS_AFTER: Duration = Duration::from_secs(300);

/// Nodes `a` (the primary), `b`, … Dropping it stops and unmounts all of them.
pub(crate) struct Cluster {
    pub(crate) a: Node,
    pub(crate) b: Node,
    _watchdog: Sender<()>,
    dir: Option<TempDir>,
}

/// One daemon with its directories.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) data: PathBuf,
    pub(crate) mount: PathBuf,
    /// Stands for the machine's boot; empty for the real one.
    pub(crate) boot: &'static str,
    /// Who runs the daemon, if not this user.
    pub(crate) user: Option<u32>,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// A primary and a replica, both running.
    pub(crate) fn start() -> Self {
        let mut cluster = Self::prepare();
        cluster.a.start();
        cluster.b.start();
        cluster
    }

    /// A primary and a replica that are not started.
    pub(crate) fn prepare() -> Self {
        let dir = tempfile::Builder::new().prefix("weir-faults-").tempdir().unwrap();
        let names = ["a", "b"];
        let listeners = names.map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
        let mut peers = String::new();
        for (name, port) in names.iter().zip(ports) {
            write!(peers, "{name} = \"http://127.0.0.1:{port}\", ").unwrap();
        }
        let peers = peers.trim_end_matches(", ");
        let node = |name, port| Node::new(dir.path(), name, port, peers);
        let (a, b) = (node("a", ports[0]), node("b", ports[1]));
        let mounts = [a.mount.clone(), b.mount.clone()];
        let _watchdog = watch(dir.path().to_owned(), mounts.to_vec());
        Self { a, b, _watchdog, dir: Some(dir) }
    }

    /// A place for files outside the mounts.
    pub(crate) fn outside(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Waits until the replica shows the primary's position; returns it. Nobody may write meanwhile.
    pub(crate) fn level(&self, db: &str) -> String {
        until_equal(db, || [self.a.pos(db), self.b.pos(db)])
    }

    /// Waits until both nodes are level, then checks everything that must hold then.
    pub(crate) fn converge(&self, db: &str) {
        // A writer that was killed may have left a hot journal; whoever reads first rolls it back.
        let read = sqlite3(&self.a.path(db), "SELECT count(*) FROM sqlite_master;");
        assert!(read.is_ok(), "{db}: {read:?}");
        let pos = self.level(db);
        let image = self.a.image(db);
        self.b.image(db).assert_same(&image, &format!("{db} on b and a"));
        let sum = format!("{:016x}", image.checksum().get());
        assert_eq!(pos.split('/').nth(1), Some(&*sum), "{db}: position and bytes of the primary");
        let dumps = [&self.a, &self.b].map(|node| {
            let path = node.path(db);
            assert_eq!(sqlite3(&path, "PRAGMA integrity_check;").as_deref(), Ok("ok"), "{db}");
            sqlite3(&path, ".dump").unwrap()
        });
        assert!(dumps[0] == dumps[1], "{db}: the mounts show different content");
    }
}

fn until_equal(db: &str, look: impl Fn() -> [Option<String>; 2]) -> String {
    let start = Instant::now();
    loop {
        let seen = look();
        if let [Some(first), Some(second)] = &seen
            && first == second
        {
            return first.clone();
        }
        assert!(start.elapsed() < PATIENCE, "{db}: positions do not meet: {seen:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let mut problems = Vec::new();
        // The replica first, so that it does not complain of the loss of its primary.
        for node in [&mut self.b, &mut self.a] {
            if failed {
                println!("---- {} logs\n{}", node.name, tail(&node.log(), 60));
                node.kill9();
            } else if let Some(status) = node.stop()
                && !status.success()
            {
                problems.push(format!("{} ended with {status}", node.name));
            }
            unmount(&node.mount);
            let log = node.log();
            let broken = log.lines().filter(|l| l.contains("panicked at") || l.contains("BUG: "));
            problems.extend(broken.map(|line| format!("{}: {line}", node.name)));
        }
        if std::env::var_os("WEIR_TEST_KEEP").is_some()
            && let Some(dir) = self.dir.take()
        {
            println!("kept: {}", dir.keep().display());
        }
        assert!(failed || problems.is_empty(), "{}", problems.join("\n"));
    }
}

impl Node {
    fn new(root: &Path, name: &'static str, port: u16, peers: &str) -> Self {
        let root = root.join(name);
        let (data, mount) = (root.join("data"), root.join("mnt"));
        fs::create_dir_all(&data).unwrap();
        fs::create_dir(&mount).unwrap();
        let config = root.join("weir.toml");
        let text = format!(
            "[node]\nname = \"{name}\"\ndata = \"data\"\nmount = \"mnt\"\n\
             [replication]\nlisten = \"127.0.0.1:{port}\"\n\
             [lease]\ntype = \"static\"\nprimary = \"a\"\npeers = {{ {peers} }}\n"
        );
        fs::write(&config, text).unwrap();
        Self { name, data, mount, config, boot: "", user: None, log: root.join("log"), child: None }
    }

    /// Moves the data directory of a node that was not started yet to a disk of its own.
    pub(crate) fn data_is_on(&mut self, disk: &Disk) {
        fs::remove_dir(&self.data).unwrap();
        let data = disk.path.join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(&data, &self.data).unwrap();
    }

    /// Path of a file under the mount.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.mount.join(file)
    }

    /// Path of the file behind it.
    pub(crate) fn backing(&self, file: &str) -> PathBuf {
        self.data.join("files").join(file)
    }

    /// What the files of a database hold now.
    pub(crate) fn image(&self, db: &str) -> Image {
        let file = self.backing(db);
        Image::read(&file).unwrap_or_else(|| panic!("no database in {}", file.display()))
    }

    /// The position that the mount shows; `None` while the database does not exist there.
    pub(crate) fn pos(&self, db: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(&format!("{db}-pos"))).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) fn start(&mut self) {
        self.start_with_fault("");
    }

    /// As `start`, with fault points armed (`disk::fault`).
    pub(crate) fn start_with_fault(&mut self, fault: &str) {
        let before = self.log().len();
        self.spawn(fault);
        let start = Instant::now();
        while !self.log()[before..].contains(" ready ") {
            let status = self.child.as_mut().unwrap().try_wait().unwrap();
            let log = || tail(&self.log(), 40);
            assert!(
                status.is_none(),
                "{} did not start: {}\n{}",
                self.name,
                status.unwrap(),
                log()
            );
            assert!(start.elapsed() < PATIENCE, "{} is not ready\n{}", self.name, log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts the daemon without waiting for it.
    pub(crate) fn spawn(&mut self, fault: &str) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let level = std::env::var("WEIR_TEST_LOG").unwrap_or_else(|_| "info".to_owned());
        let mut command = Command::new(binary());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        let child = command
            .args(["--log", &level])
            .arg("--config")
            .arg(&self.config)
            .arg("mount")
            .env("WEIR_FAULT", fault)
            .env("WEIR_FAULT_CONTROL", self.control())
            .env("WEIR_FAULT_BOOT", self.boot)
            .env("RUST_BACKTRACE", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn control(&self) -> PathBuf {
        self.log.with_file_name("faults")
    }

    /// Arms fault points of the running daemon, or disarms all of them.
    pub(crate) fn arm(&self, faults: &str) {
        drop(fs::remove_file(self.control().with_extension("hit")));
        let new = self.control().with_extension("new");
        fs::write(&new, faults).unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test needs no durability")]
        fs::rename(new, self.control()).unwrap();
    }

    /// Whether a fault point was hit since they were armed.
    pub(crate) fn was_hit(&self) -> bool {
        self.control().with_extension("hit").exists()
    }

    /// Whether the daemon runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// `kill -9`, and waits until the process is gone. The mount stays behind, dead.
    pub(crate) fn kill9(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().unwrap();
            self.wait();
        }
    }

    /// SIGTERM, and waits for the end; `None` if it did not run.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        let pid = self.child.as_ref()?.id();
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        Some(self.wait())
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        until(&format!("{} ends (process {})", self.name, child.id()), || child.try_wait().unwrap())
    }

    /// Kills the daemon with -9 and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.start();
    }

    /// Runs a `weir` command against this node.
    pub(crate) fn weir(&self, args: &[&str]) -> std::process::Output {
        Command::new(binary())
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What `weir status` says about a database.
    pub(crate) fn status(&self, db: &str) -> serde_json::Value {
        let output = self.weir(&["status", "--json"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "weir status on {}: {error}", self.name);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let databases = status["databases"].as_array().unwrap();
        databases.iter().find(|entry| entry["name"] == db).cloned().unwrap_or_default()
    }

    /// Why a database is quarantined, if it is.
    pub(crate) fn quarantine(&self, db: &str) -> Option<String> {
        self.status(db)["reason"].as_str().map(str::to_owned)
    }

    /// All that the daemon has logged.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// The program that is tested.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("WEIR_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_weir").into(), PathBuf::from)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn is_mounted(path: &Path) -> bool {
    let needle = format!(" {} ", path.display());
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&needle)
}

/// Gets rid of a mount, dead or alive.
fn unmount(path: &Path) {
    while is_mounted(path) {
        let forced = Command::new("umount").args(["-f", "-l"]).arg(path).output();
        let done = forced.is_ok_and(|output| output.status.success())
            || Command::new("fusermount3")
                .args(["-u", "-z"])
                .arg(path)
                .status()
                .is_ok_and(|status| status.success());
        if !done {
            println!("could not unmount {}", path.display());
            return;
        }
    }
}

/// Ends a test that hangs.
fn watch(dir: PathBuf, mounts: Vec<PathBuf>) -> Sender<()> {
    let (alive, gone) = channel();
    let rounds = super::env_number("WEIR_TEST_ROUNDS").unwrap_or(1);
    let patience = HANGS_AFTER + Duration::from_secs(10) * u32::try_from(rounds).unwrap();
    std::thread::spawn(move || {
        if gone.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            println!("the test in {} hangs: cutting its mounts off", dir.display());
            mounts.iter().for_each(|path| unmount(path));
        }
    });
    alive
}
