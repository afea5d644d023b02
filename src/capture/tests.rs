//! The WAL scanner against files written the way SQLite writes them.

use std::cell::RefCell;
use std::io;

use proptest::prelude::*;

use super::{WalCapture, WalCommit, WalEvent};
use crate::sqlite::{FrameHeader, Salts, WalEncoder, WalHeader};
use crate::types::{PageNo, PageSize};

const PAGE: usize = 512;

fn page_size() -> PageSize {
    PageSize::new(512).unwrap()
}

fn page(n: u32) -> PageNo {
    PageNo::new(n).unwrap()
}

/// A WAL file and its capture, fed as the mount feeds them.
struct Wal {
    file: RefCell<Vec<u8>>,
    capture: WalCapture,
    header: WalHeader,
    encoder: WalEncoder,
    frames: u32,
}

impl Wal {
    fn new(salt: u8) -> Self {
        let header = WalHeader::new(page_size(), 0, Salts([salt; 8]));
        let mut wal = Self {
            file: RefCell::default(),
            capture: WalCapture::default(),
            encoder: WalEncoder::begin(&header),
            header,
            frames: 0,
        };
        let bytes = wal.header.encode();
        assert_eq!(wal.write(0, &bytes), WalEvent::None);
        wal
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> WalEvent {
        let file = &self.file;
        let read = |at: u64, buffer: &mut [u8]| -> io::Result<()> {
            let file = file.borrow();
            let start = usize::try_from(at).unwrap();
            let bytes = file.get(start..start + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let event = self.capture.write(offset, data, &read).unwrap();
        self.put(offset, data);
        event
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let mut file = self.file.borrow_mut();
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(data);
    }

    /// Writes the next frame in SQLite's two pieces; returns what the second meant.
    fn frame(&mut self, number: u32, commit: u32, fill: u8) -> WalEvent {
        let mut bytes = Vec::new();
        self.encoder.frame(page(number), commit, &[fill; PAGE], &mut bytes);
        self.frames += 1;
        let offset = FrameHeader::offset(page_size(), self.frames);
        assert_eq!(self.write(offset, &bytes[..FrameHeader::SIZE]), WalEvent::None);
        self.write(offset + FrameHeader::SIZE as u64, &bytes[FrameHeader::SIZE..])
    }

    fn commit(&mut self, event: WalEvent) -> WalCommit {
        let WalEvent::Commit(commit) = event else { panic!("no commit but {event:?}") };
        self.capture.committed(&commit);
        commit
    }

    fn rewind(&mut self, frames: u32) {
        let at = usize::try_from(FrameHeader::offset(page_size(), frames)).unwrap();
        let bytes = self.file.borrow()[at..at + FrameHeader::SIZE].to_vec();
        let last = FrameHeader::parse(&bytes).unwrap();
        self.encoder = WalEncoder::resume(self.header.order, self.header.salts, last.checksum);
        self.frames = frames;
    }
}

#[test]
fn a_commit_ends_with_the_page_of_its_last_frame() {
    let mut wal = Wal::new(1);
    assert_eq!(wal.frame(1, 0, 1), WalEvent::None);
    assert_eq!(wal.frame(2, 0, 2), WalEvent::None);
    let event = wal.frame(1, 2, 3);
    let commit = wal.commit(event);
    assert_eq!((commit.start_frame, commit.end_frame, commit.commit), (1, 3, 2));
    assert_eq!(commit.pages, [(page(1), 3), (page(2), 2)]);
    assert_eq!(wal.capture.frame_of(page(1)), Some(3));
    assert!(!wal.capture.has_tail());
}

#[test]
fn pages_beyond_the_commit_size_are_left_out() {
    let mut wal = Wal::new(1);
    wal.frame(9, 0, 1);
    let event = wal.frame(1, 3, 2);
    assert_eq!(wal.commit(event).pages, [(page(1), 2)]);
}

#[test]
fn a_rolled_back_transaction_is_overwritten_without_a_trace() {
    let mut wal = Wal::new(1);
    let event = wal.frame(1, 1, 1);
    wal.commit(event);
    wal.frame(2, 0, 2);
    wal.frame(3, 0, 3);
    wal.rewind(1);
    let event = wal.frame(4, 4, 4);
    let commit = wal.commit(event);
    assert_eq!(commit.pages, [(page(4), 2)]);
    assert_eq!(commit.end_frame, 2);
}

/// SQLite overwrites a page of the open transaction in place and corrects all headers at the commit.
#[test]
fn rewritten_checksums_commit_with_the_last_corrected_header() {
    let mut wal = Wal::new(1);
    wal.frame(1, 0, 1);
    wal.frame(2, 0, 2);
    // Page 1 again, in place.
    let offset = FrameHeader::offset(page_size(), 1) + FrameHeader::SIZE as u64;
    assert_eq!(wal.write(offset, &[7; PAGE]), WalEvent::None);
    // The commit frame continues a chain that is not valid yet.
    assert_eq!(wal.frame(3, 3, 3), WalEvent::None);
    let mut encoder = WalEncoder::begin(&wal.header);
    let mut last = WalEvent::None;
    for (number, commit, fill, frame) in [(1, 0, 7, 1), (2, 0, 2, 2), (3, 3, 3, 3)] {
        assert_eq!(last, WalEvent::None);
        let mut bytes = Vec::new();
        encoder.frame(page(number), commit, &[fill; PAGE], &mut bytes);
        let offset = FrameHeader::offset(page_size(), frame);
        last = wal.write(offset, &bytes[..FrameHeader::SIZE]);
    }
    let commit = wal.commit(last);
    assert_eq!(commit.pages, [(page(1), 1), (page(2), 2), (page(3), 3)]);
}

#[test]
fn a_refused_commit_leaves_nothing_and_the_next_one_works() {
    let mut wal = Wal::new(1);
    let WalEvent::Commit(_) = wal.frame(1, 1, 1) else { panic!("no commit") };
    let offset = FrameHeader::offset(page_size(), 1) + FrameHeader::SIZE as u64;
    wal.capture.refused(offset);
    wal.file.borrow_mut().truncate(usize::try_from(offset).unwrap());
    wal.encoder = WalEncoder::begin(&wal.header);
    wal.frames = 0;
    let event = wal.frame(2, 2, 9);
    assert_eq!(wal.commit(event).pages, [(page(2), 1)]);
}

/// A writer died between the answer to its commit and its update of the wal-index: the next one begins below.
#[test]
fn an_abandoned_transaction_joins_the_next_one() {
    let mut wal = Wal::new(1);
    let event = wal.frame(1, 1, 1);
    wal.commit(event);
    wal.frame(2, 0, 2);
    let event = wal.frame(3, 3, 3);
    wal.commit(event);
    wal.rewind(1);
    let event = wal.frame(4, 4, 4);
    let commit = wal.commit(event);
    assert_eq!(commit.pages, [(page(4), 2)]);
    assert_eq!(commit.abandoned, [page(2), page(3)]);
    assert_eq!(wal.capture.frame_of(page(2)), None);
    assert_eq!(wal.capture.frame_of(page(1)), Some(1));
}

#[test]
fn new_salts_begin_a_new_generation() {
    let mut wal = Wal::new(1);
    let event = wal.frame(1, 1, 1);
    wal.commit(event);
    wal.header = WalHeader::new(page_size(), 1, Salts([2; 8]));
    wal.encoder = WalEncoder::begin(&wal.header);
    wal.frames = 0;
    let bytes = wal.header.encode();
    assert_eq!(wal.write(0, &bytes), WalEvent::Restarted);
    assert_eq!(wal.capture.frame_of(page(1)), None);
    let event = wal.frame(2, 2, 2);
    assert_eq!(wal.commit(event).pages, [(page(2), 1)]);
}

#[test]
fn a_transaction_larger_than_memory_allows_is_read_back() {
    let mut wal = Wal::new(1);
    let frames = 20_000;
    for number in 1..frames {
        assert_eq!(wal.frame(number, 0, 1), WalEvent::None);
    }
    let event = wal.frame(frames, frames, 2);
    let commit = wal.commit(event);
    assert_eq!(commit.pages.len(), frames as usize);
    let event = wal.frame(1, frames, 3);
    assert_eq!(wal.commit(event).pages, [(page(1), frames + 1)]);
}

#[test]
fn resuming_a_file_reports_what_the_log_lacks() {
    let mut wal = Wal::new(1);
    let event = wal.frame(1, 1, 1);
    wal.commit(event);
    let event = wal.frame(2, 2, 2);
    wal.commit(event);
    wal.frame(3, 0, 3);
    let file = wal.file.borrow().clone();
    let read = |at: u64, buffer: &mut [u8]| -> io::Result<()> {
        let start = usize::try_from(at).unwrap();
        buffer.copy_from_slice(&file[start..start + buffer.len()]);
        Ok(())
    };
    for (captured, expected) in [(0, Some(2)), (1, Some(1)), (2, None)] {
        let mut capture = WalCapture::default();
        let event = capture.resume(captured, file.len() as u64, &read).unwrap();
        let pages = match event {
            WalEvent::Commit(commit) => Some(commit.pages.len()),
            WalEvent::None | WalEvent::Restarted => None,
        };
        assert_eq!(pages, expected, "captured {captured}");
        assert_eq!(capture.captured(), captured);
    }
}

proptest! {
    /// However the bytes of committed transactions are cut into writes, the same transactions come out.
    #[test]
    fn cuts_between_writes_do_not_matter(
        transactions in prop::collection::vec(prop::collection::vec(1u32..20, 1..6), 1..6),
        cuts in prop::collection::vec(1usize..700, 1..40),
    ) {
        let header = WalHeader::new(page_size(), 0, Salts([3; 8]));
        let mut encoder = WalEncoder::begin(&header);
        let mut bytes = header.encode().to_vec();
        for pages in &transactions {
            for (index, number) in pages.iter().enumerate() {
                let commit = if index + 1 == pages.len() { 20 } else { 0 };
                encoder.frame(page(*number), commit, &[7; PAGE], &mut bytes);
            }
        }
        let mut wal = Wal::new(9);
        let mut last_end = 0;
        let mut at = 0;
        let mut cuts = cuts.iter().cycle();
        while at < bytes.len() {
            let end = (at + cuts.next().unwrap()).min(bytes.len());
            let event = wal.write(at as u64, &bytes[at..end]);
            if let WalEvent::Commit(commit) = event {
                prop_assert_eq!(commit.start_frame, last_end + 1);
                last_end = commit.end_frame;
                wal.capture.committed(&commit);
            }
            at = end;
        }
        let frames: usize = transactions.iter().map(Vec::len).sum();
        prop_assert_eq!(last_end as usize, frames);
        prop_assert!(!wal.capture.has_tail());
    }

    /// Garbage never panics and never commits.
    #[test]
    fn garbage_is_no_transaction(
        writes in prop::collection::vec((0u64..4000, prop::collection::vec(any::<u8>(), 0..600)), 0..30),
    ) {
        let mut wal = Wal::new(1);
        for (offset, data) in writes {
            let event = wal.write(offset + 32, &data);
            prop_assert!(!matches!(event, WalEvent::Commit(_)));
        }
    }
}
