//! The local transaction log of a database, and the sums of its pages.
//!
//! Called by `database`, which owns one [`Log`] and one [`PageSums`] for each open database. What always holds:
//! - Records follow each other: each begins at the position where the one before ends.
//! - What [`LogSync::sync`] reported is there after any crash; what [`Log::retract`] removed is not.
//! - A byte that was not written as part of a record of this segment is never read as one.
//! - A failed append changes nothing; a failed `fsync` ends all appending until the log is opened anew.
//! - Opening scans what was appended since the last sync and about 1 MiB before it, however long the log.
//!
//! `journal` writes (`pieces` what is too large for memory), `sync` makes durable, `reader` reads beside them, `state` is what they share; `open`
//! recovers, `retract` goes back; `record` and `segment` draw the formats, `sums` its own.
//!
//! Why zeros are written ahead (`docs/decisions/0001-zeros-written-ahead.md`): an `fdatasync` after an append
//! costs 200 to 330 us if the file grows and 130 us if it overwrites zeros.
//!
//! Not here: what a record means (`ltx`), when one may be dropped (`database`).

#![forbid(unsafe_code)]

mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod journal;
mod open;
mod pieces;
mod reader;
mod record;
mod retract;
mod segment;
mod state;
mod sums;
mod sync;
#[cfg(test)]
mod tests;

pub use error::{LogError, SumsError};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_log, fuzz_page_sums};
pub use journal::{Cut, Log, LogOptions, SegmentSummary};
pub use pieces::{Appender, Payload, PayloadReader, StoredRecord};
pub use reader::{LogReader, Read, WeakLogReader};
pub use record::{RecordInfo, WalSpan};
pub use sums::PageSums;
pub use sync::LogSync;
