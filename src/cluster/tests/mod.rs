//! Several nodes and a register in virtual time: delays, losses, repeats, partitions, pauses, crashes, clocks
//! that run at different rates. `SEED=7 cargo test --lib cluster` replays one history, `SEEDS=100000` runs more.

mod world;

use core::time::Duration;

use super::{
    Action, Cause, Elector, Event, Holder, Options, Outcome, Reason, Record, Version, Versioned,
};
use crate::types::{ClusterId, Epoch, NodeId};

/// A mistake that the simulation must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flaw {
    /// The holder counts from the answer to its write.
    CountsFromReply,
    /// The challenger waits no longer than the holder counts.
    NoMargin,
}

fn seeds(default: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(default),
    }
}

#[test]
fn never_two_holders_and_always_one_in_the_end() {
    for seed in seeds(200) {
        if let Err(broken) = world::run(seed, None) {
            panic!("SEED={seed}: {broken}");
        }
    }
}

#[test]
fn the_simulation_finds_planted_mistakes() {
    for flaw in [Flaw::CountsFromReply, Flaw::NoMargin] {
        let found = (0..2000).find(|seed| world::run(*seed, Some(flaw)).is_err());
        assert!(found.is_some(), "{flaw:?} goes unnoticed");
    }
}

const TTL: Duration = Duration::from_secs(2);

fn holder(n: u64) -> Holder {
    Holder { id: NodeId::new(n), incarnation: n * 1000, name: n.to_string(), url: String::new() }
}

fn elector(n: u64) -> Elector {
    let options = Options { ttl: TTL, is_candidate: true, claim_delay: Duration::ZERO };
    Elector::new(ClusterId::new(1), holder(n), options, Epoch::ZERO)
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn versioned(version: &str, record: &Record) -> Versioned {
    Versioned { version: Version(version.to_owned()), record: Ok(record.clone()) }
}

/// A node that has just claimed an empty register, and its record.
fn claimed(n: u64) -> (Elector, Record) {
    let mut node = elector(n);
    assert_eq!(node.step(at(0), Event::Tick), [Action::Read]);
    let actions = node.step(at(0), Event::Read(Ok(None)));
    let [Action::Swap { expected: None, record }] = &actions[..] else { panic!("{actions:?}") };
    let record = record.clone();
    let actions = node.step(at(100), Event::Swapped(Outcome::Won(Version("1".to_owned()))));
    assert_eq!(actions, [Action::Claimed { epoch: Epoch::new(1) }]);
    (node, record)
}

#[test]
fn a_holder_counts_from_before_it_wrote() {
    let (mut node, _) = claimed(1);
    assert_eq!(node.holds(at(1999)), Some(Epoch::new(1)));
    assert_eq!(node.holds(at(2000)), None);
    let actions = node.step(at(2000), Event::Tick);
    assert_eq!(actions[0], Action::Lost { epoch: Epoch::new(1), cause: Cause::Expired });
}

#[test]
fn a_challenger_counts_from_what_it_saw_and_waits_longer() {
    let (_, record) = claimed(1);
    let mut other = elector(2);
    other.step(at(50_000), Event::Tick);
    let seen = Event::Read(Ok(Some(versioned("1", &record))));
    let actions = other.step(at(50_000), seen.clone());
    assert!(matches!(&actions[..], [Action::Follow { .. }]), "{actions:?}");
    for ms in [50_500, 51_000, 51_500, 52_100] {
        assert_eq!(other.step(at(ms), Event::Tick), [Action::Read], "{ms}");
        assert_eq!(other.step(at(ms), seen.clone()), [], "{ms}");
    }
    let actions = other.step(at(52_200), Event::Tick);
    let [Action::Swap { expected, record }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(expected, &Some(Version("1".to_owned())));
    assert_eq!((record.epoch, record.reason), (Epoch::new(2), Reason::Expired));
}

#[test]
fn a_renewal_without_an_answer_counts_once_it_is_seen() {
    let (mut node, _) = claimed(1);
    let actions = node.step(at(700), Event::Tick);
    let [Action::Swap { record, .. }] = &actions[..] else { panic!("{actions:?}") };
    let record = record.clone();
    assert_eq!(record.reason, Reason::Renewed);
    assert_eq!(node.step(at(1500), Event::Swapped(Outcome::Unknown)), [Action::Read]);
    assert_eq!(node.holds(at(2100)), None);
    node.step(at(1600), Event::Read(Ok(Some(versioned("2", &record)))));
    assert_eq!(node.holds(at(2699)), Some(Epoch::new(1)));
    assert_eq!(node.holds(at(2700)), None);
}

#[test]
fn what_is_given_up_goes_to_the_one_it_was_given_up_for() {
    let (mut node, _) = claimed(1);
    let actions = node.step(at(300), Event::GiveUp { next: Some(NodeId::new(2)) });
    assert_eq!(node.holds(at(300)), None);
    let [Action::Lost { cause: Cause::GivenUp, .. }, Action::Swap { record, .. }] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    let seen = Event::Read(Ok(Some(versioned("2", record))));
    for (n, claims) in [(2, true), (3, false)] {
        let mut other = elector(n);
        other.step(at(0), Event::Tick);
        let actions = other.step(at(0), seen.clone());
        let has_claimed = matches!(actions.last(), Some(Action::Swap { .. }));
        assert_eq!(has_claimed, claims, "{n}: {actions:?}");
    }
    node.step(at(400), Event::Swapped(Outcome::Won(Version("2".to_owned()))));
    assert_eq!(node.step(at(1000), Event::Tick), [Action::Read], "it gives way, too");
}

#[test]
fn what_cannot_be_read_is_never_overwritten() {
    let mut node = elector(1);
    node.step(at(0), Event::Tick);
    let record = Record::decode(b"{\"format\":9}");
    let content = Versioned { version: Version("1".to_owned()), record };
    for ms in (0..60_000).step_by(600) {
        let actions = node.step(at(ms), Event::Read(Ok(Some(content.clone()))));
        assert_eq!(actions, [], "{ms}");
        assert_eq!(node.step(at(ms + 500), Event::Tick), [Action::Read]);
    }
    assert!(node.trouble().unwrap().to_string().contains("format 9"));
}

#[test]
fn a_register_that_went_back_in_time_does_not_bring_an_epoch_back() {
    let options = Options { ttl: TTL, is_candidate: true, claim_delay: Duration::ZERO };
    let mut node = Elector::new(ClusterId::new(1), holder(1), options, Epoch::new(7));
    node.step(at(0), Event::Tick);
    let actions = node.step(at(0), Event::Read(Ok(None)));
    let [Action::Swap { record, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(record.epoch, Epoch::new(8));
}
