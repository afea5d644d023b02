//! Daemons in a temporary directory: started, killed, looked at, and compared.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;

use super::image::suffixed;
use super::{Image, PATIENCE, env_number, sqlite3_ok, until};

/// What a cluster is started with.
#[derive(Default)]
pub(crate) struct Options {
    /// Number of nodes; the first is the primary.
    pub(crate) nodes: usize,
    /// TOML added to every node's configuration.
    pub(crate) config: &'static str,
    /// Environment of the daemons.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Directory to use as the data directory of the first node.
    pub(crate) data: Option<PathBuf>,
    /// The daemons may log errors.
    pub(crate) errors_expected: bool,
    /// Seconds until the watchdog ends a hung test; 0 for the default.
    pub(crate) seconds_max: u64,
}

/// Nodes of one cluster. Dropping it stops and unmounts all of them.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    errors_expected: bool,
    _watchdog: Sender<()>,
    dir: Option<TempDir>,
}

/// One daemon with its directories.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) mount: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) config: PathBuf,
    log: PathBuf,
    env: Vec<(&'static str, String)>,
    child: Option<Child>,
    /// Shared with the watchdog: process ids and mount points to get rid of.
    pids: Arc<Mutex<Vec<u32>>>,
}

impl Cluster {
    /// Starts `nodes` nodes and waits until they answer.
    pub(crate) fn start(nodes: usize) -> Self {
        Self::with(Options { nodes, ..Options::default() })
    }

    /// Starts nodes and waits until they answer.
    pub(crate) fn with(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("weir-e2e-").tempdir().unwrap();
        let names: Vec<String> =
            ('a'..='z').take(options.nodes).map(|letter| letter.to_string()).collect();
        let listeners: Vec<TcpListener> = names.iter().map(|_| listen()).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(listeners);
        let mut peers = String::new();
        for (name, port) in names.iter().zip(&ports) {
            write!(peers, "{name} = \"http://127.0.0.1:{port}\", ").unwrap();
        }
        let pids = Arc::new(Mutex::new(Vec::new()));
        let nodes: Vec<Node> = names
            .iter()
            .zip(&ports)
            .enumerate()
            .map(|(index, (name, port))| {
                let root = dir.path().join(name);
                let mount = root.join("mnt");
                std::fs::create_dir_all(&mount).unwrap();
                let data = match &options.data {
                    Some(data) if index == 0 => data.clone(),
                    _ => root.join("data"),
                };
                std::fs::create_dir_all(&data).unwrap();
                let config = root.join("weir.toml");
                let text = format!(
                    "[node]\nname = \"{name}\"\ndata = \"{}\"\nmount = \"{}\"\n\
                     [replication]\nlisten = \"127.0.0.1:{port}\"\n\
                     advertise = \"http://127.0.0.1:{port}\"\n\
                     [lease]\ntype = \"static\"\nprimary = \"a\"\npeers = {{ {} }}\n{}\n",
                    data.display(),
                    mount.display(),
                    peers.trim_end_matches(", "),
                    options.config,
                );
                std::fs::write(&config, text).unwrap();
                let log = root.join("daemon.log");
                let env = options.env.clone();
                Node {
                    name: name.clone(),
                    mount,
                    data,
                    config,
                    log,
                    env,
                    child: None,
                    pids: pids.clone(),
                }
            })
            .collect();
        let mounts = nodes.iter().map(|node| node.mount.clone()).collect();
        let seconds = if options.seconds_max == 0 { 180 } else { options.seconds_max };
        let watchdog = watch(pids, mounts, seconds * env_number("WEIR_TEST_SLOW", 1));
        let mut cluster = Self {
            nodes,
            errors_expected: options.errors_expected,
            _watchdog: watchdog,
            dir: Some(dir),
        };
        for node in &mut cluster.nodes {
            node.spawn();
        }
        for node in &mut cluster.nodes {
            node.wait_ready();
        }
        cluster
    }

    pub(crate) fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    pub(crate) fn replicas(&self) -> &[Node] {
        &self.nodes[1..]
    }

