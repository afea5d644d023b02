//! The page index: for each page `uvarint(page) uvarint(offset) uvarint(size)`, then a zero byte,
//! then the length of all that as `u64`.
//!
//! The only form accepted is the one written here, so a reader that has seen the frames compares bytes.

use crate::types::PageNo;

/// Where a page's frame is in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageEntry {
    /// The page.
    pub page: PageNo,
    /// Offset of the frame's header from the beginning of the file.
    pub offset: u64,
    /// Bytes of the frame, header included.
    pub size: u32,
}

/// Appends an entry to an index.
pub(super) fn push(index: &mut Vec<u8>, entry: PageEntry) {
    put_uvarint(index, u64::from(entry.page.get()));
    put_uvarint(index, entry.offset);
    put_uvarint(index, u64::from(entry.size));
}

/// Appends the end mark and the length.
pub(super) fn close(index: &mut Vec<u8>) {
    index.push(0);
    let len = index.len() as u64;
    index.extend_from_slice(&len.to_be_bytes());
}

/// Reads the entries of an index (without end mark and length). `None` if it is malformed.
pub(super) fn entries(mut index: &[u8]) -> Option<Vec<PageEntry>> {
    let mut entries = Vec::with_capacity(index.len() / 3);
    while !index.is_empty() {
        let page = u32::try_from(take_uvarint(&mut index)?).ok().and_then(PageNo::new)?;
        let offset = take_uvarint(&mut index)?;
        let size = u32::try_from(take_uvarint(&mut index)?).ok()?;
        entries.push(PageEntry { page, offset, size });
    }
    Some(entries)
}

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(0x80 | (value & 0x7f) as u8);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

fn take_uvarint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uvarints_survive_at_every_width() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut bytes = Vec::new();
                put_uvarint(&mut bytes, value);
                let mut rest = &bytes[..];
                assert_eq!(take_uvarint(&mut rest), Some(value));
                assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn overlong_and_cut_uvarints_are_refused() {
        for bytes in [&[0x80u8][..], &[0xff; 11], &[]] {
            assert_eq!(take_uvarint(&mut &bytes[..]), None);
        }
    }
}
