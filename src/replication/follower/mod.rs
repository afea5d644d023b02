//! The replica's side: follows the primary.
//!
//! [`Follower::start`] keeps a connection to the primary up and brings this node's databases to where the
//! primary's are. `node` starts it when this node is a replica and stops it before a promotion.
//! Not here: applying (`store` does that when `receive` has put a transaction into the log).

mod acks;
mod assemble;
mod compare;
mod dial;
mod fetch;
mod image;
mod keeper;
mod lanes;
mod session;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::backoff::{exponential, jittered};
use super::error::{LinkError, Refusal};
use super::limits::{BACKOFF_MAX, BACKOFF_MIN, FOLLOWER_STOP_TIMEOUT, REFUSED_PAUSE};
use super::membership::Membership;
use super::message::SumsRequest;
use crate::disk::clock;
use crate::store::Store;
use crate::types::{Checksum, DbId, Epoch, NodeId, Pos};
use acks::Acks;
use dial::Primary;
use fetch::Claims;
use keeper::Keeper;
use lanes::Lanes;

pub use compare::{CompareError, Comparison};
pub use fetch::CopyProgress;
pub use keeper::SetAside;

/// How often a follower that is stopped looks whether everything has ended.
const STOP_POLL: Duration = Duration::from_millis(2);

/// How to follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowerOptions {
    /// Where the primary may be, `http://host:port`; tried in turn.
    pub addresses: Vec<String>,
    /// Globs of the databases wanted; none means all.
    pub filters: Vec<String>,
    /// Where copies are kept while they are fetched; on the same file system as the databases.
    pub tmp: PathBuf,
}

/// A connection to a primary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Where it is.
    pub address: String,
    /// Its name.
    pub primary: String,
    /// Its id.
    pub node: NodeId,
    /// Its reign.
    pub epoch: Epoch,
    /// Since when: milliseconds since the Unix epoch.
    pub since_ms: i64,
}

/// What a follower tells of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FollowingStatus {
    /// The primary, while connected.
    pub link: Option<Link>,
    /// Why the last connection ended or could not be made; `None` while connected.
    pub error: Option<String>,
    /// How long ago this node was known to be level with the primary; `None` if never.
    pub lag: Option<Duration>,
    /// Copies under way.
    pub copies: Vec<CopyProgress>,
    /// Databases of the primary that cannot be made or named here.
    pub aside: Vec<SetAside>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    me: Arc<Membership>,
    options: FollowerOptions,
    lanes: Arc<Lanes>,
    acks: Arc<Acks>,
    claims: Arc<Claims>,
    copying: Arc<Mutex<HashMap<DbId, CopyProgress>>>,
    keeper: Arc<Keeper>,
    epoch: Mutex<Epoch>,
    level_at: Mutex<Option<Duration>>,
    /// The connection, and its session's number; `None` while there is none.
    peer: Mutex<Option<(Primary, u64)>>,
    link: Mutex<(Option<Link>, Option<String>)>,
}

impl Shared {
    /// Refuses a primary of the past.
    fn see_epoch(&self, theirs: Epoch) -> Result<(), LinkError> {
        let mut seen = self.epoch.lock();
        if theirs < *seen {
            return Err(LinkError::OldEpoch { theirs, seen: *seen });
        }
        *seen = theirs;
        Ok(())
    }

    /// The primary lives; this node was level with it at a time.
    fn heard(&self, primary: &str, level_at: Option<Duration>) {
        let mut known = self.level_at.lock();
        *known = level_at.max(*known);
        drop(known);
        self.store.heard_from_primary(primary, level_at);
    }

    fn connected(&self, link: Link) {
        *self.link.lock() = (Some(link), None);
    }
}

