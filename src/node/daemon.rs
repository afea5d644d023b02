//! The order of start and stop.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::admin::{AdminServer, Compare, Context};
use super::drain::{self, Goal};
use super::identity::Identity;
use super::listen;
use super::lock::DataLock;
use super::notify::notify;
use super::report::Reporter;
use crate::client::Pool;
use crate::config::{self, Config};
use crate::disk::clock;
use crate::lease::{Assignment, StaticLease};
use crate::mount::{Mount, MountOptions};
use crate::replication::{Comparison, Follower, FollowerOptions, Membership, ServeError, Server};
use crate::store::{Role, Store, StoreOptions};

/// Threads for network and timers; everything that waits for a disk runs elsewhere.
const NETWORK_THREADS: usize = 2;
/// Threads that work on databases through the mount.
const LANES: usize = 4;
/// How long a stop waits for followers that lack transactions.
const DRAIN_WAIT: Duration = Duration::from_secs(10);
/// The same for what was committed while the stop was under way.
const LAST_DRAIN_WAIT: Duration = Duration::from_secs(2);
/// How often a mount that somebody else took away is noticed.
const MOUNT_CHECK: Duration = Duration::from_millis(500);

/// Why a node stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// SIGTERM, SIGINT or SIGHUP.
    Asked,
    /// Somebody else unmounted.
    MountGone,
    /// Replicas can no longer be served.
    ServerFailed,
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    config: Arc<Config>,
    store: Arc<Store>,
    pool: Arc<Pool>,
    mount: Option<Mount>,
    server: Option<Serving>,
    follower: Option<Arc<Follower>>,
    admin: Option<AdminServer>,
    signals: Signals,
    /// `None` when everything has stopped.
    runtime: Option<Runtime>,
    /// Last: the data directory is free when everything else has stopped.
    _lock: DataLock,
}

