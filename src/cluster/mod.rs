//! Who is primary, and until when: the lease algorithm, above any register that can compare and swap.
//!
//! ```text
//!   register (file, etcd, Consul, …)  ── one small record, a version with each write
//!        ▲ Read, Swap                    │ answers, with the time before each was asked
//!        │                               ▼
//!      shell ── time since boot ──►  Elector  ──► Claimed, Lost, Follow
//! ```
//! No clock but the node's own time since boot is trusted, and of that only differences:
//! - a holder counts the lease from *before* it sent the write that took or renewed it;
//! - a challenger counts from when it *first saw* the version unchanged, and waits longer than the holder
//!   counts, by a margin for clocks that run at different rates.
//!
//! So two nodes never both believe that they hold the lease, whatever is delayed, lost or repeated, as long as
//! clocks run at rates that differ by less than the margin. What is written under which epoch decides the rest:
//! a node that was paused while its lease ended is refused by epoch, not by time.
//!
//! Called by `lease`, which owns clocks and sockets. Nothing here knows databases.

#![forbid(unsafe_code)]

mod elector;
mod record;
#[cfg(test)]
mod tests;

pub use elector::{Action, Cause, Elector, Event, Options, Outcome, Role, Unreachable};
pub use record::{Holder, Reason, Record, RecordError, Version, Versioned};
