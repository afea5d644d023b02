//! The numbers and names of the whole program, as types.
//!
//! Pure: no I/O, no clock. Every room uses these; none of them knows a file, a socket or SQLite's bytes.
//! Raw integers exist only inside `sqlite`, `ltx` and at the FUSE border.

#![forbid(unsafe_code)]

mod checksum;
mod id;
mod name;
mod page;
mod position;

pub use checksum::Checksum;
pub use id::{ClusterId, DbId, Epoch, NodeId, ParseIdError};
pub use name::{DbName, NameError};
pub use page::{PageNo, PageSize};
pub use position::{ParsePosError, Pos, Txid};
