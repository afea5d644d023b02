//! One database on a follower: taking live transactions, or being fetched.
//!
//! Pure. Whatever is out of the ordinary (too far behind, a gap, damage, a full disk) ends in a Fetch; only
//! how and when differs. When the Fetch is over a new *run* begins: transactions of an older run that are
//! still under way are ignored, so nothing has to be waited for.

use std::time::Duration;

use super::backoff::exponential;
use super::limits::{FETCH_BACKOFF_MAX, FETCH_BACKOFF_MIN};

/// How a database is fetched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum How {
    /// By log if the primary's log has the position, else by pages that differ.
    Best,
    /// By pages that differ: the local content is wrong or suspect.
    Compare,
    /// By all pages: comparing did not help.
    Whole,
}

/// What went wrong with a received or fetched change set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// It does not follow the local position.
    Gap,
    /// Its bytes are damaged.
    Invalid,
    /// It does not fit the local pages.
    Mismatch,
    /// A fetched image does not have the promised checksum.
    Image,
    /// The disk.
    Disk,
    /// The connection, or a refusal.
    Network,
}

/// A Fetch to start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Order {
    pub(crate) how: How,
    pub(crate) pause: Duration,
}

/// The state of one database on a stream.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    run: u32,
    how: Option<How>,
    failures: u32,
}

impl Flow {
    /// Whether transactions of a run are to be received.
    pub(crate) fn takes(&self, run: u32) -> bool {
        self.how.is_none() && run == self.run
    }

    /// A live transaction was received.
    pub(crate) fn received(&mut self) {
        self.failures = 0;
    }

    /// The primary says that the database is too far behind.
    pub(crate) fn behind(&mut self, run: u32) -> Option<Order> {
        self.takes(run).then(|| self.order(How::Best, Duration::ZERO))
    }

    /// The pages are known to be damaged.
    pub(crate) fn mend(&mut self) -> Option<Order> {
        self.how.is_none().then(|| self.failed(Trouble::Mismatch))
    }

    /// Transactions arrived before the database was made here.
    pub(crate) fn missed(&mut self) -> Option<Order> {
        self.how.is_none().then(|| self.order(How::Best, Duration::ZERO))
    }

    /// The Fetch ended because the database is not here. Runs go on counting.
    pub(crate) fn gone(&mut self) {
        self.how = None;
    }

    /// A live transaction could not be received.
    pub(crate) fn failed(&mut self, trouble: Trouble) -> Order {
        self.failures = self.failures.saturating_add(1);
        let how = match trouble {
            Trouble::Mismatch => How::Compare,
            Trouble::Image => How::Whole,
            // If the same bytes come damaged again and again, they are damaged at their source.
            Trouble::Invalid if self.failures > 3 => How::Compare,
            Trouble::Invalid | Trouble::Gap | Trouble::Disk | Trouble::Network => How::Best,
        };
        let how = self.how.map_or(how, |before| before.max(how));
        let is_harmless = matches!(trouble, Trouble::Gap | Trouble::Mismatch) && self.failures == 1;
        let pause = if is_harmless {
            Duration::ZERO
        } else {
            exponential(FETCH_BACKOFF_MIN, FETCH_BACKOFF_MAX, self.failures - 1)
        };
        self.order(how, pause)
    }

    /// The Fetch is over; returns the run to resume with.
    pub(crate) fn fetched(&mut self) -> u32 {
        self.how = None;
        self.run = self.run.wrapping_add(1);
        self.run
    }

    fn order(&mut self, how: How, pause: Duration) -> Order {
        self.how = Some(how);
        Order { how, pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_transactions_are_taken_until_something_happens() {
        let mut flow = Flow::default();
        assert!(flow.takes(0));
        let order = flow.behind(0).unwrap();
        assert_eq!(order, Order { how: How::Best, pause: Duration::ZERO });
        assert!(!flow.takes(0));
        assert_eq!(flow.behind(0), None, "one Fetch at a time");
        assert_eq!(flow.fetched(), 1);
        assert!(!flow.takes(0), "what was under way before the Fetch is old");
        assert!(flow.takes(1));
    }

    #[test]
    fn a_mismatch_is_repaired_at_once_and_then_more_thoroughly() {
        let mut flow = Flow::default();
        let order = flow.failed(Trouble::Mismatch);
        assert_eq!(order, Order { how: How::Compare, pause: Duration::ZERO });
        let order = flow.failed(Trouble::Image);
        assert_eq!(order.how, How::Whole);
        assert!(order.pause > Duration::ZERO);
        assert_eq!(flow.failed(Trouble::Network).how, How::Whole, "it does not become laxer");
    }

    #[test]
    fn a_database_that_is_made_late_is_fetched_once() {
        let mut flow = Flow::default();
        assert_eq!(flow.missed().map(|order| order.how), Some(How::Best));
        assert_eq!(flow.missed(), None);
        flow.gone();
        assert!(flow.missed().is_some());
        assert_eq!(flow.fetched(), 1);
    }

    #[test]
    fn failures_in_a_row_pause_longer_up_to_a_limit() {
        let mut flow = Flow::default();
        let mut before = Duration::ZERO;
        for _ in 0..40 {
            let order = flow.failed(Trouble::Disk);
            assert!(order.pause >= before && order.pause <= FETCH_BACKOFF_MAX);
            before = order.pause;
        }
        assert_eq!(before, FETCH_BACKOFF_MAX);
        flow.fetched();
        flow.received();
        assert_eq!(flow.failed(Trouble::Gap).pause, Duration::ZERO);
    }

    #[test]
    fn bytes_that_are_always_damaged_are_not_asked_for_forever() {
        let mut flow = Flow::default();
        let hows: Vec<How> = (0..4).map(|_| flow.failed(Trouble::Invalid).how).collect();
        assert_eq!(hows, [How::Best, How::Best, How::Best, How::Compare]);
    }
}
