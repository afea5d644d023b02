//! How far a follower is behind: since when it is level, and what it lacks.
//!
//! Pure. On the follower, [`Levels`]: every beat reports positions; the follower was level at the moment of
//! a beat once it has applied all positions that were reported up to that beat. No two clocks are compared.
//! On the primary, [`CommitTimes`]: when the first transaction that a follower lacks was committed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::limits::COMMIT_SAMPLES_MAX;
use crate::types::{DbId, Pos};

/// Targets remembered per database; further ones are folded into the last, which is stricter.
const TARGETS_MAX: usize = 16;
/// Beats remembered while the follower is behind.
const BEATS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Target {
    beat: u64,
    pos: Pos,
}

/// What a follower must apply to have been level at each beat.
#[derive(Debug, Default)]
pub(crate) struct Levels {
    targets: HashMap<DbId, VecDeque<Target>>,
    /// How many targets wait per beat.
    waiting: BTreeMap<u64, usize>,
    arrivals: VecDeque<(u64, Duration)>,
    beat: u64,
    level_at: Option<Duration>,
}

impl Levels {
    /// The primary reported a position; belongs to the beat that [`Levels::beat`] will close.
    pub(crate) fn reported(&mut self, db: DbId, pos: Pos) {
        let beat = self.beat + 1;
        let targets = self.targets.entry(db).or_default();
        let is_full = targets.len() >= TARGETS_MAX;
        match targets.back_mut() {
            Some(last) if last.beat == beat || is_full => last.pos = pos,
            Some(_) | None => {
                targets.push_back(Target { beat, pos });
                *self.waiting.entry(beat).or_default() += 1;
            }
        }
    }

    /// The newest position of a database that is reported and not reached.
    pub(crate) fn target(&self, db: DbId) -> Option<Pos> {
        self.targets.get(&db)?.back().map(|target| target.pos)
    }

    /// The primary no longer has a database.
    pub(crate) fn gone(&mut self, db: DbId) {
        for target in self.targets.remove(&db).unwrap_or_default() {
            self.reached(target.beat);
        }
        self.settle();
    }

    /// A beat is complete; it arrived `now`.
    pub(crate) fn beat(&mut self, now: Duration) {
        self.beat += 1;
        self.arrivals.push_back((self.beat, now));
        if self.arrivals.len() > BEATS_MAX {
            self.arrivals.pop_front();
        }
        self.settle();
    }

    /// The follower has applied a position. Whether that settled a target.
    pub(crate) fn applied(&mut self, db: DbId, pos: Pos) -> bool {
        let Some(targets) = self.targets.get_mut(&db) else { return false };
        let mut reached = Vec::new();
        while let Some(target) = targets.front()
            && (pos == target.pos || pos.txid_raw() > target.pos.txid_raw())
        {
            reached.push(target.beat);
            targets.pop_front();
        }
        if targets.is_empty() {
            self.targets.remove(&db);
        }
        for beat in &reached {
            self.reached(*beat);
        }
        self.settle();
        !reached.is_empty()
    }

    /// When the follower was last level, on the clock of [`Levels::beat`].
    pub(crate) fn level_at(&self) -> Option<Duration> {
        self.level_at
    }

    /// Whether everything that the newest beat reported is applied.
    #[cfg(test)]
    fn is_level(&self) -> bool {
        self.beat > 0 && self.waiting.is_empty()
    }

    fn reached(&mut self, beat: u64) {
        if let Some(count) = self.waiting.get_mut(&beat) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&beat);
            }
        }
    }

    fn settle(&mut self) {
        let first_open = self.waiting.keys().next().copied().unwrap_or(u64::MAX);
        while let Some((beat, at)) = self.arrivals.front().copied()
            && beat < first_open
        {
            self.level_at = Some(at);
            self.arrivals.pop_front();
        }
    }
}

/// When transactions were committed, sampled: enough to say since when a follower is behind.
#[derive(Debug, Default)]
pub(crate) struct CommitTimes {
    samples: HashMap<DbId, VecDeque<(u64, Duration)>>,
}

impl CommitTimes {
    /// A database has reached a transaction.
    pub(crate) fn committed(&mut self, db: DbId, txid: u64, now: Duration) {
        let samples = self.samples.entry(db).or_default();
        if samples.back().is_some_and(|(last, _)| *last >= txid) {
            return;
        }
        if samples.len() >= COMMIT_SAMPLES_MAX {
            // Every second one goes, never the first: it says since when the follower is behind.
            let mut keep = false;
            samples.retain(|_| {
                keep = !keep;
                keep
            });
        }
        samples.push_back((txid, now));
    }

