//! The change-set file LTX: encode, decode, merge, checksum.
//!
//! Pure: bytes in, bytes out; the streaming forms take any `Read` or `Write`. `log`, `replication`,
//! `backup` and `weir ltx` call it.
//! Always true: what [`LtxFile::parse`] and [`Decoder`] accept is stricter than the reference
//! implementation (index and frames agree, pages ascend, a snapshot is complete, nothing trails),
//! and what [`Encoder`] writes is accepted by it.
//! Not here: applying pages to a database, names of files, object storage.
//!
//! The form is LTX v3 with one LZ4 block per page. All versions share the magic `LTX1` and nothing
//! in the bytes tells them apart, so the caller says which [`Format`] it reads.

#![forbid(unsafe_code)]

mod checksum;
mod encode;
mod file;
mod frame;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod header;
mod index;
mod indexed;
mod lz4;
mod merge;
mod order;
mod problem;
mod stream;

pub use checksum::{DatabaseSum, page_sum};
pub use encode::{Compressor, EncodeError, Encoder, PageEncoding};
pub use file::LtxFile;
#[cfg(any(test, fuzzing))]
pub use fuzz::{fuzz_ltx_decode, fuzz_ltx_merge, fuzz_lz4};
pub use header::{Flags, HEADER_LEN, Header, HeaderError, TRAILER_LEN, Trailer, WalSource};
pub use index::PageEntry;
pub use indexed::IndexedFile;
pub use lz4::FrameError;
pub use merge::{MergeError, merge, merge_streams};
pub use order::OrderError;
pub use problem::{DecodeError, Problem};
pub use stream::{Decoder, Page};

/// The layouts that share the magic `LTX1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Written by Weir and by Litestream from 0.5.0 on.
    V3,
    /// Written by LiteFS. Readable only.
    V1,
}

#[cfg(test)]
mod tests;
