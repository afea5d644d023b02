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

/// Appends the rest of a page's header and its block; the page number is there already.
pub(super) fn put_block(block: &[u8], stored: &mut Vec<u8>) {
    put_size(block.len(), stored);
    stored.extend_from_slice(block);
}

/// Like [`put_block`] with a block of literals only, which costs no compression.
pub(super) fn put_literals(data: &[u8], stored: &mut Vec<u8>) {
    // LZ4 Block Format: 15 in the token's high half, then 255s, then the rest of the length.
    const IN_TOKEN: usize = 15;
    let beyond = data.len() - IN_TOKEN;
    put_size(1 + beyond / 255 + 1 + data.len(), stored);
    stored.push(0xf0);
    stored.resize(stored.len() + beyond / 255, 0xff);
    stored.push(u8::try_from(beyond % 255).expect("BUG: a remainder of 255"));
    stored.extend_from_slice(data);
}

fn put_size(size: usize, stored: &mut Vec<u8>) {
    let size = u32::try_from(size).expect("BUG: a page is at most 64 KiB");
    stored.extend_from_slice(&HAS_SIZE.to_be_bytes());
    stored.extend_from_slice(&size.to_be_bytes());
}
