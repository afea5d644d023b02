//! Two nodes in one process, over real sockets and without mounts.
//!
//! The primary is fed the requests that a mount would pass on; the replica applies to its plain files. What
//! needs real applications under real mounts is in `e2e`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog;
mod copies;
mod fakes;
mod hostile;
mod live;
mod lost;
mod naming;
mod proxy;
mod refusals;
mod world;
