//! What to send next to one follower on the live stream.
//!
//! Pure. The primary keeps per follower no data, only one cursor per database and a queue of those that
//! have more: whoever had a turn goes to the end, so a busy database cannot delay a quiet one.

use std::collections::{HashMap, VecDeque};

use super::limits::{LIVE_RECORD_BYTES_MAX, LIVE_RECORDS_MAX, TURN_BYTES};
use crate::types::{DbId, Pos};

/// The turn of one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Turn {
    pub(crate) db: DbId,
    /// What the follower has, or will have when it has read what was sent.
    pub(crate) sent: Pos,
    pub(crate) run: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing to send as far as we know.
    Idle,
    /// In the queue.
    Queued,
    /// The follower fetches it and will say where to go on.
    Fetching,
}

#[derive(Debug)]
struct Cursor {
    sent: Pos,
    run: u32,
    state: State,
}

/// The databases of one follower and whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    cursors: HashMap<DbId, Cursor>,
    queue: VecDeque<DbId>,
}

impl Schedule {
    /// Adds a database that the follower has up to `pos`. One that is there stays as it is.
    pub(crate) fn add(&mut self, db: DbId, pos: Pos) {
        self.cursors.entry(db).or_insert_with(|| {
            self.queue.push_back(db);
            Cursor { sent: pos, run: 0, state: State::Queued }
        });
    }

    /// Removes a database.
    pub(crate) fn remove(&mut self, db: DbId) {
        if self.cursors.remove(&db).is_some_and(|cursor| cursor.state == State::Queued) {
            self.queue.retain(|queued| *queued != db);
        }
    }

    /// The database has new transactions.
    pub(crate) fn changed(&mut self, db: DbId) {
        if let Some(cursor) = self.cursors.get_mut(&db)
            && cursor.state == State::Idle
        {
            cursor.state = State::Queued;
            self.queue.push_back(db);
        }
    }

    /// The follower has the database up to `pos` and wants to go on from there.
    pub(crate) fn resume(&mut self, db: DbId, pos: Pos, run: u32) {
        let Some(cursor) = self.cursors.get_mut(&db) else { return };
        cursor.sent = pos;
        cursor.run = run;
        if cursor.state != State::Queued {
            cursor.state = State::Queued;
            self.queue.push_back(db);
        }
    }

    /// Whether there is a turn to take.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the next turn.
    pub(crate) fn next(&mut self) -> Option<Turn> {
        let db = self.queue.pop_front()?;
        let cursor = self.cursors.get_mut(&db)?;
        cursor.state = State::Idle;
        Some(Turn { db, sent: cursor.sent, run: cursor.run })
    }

    /// What came of a turn: the follower was sent everything up to `pos`, and there may be more.
    pub(crate) fn sent(&mut self, turn: Turn, pos: Pos, more: bool) {
        let Some(cursor) = self.cursors.get_mut(&turn.db) else { return };
        cursor.sent = pos;
        if more {
            self.changed(turn.db);
        }
    }

    /// What came of a turn: the follower was told to fetch.
    pub(crate) fn behind(&mut self, turn: Turn) {
        if let Some(cursor) = self.cursors.get_mut(&turn.db) {
            cursor.state = State::Fetching;
        }
    }
}

/// How to find what a turn sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Look {
    /// The follower has everything.
    Nothing,
    /// Read records.
    Read,
    /// Merge: one change set instead of hundreds.
    Merge,
}

/// Decides by positions alone.
pub(crate) fn look(sent: Pos, newest: Pos) -> Look {
    if sent == newest {
        Look::Nothing
    } else if newest.txid_raw().saturating_sub(sent.txid_raw()) > LIVE_RECORDS_MAX {
        Look::Merge
    } else {
        Look::Read
    }
}

