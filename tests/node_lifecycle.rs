//! Starting, stopping and crashing whole nodes: real processes, real mounts.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed test panics; these tests poll other processes, so they pause between looks"
)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node's directories, its configuration and, while it runs, its process.
struct Node {
    dir: PathBuf,
    config: PathBuf,
    process: Option<Child>,
}

impl Node {
    fn new(root: &Path, name: &str, primary: &str, ports: &[(&str, u16)]) -> Self {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        let own = ports.iter().find(|(node, _)| *node == name).unwrap().1;
        let peers: Vec<_> = ports
            .iter()
            .map(|(node, port)| format!("{node} = \"http://127.0.0.1:{port}\""))
            .collect();
        let text = format!(
            "[node]\nname = \"{name}\"\ndata = \"data\"\nmount = \"mnt\"\n\
             [replication]\nlisten = \"127.0.0.1:{own}\"\n\
             [lease]\ntype = \"static\"\nprimary = \"{primary}\"\npeers = {{ {} }}\n",
            peers.join(", ")
        );
        let config = dir.join("weir.toml");
        fs::write(&config, text).unwrap();
        Self { dir, config, process: None }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn spawn(&mut self, environment: &[(&str, &Path)]) {
        let log = fs::File::create(self.dir.join("log")).unwrap();
        let mut command = self.command(&["mount"]);
        command.envs(environment.iter().copied()).stderr(log).stdin(Stdio::null());
        // A test that is interrupted must not leave daemons behind.
        command.process_group(0);
        self.process = Some(command.spawn().unwrap());
    }

    fn start(&mut self) {
        self.spawn(&[]);
        wait_for("the node to be ready", || self.log().contains(" ready "));
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().unwrap().id();
        kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for the process to end.
    fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let mut status = None;
        wait_for("the daemon to end", || {
            status = process.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn is_mounted(&self) -> bool {
        let mount = format!(" {} ", self.mount().display());
        fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&mount)
    }

    fn sql(&self, sql: &str) -> rusqlite::Result<i64> {
        let connection = rusqlite::Connection::open(self.mount().join("x.db"))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.query_row(sql, [], |row| row.get(0))
    }

    fn insert(&self, rows: u32) {
        let connection = rusqlite::Connection::open(self.mount().join("x.db")).unwrap();
        connection.execute_batch("CREATE TABLE IF NOT EXISTS t(x)").unwrap();
        for row in 0..rows {
            connection.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        }
    }

    fn status(&self) -> serde_json::Value {
        let output = self.run(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.dir.display(), self.log());
        }
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
        if self.is_mounted() {
            drop(Command::new("umount").arg("-l").arg(self.mount()).status());
        }
    }
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody listens on now, below those that the kernel gives to outgoing connections.
fn free_port() -> u16 {
    std::iter::repeat_with(|| rand::random_range(20_000..32_000_u16))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

fn lone_node(dir: &TempDir) -> Node {
    Node::new(dir.path(), "a", "a", &[("a", free_port())])
}

fn two_nodes(dir: &TempDir) -> (Node, Node) {
    let ports = [("a", free_port()), ("b", free_port())];
    (Node::new(dir.path(), "a", "a", &ports), Node::new(dir.path(), "b", "a", &ports))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn fuse_a_second_daemon_on_the_same_data_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = lone_node(&dir);
    a.start();
    let second = a.run(&["mount"]);
    assert_eq!(second.status.code(), Some(1));
    let pid = a.process.as_ref().unwrap().id();
    let text = stderr(&second);
    let expected = format!("/data is in use by node \"a\": process {pid}, `");
    assert!(text.starts_with("weir: ") && text.contains(&expected), "{text}");
    assert!(text.contains(&format!("stop it first (kill {pid})")), "{text}");
    assert_eq!(a.sql("SELECT 1").unwrap(), 1);
}

#[test]
fn fuse_a_mount_left_by_kill_9_is_replaced_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = lone_node(&dir);
    a.start();
    a.insert(5);
    let id = a.status()["node"]["id"].clone();
    // Somebody still has a file open: the mount cannot simply go away.
    let held = fs::File::open(a.mount().join("x.db")).unwrap();
    a.signal(Signal::KILL);
    assert!(!a.wait().success());
    assert!(a.is_mounted());
    a.start();
    assert_eq!(a.sql("SELECT count(*) FROM t").unwrap(), 5);
    assert_eq!(a.status()["node"]["id"], id);
    drop(held);
    a.signal(Signal::TERM);
    assert!(a.wait().success());
    assert!(!a.is_mounted());
}

#[test]
fn fuse_sigterm_waits_for_replicas_and_unmounts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = two_nodes(&dir);
    a.start();
    b.start();
    wait_for("the replica", || a.status()["replicas"][0]["name"] == "b");
    a.insert(300);
    a.signal(Signal::TERM);
    assert!(a.wait().success());
    assert!(!a.is_mounted());
    assert!(!a.log().contains("may lack"), "{}", a.log());
    wait_for("the replica to show all", || b.sql("SELECT count(*) FROM t").ok() == Some(300));
    let stopped = a.run(&["status"]);
    assert_eq!(stopped.status.code(), Some(1));
    assert!(stderr(&stopped).contains("no weir runs on "), "{}", stderr(&stopped));
    b.signal(Signal::TERM);
    assert!(b.wait().success());
    assert!(!b.is_mounted());
}

#[test]
fn fuse_a_second_signal_does_not_wait_for_replicas() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = two_nodes(&dir);
    a.start();
    b.start();
    wait_for("the replica", || a.status()["replicas"][0]["name"] == "b");
    b.signal(Signal::STOP);
    a.insert(1);
    let begin = Instant::now();
    a.signal(Signal::TERM);
    wait_for("the stop to begin", || a.log().contains("stopping"));
    a.signal(Signal::INT);
    let status = a.wait();
    b.signal(Signal::CONT);
    assert!(status.success());
    assert!(begin.elapsed() < Duration::from_secs(9), "{:?}", begin.elapsed());
    assert!(a.log().contains("replicas may lack the newest transactions"), "{}", a.log());
}

#[test]
fn fuse_a_node_of_another_cluster_is_refused_with_both_ids() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = two_nodes(&dir);
    let foreign = "00000000000000bb";
    let data = b.dir.join("data");
    fs::create_dir(&data).unwrap();
    let identity =
        format!("{{\"version\":1,\"node\":\"00000000000000aa\",\"cluster\":\"{foreign}\"}}");
    fs::write(data.join("node.json"), identity).unwrap();
    a.start();
    a.insert(1);
    b.start();
    let ours = a.status()["node"]["cluster"].as_str().unwrap().to_owned();
    let mut refusal = String::new();
    wait_for("the refusal", || {
        refusal = b.status()["follower_error"].as_str().unwrap_or_default().to_owned();
        !refusal.is_empty()
    });
    assert!(refusal.contains(foreign) && refusal.contains(&ours), "{refusal}");
    assert!(b.log().contains(&refusal), "{}", b.log());
    assert!(b.status()["databases"].as_array().unwrap().is_empty());
}

