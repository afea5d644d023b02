//! The running daemon: owns the order of start and stop, and the admin socket.
//!
//! Called by `cli::mount`. Everything it starts it also stops, in reverse.

#![forbid(unsafe_code)]

mod identity;
mod lock;
mod notify;
mod stale;
mod timestamp;

pub use identity::{Identity, IdentityError};
pub use lock::{DataLock, Holder, LockError, holder};
pub use timestamp::format_wall_ms;
