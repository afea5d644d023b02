//! One node's part in the election: what it saw in the register, what it wrote, what it holds.
//!
//! Events in, actions out; the caller carries actions out and brings back what came of them. At most one
//! [`Action::Read`] or [`Action::Swap`] is under way, and each must be answered, if only with a timeout.

use core::time::Duration;

use super::record::{Holder, Reason, Record, RecordError, Version, Versioned};
use crate::types::{ClusterId, Epoch, NodeId};

/// How this node takes part.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// How long a write of the record holds.
    pub ttl: Duration,
    /// Whether this node may become primary.
    pub is_candidate: bool,
    /// How much longer than others this node waits before it claims: less for a preferred one.
    pub claim_delay: Duration,
}

impl Options {
    /// Renewals, and looks at somebody else's record, happen this often.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.ttl / 4
    }
}

/// Clocks of two nodes may run at rates that differ by one part in so many.
const RATE_MARGIN: u32 = 10;

/// How long a challenger waits with a record that says `ttl`.
fn patience(ttl: Duration) -> Duration {
    ttl + ttl / RATE_MARGIN
}

/// What came of a swap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The record is in the register, under this version.
    Won(Version),
    /// Another version was there.
    Lost,
    /// No answer, or an error behind which it may have happened, or may happen yet.
    Unknown,
}

/// What happens to a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// The register may have changed: look now.
    Changed,
    /// The answer to [`Action::Read`]: nothing is there, or a record; or the register cannot be reached.
    Read(Result<Option<Versioned>, Unreachable>),
    /// The answer to [`Action::Swap`].
    Swapped(Outcome),
    /// This node is to hold the lease no longer; all writes have stopped. `next` is who is to take it.
    GiveUp {
        /// Whom others give way to.
        next: Option<NodeId>,
    },
}

/// The register did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable;

/// What the caller is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Ask the register; answer with [`Event::Read`].
    Read,
    /// Write the record if the version is still the expected one (`None`: nothing is there); answer with
    /// [`Event::Swapped`].
    Swap {
        /// What must be there.
        expected: Option<Version>,
        /// What is to be there.
        record: Record,
    },
    /// This node holds the lease: prepare, then take writes, as long as [`Elector::holds`] says so.
    Claimed {
        /// The new reign.
        epoch: Epoch,
    },
    /// This node holds it no longer.
    Lost {
        /// The reign that ended.
        epoch: Epoch,
        /// Why.
        cause: Cause,
    },
    /// Another node holds it, or nobody does.
    Follow {
        /// The reign.
        epoch: Epoch,
        /// Who.
        holder: Option<Holder>,
    },
}

/// Why a lease was lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It could not be renewed in time.
    Expired,
    /// The register has another record.
    Overtaken,
    /// It was given up.
    GivenUp,
}

/// What a node is, for those who ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It holds the lease.
    Holder(Epoch),
    /// It may claim the lease once it is free.
    Candidate,
    /// It never claims.
    Observer,
}

/// What the register held last, and since when it is known to.
#[derive(Clone, Debug)]
struct Seen {
    content: Option<Versioned>,
    since: Duration,
}

impl Seen {
    fn version(&self) -> Option<&Version> {
        self.content.as_ref().map(|content| &content.version)
    }

    fn record(&self) -> Option<&Record> {
        self.content.as_ref().and_then(|content| content.record.as_ref().ok())
    }
}

#[derive(Clone, Copy, Debug)]
struct Held {
    epoch: Epoch,
    until: Duration,
}

/// A write whose result is not known.
#[derive(Clone, Debug)]
struct Pending {
    record: Record,
    expected: Option<Version>,
    asked: Duration,
}

#[derive(Clone, Debug)]
enum Asked {
    Read,
    Swap(Pending),
}

/// The state of one node's election.
#[derive(Debug)]
pub struct Elector {
    cluster: ClusterId,
    me: Holder,
    options: Options,
    /// The highest epoch that this node knows of from anywhere.
    epoch: Epoch,
    seen: Option<Seen>,
    held: Option<Held>,
    asked: Option<Asked>,
    /// Writes that may land as long as the version they expect is there.
    unresolved: Vec<Pending>,
    /// The register's content is what was seen, as far as this node can know.
    is_certain: bool,
    /// The lease was given up, which the register does not say yet; for whom.
    leaving: Option<Option<NodeId>>,
    next_look: Duration,
    followed: Option<(Epoch, Option<Holder>)>,
    /// Numbers for [`Record::serial`].
    serial: u64,
    #[cfg(test)]
    pub(super) flaw: Option<super::tests::Flaw>,
}

