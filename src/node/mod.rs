//! The running daemon: owns the order of start and stop, and the admin socket.
//!
//! Called by `cli::mount`. Everything it starts it also stops, in reverse.

#![forbid(unsafe_code)]

pub mod admin;
mod daemon;
mod drain;
mod identity;
pub mod image;
mod listen;
mod lock;
mod notify;
mod report;
mod stale;
pub mod status;
mod timestamp;

pub use daemon::{Node, StopReason};
pub use identity::{Identity, IdentityError};
pub use listen::ListenError;
pub use lock::{DataLock, Holder, LockError, holder};
pub use timestamp::format_wall_ms;
