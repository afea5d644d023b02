//! One daemon as a child process.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::Interrupt;

/// How long a daemon may take to come up, to end, or to catch up.
const PATIENCE: Duration = Duration::from_secs(30);

/// One daemon with its directories.
#[derive(Debug)]
pub(crate) struct Node {
    /// `a`, `b`, …
    pub(crate) name: String,
    /// Where its databases are.
    pub(crate) mount: PathBuf,
    /// Its configuration file.
    pub(crate) config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    interrupt: Arc<Interrupt>,
}

impl Node {
    pub(super) fn create(
        root: &Path,
        name: &str,
        address: &str,
        peers: &str,
        interrupt: &Arc<Interrupt>,
    ) -> anyhow::Result<Self> {
        let home = root.join(name);
        let (data, mount, config) = (home.join("data"), home.join("mnt"), home.join("weir.toml"));
        for directory in [&data, &mount] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("create {}", directory.display()))?;
        }
        let text = format!(
            "[node]\nname  = \"{name}\"\ndata  = \"{}\"\nmount = \"{}\"\n\n\
             [replication]\nlisten    = \"{address}\"\nadvertise = \"http://{address}\"\n\n\
             [lease]\ntype    = \"static\"\nprimary = \"a\"\npeers   = {{ {peers} }}\n",
            data.display(),
            mount.display(),
        );
        std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let log = home.join("weir.log");
        let interrupt = Arc::clone(interrupt);
        Ok(Self { name: name.to_owned(), mount, config, data, log, child: None, interrupt })
    }

    /// Starts the daemon. It has a process group of its own: Ctrl-C reaches only us, and we end it.
    ///
    /// # Errors
    /// The program could not be started.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("open {}", self.log.display()))?;
        let child = self
            .command()?
            .arg("mount")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start node {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// This program with this node's configuration.
    ///
    /// # Errors
    /// The path of this program is unknown.
    pub(crate) fn command(&self) -> anyhow::Result<Command> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("--config").arg(&self.config);
        Ok(command)
    }

    /// Waits until the daemon serves.
    ///
    /// # Errors
    /// It ended, or takes too long.
    pub(crate) fn wait_ready(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            if self.is_mounted() && self.data.join("admin.sock").exists() && self.answers()? {
                return Ok(());
            }
            let child = self.child.as_mut().context("BUG: the node was not started")?;
            if let Some(status) = child.try_wait()? {
                bail!("node {} ended with {status}:\n{}", self.name, self.log_tail());
            }
            if start.elapsed() > PATIENCE {
                bail!("node {} is not ready after {PATIENCE:?}:\n{}", self.name, self.log_tail());
            }
            self.interrupt.wait(Duration::from_millis(10))?;
        }
    }

    fn answers(&self) -> anyhow::Result<bool> {
        let mut command = self.command()?;
        command.args(["status", "--json"]).stdin(Stdio::null());
        Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    /// A path under the mount.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.mount.join(file)
    }

    /// The position of a database that the mount shows; `None` while it has none.
    pub(crate) fn position(&self, db: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.mount.join(format!("{db}-pos"))).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Waits until a database is at a position; returns how long that took.
    ///
    /// # Errors
    /// It takes too long.
    pub(crate) fn wait_position(&self, db: &str, position: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        while self.position(db).as_deref() != Some(position) {
            if start.elapsed() > PATIENCE {
                bail!(
                    "{db} on node {} is at {:?}, not at {position}, after {PATIENCE:?}:\n{}",
                    self.name,
                    self.position(db),
                    self.log_tail()
                );
            }
            self.interrupt.wait(Duration::from_millis(1))?;
        }
        Ok(start.elapsed())
    }

    /// Process id of the daemon.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `kill -9`; the dead mount stays behind.
    ///
    /// # Errors
    /// The process could not be killed.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().with_context(|| format!("kill node {}", self.name))?;
            child.wait().with_context(|| format!("wait for node {}", self.name))?;
        }
        Ok(())
    }

    /// Ends the daemon, kindly first, and unmounts. Used in destructors, so it reports nothing.
    pub(super) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = rustix::process::Pid::from_child(&child);
            let told = rustix::process::kill_process(pid, rustix::process::Signal::TERM).is_ok();
            let start = Instant::now();
            while told
                && matches!(child.try_wait(), Ok(None))
                && start.elapsed() < Duration::from_secs(10)
            {
                // Not an interruptible wait: this runs because an interrupt came.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            drop(child.kill());
            drop(child.wait());
        }
        if self.is_mounted() {
            let detached = Command::new("fusermount3")
                .args(["-u", "-z"])
                .arg(&self.mount)
                .stderr(Stdio::null())
                .status();
            if !detached.is_ok_and(|status| status.success()) {
                drop(Command::new("umount").arg("-l").arg(&self.mount).status());
            }
        }
    }

    /// Lets the daemon live on without us.
    pub(super) fn leave_running(&mut self) {
        self.child = None;
    }

    /// Whether something is mounted, found without touching the mount.
    pub(crate) fn is_mounted(&self) -> bool {
        let mut table = Vec::new();
        let read = File::open("/proc/self/mountinfo").and_then(|mut f| f.read_to_end(&mut table));
        let mount = self.mount.as_os_str().as_bytes();
        read.is_ok()
            && table
                .split(|b| *b == b'\n')
                .any(|line| line.split(|b| *b == b' ').nth(4) == Some(mount))
    }

    /// Resident memory of the daemon in bytes.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kilobytes * 1024)
    }

    /// The last lines of the daemon's log.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}