    /// The directory of the whole cluster: a place for files outside the mounts.
    pub(crate) fn outside(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    /// Path of a database on the primary.
    pub(crate) fn path(&self, db: impl AsRef<Path>) -> PathBuf {
        self.primary().path(db)
    }

    /// Waits until every node shows the primary's position, then checks everything that must hold
    /// between nodes that are level. Nobody may write meanwhile. Returns the position.
    pub(crate) fn converge(&self, db: impl AsRef<Path>) -> String {
        let path = db.as_ref();
        let db = path.display();
        let pos = self.level(path);
        let image = self.primary().image(path);
        let checksum = format!("{:016x}", image.checksum());
        assert_eq!(
            pos.split('/').nth(1),
            Some(&*checksum),
            "{db}: position of the primary and file"
        );
        for node in self.replicas() {
            node.image(path)
                .assert_same(&image, &format!("{db} on {} and {}", node.name, self.nodes[0].name));
        }
        for node in &self.nodes {
            let answer = sqlite3_ok(&node.path(path), "PRAGMA integrity_check;");
            assert_eq!(answer, "ok", "{db}: integrity check on {}", node.name);
        }
        let dump = |node: &Node| sqlite3_ok(&node.path(path), ".dump");
        let expected = dump(self.primary());
        for node in self.replicas() {
            let shown = dump(node);
            if shown != expected {
                let lines = |text: &str| text.lines().map(str::to_owned).collect::<HashSet<_>>();
                let (ours, theirs) = (lines(&expected), lines(&shown));
                let short = |line: &&String| line.chars().take(60).collect::<String>();
                let missing: Vec<_> = ours.difference(&theirs).take(5).map(|l| short(&l)).collect();
                let extra: Vec<_> = theirs.difference(&ours).take(5).map(|l| short(&l)).collect();
                let later = dump(node) == dump(self.primary());
                panic!(
                    "{db}: {} shows other content through its mount: missing {missing:?}, extra {extra:?}, \
                     equal a moment later: {later}",
                    node.name
                );
            }
        }
        pos
    }

    /// Waits until every node shows the primary's position of `db`; returns it.
    pub(crate) fn level(&self, db: impl AsRef<Path>) -> String {
        let db = db.as_ref();
        let mut last = Vec::new();
        let start = std::time::Instant::now();
        loop {
            let seen: Vec<Option<String>> = self.nodes.iter().map(|node| node.pos(db)).collect();
            if let Some(first) = &seen[0]
                && seen.iter().all(|pos| pos.as_ref() == Some(first))
            {
                return first.clone();
            }
            if seen != last && start.elapsed() < PATIENCE / 2 {
                last = seen;
            } else {
                assert!(
                    start.elapsed() < PATIENCE,
                    "{}: positions do not meet: {seen:?}",
                    db.display()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until no node has the database.
    pub(crate) fn gone(&self, db: impl AsRef<Path>) {
        let db = db.as_ref();
        for node in &self.nodes {
            until(&format!("{} is gone on {}", db.display(), node.name), PATIENCE, || {
                (!node.path(db).exists() && node.pos(db).is_none()).then_some(())
            });
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            for node in &self.nodes {
                println!("---- log of {} ({})", node.name, node.log.display());
                println!("{}", node.log_tail(80));
            }
        }
        let mut problems = Vec::new();
        // Replicas first, so that they do not log the loss of their primary.
        for node in self.nodes.iter_mut().rev() {
            if failed {
                node.kill9();
            } else if let Some(status) = node.stop()
                && !status.success()
            {
                problems.push(format!("{} ended with {status}\n{}", node.name, node.log_tail(40)));
            }
            unmount(&node.mount);
            for line in node.log_text().lines() {
                let is_error = line.contains(" ERROR ") && !self.errors_expected;
                if line.contains("panicked at") || line.contains("BUG: ") || is_error {
                    problems.push(format!("{}: {line}", node.name));
                }
            }
        }
        if env_number("WEIR_TEST_KEEP", 0) == 1
            && let Some(dir) = self.dir.take()
        {
            println!("kept: {}", dir.keep().display());
        }
        assert!(failed || problems.is_empty(), "{}", problems.join("\n"));
        if failed {
            problems.iter().for_each(|problem| println!("{problem}"));
        }
    }
}

impl Node {
    /// Path of a file under the mount.
    pub(crate) fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.mount.join(file)
    }

    /// Path of the file behind it.
    pub(crate) fn backing(&self, file: impl AsRef<Path>) -> PathBuf {
        self.data.join("files").join(file)
    }

    /// What the files of a database hold now.
    pub(crate) fn image(&self, db: impl AsRef<Path>) -> Image {
        let file = self.backing(db);
        Image::open(&file).unwrap_or_else(|| panic!("no database in {}", file.display()))
    }

    /// The position that the mount shows; `None` while the database does not exist there.
    pub(crate) fn pos(&self, db: impl AsRef<Path>) -> Option<String> {
        let text = std::fs::read_to_string(suffixed(&self.path(db), "-pos")).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// The transaction number that the mount shows; 0 while there is none.
    pub(crate) fn txid(&self, db: impl AsRef<Path>) -> u64 {
        self.pos(db).map_or(0, |pos| u64::from_str_radix(&pos[..16], 16).unwrap())
    }

    /// Runs a `weir` command against this node.
    pub(crate) fn weir(&self, args: &[&str]) -> std::process::Output {
        Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("--config")
            .arg(&self.config)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// `weir status --json`; `None` if the daemon does not answer.
    pub(crate) fn status(&self) -> Option<serde_json::Value> {
        let output = self.weir(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Starts the daemon without waiting for it.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let level = std::env::var("WEIR_TEST_LOG").unwrap_or_else(|_| "info".to_owned());
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["--log", &level])
            .arg("--config")
            .arg(&self.config)
            .arg("mount")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .env("RUST_BACKTRACE", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.pids.lock().push(child.id());
        self.child = Some(child);
    }

    /// Waits until the mount is there and the daemon answers.
    pub(crate) fn wait_ready(&mut self) {
        let start = std::time::Instant::now();
        while !(is_mounted(&self.mount)
            && self.data.join("admin.sock").exists()
            && self.status().is_some())
        {
            let child = self.child.as_mut().expect("started");
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "{} ended with {status} before it was ready\n{}",
                    self.name,
                    self.log_tail(40)
                );
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} is not ready\n{}",
                self.name,
                self.log_tail(40)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    /// `kill -9`, and waits until the process is gone. The mount stays behind, dead.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM, and waits for the end; `None` if it did not run.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        signal(child.id(), libc::SIGTERM);
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(status);
            }
            if start.elapsed() > Duration::from_secs(20) {
                println!("{} ignores SIGTERM\n{}", self.name, self.log_tail(40));
                child.kill().unwrap();
                return Some(child.wait().unwrap());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the daemon with -9 and starts it again.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.start();
    }

    /// Process id of the daemon.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    pub(crate) fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self, lines: usize) -> String {
        let text = self.log_text();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// A port for a daemon, below those that the kernel gives to outgoing connections: one of these might take it before
/// the daemon does.
fn listen() -> TcpListener {
    let port = || rand::random_range(20_000..32_000_u16);
    std::iter::repeat_with(port)
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .expect("a free port")
}

/// Sends a signal to a process that this test started.
pub(crate) fn signal(pid: u32, number: i32) {
    // SAFETY: kill touches no memory; the process is a child that was not waited for yet.
    unsafe { libc::kill(pid.cast_signed(), number) };
}

/// Whether something is mounted at `path`, without touching the mount.
pub(crate) fn is_mounted(path: &Path) -> bool {
    let needle = format!(" {} ", path.display());
    std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&needle)
}

/// Gets rid of a mount, dead or alive.
fn unmount(path: &Path) {
    while is_mounted(path) {
        let tool = if Path::new("/bin/fusermount3").exists() && !running_as_root() {
            Command::new("fusermount3").args(["-u", "-z"]).arg(path).status()
        } else {
            Command::new("umount").args(["-f", "-l"]).arg(path).status()
        };
        if !tool.is_ok_and(|status| status.success()) {
            println!("could not unmount {}", path.display());
            return;
        }
    }
}

fn running_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Ends a test that hangs: without its daemons every request on the mounts fails.
fn watch(pids: Arc<Mutex<Vec<u32>>>, mounts: Vec<PathBuf>, seconds: u64) -> Sender<()> {
    let (alive, gone) = channel();
    std::thread::spawn(move || {
        if gone.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
            println!("the test hangs: ending its daemons after {seconds} s");
            for pid in pids.lock().iter() {
                let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                if command.is_ok_and(|text| text.contains("weir")) {
                    signal(*pid, libc::SIGKILL);
                }
            }
            mounts.iter().for_each(|path| unmount(path));
        }
    });
    alive
}
