//! Keeps this node's databases named as the primary's catalog says.
//!
//! The session tells the catalog and its changes; a thread of its own carries them out, so that nothing on a stream
//! waits for a file. Steps are small; one that takes long (its database is being applied or installed) goes on by
//! itself while others are taken. A database that cannot be made or named is put aside, said, and tried again.
//! Always true: only what the primary's catalog lacks is removed, and only while the node is connected.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::database::OpError;
use crate::replication::backoff::exponential;
use crate::replication::limits::{NAMING_RETRY_MAX, NAMING_RETRY_MIN};
use crate::replication::naming::{Naming, Obstacle, Taken, naming_plan};
use crate::store::Store;
use crate::types::{DbId, DbName};

/// How long one step is waited for before the next is taken beside it.
const PATIENCE: Duration = Duration::from_millis(50);
/// Steps that are under way at a time.
const BUSY_MAX: usize = 16;
/// Threads that make new databases: each costs a few syncs.
const ADOPTERS: usize = 8;
/// A database that is aside for longer is reported: a catalog in motion puts some aside for a moment.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// A database of the primary that this node cannot make or name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// Which.
    pub id: DbId,
    /// Its name on the primary.
    pub name: DbName,
    /// What is in the way, and what to do.
    pub reason: String,
}

#[derive(Debug)]
struct Wanted {
    names: HashMap<DbId, DbName>,
    /// What the primary has removed while it was followed.
    dropped: HashSet<DbId>,
    /// Hears of databases that were made.
    adopted: mpsc::UnboundedSender<DbId>,
}

#[derive(Debug)]
struct Aside {
    name: DbName,
    reason: String,
    since: Instant,
    is_said: bool,
    failures: u32,
    /// When it is tried again; `None` if only a change of the catalog helps.
    retry_at: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What the primary has, while it is followed.
    wanted: Option<Wanted>,
    generation: u64,
    is_due: bool,
    is_stopped: bool,
    /// Steps under way, and the name that each takes.
    busy: HashMap<DbId, DbName>,
    aside: HashMap<DbId, Aside>,
}

/// The catalog and the thread that carries it out.
#[derive(Debug)]
pub(crate) struct Keeper {
    store: Arc<Store>,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The newest generation of the catalog that was carried out, as far as that is possible.
    settled: watch::Sender<u64>,
}

/// One step.
#[derive(Clone, Debug)]
enum Work {
    Forget { keeps_own: bool },
    Name,
}

impl Keeper {
    pub(crate) fn new(store: Arc<Store>) -> Arc<Self> {
        let settled = watch::Sender::new(0);
        Arc::new(Self { store, inner: Mutex::default(), changed: Condvar::new(), settled })
    }

    // ---- what the session says ----

    /// The primary's whole catalog. Returns what to wait for with [`Keeper::settled`].
    pub(crate) fn begin(
        &self,
        names: HashMap<DbId, DbName>,
        adopted: mpsc::UnboundedSender<DbId>,
    ) -> u64 {
        self.change(|inner| {
            inner.wanted = Some(Wanted { names, dropped: HashSet::new(), adopted });
        })
    }

    /// A database of the primary is new, or has a new name.
    pub(crate) fn named(&self, id: DbId, name: DbName) {
        self.change(|inner| {
            if let Some(wanted) = &mut inner.wanted {
                wanted.dropped.remove(&id);
                wanted.names.insert(id, name);
            }
        });
    }

    /// The primary has removed a database.
    pub(crate) fn dropped(&self, id: DbId) {
        let is_here = self.store.by_id(id).is_some();
        self.change(|inner| {
            if let Some(wanted) = &mut inner.wanted {
                wanted.names.remove(&id);
                if is_here {
                    wanted.dropped.insert(id);
                }
            }
        });
    }

    /// The primary is not followed any more: nothing further is done in its name.
    pub(crate) fn end(&self) {
        self.inner.lock().wanted = None;
    }

    /// How many databases the primary has.
    pub(crate) fn count(&self) -> usize {
        self.inner.lock().wanted.as_ref().map_or(0, |wanted| wanted.names.len())
    }

    /// Whether the primary has a database.
    pub(crate) fn wants(&self, id: DbId) -> bool {
        self.inner.lock().wanted.as_ref().is_some_and(|wanted| wanted.names.contains_key(&id))
    }

    /// Waits until a catalog is carried out as far as possible.
    pub(crate) async fn settled(&self, generation: u64) {
        let mut settled = self.settled.subscribe();
        // The sender is `self`.
        drop(settled.wait_for(|at| *at >= generation).await);
    }

    /// What cannot be made or named.
    pub(crate) fn aside(&self) -> Vec<SetAside> {
        let inner = self.inner.lock();
        let aside = inner.aside.iter().map(|(id, aside)| SetAside {
            id: *id,
            name: aside.name.clone(),
            reason: aside.reason.clone(),
        });
        let mut aside: Vec<_> = aside.collect();
        aside.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        aside
    }