    /// How long the first transaction behind `txid` has been waiting; zero if there is none.
    pub(crate) fn behind_for(&self, db: DbId, txid: u64, now: Duration) -> Duration {
        let Some(samples) = self.samples.get(&db) else { return Duration::ZERO };
        let first = samples.iter().find(|(sample, _)| *sample > txid);
        first.map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at))
    }

    /// All followers have a transaction: older samples are of no use.
    pub(crate) fn settled(&mut self, db: DbId, txid: u64) {
        if let Some(samples) = self.samples.get_mut(&db) {
            while samples.front().is_some_and(|(sample, _)| *sample <= txid) {
                samples.pop_front();
            }
            if samples.is_empty() {
                self.samples.remove(&db);
            }
        }
    }

    /// A database is gone.
    pub(crate) fn dropped(&mut self, db: DbId) {
        self.samples.remove(&db);
    }

    /// Only these databases are left.
    pub(crate) fn retain(&mut self, known: &HashSet<DbId>) {
        self.samples.retain(|db, _| known.contains(db));
    }

    /// Nobody follows.
    pub(crate) fn clear(&mut self) {
        self.samples.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Epoch, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::new(txid) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const A: DbId = DbId::new(1);
    const B: DbId = DbId::new(2);

    #[test]
    fn a_follower_is_level_as_of_the_beat_whose_positions_it_has_applied() {
        let mut levels = Levels::default();
        assert_eq!(levels.level_at(), None);
        levels.reported(A, pos(5));
        levels.reported(B, pos(3));
        levels.beat(at(1));
        assert!(!levels.is_level());
        assert!(levels.applied(A, pos(5)));
        assert_eq!(levels.level_at(), None);
        levels.applied(B, pos(4));
        assert!(levels.is_level());
        assert_eq!(levels.level_at(), Some(at(1)));
    }

    #[test]
    fn a_follower_that_is_always_a_beat_late_has_a_steady_lag() {
        let mut levels = Levels::default();
        for second in 1..100 {
            levels.reported(A, pos(second * 10));
            levels.beat(at(second));
            levels.applied(A, pos(second * 10 - 10));
            let expected = if second == 1 { None } else { Some(at(second - 1)) };
            assert_eq!(levels.level_at(), expected, "second {second}");
            assert!(!levels.is_level());
        }
    }

    #[test]
    fn a_beat_without_changes_keeps_a_level_follower_level() {
        let mut levels = Levels::default();
        levels.beat(at(1));
        levels.beat(at(2));
        assert!(levels.is_level());
        assert_eq!(levels.level_at(), Some(at(2)));
    }

    #[test]
    fn the_same_transaction_with_another_checksum_is_not_level() {
        let mut levels = Levels::default();
        levels.reported(A, pos(5));
        levels.beat(at(1));
        let other = Pos { checksum: Checksum::new(99), ..pos(5) };
        assert!(!levels.applied(A, other));
        assert!(!levels.is_level());
    }

    #[test]
    fn a_dropped_database_does_not_hold_the_level_back() {
        let mut levels = Levels::default();
        levels.reported(A, pos(5));
        levels.beat(at(1));
        levels.gone(A);
        assert_eq!(levels.level_at(), Some(at(1)));
    }

    #[test]
    fn memory_is_bounded_and_the_answer_never_too_good() {
        let mut levels = Levels::default();
        for second in 1..10_000 {
            levels.reported(A, pos(second));
            levels.beat(at(second));
        }
        assert!(levels.targets[&A].len() <= TARGETS_MAX);
        assert!(levels.arrivals.len() <= BEATS_MAX);
        levels.applied(A, pos(5000));
        assert!(levels.level_at().is_none_or(|level| level <= at(5000)));
        levels.applied(A, pos(9999));
        assert_eq!(levels.level_at(), Some(at(9999)));
    }

    #[test]
    fn the_primary_knows_for_how_long_a_follower_lacks_a_transaction() {
        let mut times = CommitTimes::default();
        times.committed(A, 1, at(1));
        times.committed(A, 2, at(2));
        times.committed(A, 2, at(3));
        assert_eq!(times.behind_for(A, 2, at(9)), Duration::ZERO);
        assert_eq!(times.behind_for(A, 1, at(9)), at(7));
        assert_eq!(times.behind_for(A, 0, at(9)), at(8));
        times.settled(A, 2);
        assert!(times.samples.is_empty());
    }

    #[test]
    fn samples_are_thinned_and_the_oldest_is_kept() {
        let mut times = CommitTimes::default();
        for txid in 1..=100_000 {
            times.committed(A, txid, Duration::from_millis(txid));
        }
        assert!(times.samples[&A].len() <= COMMIT_SAMPLES_MAX);
        let now = Duration::from_millis(100_000);
        assert_eq!(times.behind_for(A, 0, now), Duration::from_millis(99_999));
        assert!(times.behind_for(A, 99_998, now) <= Duration::from_millis(2));
    }
}
