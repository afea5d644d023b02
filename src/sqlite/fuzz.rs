//! What must hold for any bytes at all; fuzz targets and the property tests below call it.

use std::convert::Infallible;

use super::shm::{Block, PREFIX_SIZE, Prefix, READ_MARKS};
use super::{
    DatabaseHeader, FrameHeader, Journal, JournalHeader, Reading, Salts, WalChecksum, WalEncoder,
    WalHeader, free_leaves, super_journal,
};
use crate::types::{PageNo, PageSize};

/// Reads from bytes as from a file.
fn reader(bytes: &[u8]) -> impl FnMut(u64, &mut [u8]) -> Result<usize, Infallible> {
    move |at, buffer| {
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
        let len = buffer.len().min(bytes.len() - at);
        buffer[..len].copy_from_slice(&bytes[at..at + len]);
        Ok(len)
    }
}

/// The database header, and the chain of free pages of a database that begins with it.
///
/// # Panics
/// If a page is found that is not there: a bug.
pub fn fuzz_database_header(data: &[u8]) {
    check_database(data);
    // Chance does not find the magic.
    let mut repaired = data.to_vec();
    if let Some(head) = repaired.get_mut(..24) {
        head[..16].copy_from_slice(DatabaseHeader::MAGIC);
        let size = u16::from_be_bytes([head[16], head[17]]);
        let size: u16 = if size & 1 == 1 { 1 } else { 512 << (size % 7) };
        head[16..18].copy_from_slice(&size.to_be_bytes());
        head[21..24].copy_from_slice(&[64, 32, 32]);
        check_database(&repaired);
    }
}

fn check_database(data: &[u8]) {
    let Ok(header) = DatabaseHeader::parse(data) else { return };
    let file = data.len() as u64;
    let there = u32::try_from(file / u64::from(header.page_size.get())).unwrap_or(u32::MAX);
    assert!(header.pages(file) == there || header.pages(file) == header.pages_stored);
    let mut read = reader(data);
    let leaves = free_leaves(header.page_size, there, |page, buffer| {
        buffer.fill(0);
        read(page.offset(header.page_size), buffer).map(drop)
    });
    let leaves = leaves.unwrap_or_default();
    assert!(leaves.is_sorted() && leaves.iter().all(|leaf| leaf.get() <= there));
}

/// A WAL's header and the chain of its frames.
///
/// # Panics
/// If what was encoded is not read again, or damage is read as a frame: a bug.
pub fn fuzz_wal(data: &[u8]) {
    frames(data);
    let Some((head, body)) = data.split_at_checked(32) else { return };
    let Some(page_size) = PageSize::new(512 << (head[0] % 8)) else { return };
    let salts = Salts([head[1], head[2], 0, 0, 0, 0, 0, 9]);
    let header = WalHeader::new(page_size, u32::from(head[3]), salts);
    let mut wal = header.encode().to_vec();
    let mut encoder = WalEncoder::begin(&header);
    let mut written = 0;
    for piece in body.chunks(16).take(usize::from(head[4] % 8)) {
        let page = PageNo::FIRST.get() + u32::from(piece[0]);
        let mut image = vec![piece[piece.len() / 2]; page_size.bytes()];
        image[..piece.len()].copy_from_slice(piece);
        let Some(page) = PageNo::new(page) else { return };
        encoder.frame(page, u32::from(piece[piece.len() - 1]), &image, &mut wal);
        written += 1;
    }
    assert_eq!(frames(&wal), written, "BUG: a frame that was written does not count");
    assert_eq!(u64::from(header.frames(wal.len() as u64)), written);
    let at = usize::from(u16::from_be_bytes([head[5], head[6]])) % wal.len();
    wal[at] ^= head[7].max(1);
    let frame = (at as u64).checked_sub(32).map(|at| at / header.frame_size());
    assert!(frames(&wal) <= frame.unwrap_or(0), "BUG: a damaged frame counts");
}

/// Number of frames that count.
fn frames(wal: &[u8]) -> u64 {
    let Ok(header) = WalHeader::parse(wal) else { return 0 };
    assert_eq!(header.encode()[..], wal[..WalHeader::SIZE], "BUG: other bytes");
    let mut chain: WalChecksum = header.checksum;
    let mut count = 0;
    let size = usize::try_from(header.frame_size()).unwrap_or(usize::MAX);
    for frame in wal[WalHeader::SIZE..].chunks_exact(size) {
        let (head, page) = frame.split_at(FrameHeader::SIZE);
        let Some((frame, after)) = header.verify(chain, head, page) else { break };
        assert_eq!(frame.encode()[..], *head, "BUG: other bytes");
        chain = after;
        count += 1;
    }
    count
}

