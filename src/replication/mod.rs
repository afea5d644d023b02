//! Replication over gRPC: the primary's service and the replica's follower.
//!
//! A follower keeps three connections to the primary (heartbeat, live, bulk), says its positions and gets
//! what it misses; it acknowledges what is durable and what is applied. `node` starts both sides.
//!
//! Always true: positions decide what is sent; the primary keeps per follower one cursor per database and
//! no data; transactions of one database are delivered in order, those of others never wait for it.
//! Not here: the log, applying and snapshots (`database`), the role (`lease`, `node`).

#![forbid(unsafe_code)]

/// The generated messages; only `convert` and the two shells see them.
#[allow(
    clippy::all,
    clippy::doc_markdown,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
mod pb {
    tonic::include_proto!("weir.v1");
}

mod backoff;
mod catchup;
mod convert;
mod error;
mod flow;
mod follower;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod level;
pub(crate) mod limits;
mod link;
mod membership;
mod message;
mod naming;
mod primary;
mod schedule;
mod view;

pub use error::{Reason, Refusal};
pub use follower::{
    CompareError, Comparison, CopyProgress, Follower, FollowerOptions, FollowingStatus, Link,
    SetAside,
};
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_filter, fuzz_message};
pub use limits::PROTOCOL;
pub use membership::{Join, Membership};
pub use primary::{FollowerDatabase, FollowerStatus, Lag, ServeError, Server};
pub use view::{Filter, FilterError};
