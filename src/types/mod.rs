//! The numbers and names of the whole program, as types.
//!
//! Pure: no I/O, no clock. Every room uses these; none of them knows a file, a socket or SQLite's bytes.
//! Raw integers exist only inside `sqlite`, `ltx` and at the FUSE border.

#![forbid(unsafe_code)]

mod checksum;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod id;
mod name;
mod page;
mod position;

pub use checksum::Checksum;
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_name;
pub use id::{ClusterId, DbId, Epoch, NodeId, ParseIdError};
pub use name::{DbName, NameError};
pub use page::{PageNo, PageSize};
pub use position::{ParsePosError, Pos, Txid};

/// A number of exactly 16 hexadecimal digits; `from_str_radix` would take a sign too.
pub(crate) fn parse_hex(text: &str) -> Option<u64> {
    let all_digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    all_digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}
