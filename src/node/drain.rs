//! Waits for followers to have what they lack, before this node goes away.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::replication::FollowerStatus;
use crate::types::{DbId, Pos};

/// How often followers are looked at; they report after each fsync.
const POLL: Duration = Duration::from_millis(20);

/// A database and how far it is.
pub(super) type Goal = (DbId, Pos);

/// Followers that lack something of `goals`, with one database each.
fn behind(followers: &[FollowerStatus], goals: &[Goal]) -> Vec<String> {
    let lacks = |follower: &FollowerStatus| {
        follower.databases.iter().any(|db| {
            let goal = goals.iter().find(|(id, _)| *id == db.id);
            goal.is_some_and(|(_, pos)| db.durable.txid_raw() < pos.txid_raw())
        })
    };
    followers.iter().filter(|follower| lacks(follower)).map(|f| f.name.clone()).collect()
}

/// Waits until each connected follower has all of `goals` durably. Returns the names of those that have not
/// when the time is over.
pub(super) async fn wait(
    followers: impl Fn() -> Vec<FollowerStatus>,
    goals: &[Goal],
    wait_max: Duration,
) -> Vec<String> {
    let deadline = Instant::now() + wait_max;
    loop {
        let behind = behind(&followers(), goals);
        if behind.is_empty() || Instant::now() >= deadline {
            return behind;
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{FollowerDatabase, Lag};
    use crate::types::{Checksum, DbName, Epoch, NodeId, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::EMPTY }
    }

    fn follower(name: &str, durable: u64) -> FollowerStatus {
        let database = FollowerDatabase {
            id: DbId::new(1),
            name: DbName::new(b"x").unwrap(),
            durable: pos(durable),
            applied: pos(0),
            lag: Lag::default(),
        };
        FollowerStatus {
            node: NodeId::new(1),
            name: name.to_owned(),
            address: String::new(),
            software: String::new(),
            connected_since_ms: 0,
            databases: vec![database],
        }
    }

    #[test]
    fn only_followers_that_lack_a_wanted_transaction_are_behind() {
        let followers = [follower("a", 5), follower("b", 4)];
        assert_eq!(behind(&followers, &[(DbId::new(1), pos(5))]), ["b"]);
        assert_eq!(behind(&followers, &[(DbId::new(2), pos(5))]), Vec::<String>::new());
        assert_eq!(behind(&[], &[(DbId::new(1), pos(5))]), Vec::<String>::new());
    }

    #[test]
    fn waiting_ends_when_the_follower_has_it_and_at_the_latest_in_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.unwrap();
        let rounds = std::cell::Cell::new(0);
        let progress = || {
            rounds.set(rounds.get() + 1);
            vec![follower("a", rounds.get())]
        };
        let goals = [(DbId::new(1), pos(3))];
        let left = runtime.block_on(wait(progress, &goals, Duration::from_secs(10)));
        assert_eq!((left.len(), rounds.get()), (0, 3));
        let stuck = || vec![follower("a", 1)];
        let left = runtime.block_on(wait(stuck, &goals, Duration::from_millis(1)));
        assert_eq!(left, ["a"]);
    }
}