#[test]
fn fuse_waiting_for_status_ends_when_the_replica_is_level() {
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = two_nodes(&dir);
    a.start();
    a.insert(200);
    b.start();
    let output = b.run(&["status", "--wait", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["databases"][0]["position"], a.status()["databases"][0]["position"]);
    assert_eq!(b.sql("SELECT count(*) FROM t").unwrap(), 200);
    assert!(a.run(&["status", "--wait"]).status.success());
}

#[test]
fn fuse_verify_and_export_agree_on_both_nodes_until_a_byte_changes() {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (mut a, mut b) = two_nodes(&dir);
    a.start();
    b.start();
    a.insert(50);
    assert!(b.run(&["status", "--wait"]).status.success());
    wait_for("the replica to show all", || b.sql("SELECT count(*) FROM t").ok() == Some(50));
    let verified = b.run(&["verify", "--json"]);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let verified: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(verified["primary"]["result"], "equal", "{verified}");
    let copies = [&a, &b].map(|node| node.run(&["export", "x.db", "-"]).stdout);
    assert!(!copies[0].is_empty() && copies[0] == copies[1]);
    let backing = b.dir.join("data/files/x.db");
    let file = fs::File::options().write(true).open(backing).unwrap();
    file.write_all_at(b"?", 5000).unwrap();
    let target = dir.path().join("copy.db");
    let refused = b.run(&["export", "x.db", target.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("run `weir verify x.db`"), "{}", stderr(&refused));
    assert!(!target.exists());
    let found = b.run(&["verify", "x.db"]);
    assert_eq!(found.status.code(), Some(1));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(text.contains("pages that differ from their sums: 2"), "{text}");
    wait_for("the page to be fetched", || b.run(&["verify", "x.db"]).status.success());
    let copy = b.run(&["export", "x.db", "-"]).stdout;
    assert!(copy == copies[0], "what was fetched is what it was");
}

#[test]
fn fuse_an_unmount_by_somebody_else_ends_the_daemon_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut a = lone_node(&dir);
    a.start();
    a.insert(1);
    let unmounted = Command::new("umount").arg(a.mount()).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(a.wait().code(), Some(1));
    assert!(a.log().contains("was unmounted by somebody else"), "{}", a.log());
    a.start();
    assert_eq!(a.sql("SELECT count(*) FROM t").unwrap(), 1);
}

#[test]
fn fuse_a_port_in_use_is_named_and_nothing_stays_behind() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut a = Node::new(dir.path(), "a", "a", &[("a", port)]);
    let output = a.run(&["mount"]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!("replication.listen = \"127.0.0.1:{port}\": another process listens");
    assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
    assert!(!a.is_mounted());
    drop(taken);
    a.start();
}

#[test]
fn fuse_a_service_manager_is_told_when_the_node_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut a = lone_node(&dir);
    a.spawn(&[("NOTIFY_SOCKET", &socket)]);
    let told = |expected: &str| {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected.as_bytes());
    };
    told("READY=1");
    assert!(a.is_mounted());
    assert_eq!(a.sql("SELECT 1").unwrap(), 1);
    a.signal(Signal::TERM);
    told("STOPPING=1");
    assert!(a.wait().success());
}
