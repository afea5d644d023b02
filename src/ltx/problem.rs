//! What can be wrong with the bytes of an LTX file.

use std::io;

use crate::types::{Checksum, PageNo, PageSize};

use super::{FrameError, HeaderError, OrderError};

/// Why bytes are no acceptable LTX file, and where.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset}: {problem}")]
pub struct DecodeError {
    /// Offset of the offending part from the beginning of the file.
    pub offset: u64,
    /// What is wrong there.
    pub problem: Problem,
}

impl DecodeError {
    pub(super) fn at(offset: u64, problem: impl Into<Problem>) -> Self {
        Self { offset, problem: problem.into() }
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file ends too early.
    #[error("the file ends within the {part}")]
    Truncated {
        /// The part that is incomplete.
        part: &'static str,
    },
    /// The header breaks a rule.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Pages out of order, beyond the end, or missing.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// Flags of a page that v3 does not know.
    #[error("page {page} has the unknown flags {flags:#x}")]
    PageFlags {
        /// The page.
        page: PageNo,
        /// Its flags.
        flags: u16,
    },
    /// The end mark of the pages is not all zero.
    #[error("page number 0 with the flags {0:#x} is neither a page nor the end of the pages")]
    EndMark(u16),
    /// More bytes than any page needs: refused before memory is taken for them.
    #[error("page {page} claims {size} compressed bytes, {bound} is the most a page needs")]
    BlockTooLarge {
        /// The page.
        page: PageNo,
        /// Claimed size.
        size: u32,
        /// Largest possible size.
        bound: usize,
    },
    /// LZ4 data that cannot be decompressed to a page.
    #[error("page {page} does not decompress to {page_size} bytes")]
    BadBlock {
        /// The page.
        page: PageNo,
        /// What it should decompress to.
        page_size: PageSize,
    },
    /// A page in an LZ4 frame that is broken.
    #[error("page {page}: {problem}")]
    Frame {
        /// The page.
        page: PageNo,
        /// What is wrong with the frame.
        problem: FrameError,
    },
    /// LiteFS v1: the one frame around all pages is broken.
    #[error("the compressed page block: {0}")]
    FrameBlock(FrameError),
    /// The index lists other pages, offsets or sizes than the frames have.
    #[error("the page index differs from the pages")]
    Index,
    /// The index cannot be where its length says.
    #[error("the page index cannot be {0} bytes long")]
    IndexLength(u64),
    /// A checksum afterwards where the flags say there is none.
    #[error("there is a post-apply checksum although the flags say there are no checksums")]
    PostApplyNotAllowed,
    /// No valid checksum where the flags say there is one.
    #[error("the post-apply checksum {0:016x} lacks its flag bit")]
    PostApplyFlagBit(u64),
    /// A deleted database has the empty checksum.
    #[error("the database is deleted, but its post-apply checksum is {0}")]
    PostApplyOfNothing(Checksum),
    /// A snapshot's pages do not add up to its checksum.
    #[error("the pages add up to the checksum {computed}, the file promises {stored}")]
    PostApplyMismatch {
        /// What the trailer says.
        stored: Checksum,
        /// What the pages say.
        computed: Checksum,
    },
    /// The file checksum has no flag bit.
    #[error("the file checksum {0:016x} lacks its flag bit")]
    FileChecksumFlagBit(u64),
    /// The bytes are not those that were written.
    #[error("the file checksum is {computed}, {stored} is stored: the file is damaged")]
    FileChecksumMismatch {
        /// What the trailer says.
        stored: Checksum,
        /// What the bytes say.
        computed: Checksum,
    },
    /// Something follows the trailer.
    #[error("there are bytes after the end of the file's last part")]
    TrailingBytes,
    /// The reader failed.
    #[error("read: {0}")]
    Read(#[from] io::Error),
}