#[derive(Debug)]
struct Serving {
    server: Arc<Server>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Node {
    /// Starts everything; when this returns, applications can use the mount.
    ///
    /// # Errors
    /// The text names the thing and the remedy. What was started is stopped again.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let started = clock::boottime();
        let config = Arc::new(config);
        let data = &config.node.data;
        raise_descriptor_limit();
        create_data(data).with_context(|| format!("create node.data {}", data.display()))?;
        let mount_point = config::resolve(&config.node.mount);
        let lock = DataLock::acquire(data, &config.node.name, &mount_point)?;
        let identity = Arc::new(Identity::load_or_create(data)?);
        let lease = StaticLease::new(&config.lease);
        let assignment = lease.assignment(&config.node.name);
        if let Assignment::Primary { .. } = assignment {
            identity.found_cluster()?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .thread_name("weir-net")
            .enable_all()
            .build()
            .context("start network threads")?;
        // From here on, a signal during the start is remembered.
        let signals = {
            let _in_runtime = runtime.enter();
            Signals::listen().context("listen for signals")?
        };
        let listener = match &config.replication.listen {
            Some(listen) => Some(runtime.block_on(listen::bind(listen))?),
            None => None,
        };
        let store = Store::open(StoreOptions {
            data: data.clone(),
            node: identity.node(),
            replica_writes: config.replica_writes,
            retention: config.log,
        })
        .with_context(|| format!("open node.data {}", data.display()))?;
        // Before the mount: an application that starts at once finds the node as it will be.
        store.set_role(match &assignment {
            Assignment::Primary { epoch } => Role::Primary { epoch: *epoch },
            Assignment::Follow { .. } => Role::Replica { primary: None },
        });
        let pool =
            Pool::start(mount_point.clone(), LANES).context("start threads for the mount")?;
        let pool = Arc::new(pool);
        let options = MountOptions {
            mount: mount_point,
            allow_other: config.mount.allow_other,
            threads: config.mount.threads,
        };
        store.connect(pool.clone());
        let mount = Mount::start(options, store.clone(), pool.clone())?;
        store.mounted(mount.invalidate());
        let mut node = Self {
            config,
            store,
            pool,
            mount: Some(mount),
            server: None,
            follower: None,
            admin: None,
            signals,
            runtime: Some(runtime),
            _lock: lock,
        };
        match node.go_live(&identity, &assignment, listener, started) {
            Ok(()) => Ok(node),
            Err(error) => {
                node.stop(&watch::channel(true).1);
                Err(error)
            }
        }
    }

    /// Takes the role, serves, follows, answers the tools.
    fn go_live(
        &mut self,
        identity: &Arc<Identity>,
        assignment: &Assignment,
        listener: Option<tokio::net::TcpListener>,
        started: Duration,
    ) -> anyhow::Result<()> {
        let member = Arc::new(membership(&self.config.node.name, identity));
        let _in_runtime = self.runtime().enter();
        if let Some(listener) = listener {
            let server = Server::new(self.store.clone(), member.clone());
            let (stop, mut stopped) = watch::channel(false);
            let serving = server.clone().serve(listener, async move {
                // An error is a sender that is gone: stop as well.
                drop(stopped.wait_for(|stopped| *stopped).await);
            });
            let task = tokio::spawn(serving);
            self.server = Some(Serving { server, stop, task });
        }
        if let Assignment::Follow { url, .. } = assignment {
            let options = FollowerOptions {
                addresses: vec![url.clone()],
                filters: self.config.replication.databases.clone(),
                tmp: self.config.node.data.join("tmp"),
            };
            let follower = Follower::start(options, member, self.store.clone());
            self.follower = Some(Arc::new(follower.context("start following the primary")?));
        }
        let reporter = Reporter {
            config: self.config.clone(),
            identity: identity.clone(),
            store: self.store.clone(),
            server: self.server.as_ref().map(|serving| serving.server.clone()),
            follower: self.follower.as_ref().map(Arc::downgrade).unwrap_or_default(),
            started,
        };
        let compare = self
            .follower
            .as_ref()
            .map(|follower| comparing(Arc::downgrade(follower), self.runtime().handle().clone()));
        let status = Box::new(move || reporter.status());
        let context = Context { store: self.store.clone(), status, compare };
        let data = &self.config.node.data;
        let admin = AdminServer::start(data, context);
        let admin = admin.with_context(|| format!("listen on {}/admin.sock", data.display()))?;
        self.admin = Some(admin);
        info!(
            node = %self.config.node.name,
            id = %identity.node(),
            role = ?self.store.role(),
            mount = %self.config.node.mount.display(),
            "ready"
        );
        notify("READY=1");
        Ok(())
    }

    /// Serves until SIGTERM or SIGINT, then stops. A second signal cuts the waiting short.
    ///
    /// # Errors
    /// The node stopped although nobody asked it to, or signals cannot be received.
    pub fn run(mut self) -> anyhow::Result<()> {
        let reason = self.wait_for_stop();
        match reason {
            StopReason::Asked => info!("stopping"),
            StopReason::MountGone => error!("somebody unmounted the file system, stopping"),
            StopReason::ServerFailed => error!("replicas can no longer be served, stopping"),
        }
        notify("STOPPING=1");
        let hurry = self.signals.second.clone();
        self.stop(&hurry);
        match reason {
            StopReason::Asked => Ok(()),
            StopReason::MountGone => {
                anyhow::bail!("{} was unmounted by somebody else", self.config.node.mount.display())
            }
            StopReason::ServerFailed => anyhow::bail!("replicas can no longer be served"),
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("BUG: the runtime is taken away last")
    }

    fn wait_for_stop(&mut self) -> StopReason {
        let mut asked = self.signals.first.clone();
        let runtime = self.runtime.as_ref().expect("BUG: the runtime is taken away last");
        let mount = self.mount.as_ref();
        let mut server = self.server.as_mut().map(|serving| &mut serving.task);
        runtime.block_on(async {
            let mut check = tokio::time::interval(MOUNT_CHECK);
            loop {
                let server_ends = async {
                    match &mut server {
                        Some(task) => task.await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = asked.wait_for(|asked| *asked) => return StopReason::Asked,
                    ended = server_ends => {
                        match ended {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => error!(error = format!("{:#}", anyhow::Error::from(error)), "serve replicas"),
                            Err(error) => error!(%error, "serve replicas"),
                        }
                        return StopReason::ServerFailed;
                    }
                    _ = check.tick() => {
                        if mount.is_some_and(|mount| !mount.is_serving()) {
                            return StopReason::MountGone;
                        }
                    }
                }
            }
        })
    }

    /// Stops everything, in reverse order. Each wait is bounded; `hurry` cuts it short.
    fn stop(&mut self, hurry: &watch::Receiver<bool>) {
        if let Some(follower) = self.follower.take() {
            self.stop_follower(follower);
        }
        self.drain(DRAIN_WAIT, hurry);
        self.store.close();
        self.drain(LAST_DRAIN_WAIT, hurry);
        self.stop_server();
        if let Some(admin) = self.admin.take() {
            self.runtime().block_on(admin.stop());
        }
        self.pool.stop();
        if let Some(mount) = self.mount.take()
            && let Err(error) = mount.unmount()
        {
            error!(error = format!("{:#}", anyhow::Error::from(error)), "unmount");
        }
        // What applications committed until the unmount.
        self.store.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LAST_DRAIN_WAIT);
        }
        info!("stopped");
    }

    fn stop_follower(&self, mut follower: Arc<Follower>) {
        // A status request may hold it for a moment.
        let deadline = clock::boottime() + LAST_DRAIN_WAIT;
        loop {
            match Arc::try_unwrap(follower) {
                Ok(follower) => return self.runtime().block_on(follower.stop()),
                Err(shared) if clock::boottime() < deadline => follower = shared,
                Err(_) => return warn!("the follower is still in use and was not stopped"),
            }
            self.runtime().block_on(tokio::time::sleep(Duration::from_millis(5)));
        }
    }

    /// Waits for followers that lack transactions that are committed now.
    fn drain(&self, wait_max: Duration, hurry: &watch::Receiver<bool>) {
        let Some(serving) = &self.server else { return };
        let goals: Vec<Goal> = self
            .store
            .databases()
            .iter()
            .filter_map(|db| Some((db.id()?, db.position())))
            .collect();
        let mut hurry = hurry.clone();
        let behind = self.runtime().block_on(async {
            tokio::select! {
                behind = drain::wait(|| serving.server.followers(), &goals, wait_max) => behind,
                _ = hurry.wait_for(|hurry| *hurry) => vec!["not waited for".to_owned()],
            }
        });
        if !behind.is_empty() {
            warn!(replicas = behind.join(", "), "replicas may lack the newest transactions");
        }
    }

    fn stop_server(&mut self) {
        let Some(Serving { stop, task, server }) = self.server.take() else { return };
        drop(server);
        stop.send_replace(true);
        if task.is_finished() {
            return; // Its end was the reason to stop, and has been reported.
        }
        match self.runtime().block_on(task) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "stop serving replicas"
                );
            }
            Err(error) => error!(%error, "stop serving replicas"),
        }
    }
}

