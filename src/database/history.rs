//! Where two nodes' histories of a database part.

use super::{Database, OpError};
use crate::types::{Pos, Txid};

/// So many of the newest positions are all told; of older ones ever fewer.
const DENSE: u64 = 64;

/// What a log says about positions of another node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Common {
    /// The newest of them that is in this log.
    pub pos: Option<Pos>,
    /// Where this log begins: of anything older it says nothing.
    pub oldest: Pos,
}

impl Database {
    /// Where the log begins.
    ///
    /// # Errors
    /// The log could not be opened.
    pub fn log_base(&self) -> Result<Pos, OpError> {
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else {
            return Err(OpError::NotTracked(self.name()));
        };
        Ok(tracked.files(&self.shared)?.log.base())
    }

    /// Positions of this database's history, newest first, about a hundred: the last ones all, then ever fewer, and
    /// where the log begins.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn history(&self) -> Result<Vec<Pos>, OpError> {
        let Some(reader) = self.log_reader()? else { return Ok(Vec::new()) };
        let (newest, base) = (self.position(), self.log_base()?);
        let mut found = Vec::new();
        for txid in samples(base.txid_raw(), newest.txid_raw()).filter_map(Txid::new) {
            found.extend(reader.info_at(txid)?.map(|info| info.pos()));
        }
        if base.txid.is_some() {
            found.push(base);
        }
        Ok(found)
    }

    /// Whether this node may have committed to the database since it last received anything for it.
    #[must_use]
    pub fn may_have_own(&self) -> bool {
        self.state.lock().tracked.as_ref().is_some_and(|tracked| !tracked.meta.only_received)
    }

    /// Notes durably that what this node committed itself is kept elsewhere.
    ///
    /// # Errors
    /// The note could not be stored.
    pub fn own_is_kept(&self) -> Result<(), OpError> {
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else { return Ok(()) };
        tracked.note_only_received(&self.shared, true)
    }

    /// Whether nobody knows what the file holds, because its log could not be used at the start.
    #[must_use]
    pub fn is_without_log(&self) -> bool {
        let state = self.state.lock();
        let has_no_pos = state.tracked.as_ref().is_some_and(|tracked| tracked.pos.txid.is_none());
        has_no_pos && state.quarantine.is_some()
    }

    /// Whether the database file holds, durably, everything that the log holds.
    #[must_use]
    pub fn is_written_back(&self) -> bool {
        let state = self.state.lock();
        state.quarantine.is_none()
            && state
                .tracked
                .as_ref()
                .is_some_and(|tracked| tracked.meta.durable_txid == tracked.pos.txid_raw())
    }

    /// The newest of another node's positions that is in this log.
    ///
    /// # Errors
    /// The log could not be read.
    pub fn common(&self, theirs: &[Pos]) -> Result<Common, OpError> {
        let oldest = self.log_base()?;
        let Some(reader) = self.log_reader()? else { return Ok(Common { pos: None, oldest }) };
        let newest = self.position();
        for pos in theirs {
            let Some(txid) = pos.txid.filter(|txid| txid.get() <= newest.txid_raw()) else {
                continue;
            };
            if *pos == oldest || reader.info_at(txid)?.is_some_and(|info| info.pos() == *pos) {
                return Ok(Common { pos: Some(*pos), oldest });
            }
        }
        Ok(Common { pos: None, oldest })
    }
}

/// Numbers above `base` up to `newest`, falling: one by one, then in steps that double.
fn samples(base: u64, newest: u64) -> impl Iterator<Item = u64> {
    let mut back = 0_u64;
    std::iter::from_fn(move || {
        let txid = newest.checked_sub(back).filter(|txid| *txid > base)?;
        back = if back < DENSE { back + 1 } else { back.saturating_mul(2) };
        Some(txid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_positions_are_all_told_and_old_ones_now_and_then() {
        assert_eq!(samples(3, 6).collect::<Vec<_>>(), [6, 5, 4]);
        assert_eq!(samples(6, 6).count(), 0);
        assert_eq!(samples(0, 0).count(), 0);
        let many: Vec<u64> = samples(0, u64::MAX).collect();
        assert!(many.len() < 130 && many.is_sorted_by(|a, b| a > b), "{many:?}");
        assert_eq!(many[64], u64::MAX - 64);
    }
}