/// How many of the records that were read fit in a turn; 0 if the first is too large for the live
/// stream, so that the follower must fetch.
pub(crate) fn fitting(sizes: impl Iterator<Item = usize>) -> usize {
    let mut total = 0;
    let mut count = 0;
    for size in sizes {
        if size > LIVE_RECORD_BYTES_MAX || (count > 0 && total + size > TURN_BYTES) {
            break;
        }
        total += size;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Epoch, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::new(txid) }
    }

    fn db(id: u64) -> DbId {
        DbId::new(id)
    }

    #[test]
    fn databases_take_turns() {
        let mut schedule = Schedule::default();
        for id in 1..=3 {
            schedule.add(db(id), Pos::ZERO);
        }
        let mut order = Vec::new();
        for round in 1..=6 {
            let turn = schedule.next().unwrap();
            order.push(turn.db.get());
            schedule.sent(turn, pos(round), turn.db == db(1));
        }
        // 2 and 3 have nothing more after their first turn, 1 always has.
        assert_eq!(order, [1, 2, 3, 1, 1, 1]);
    }

    #[test]
    fn a_quiet_database_waits_for_one_turn_of_each_busy_one_only() {
        let mut schedule = Schedule::default();
        for id in 1..=2 {
            schedule.add(db(id), Pos::ZERO);
        }
        let quiet = schedule.next().unwrap();
        schedule.sent(quiet, pos(1), false);
        for round in 1..100 {
            let turn = schedule.next().unwrap();
            assert_eq!(turn.db, db(2));
            schedule.sent(turn, pos(round), true);
        }
        schedule.changed(db(1));
        let next: Vec<DbId> = (0..2).map(|_| schedule.next().unwrap().db).collect();
        assert!(next.contains(&db(1)));
    }

    #[test]
    fn a_database_is_queued_once_however_often_it_changes() {
        let mut schedule = Schedule::default();
        schedule.add(db(1), Pos::ZERO);
        schedule.add(db(1), pos(9));
        for _ in 0..1000 {
            schedule.changed(db(1));
        }
        let turn = schedule.next().unwrap();
        assert_eq!(turn.sent, Pos::ZERO);
        assert!(!schedule.has_work());
        // A change during the turn is not lost.
        schedule.changed(db(1));
        schedule.sent(turn, pos(1), false);
        assert_eq!(schedule.next().unwrap().sent, pos(1));
    }

    #[test]
    fn nothing_is_sent_of_a_database_that_the_follower_fetches() {
        let mut schedule = Schedule::default();
        schedule.add(db(1), Pos::ZERO);
        let turn = schedule.next().unwrap();
        schedule.behind(turn);
        schedule.changed(db(1));
        assert!(!schedule.has_work());
        schedule.resume(db(1), pos(7), 1);
        assert_eq!(schedule.next(), Some(Turn { db: db(1), sent: pos(7), run: 1 }));
    }

    #[test]
    fn a_dropped_database_is_forgotten_even_in_its_turn() {
        let mut schedule = Schedule::default();
        schedule.add(db(1), Pos::ZERO);
        schedule.add(db(2), Pos::ZERO);
        let turn = schedule.next().unwrap();
        schedule.remove(db(1));
        schedule.remove(db(2));
        schedule.sent(turn, pos(1), true);
        schedule.changed(db(2));
        schedule.resume(db(2), pos(1), 1);
        assert!(!schedule.has_work());
    }

    #[test]
    fn positions_decide_how_to_look() {
        assert_eq!(look(pos(5), pos(5)), Look::Nothing);
        assert_eq!(look(pos(5), pos(6)), Look::Read);
        assert_eq!(look(Pos::ZERO, pos(LIVE_RECORDS_MAX)), Look::Read);
        assert_eq!(look(Pos::ZERO, pos(LIVE_RECORDS_MAX + 1)), Look::Merge);
        // A follower that is ahead, or of another history, reads and finds that the log has it not.
        assert_eq!(look(pos(9), pos(6)), Look::Read);
        let other = Pos { checksum: Checksum::new(77), ..pos(6) };
        assert_eq!(look(other, pos(6)), Look::Read);
    }

    #[test]
    fn a_turn_is_bounded_but_never_empty_unless_it_must_be_fetched() {
        let check = |sizes: &[usize], expected| {
            assert_eq!(fitting(sizes.iter().copied()), expected, "{sizes:?}");
        };
        check(&[], 0);
        check(&[10, 10, 10], 3);
        check(&[TURN_BYTES, 1], 1);
        check(&[LIVE_RECORD_BYTES_MAX, 1], 1);
        check(&[LIVE_RECORD_BYTES_MAX + 1, 1], 0);
        check(&[1, LIVE_RECORD_BYTES_MAX + 1], 1);
    }
}
