//! One page as it is stored: a header of 6 bytes (page, flags), then either a size and a raw LZ4
//! block (flag 1) or a whole LZ4 frame (no flag). Six zero bytes end the pages.

use crate::types::{PageNo, PageSize};

use super::Problem;
use super::header::{be16, be32};
use super::lz4;

/// Bytes of a page's header without the size.
pub(super) const HEAD_LEN: usize = 6;
/// Bytes of a page's header with the size.
pub(super) const SIZED_HEAD_LEN: usize = HEAD_LEN + 4;
/// The page flag that says that the size follows and then a raw block.
pub(super) const HAS_SIZE: u16 = 1;
/// The end of the pages.
pub(super) const END_OF_PAGES: [u8; HEAD_LEN] = [0; HEAD_LEN];

/// What the first six bytes announce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Head {
    /// A size and a raw block.
    Block(PageNo),
    /// An LZ4 frame.
    Frame(PageNo),
    /// No more pages.
    End,
}

impl Head {
    pub(super) fn parse(bytes: &[u8; HEAD_LEN]) -> Result<Self, Problem> {
        let flags = be16(bytes, 4);
        match (PageNo::new(be32(bytes, 0)), flags) {
            (Some(page), HAS_SIZE) => Ok(Self::Block(page)),
            (Some(page), 0) => Ok(Self::Frame(page)),
            (Some(page), _) => Err(Problem::PageFlags { page, flags }),
            (None, 0) => Ok(Self::End),
            (None, _) => Err(Problem::EndMark(flags)),
        }
    }
}

/// Checks a block's claimed size before memory is taken for it.
pub(super) fn block_size(
    page: PageNo,
    page_size: PageSize,
    bytes: &[u8; 4],
) -> Result<usize, Problem> {
    let size = u32::from_be_bytes(*bytes);
    let bound = lz4::bound(page_size.bytes());
    if size as usize > bound {
        return Err(Problem::BlockTooLarge { page, size, bound });
    }
    Ok(size as usize)
}

/// The part of a stored page that the file checksum covers as it is; the page follows uncompressed.
pub(super) fn hashed_head(stored: &[u8]) -> &[u8] {
    let has_size = be16(stored, 4) == HAS_SIZE;
    &stored[..if has_size { SIZED_HEAD_LEN } else { HEAD_LEN }]
}
