//! What a reader of a database sees, read from the files without SQLite: the oracle of all tests.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use weir::capture::{WalCapture, WalEvent};
use weir::ltx::page_sum;
use weir::sqlite::DatabaseHeader;
use weir::types::{Checksum, PageNo, PageSize};

/// All pages of a database.
pub(crate) struct Image {
    page_size: PageSize,
    pages: Vec<Vec<u8>>,
}

impl Image {
    /// Reads a database and its WAL; nobody may commit meanwhile. `None` if it is none.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        let wal = PathBuf::from(wal);
        // A checkpoint may move pages from one file to the other.
        let looks = || {
            [path, &wal].map(|file| {
                let metadata = file.metadata().ok()?;
                Some((metadata.len(), metadata.modified().ok()?, metadata.ino()))
            })
        };
        loop {
            let before = looks();
            let image = Self::read_once(path, &wal);
            if before == looks() {
                return image;
            }
        }
    }

    fn read_once(path: &Path, wal: &Path) -> Option<Self> {
        let main = fs::read(path).ok()?;
        let wal = File::open(wal).ok();
        let mut capture = WalCapture::default();
        let mut overlay = Vec::new();
        let mut commit = None;
        if let Some(wal) = &wal {
            let read = |at: u64, buffer: &mut [u8]| wal.read_exact_at(buffer, at);
            let len = wal.metadata().unwrap().len();
            if let WalEvent::Commit(found) = capture.resume(0, len, &read).unwrap() {
                commit = Some(found.commit);
                for (page, frame) in found.pages {
                    let mut image = vec![0; capture.page_size().unwrap().bytes()];
                    capture.read_image(frame, &mut image, &read).unwrap();
                    overlay.push((page, image));
                }
            }
        }
        let page_size = match commit {
            Some(_) => capture.page_size().unwrap(),
            None => DatabaseHeader::parse(main.get(..DatabaseHeader::SIZE)?).ok()?.page_size,
        };
        let count = commit.map_or(main.len() / page_size.bytes(), |pages| pages as usize);
        let mut pages: Vec<Vec<u8>> = main.chunks(page_size.bytes()).map(<[u8]>::to_vec).collect();
        pages.resize(count, Vec::new());
        pages.iter_mut().for_each(|page| page.resize(page_size.bytes(), 0));
        for (page, image) in overlay {
            pages[page.get() as usize - 1] = image;
        }
        Some(Self { page_size, pages })
    }

    /// The checksum of the whole database, as LTX defines it.
    pub(crate) fn checksum(&self) -> Checksum {
        let numbers = (1..).filter_map(PageNo::new);
        numbers.zip(&self.pages).fold(Checksum::EMPTY, |sum, (number, page)| {
            if number == self.page_size.lock_page() {
                sum
            } else {
                sum.toggle(page_sum(number, page))
            }
        })
    }

    /// Panics unless both hold the same pages.
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        assert_eq!(self.page_size, other.page_size, "{what}: page size");
        assert_eq!(self.pages.len(), other.pages.len(), "{what}: number of pages");
        let pairs = self.pages.iter().zip(&other.pages).enumerate();
        let differing: Vec<usize> =
            pairs.filter(|(_, (a, b))| a != b).map(|(index, _)| index + 1).collect();
        assert!(differing.is_empty(), "{what}: pages differ: {differing:?}");
    }
}