/// Follows a primary until stopped.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Follower {
    /// Starts on the current tokio runtime.
    ///
    /// # Errors
    /// A thread could not be started, or the directory for copies could not be made.
    pub fn start(
        options: FollowerOptions,
        me: Arc<Membership>,
        store: Arc<Store>,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&options.tmp)?;
        let acks = Arc::<Acks>::default();
        let (lanes, mut threads) = Lanes::start(&store, &acks)?;
        let keeper = Keeper::new(Arc::clone(&store));
        let keeping = Arc::clone(&keeper);
        let thread = std::thread::Builder::new().name("weir-names".to_owned());
        threads.push(thread.spawn(move || keeping.run())?);
        let epoch = store.databases().iter().map(|db| db.position().epoch).max();
        let shared = Arc::new(Shared {
            store,
            me,
            options,
            lanes: Arc::new(lanes),
            acks,
            claims: Arc::default(),
            copying: Arc::default(),
            keeper: Arc::clone(&keeper),
            epoch: Mutex::new(epoch.unwrap_or(Epoch::ZERO)),
            level_at: Mutex::default(),
            peer: Mutex::default(),
            link: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keep_following(Arc::clone(&shared), stopped));
        Ok(Self { shared, stop, task, threads })
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> FollowingStatus {
        let (link, error) = self.shared.link.lock().clone();
        let level_at = *self.shared.level_at.lock();
        FollowingStatus {
            link,
            error,
            lag: level_at.map(|at| clock::boottime().saturating_sub(at)),
            copies: self.shared.copying.lock().values().cloned().collect(),
            aside: self.shared.keeper.aside(),
        }
    }

    /// Compares a database with the primary's, by the sums of all its pages at a position.
    ///
    /// # Errors
    /// The primary does not answer.
    pub async fn compare(
        &self,
        db: DbId,
        pos: Pos,
        sums: &[Checksum],
    ) -> Result<Comparison, CompareError> {
        let peer = self.shared.peer.lock().clone();
        let Some((primary, session)) = peer else { return Ok(Comparison::NotConnected) };
        let request = SumsRequest { caller: self.shared.me.caller(session), db, pos };
        Ok(compare::compare(&primary, request, sums).await?)
    }

    /// Ends the connection; what was received is taken into the logs, what was being taken is finished. Waits for a
    /// bounded time: a disk that does not answer keeps nobody.
    pub async fn stop(self) {
        let Self { shared, stop, task, threads } = self;
        stop.send_replace(true);
        if let Err(error) = task.await
            && error.is_panic()
        {
            error!("the follower's task has panicked");
        }
        shared.acks.stop();
        shared.keeper.stop();
        let (claims, keeper) = (Arc::clone(&shared.claims), Arc::clone(&shared.keeper));
        let store = Arc::clone(&shared.store);
        // The receiving threads end when the last lane is gone.
        drop(shared);
        let ended = async {
            while !threads.iter().all(std::thread::JoinHandle::is_finished)
                || !claims.claimed().is_empty()
                || !keeper.busy().is_empty()
            {
                tokio::time::sleep(STOP_POLL).await;
            }
        };
        if tokio::time::timeout(FOLLOWER_STOP_TIMEOUT, ended).await.is_err() {
            let busy: Vec<String> = claims
                .claimed()
                .into_iter()
                .chain(keeper.busy().into_keys())
                .map(|id| {
                    store.by_id(id).map_or_else(|| id.to_string(), |db| db.name().to_string())
                })
                .collect();
            warn!(?busy, "work on these databases did not end in time and goes on by itself");
        }
        let finished = threads.into_iter().filter(std::thread::JoinHandle::is_finished);
        let panics = finished.filter_map(|thread| thread.join().err()).count();
        if panics > 0 {
            error!(panics, "threads of the follower have panicked");
        }
    }
}

async fn keep_following(shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut failures = 0;
    for address in shared.options.addresses.iter().cycle() {
        let began = clock::boottime();
        let ended = tokio::select! {
            ended = Box::pin(session::follow(&shared, address)) => ended,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        let was_connected = shared.link.lock().0.take().is_some();
        *shared.peer.lock() = None;
        if was_connected || clock::boottime().saturating_sub(began) > BACKOFF_MAX {
            failures = 0;
        }
        let is_news = note(&shared, &ended);
        if was_connected || is_news {
            report(address, &ended);
        }
        let pause = match &ended {
            LinkError::Refused(refusal) if refusal.reason.needs_a_person() => REFUSED_PAUSE,
            _ => jittered(exponential(BACKOFF_MIN, BACKOFF_MAX, failures), rand::random()),
        };
        failures = failures.saturating_add(1);
        tokio::select! {
            () = tokio::time::sleep(pause) => (),
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
    error!("no address of a primary is configured: this node follows nobody");
}

/// Remembers why a connection ended; whether that is another reason than before.
fn note(shared: &Shared, ended: &LinkError) -> bool {
    let text = describe(ended);
    let mut link = shared.link.lock();
    let is_news = link.1.as_ref() != Some(&text);
    link.1 = Some(text);
    is_news
}

/// An error and its causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Says once why a connection ended.
fn report(address: &str, ended: &LinkError) {
    match ended {
        LinkError::Refused(Refusal { reason, message, .. }) if reason.needs_a_person() => {
            error!(address, ?reason, "refused: {message}");
        }
        LinkError::Refused(Refusal { reason, message, .. }) => {
            info!(address, ?reason, "refused: {message}");
        }
        LinkError::Join(_) | LinkError::OldEpoch { .. } => {
            error!(address, error = describe(ended), "cannot follow");
        }
        LinkError::Lost(_)
        | LinkError::Closed
        | LinkError::Silent(_)
        | LinkError::Connect { .. }
        | LinkError::Stopping => {
            warn!(address, error = describe(ended), "no connection to the primary");
        }
    }
}
