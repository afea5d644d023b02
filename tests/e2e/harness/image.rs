//! What a reader of a database sees, read from the backing files without SQLite and without Weir:
//! the main file under the last valid commit of its WAL. The oracle of all other tests.
#![allow(clippy::little_endian_bytes, reason = "SQLite's WAL checksum reads words in either order")]

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const WAL_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A database as its files hold it. Nobody may write while it is read.
pub(crate) struct Image {
    main: File,
    wal: Vec<u8>,
    /// Page number -> offset of its last committed image in the WAL.
    overlay: HashMap<u32, usize>,
    pub(crate) page_size: u32,
    pub(crate) pages: u32,
}

impl Image {
    /// Reads the database at `path`; `None` if there is no database yet (no file, no header).
    pub(crate) fn open(path: &Path) -> Option<Self> {
        let main = File::open(path).ok()?;
        let wal = std::fs::read(suffixed(path, "-wal")).unwrap_or_default();
        let mut header = [0_u8; 100];
        let has_header = main.read_exact_at(&mut header, 0).is_ok();
        let (overlay, commit) = scan(&wal);
        let page_size = if commit.is_some() {
            u32::from_be_bytes(wal[8..12].try_into().unwrap())
        } else if has_header && header.starts_with(b"SQLite format 3\0") {
            match u16::from_be_bytes([header[16], header[17]]) {
                1 => 65536,
                size => size.into(),
            }
        } else {
            return None;
        };
        let file_pages =
            u32::try_from(main.metadata().unwrap().len() / u64::from(page_size)).unwrap();
        Some(Self { main, wal, overlay, page_size, pages: commit.unwrap_or(file_pages) })
    }

    /// One page; bytes beyond the end of the file are zeros.
    pub(crate) fn page(&self, number: u32) -> Vec<u8> {
        let size = self.page_size as usize;
        if let Some(offset) = self.overlay.get(&number) {
            return self.wal[*offset..offset + size].to_vec();
        }
        let mut page = vec![0; size];
        let mut done = 0;
        let start = u64::from(number - 1) * u64::from(self.page_size);
        while done < size {
            match self.main.read_at(&mut page[done..], start + done as u64).unwrap() {
                0 => break,
                n => done += n,
            }
        }
        page
    }

    fn lock_page(&self) -> u32 {
        0x4000_0000 / self.page_size + 1
    }

    /// The checksum of the whole database, as LTX defines it.
    pub(crate) fn checksum(&self) -> u64 {
        let mut sum = 0;
        for number in (1..=self.pages).filter(|n| *n != self.lock_page()) {
            sum ^= page_sum(number, &self.page(number));
        }
        sum | 1 << 63
    }

    /// Panics unless both hold the same pages.
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.page_size, other.page_size, "{what}: page size");
        assert_eq!(self.pages, other.pages, "{what}: number of pages");
        let differing: Vec<u32> = (1..=self.pages)
            .filter(|n| *n != self.lock_page() && self.page(*n) != other.page(*n))
            .collect();
        assert!(differing.is_empty(), "{what}: pages differ: {differing:?}");
    }
}

/// CRC-64/GO-ISO over the page number and the page, with the top bit set.
fn page_sum(number: u32, page: &[u8]) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso);
    digest.update(&number.to_be_bytes());
    digest.update(page);
    digest.finalize() | 1 << 63
}

/// The path of a companion file, for names of any bytes.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Pages of the WAL up to its last valid commit, and the size of the database in that commit.
fn scan(wal: &[u8]) -> (HashMap<u32, usize>, Option<u32>) {
    let mut committed = HashMap::new();
    let mut size = None;
    if wal.len() < WAL_HEADER {
        return (committed, size);
    }
    let word = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let big_endian = match word(0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return (committed, size),
    };
    let page_size = word(8) as usize;
    let mut sum = add((0, 0), &wal[..24], big_endian);
    if sum != (word(24), word(28)) || page_size < 512 {
        return (committed, size);
    }
    let mut pending = HashMap::new();
    let mut at = WAL_HEADER;
    while at + FRAME_HEADER + page_size <= wal.len() {
        let page = at + FRAME_HEADER;
        sum = add(sum, &wal[at..at + 8], big_endian);
        sum = add(sum, &wal[page..page + page_size], big_endian);
        let salts_match = wal[at + 8..at + 16] == wal[16..24];
        if !salts_match || word(at) == 0 || sum != (word(at + 16), word(at + 20)) {
            break;
        }
        pending.insert(word(at), page);
        if word(at + 4) != 0 {
            size = Some(word(at + 4));
            committed.extend(pending.drain());
        }
        at = page + page_size;
    }
    (committed, size)
}

fn add((mut a, mut b): (u32, u32), bytes: &[u8], big_endian: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        let read = |four: &[u8]| {
            let four = four.try_into().unwrap();
            if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
        };
        a = a.wrapping_add(read(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(read(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[test]
fn the_oracle_agrees_with_the_published_page_sums() {
    assert_eq!(page_sum(1, &[0; 512]), 0xefb1_f44f_ecd9_9000);
    assert_eq!(page_sum(1, &[b'1'; 512]), 0xeb1a_9992_3104_4ddd);
}

#[test]
fn the_oracle_reads_what_sqlite_reads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1)")
        .unwrap();
    let before = Image::open(&path).unwrap();
    assert_eq!(before.pages, 2);
    drop(db);
    let after = Image::open(&path).unwrap();
    assert!(after.overlay.is_empty(), "the last close checkpoints");
    before.assert_same(&after, "before and after the checkpoint");
}