impl Elector {
    /// A node that holds nothing. `epoch` is the highest one it has promised to anybody.
    #[must_use]
    pub fn new(cluster: ClusterId, me: Holder, options: Options, epoch: Epoch) -> Self {
        let serial = me.incarnation;
        Self {
            cluster,
            me,
            options,
            epoch,
            seen: None,
            held: None,
            asked: None,
            unresolved: Vec::new(),
            is_certain: false,
            leaving: None,
            next_look: Duration::ZERO,
            followed: None,
            serial,
            #[cfg(test)]
            flaw: None,
        }
    }

    /// Whether the lease is held at this very moment: asked whenever a commit is acknowledged.
    #[must_use]
    pub fn holds(&self, now: Duration) -> Option<Epoch> {
        self.held.filter(|held| now < held.until).map(|held| held.epoch)
    }

    /// What this node is.
    #[must_use]
    pub fn role(&self, now: Duration) -> Role {
        match self.holds(now) {
            Some(epoch) => Role::Holder(epoch),
            None if self.options.is_candidate => Role::Candidate,
            None => Role::Observer,
        }
    }

    /// When [`Event::Tick`] has something to do, at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Duration {
        let until = self.held.map(|held| held.until);
        if self.asked.is_some() {
            return until.unwrap_or(Duration::MAX);
        }
        let claim = self.claim().filter(|_| self.is_certain).map(|(when, _)| when);
        [until, claim].into_iter().flatten().fold(self.next_look, Duration::min)
    }

    /// Takes one event and says what is to be done. `now` is the time since boot.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Changed => self.next_look = now,
            Event::Read(answer) => {
                self.asked = None;
                match answer {
                    Ok(content) => {
                        self.is_certain = true;
                        self.saw(now, content, &mut actions);
                    }
                    Err(Unreachable) => self.next_look = now + self.options.interval() / 2,
                }
            }
            Event::Swapped(outcome) => self.swapped(now, outcome, &mut actions),
            Event::GiveUp { next } => {
                if let Some(held) = self.held.take() {
                    self.leaving = Some(next);
                    actions.push(Action::Lost { epoch: held.epoch, cause: Cause::GivenUp });
                }
            }
        }
        if let Some(held) = self.held.filter(|held| held.until <= now) {
            self.held = None;
            actions.push(Action::Lost { epoch: held.epoch, cause: Cause::Expired });
        }
        if self.asked.is_none() {
            self.act(now, &mut actions);
        }
        actions
    }

    /// The next thing to ask of the register, if it is time.
    fn act(&mut self, now: Duration, actions: &mut Vec<Action>) {
        if self.is_certain {
            if let Some(next) = self.leaving.filter(|_| self.is_recorded()) {
                let epoch =
                    self.seen.as_ref().and_then(Seen::record).map_or(self.epoch, |it| it.epoch);
                let mut record = self.record(epoch, Reason::GivenUp);
                record.next = next;
                return self.swap(now, record, actions);
            }
            self.leaving = None;
            if let Some((_, reason)) = self.claim().filter(|(when, _)| *when <= now) {
                self.epoch = self.epoch.next();
                return self.swap_mine(now, self.epoch, reason, actions);
            }
            if let Some(held) = self.held.filter(|_| self.next_look <= now) {
                self.next_look = now + self.options.interval();
                return self.swap_mine(now, held.epoch, Reason::Renewed, actions);
            }
        }
        if self.next_look <= now {
            self.next_look = now + self.options.interval();
            self.asked = Some(Asked::Read);
            actions.push(Action::Read);
        }
    }

    /// Whether the register names this node.
    fn is_recorded(&self) -> bool {
        let holder = self.seen.as_ref().and_then(Seen::record).and_then(|it| it.holder.as_ref());
        holder.is_some_and(|holder| holder.incarnation == self.me.incarnation)
    }

    /// When the lease is free for this node, if nothing changes, and why.
    fn claim(&self) -> Option<(Duration, Reason)> {
        if !self.options.is_candidate || self.held.is_some() {
            return None;
        }
        let seen = self.seen.as_ref()?;
        let delay = self.options.claim_delay;
        let Some(content) = &seen.content else { return Some((seen.since + delay, Reason::First)) };
        let record = content.record.as_ref().ok().filter(|it| it.cluster == self.cluster)?;
        let (reason, wait) = match (&record.holder, record.next) {
            (None, Some(next)) if next == self.me.id => (Reason::Vacant, Duration::ZERO),
            (None, None) => (Reason::Vacant, delay),
            (None, Some(_)) => (Reason::Vacant, patience(record.ttl()) + delay),
            (Some(_), _) if self.is_recorded() => (Reason::Expired, Duration::ZERO),
            (Some(_), _) => (Reason::Expired, self.patience(record) + delay),
        };
        Some((seen.since + wait, reason))
    }

    fn patience(&self, record: &Record) -> Duration {
        #[cfg(test)]
        if self.flaw == Some(super::tests::Flaw::NoMargin) {
            return record.ttl();
        }
        patience(record.ttl())
    }

    fn swap_mine(
        &mut self,
        now: Duration,
        epoch: Epoch,
        reason: Reason,
        actions: &mut Vec<Action>,
    ) {
        let mut record = self.record(epoch, reason);
        record.holder = Some(self.me.clone());
        self.swap(now, record, actions);
    }

    fn record(&mut self, epoch: Epoch, reason: Reason) -> Record {
        self.serial = self.serial.wrapping_add(1);
        Record::new(self.cluster, epoch, self.options.ttl, reason, self.serial)
    }

    fn swap(&mut self, now: Duration, record: Record, actions: &mut Vec<Action>) {
        let expected = self.seen.as_ref().and_then(Seen::version).cloned();
        let pending = Pending { record: record.clone(), expected: expected.clone(), asked: now };
        self.asked = Some(Asked::Swap(pending));
        actions.push(Action::Swap { expected, record });
    }

    fn swapped(&mut self, now: Duration, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(Asked::Swap(pending)) = self.asked.take() else { return };
        match outcome {
            Outcome::Won(version) => {
                let record = Ok(pending.record.clone());
                self.unresolved.push(pending);
                self.saw(now, Some(Versioned { version, record }), actions);
            }
            Outcome::Lost => {
                self.is_certain = false;
                self.next_look = now;
            }
            Outcome::Unknown => {
                self.unresolved.push(pending);
                self.is_certain = false;
                self.next_look = now;
            }
        }
    }

    /// The register holds this.
    fn saw(&mut self, now: Duration, content: Option<Versioned>, actions: &mut Vec<Action>) {
        let version = content.as_ref().map(|content| content.version.clone());
        let is_news = self.seen.as_ref().is_none_or(|seen| seen.version() != version.as_ref());
        if is_news {
            self.seen = Some(Seen { content, since: now });
        }
        let record = self.seen.as_ref().and_then(Seen::record).cloned();
        let mine = record.as_ref().filter(|_| self.is_recorded());
        // A write of mine that may have landed has.
        let landed = mine.and_then(|record| {
            self.unresolved.iter().find(|pending| pending.record.serial == record.serial)
        });
        if let Some(pending) = landed {
            let (epoch, ttl) = (pending.record.epoch, pending.record.ttl());
            let from = self.counted_from(pending.asked, now);
            self.hold(now, epoch, from + ttl, actions);
        } else if let Some(held) = self.held.filter(|_| mine.is_none()) {
            self.held = None;
            actions.push(Action::Lost { epoch: held.epoch, cause: Cause::Overtaken });
        }
        self.unresolved.retain(|pending| pending.expected == version);
        let Some(record) = record.filter(|record| record.cluster == self.cluster) else { return };
        self.epoch = self.epoch.max(record.epoch);
        let (epoch, holder) = (record.epoch, record.holder);
        let is_mine = self.is_recorded();
        let followed = Some((epoch, holder.clone()));
        // A reign below one that is known has ended, whatever the register says now.
        if !is_mine && epoch == self.epoch && self.followed != followed {
            self.followed = followed;
            actions.push(Action::Follow { epoch, holder });
        }
    }

    /// A holder counts from before it wrote.
    fn counted_from(&self, asked: Duration, now: Duration) -> Duration {
        #[cfg(test)]
        if self.flaw == Some(super::tests::Flaw::CountsFromReply) {
            return now;
        }
        let _ = now;
        asked
    }

    fn hold(&mut self, now: Duration, epoch: Epoch, until: Duration, actions: &mut Vec<Action>) {
        if until <= now || self.leaving.is_some() {
            // Too late to be believed, or no longer wanted.
            return;
        }
        let is_new = self.held.is_none_or(|held| held.epoch != epoch);
        self.held = Some(Held { epoch, until });
        self.next_look = now + self.options.interval();
        if is_new {
            self.followed = None;
            actions.push(Action::Claimed { epoch });
        }
    }

    /// Why the register's content can be used by nobody, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<RecordError> {
        let content = self.seen.as_ref()?.content.as_ref()?;
        match &content.record {
            Err(error) => Some(error.clone()),
            Ok(record) if record.cluster != self.cluster => {
                Some(RecordError::OtherCluster { found: record.cluster, own: self.cluster })
            }
            Ok(_) => None,
        }
    }
}