/// The wal-index: memory that other processes write.
///
/// # Panics
/// If something is found or changed outside the block: a bug.
pub fn fuzz_wal_index(data: &[u8]) {
    let Some((prefix, rest)) = data.split_at_checked(PREFIX_SIZE) else { return };
    let mut bytes = [0; PREFIX_SIZE];
    bytes.copy_from_slice(prefix);
    check_prefix(&bytes);
    let Some((commands, block)) = rest.split_at_checked(64) else { return };
    // The block's hash table repeats the input, so that it is neither empty nor all the same.
    let index = u32::from_be_bytes([0, 0, commands[0] % 3, commands[1]]);
    let mut table: Vec<u8> = block.iter().copied().cycle().take(32 << 10).collect();
    table.truncate(if commands[2] & 1 == 0 { 32 << 10 } else { block.len() });
    let mut block = Block::new(index, table);
    for command in commands[4..].as_chunks::<6>().0 {
        let [kind, a, b, c, d, e] = *command;
        let number = u32::from_be_bytes([0, if kind & 2 == 0 { 0 } else { a }, b, c]);
        let Some(page) = PageNo::new(1 + u32::from_be_bytes([0, 0, d, e])) else { continue };
        if kind & 1 == 0 {
            let committed = number.wrapping_sub(u32::from(kind >> 2));
            if block.append(number, page, committed).is_ok() {
                assert_eq!(block.page(number), Some(page), "BUG: not listed");
                assert_eq!(Block::containing(number), index, "BUG: of another block");
            }
        } else if let Ok(Some(frame)) = block.find(page, number) {
            assert!(frame <= number && block.page(frame) == Some(page), "BUG: another frame");
        }
        if let Some((offset, changes)) = block.take_changes() {
            let start = u64::from(index) * (32 << 10);
            assert!(offset >= start && offset + changes.len() as u64 <= start + (32 << 10));
        }
    }
}

fn check_prefix(bytes: &[u8; PREFIX_SIZE]) {
    let prefix = Prefix::new(bytes);
    for mark in 0..=READ_MARKS {
        let _frame = prefix.read_mark(mark);
    }
    let Some(header) = prefix.header() else { return };
    let mut again = *bytes;
    let encoded = header.encode();
    again[..encoded.len()].copy_from_slice(&encoded);
    assert_eq!(Prefix::new(&again).header(), Some(header), "BUG: another header");
}

/// A rollback journal and the name of a super-journal at its end.
///
/// # Panics
/// If a record lies outside the journal, or one that was written is not read: a bug.
pub fn fuzz_journal(data: &[u8]) {
    records(data);
    let Some((head, body)) = data.split_at_checked(8) else { return };
    let Some(page_size) = PageSize::new(512 << (head[0] % 8)) else { return };
    let sector = 32 << (head[1] % 12);
    let images: Vec<u8> = body.iter().copied().take(usize::from(head[2] % 6)).collect();
    let written = u32::try_from(images.len()).unwrap_or(u32::MAX);
    let mut journal = JournalHeader::MAGIC.to_vec();
    for field in [written, 5, 1000, sector, page_size.get()] {
        journal.extend(field.to_be_bytes());
    }
    journal.resize(usize::try_from(sector).unwrap_or(0).max(JournalHeader::SIZE), 0);
    for image in &images {
        journal.extend((1 + u32::from(*image)).to_be_bytes());
        journal.extend(vec![*image; page_size.bytes()]);
        let summed = (page_size.get() - 1) / 200;
        journal.extend((5 + summed * u32::from(*image)).to_be_bytes());
    }
    if journal.len() >= 512 {
        assert_eq!(records(&journal), u64::from(written), "BUG: a record does not count");
    }
    journal.extend(&body[body.len().saturating_sub(64)..]);
    let at = usize::from(u16::from_be_bytes([head[3], head[4]])) % journal.len();
    journal[at] = head[5];
    records(&journal);
}

/// Number of records that a rollback after a crash would copy.
fn records(bytes: &[u8]) -> u64 {
    let len = bytes.len() as u64;
    let name = super_journal(reader(bytes), len).unwrap_or_default();
    assert!(name.is_none_or(|name| name.len() < bytes.len() && !name.contains(&0)));
    let mut counts = [0, 0];
    for (count, reading) in counts.iter_mut().zip([Reading::AfterCrash, Reading::Live]) {
        let journal = Journal::open(reader(bytes), len, PageSize::MIN, reading);
        let Some(mut journal) = journal.unwrap_or_default() else { continue };
        while let Some(record) = journal.next().unwrap_or_default() {
            let end = record.offset + u64::from(journal.page_size().get());
            assert!(end <= len && record.page.get() <= journal.header().pages);
            *count += 1;
        }
        assert!(*count <= len / 512, "BUG: more records than fit");
    }
    counts[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        // Mostly few different bytes, so that fields have small values.
        let few = prop::collection::vec(prop_oneof![0..4u8, Just(0xff), any::<u8>()], 0..max);
        prop_oneof![few, prop::collection::vec(any::<u8>(), 0..max)]
    }

    proptest! {
        #[test]
        fn database_headers(data in bytes(4000)) {
            fuzz_database_header(&data);
        }

        #[test]
        fn wals(data in bytes(300)) {
            fuzz_wal(&data);
        }

        #[test]
        fn wal_indexes(data in bytes(600)) {
            fuzz_wal_index(&data);
        }

        #[test]
        fn journals(data in bytes(600)) {
            fuzz_journal(&data);
        }
    }
}
