//! How a follower gets from its position to the newest: by log or by pages.
//!
//! Pure. Asked again after every step, so each step is bounded and the whole can be resumed anywhere.

use super::limits::{
    CATCH_UP_BYTES_MAX, CATCH_UP_RECORDS_MAX, FETCH_MERGE_BYTES, LIVE_RECORD_BYTES_MAX,
    LOG_BYTES_CHEAP, RECORD_BYTES_MAX,
};
use crate::database::LogSpan;
use crate::types::Pos;

/// The next step of a Fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The follower has everything.
    Done,
    /// Send the next records as they are, up to so many bytes, at least one.
    Records { bytes_max: usize },
    /// Send one change set merged from so many bytes of log.
    Merge { bytes_max: u64 },
    /// Copy the pages.
    Copy,
}

/// What decides about the way: what the log has, and how large the database is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Situation {
    /// The log behind the follower's position; `None` if the log does not have the position.
    pub(crate) span: Option<LogSpan>,
    /// Bytes of the database.
    pub(crate) database_bytes: u64,
    /// The follower said that the log will not do.
    pub(crate) pages_wanted: bool,
}

/// The first step: by log if that is possible and not more expensive than the pages.
pub(crate) fn first_step(situation: Situation) -> Step {
    let Some(span) = situation.span else { return Step::Copy };
    let is_dear = span.bytes > LOG_BYTES_CHEAP && span.bytes > situation.database_bytes;
    // A record that breaks off begins anew; a copy of pages goes on where it was.
    let is_heavy = span.first_bytes > RECORD_BYTES_MAX
        || (span.first_bytes > LOG_BYTES_CHEAP
            && span.first_bytes.saturating_mul(4) > situation.database_bytes);
    if situation.pages_wanted || is_dear || is_heavy { Step::Copy } else { log_step(span) }
}

/// A further step by log.
pub(crate) fn log_step(span: LogSpan) -> Step {
    if span.records == 0 {
        Step::Done
    } else if span.first_bytes > RECORD_BYTES_MAX {
        // The follower hears that it is behind, and asks anew.
        Step::Copy
    } else if span.records > 1
        && span.first_bytes < FETCH_MERGE_BYTES
        && (span.records > CATCH_UP_RECORDS_MAX || span.bytes > CATCH_UP_BYTES_MAX)
    {
        Step::Merge { bytes_max: FETCH_MERGE_BYTES }
    } else {
        Step::Records { bytes_max: usize::try_from(CATCH_UP_BYTES_MAX).unwrap_or(usize::MAX) }
    }
}

/// Whether what is left can be left to the live stream.
pub(crate) fn is_close(span: LogSpan) -> bool {
    span.records <= CATCH_UP_RECORDS_MAX && span.bytes <= LIVE_RECORD_BYTES_MAX as u64
}

/// Whether a follower that gets a copy has transactions that the primary does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parted {
    /// No: the primary's log has its position.
    Never,
    /// The primary has nothing of what it has behind this position.
    Behind(Pos),
    /// The primary's log would have its position, and does not; where they parted is not known.
    Somewhere,
    /// The position is older than the primary's log.
    Unknown,
}

/// Compares a follower's position with what the primary said of its log: the newest position that both have, and where
/// the log begins.
pub(crate) fn parted(ours: Pos, common: Option<Pos>, oldest: Option<Pos>) -> Parted {
    match (common, oldest) {
        _ if ours.txid.is_none() => Parted::Never,
        (Some(common), _) if common == ours => Parted::Never,
        (Some(common), _) => Parted::Behind(common),
        (None, Some(oldest)) if oldest.txid_raw() <= ours.txid_raw() => Parted::Somewhere,
        (None, Some(_) | None) => Parted::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Checksum, Epoch, Txid};

    fn pos(txid: u64) -> Pos {
        Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::new(txid) }
    }

    #[test]
    fn two_histories_part_behind_the_newest_position_that_both_have() {
        assert_eq!(parted(Pos::ZERO, None, Some(pos(9))), Parted::Never);
        assert_eq!(parted(pos(5), Some(pos(5)), Some(pos(1))), Parted::Never);
        assert_eq!(parted(pos(5), Some(pos(3)), Some(pos(1))), Parted::Behind(pos(3)));
        assert_eq!(parted(pos(5), None, Some(pos(5))), Parted::Somewhere);
        assert_eq!(parted(pos(5), None, Some(Pos::ZERO)), Parted::Somewhere);
        assert_eq!(parted(pos(5), None, Some(pos(6))), Parted::Unknown);
        assert_eq!(parted(pos(5), None, None), Parted::Unknown);
    }

    const MIB: u64 = 1024 * 1024;

    fn span(records: u64, bytes: u64, first_bytes: u64) -> Option<LogSpan> {
        Some(LogSpan { records, bytes, first_bytes })
    }

    fn check(span: Option<LogSpan>, database_bytes: u64, expected: Step) {
        let situation = Situation { span, database_bytes, pages_wanted: false };
        assert_eq!(first_step(situation), expected, "{situation:?}");
    }

    #[test]
    fn the_log_is_used_while_it_is_cheaper_than_the_pages() {
        let records = Step::Records { bytes_max: 4 * 1024 * 1024 };
        let merge = Step::Merge { bytes_max: 32 * MIB };
        check(span(0, 0, 0), 0, Step::Done);
        let heavy = LogSpan { records: 2, bytes: 2048 * MIB, first_bytes: 1025 * MIB };
        assert_eq!(log_step(heavy), Step::Copy, "also behind other records");
        check(None, 100 * MIB, Step::Copy);
        check(span(1, 4096, 4096), MIB, records);
        check(span(256, MIB, 4096), MIB, records);
        check(span(257, MIB, 4096), MIB, merge);
        check(span(9, 5 * MIB, 4096), MIB, merge);
        check(span(900, 63 * MIB, 4096), MIB, merge);
        check(span(900, 65 * MIB, 4096), MIB, Step::Copy);
        check(span(900, 900 * MIB, 4096), 1000 * MIB, merge);
        check(span(900, 1001 * MIB, 4096), 1000 * MIB, Step::Copy);
    }

    #[test]
    fn a_record_that_does_not_fit_in_memory_is_never_sent() {
        check(span(1, 2000 * MIB, 2000 * MIB), 100_000 * MIB, Step::Copy);
        check(span(1, 100 * MIB, 100 * MIB), 200 * MIB, Step::Copy);
        check(span(1, 100 * MIB, 100 * MIB), 1000 * MIB, Step::Records { bytes_max: 4 << 20 });
        // Merging would only copy it.
        check(span(5, 60 * MIB, 40 * MIB), 1000 * MIB, Step::Records { bytes_max: 4 << 20 });
    }

    #[test]
    fn what_is_left_is_small_enough_for_the_live_stream() {
        let close = |records, bytes| is_close(span(records, bytes, bytes).unwrap());
        assert!(close(0, 0));
        assert!(close(1, MIB));
        assert!(!close(1, MIB + 1), "the live stream would send the follower back");
        assert!(!close(257, 4096));
    }

    #[test]
    fn damaged_pages_are_not_repaired_by_log() {
        let situation = Situation { span: span(0, 0, 0), database_bytes: MIB, pages_wanted: true };
        assert_eq!(first_step(situation), Step::Copy);
    }
}