    /// Ends the thread; steps under way go on to their end.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.is_stopped = true;
        inner.wanted = None;
        drop(inner);
        self.changed.notify_all();
    }

    /// The databases with a step under way.
    pub(crate) fn busy(&self) -> HashMap<DbId, DbName> {
        self.inner.lock().busy.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) -> u64 {
        let mut inner = self.inner.lock();
        change(&mut inner);
        inner.generation += 1;
        inner.is_due = true;
        let generation = inner.generation;
        drop(inner);
        self.changed.notify_all();
        generation
    }

    // ---- the thread ----

    /// Carries out what is said until [`Keeper::stop`].
    pub(crate) fn run(self: &Arc<Self>) {
        while self.wait() {
            self.pass();
            self.say();
        }
    }

    /// Waits for something to do; `false` at the end.
    fn wait(&self) -> bool {
        let mut inner = self.inner.lock();
        loop {
            if inner.is_stopped {
                return false;
            }
            if inner.wanted.is_none() {
                self.changed.wait(&mut inner);
                continue;
            }
            let now = Instant::now();
            let wake = inner.aside.values().filter_map(Aside::wake).min();
            if inner.is_due || wake.is_some_and(|at| at <= now) {
                inner.is_due = false;
                return true;
            }
            match wake {
                Some(at) => drop(self.changed.wait_until(&mut inner, at)),
                None => self.changed.wait(&mut inner),
            }
        }
    }

    /// Does what can be done now.
    fn pass(self: &Arc<Self>) {
        let (names, dropped, generation) = {
            let inner = self.inner.lock();
            let Some(wanted) = &inner.wanted else { return };
            (wanted.names.clone(), wanted.dropped.clone(), inner.generation)
        };
        for (id, name) in self.local() {
            if !names.contains_key(&id) {
                let keeps_own = !dropped.contains(&id);
                self.step(Naming { id, name }, Work::Forget { keeps_own });
            }
        }
        let (local, busy) = (self.local(), self.busy());
        let plan = naming_plan(&local, &names, &busy);
        self.obstacles(&plan.aside, &names, &local);
        let mut taken = Taken::default();
        for (id, name) in local.iter().chain(&busy) {
            taken.insert(name.clone(), *id);
        }
        let mut at = local;
        let mut new = Vec::new();
        for naming in plan.steps {
            let Some(before) = at.get(&naming.id).cloned() else {
                new.push(naming);
                continue;
            };
            if taken.in_the_way(&naming.name, naming.id).is_some() {
                continue;
            }
            let (id, name) = (naming.id, naming.name.clone());
            let is_done = self.step(naming, Work::Name);
            if is_done {
                taken.remove(&before, id);
                at.insert(id, name.clone());
            }
            taken.insert(name, id);
        }
        // Nobody waits for the name of one that is not there yet.
        new.retain(|naming| taken.in_the_way(&naming.name, naming.id).is_none());
        self.adopt_new(new);
        self.settled.send_if_modified(|at| std::mem::replace(at, generation) < generation);
    }

    fn local(&self) -> HashMap<DbId, DbName> {
        let databases = self.store.databases();
        databases.iter().filter_map(|db| Some((db.id()?, db.name()))).collect()
    }

    /// Whether it is time for a step of a database that has failed before.
    fn may_try(&self, naming: &Naming) -> bool {
        let mut inner = self.inner.lock();
        if inner.is_stopped || inner.wanted.is_none() || inner.busy.contains_key(&naming.id) {
            return false;
        }
        let Some(aside) = inner.aside.get_mut(&naming.id) else { return true };
        let Some(at) = aside.retry_at.filter(|_| aside.name == naming.name) else { return true };
        let is_time = at <= Instant::now();
        if is_time {
            aside.retry_at = Some(Instant::now() + NAMING_RETRY_MAX);
        }
        is_time
    }

    /// Has a step carried out; whether it is done. One that takes long goes on by itself.
    fn step(self: &Arc<Self>, naming: Naming, work: Work) -> bool {
        if !self.may_try(&naming) {
            return false;
        }
        let id = naming.id;
        {
            let mut inner = self.inner.lock();
            while inner.busy.len() >= BUSY_MAX && !inner.is_stopped {
                self.changed.wait(&mut inner);
            }
            if inner.wanted.is_none() {
                return false;
            }
            inner.busy.insert(id, naming.name.clone());
        }
        let keeper = Arc::clone(self);
        let thread = std::thread::Builder::new().name("weir-name".to_owned());
        let body = move || {
            let result = match &work {
                Work::Forget { keeps_own } => keeper.store.forget(naming.id, *keeps_own),
                Work::Name => {
                    info!(db = %naming.name, id = %naming.id, "named as on the primary");
                    keeper.store.adopt(naming.id, &naming.name).map(drop)
                }
            };
            keeper.finished(&naming, result);
        };
        if let Err(cause) = thread.spawn(body) {
            warn!(error = %cause, "start a thread");
            self.inner.lock().busy.remove(&id);
            return false;
        }
        let deadline = Instant::now() + PATIENCE;
        let mut inner = self.inner.lock();
        while inner.busy.contains_key(&id) {
            if self.changed.wait_until(&mut inner, deadline).timed_out() {
                return !inner.busy.contains_key(&id) && !inner.has_failed(id);
            }
        }
        !inner.has_failed(id)
    }

    fn finished(&self, naming: &Naming, result: Result<(), OpError>) {
        let mut inner = self.inner.lock();
        inner.busy.remove(&naming.id);
        inner.note(naming, result);
        if let Some(wanted) = &mut inner.wanted
            && !wanted.names.contains_key(&naming.id)
        {
            wanted.dropped.remove(&naming.id);
        }
        // Others may have waited for the name.
        inner.is_due = true;
        drop(inner);
        self.changed.notify_all();
    }

    /// Makes databases that this node does not have, several at a time.
    fn adopt_new(&self, new: Vec<Naming>) {
        let threads = ADOPTERS.min(new.len());
        let left = Mutex::new(new.into_iter().filter(|naming| self.may_try(naming)));
        let work = || {
            while let Some(naming) = { left.lock().next() } {
                let result = self.store.adopt(naming.id, &naming.name).map(drop);
                let is_made = result.is_ok();
                let mut inner = self.inner.lock();
                inner.note(&naming, result);
                if let Some(wanted) = inner.wanted.as_ref().filter(|_| is_made)
                    && wanted.adopted.send(naming.id).is_err()
                {
                    debug!(id = %naming.id, "made for a session that is over");
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    }

    /// Notes what the plan could not do.
    fn obstacles(
        &self,
        found: &[(DbId, Obstacle)],
        names: &HashMap<DbId, DbName>,
        local: &HashMap<DbId, DbName>,
    ) {
        let mut inner = self.inner.lock();
        let blocked: HashSet<DbId> = found.iter().map(|(id, _)| *id).collect();
        inner.aside.retain(|id, aside| {
            let is_over = aside.retry_at.is_none() && !blocked.contains(id);
            let is_gone = !names.contains_key(id) && !local.contains_key(id);
            let is_settled = local.get(id).is_some_and(|name| names.get(id) == Some(name));
            !(is_over || is_gone || (is_settled && !blocked.contains(id)))
        });
        for (id, obstacle) in found {
            let Some(name) = names.get(id) else { continue };
            inner.put_aside(*id, name, obstacle.to_string(), None);
        }
    }

    /// Reports what has been aside for a while.
    fn say(&self) {
        let mut inner = self.inner.lock();
        for (id, aside) in &mut inner.aside {
            if !aside.is_said && aside.since.elapsed() >= SAID_AFTER {
                aside.is_said = true;
                warn!(db = %aside.name, %id, reason = aside.reason, "put aside: not as on the primary");
            }
        }
    }
}

impl Inner {
    fn has_failed(&self, id: DbId) -> bool {
        self.aside.get(&id).is_some_and(|aside| aside.retry_at.is_some())
    }

    fn note(&mut self, naming: &Naming, result: Result<(), OpError>) {
        match result {
            Ok(()) => {
                if let Some(aside) = self.aside.remove(&naming.id)
                    && aside.is_said
                {
                    info!(db = %naming.name, id = %naming.id, "no longer aside");
                }
            }
            Err(error) => {
                let reason = format!("{}: tried again by itself", super::describe(&error));
                let failures = self.aside.get(&naming.id).map_or(0, |aside| aside.failures);
                let pause = exponential(NAMING_RETRY_MIN, NAMING_RETRY_MAX, failures);
                let retry_at = Some(Instant::now() + pause);
                self.put_aside(naming.id, &naming.name, reason, retry_at);
            }
        }
    }

    fn put_aside(&mut self, id: DbId, name: &DbName, reason: String, retry_at: Option<Instant>) {
        let before = self.aside.remove(&id).filter(|aside| aside.name == *name);
        let failures = before.as_ref().map_or(0, |aside| aside.failures);
        let is_same = before.as_ref().is_some_and(|aside| aside.reason == reason);
        let aside = Aside {
            name: name.clone(),
            reason,
            since: before.as_ref().map_or_else(Instant::now, |aside| aside.since),
            is_said: is_same && before.is_some_and(|aside| aside.is_said),
            failures: failures + u32::from(retry_at.is_some()),
            retry_at,
        };
        self.aside.insert(id, aside);
    }
}

impl Aside {
    /// When it is to be looked at again.
    fn wake(&self) -> Option<Instant> {
        let say_at = (!self.is_said).then(|| self.since + SAID_AFTER);
        [self.retry_at, say_at].into_iter().flatten().min()
    }
}
