//! The local transaction log of a database, and the sums of its pages.
//!
//! Called by `database`, which owns one [`Log`] and one [`PageSums`] for each open database.
//! Not here: what a record means (`ltx`), when one may be dropped (`database`).

#![forbid(unsafe_code)]

mod error;
mod journal;
mod open;
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
pub use journal::{Cut, Log, LogOptions, SegmentSummary};
pub use reader::{LogReader, Read};
pub use record::{RecordInfo, WalSpan};
pub use sums::PageSums;
pub use sync::LogSync;