/// How `weir verify` compares a replica with its primary.
fn comparing(follower: Weak<Follower>, runtime: Handle) -> Compare {
    Box::new(move |db, pos, sums| {
        let Some(follower) = follower.upgrade() else { return Ok(Comparison::NotConnected) };
        Ok(runtime.block_on(follower.compare(db, pos, sums))?)
    })
}

/// The identity as replication needs it.
fn membership(name: &str, identity: &Arc<Identity>) -> Membership {
    let keep = identity.clone();
    let join = move |cluster| keep.join_cluster(cluster).map_err(io::Error::other);
    Membership::new(identity.node(), name.to_owned(), identity.cluster(), Box::new(join))
}

/// The data directory is for the daemon's user only: the files in it bypass the mount.
fn create_data(data: &Path) -> io::Result<()> {
    if let Some(parent) = data.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(data) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && data.is_dir() => Ok(()),
        other => other,
    }
}

/// Thousands of databases need thousands of descriptors.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(%error, "raise the limit of open files");
    }
}

/// SIGTERM, SIGINT and SIGHUP, counted.
#[derive(Debug)]
struct Signals {
    first: watch::Receiver<bool>,
    second: watch::Receiver<bool>,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (tell_first, first) = watch::channel(false);
        let (tell_second, second) = watch::channel(false);
        tokio::spawn(async move {
            for tell in [tell_first, tell_second] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                    _ = hangup.recv() => {}
                }
                tell.send_replace(true);
            }
            terminate.recv().await;
            // A stop that hangs: the next start recovers as after a crash.
            error!("third signal, giving up at once");
            std::process::exit(1);
        });
        Ok(Self { first, second })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            self.stop(&watch::channel(true).1);
        }
    }
}
