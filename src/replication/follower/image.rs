//! A copy of a database being fetched: a file of pages in DATA/tmp, and how far it is.
//!
//! The progress is stored now and then, so a copy goes on where it was, even after a restart. If the primary
//! cannot go on from its base, the pages that are here are compared by their sums instead of sent again.
//! A torn write is no danger: the whole file is checked against the position's checksum before it is installed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::warn;

use super::assemble::Assembled;
use crate::database::Snapshot;
use crate::disk;
use crate::ltx::{DecodeError, Decoder, page_sum};
use crate::replication::limits::{CHUNK_BYTES, PROGRESS_BYTES, SUMS_PER_MESSAGE};
use crate::replication::message::{CopyState, FetchRequest};
use crate::types::{Checksum, DbId, Epoch, PageNo, PageSize, Pos, Txid};

/// Bytes of pages that are compared at a time.
const COMPARE_BYTES: usize = 4 * CHUNK_BYTES;

/// Why a copy cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("{step}: {path}")]
    Disk {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the primary sent pages that do not belong to the copy")]
    Stray,
    #[error("the change set that completes the copy")]
    Ltx(#[from] DecodeError),
}

/// The progress as it is stored.
#[derive(Serialize, Deserialize)]
struct Saved {
    epoch: u64,
    txid: u64,
    checksum: u64,
    page_size: u32,
    page_count: u32,
    next_page: u32,
    /// Pages from the first on that an earlier copy left: worth comparing.
    kept: u32,
}

impl Saved {
    fn new(copy: &CopyState, kept: u32) -> Self {
        Self {
            kept,
            epoch: copy.base.epoch.get(),
            txid: copy.base.txid_raw(),
            checksum: copy.base.checksum.get(),
            page_size: copy.page_size.get(),
            page_count: copy.page_count,
            next_page: copy.next.get(),
        }
    }

    fn copy(&self) -> Option<CopyState> {
        let base = if self.txid == 0 {
            Pos::ZERO
        } else {
            Pos {
                epoch: Epoch::new(self.epoch),
                txid: Some(Txid::new(self.txid)?),
                checksum: Checksum::from_stored(self.checksum)?,
            }
        };
        let (page_size, page_count) = (PageSize::new(self.page_size)?, self.page_count);
        let next = PageNo::new(self.next_page)?;
        let is_sane = page_count < u32::MAX && next.get() <= page_count + 1;
        is_sane.then_some(CopyState { base, page_size, page_count, next })
    }
}

/// Where a database's copy and its progress are.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pages: PathBuf,
    progress: PathBuf,
}

impl Place {
    pub(crate) fn new(tmp: &Path, db: DbId) -> Self {
        let pages = tmp.join(format!("{db}.snapshot"));
        Self { pages, progress: tmp.join(format!("{db}.progress")) }
    }

    /// A copy to go on with.
    pub(crate) fn saved(&self) -> Option<CopyState> {
        self.load().map(|(copy, _)| copy)
    }

    fn load(&self) -> Option<(CopyState, u32)> {
        let bytes = std::fs::read(&self.progress).ok()?;
        let saved: Saved = serde_json::from_slice(&bytes).ok()?;
        let copy = saved.copy().filter(|_| self.pages.is_file())?;
        Some((copy, saved.kept.max(copy.next.get() - 1)))
    }

    /// Removes copy and progress.
    pub(crate) fn remove(&self) {
        for path in [&self.progress, &self.pages] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(path = %path.display(), %error, "remove a copy");
                }
                Ok(()) | Err(_) => (),
            }
        }
    }

    pub(crate) fn pages(&self) -> &Path {
        &self.pages
    }

    /// Removes the copies of databases that are not wanted any more.
    pub(crate) fn sweep(tmp: &Path, is_wanted: impl Fn(DbId) -> bool) {
        let Ok(entries) = std::fs::read_dir(tmp) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some((stem, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            if let Ok(db) = stem.parse::<DbId>()
                && kind.starts_with("snapshot") | kind.starts_with("progress")
                && !is_wanted(db)
            {
                Self::new(tmp, db).remove();
            }
        }
    }
}

/// A copy that is being written.
#[derive(Debug)]
pub(crate) struct Image {
    place: Place,
    file: Arc<File>,
    copy: CopyState,
    /// Of the pages that are in the file.
    page_size: PageSize,
    kept: u32,
    received: u32,
    unsaved: u64,
}

impl Image {
    /// Goes on with the stored copy if `copy` is its continuation. Else begins anew, and keeps pages
    /// of the stored one if they will be compared.
    pub(crate) fn open(place: Place, copy: CopyState, compare: bool) -> Result<Self, ImageError> {
        let kept = match place.load() {
            Some((saved, kept)) if saved == copy => kept,
            Some(_) | None if copy.next != PageNo::FIRST => return Err(ImageError::Stray),
            Some((saved, kept)) if compare && saved.page_size == copy.page_size => kept,
            Some(_) | None => {
                place.remove();
                0
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place.pages)
            .map_err(|source| disk_error("open the copy", &place.pages, source))?;
        let page_size = copy.page_size;
        Ok(Self { place, file: Arc::new(file), copy, page_size, kept, received: 0, unsaved: 0 })
    }

    pub(crate) fn copy(&self) -> CopyState {
        self.copy
    }

    /// Pages that have travelled.
    pub(crate) fn received(&self) -> u32 {
        self.received
    }

    /// What can be compared: pages of an earlier copy, then those of the database itself.
    pub(crate) fn comparison(&self) -> Comparison {
        Comparison { file: Arc::clone(&self.file), copy: self.copy, kept: self.kept }
    }

    /// Takes pages, and how far the copy is with them.
    pub(crate) fn take(
        &mut self,
        first: PageNo,
        data: &[u8],
        next: PageNo,
    ) -> Result<(), ImageError> {
        let page_size = self.copy.page_size;
        let count = (data.len() / page_size.bytes()) as u64;
        let end = u64::from(first.get()) + count;
        let is_whole = data.len().is_multiple_of(page_size.bytes());
        let is_next = first >= self.copy.next && end <= u64::from(next.get());
        if !is_whole || !is_next || next.get() > self.copy.page_count + 1 {
            return Err(ImageError::Stray);
        }
        write_pages(&self.file, page_size, first, data)
            .map_err(|source| disk_error("write the copy", &self.place.pages, source))?;
        self.copy.next = next;
        self.received = self.received.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.unsaved += data.len() as u64;
        if self.unsaved >= PROGRESS_BYTES {
            self.save()?;
        }
        Ok(())
    }

    /// Stores the progress.
    pub(crate) fn save(&mut self) -> Result<(), ImageError> {
        let fail =
            |source| disk_error("store the progress of a copy", &self.place.progress, source);
        self.file.sync_data().map_err(fail)?;
        let bytes =
            serde_json::to_vec(&Saved::new(&self.copy, self.kept)).map_err(|e| fail(e.into()))?;
        disk::replace(&self.place.progress, &bytes).map_err(fail)?;
        self.unsaved = 0;
        Ok(())
    }

    /// Writes the pages of one of the change sets that make the copy exact, and sets the size.
    pub(super) fn complete(&mut self, ltx: &Assembled) -> Result<(), ImageError> {
        let fail = |source| disk_error("complete the copy", &self.place.pages, source);
        let mut ltx = Decoder::new(BufReader::with_capacity(CHUNK_BYTES, ltx.reader()))?;
        let (page_size, commit) = (ltx.header().page_size, ltx.header().commit);
        if page_size != self.page_size {
            // The change set holds every page of the new size.
            self.file.set_len(0).map_err(fail)?;
            self.page_size = page_size;
        }
        // What is damaged is found by its checksum in the end, and by that of the whole copy.
        while let Some(page) = ltx.next_page()? {
            self.file.write_all_at(page.data, page.page.offset(page_size)).map_err(fail)?;
        }
        ltx.finish()?;
        let len = u64::from(commit) * u64::from(page_size.get());
        self.file.set_len(len).map_err(fail)
    }

    /// Makes the copy durable.
    pub(crate) fn sync(&self) -> Result<(), ImageError> {
        let fail = |source| disk_error("complete the copy", &self.place.pages, source);
        self.file.sync_all().map_err(fail)
    }
}

impl Drop for Image {
    /// A copy that is cut keeps its last pages too. Nothing is synced here: if that is lost, so is little.
    fn drop(&mut self) {
        if self.unsaved == 0 {
            return;
        }
        let saved = serde_json::to_vec(&Saved::new(&self.copy, self.kept));
        let stored = saved
            .map_err(io::Error::from)
            .and_then(|bytes| std::fs::write(&self.place.progress, bytes));
        if let Err(error) = stored {
            warn!(path = %self.place.progress.display(), %error, "store the progress of a copy");
        }
    }
}

fn disk_error(step: &'static str, path: &Path, source: io::Error) -> ImageError {
    ImageError::Disk { step, path: path.to_owned(), source }
}

/// Writes pages where they belong; the lock page stays a hole.
fn write_pages(file: &File, size: PageSize, first: PageNo, data: &[u8]) -> io::Result<()> {
    let start = first.offset(size);
    let hole = size.lock_page().offset(size);
    let page = u64::from(size.get());
    if hole < start || hole >= start + data.len() as u64 {
        return file.write_all_at(data, start);
    }
    let at = usize::try_from(hole - start).map_err(io::Error::other)?;
    file.write_all_at(&data[..at], start)?;
    file.write_all_at(&data[at + size.bytes()..], hole + page)
}

/// Pages of this node that may be what the primary has too.
#[derive(Debug)]
pub(crate) struct Comparison {
    file: Arc<File>,
    copy: CopyState,
    kept: u32,
}

impl Comparison {
    /// Puts the pages that this node has into the copy and sends their sums; what differs will be sent and
    /// written over. Blocks; ends early when nobody takes the sums.
    pub(crate) fn send_sums(&self, local: Option<&Snapshot>, out: &mpsc::Sender<FetchRequest>) {
        let local = local.filter(|local| local.size().0 == self.copy.page_size);
        let end = self.kept.max(local.map_or(0, |l| l.size().1)).min(self.copy.page_count) + 1;
        let mut first = self.copy.next;
        loop {
            let count = self.window(first, end);
            let sums = self.sums(local, first, count).unwrap_or_else(|error| {
                warn!(%error, "read local pages to compare: fetching them all");
                Vec::new()
            });
            let next = first.get() + count;
            let last = sums.is_empty() || next >= end;
            let is_taken = out.blocking_send(FetchRequest::Sums { first, sums, last }).is_ok();
            match PageNo::new(next) {
                Some(next) if is_taken && !last => first = next,
                Some(_) | None => return,
            }
        }
    }

    /// How many pages to compare next: all from one source.
    fn window(&self, first: PageNo, end: u32) -> u32 {
        let pages = u32::try_from(COMPARE_BYTES / self.copy.page_size.bytes()).unwrap_or(1);
        let end = if first.get() <= self.kept { end.min(self.kept + 1) } else { end };
        end.saturating_sub(first.get()).min(pages.clamp(1, SUMS_PER_MESSAGE))
    }

    fn sums(
        &self,
        local: Option<&Snapshot>,
        first: PageNo,
        count: u32,
    ) -> Result<Vec<Checksum>, Box<dyn std::error::Error + Send + Sync>> {
        let size = self.copy.page_size;
        let mut data = vec![0; count as usize * size.bytes()];
        if first.get() <= self.kept {
            self.file.read_exact_at(&mut data, first.offset(size))?;
        } else if let Some(local) = local.filter(|_| count > 0) {
            data = local.read(first, count)?;
            write_pages(&self.file, size, first, &data)?;
        } else {
            return Ok(Vec::new());
        }
        let numbered = (first.get()..).zip(data.chunks_exact(size.bytes()));
        Ok(numbered
            .filter_map(|(page, data)| Some((PageNo::new(page)?, data)))
            .map(|(page, data)| {
                // The lock page has no content; both sides give it the sum of nothing.
                if page == size.lock_page() { Checksum::EMPTY } else { page_sum(page, data) }
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(raw: u32) -> PageNo {
        PageNo::new(raw).unwrap()
    }

    fn copy(page_count: u32, next: u32) -> CopyState {
        CopyState { base: Pos::ZERO, page_size: PageSize::MIN, page_count, next: page(next) }
    }

    #[test]
    fn a_copy_goes_on_where_its_progress_was_stored() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), DbId::new(7));
        let mut image = Image::open(place.clone(), copy(9, 1), false).unwrap();
        image.take(page(1), &[1; 1024], page(3)).unwrap();
        image.save().unwrap();
        image.take(page(3), &[2; 512], page(4)).unwrap();
        assert_eq!(place.saved(), Some(copy(9, 3)));
        drop(image);
        let saved = place.saved().unwrap();
        assert_eq!(saved, copy(9, 4));
        let image = Image::open(place.clone(), saved, false).unwrap();
        assert_eq!(image.file.metadata().unwrap().len(), 1536);
        // The primary begins anew and will compare: what is there is kept.
        let mut image = Image::open(place.clone(), copy(8, 1), true).unwrap();
        assert_eq!(image.file.metadata().unwrap().len(), 1536);
        assert_eq!(image.kept, 3);
        image.save().unwrap();
        assert_eq!(Image::open(place.clone(), copy(8, 1), true).unwrap().kept, 3);
        // It begins anew and will not compare: nothing of the old copy is left.
        let image = Image::open(place.clone(), copy(7, 1), false).unwrap();
        assert_eq!(image.file.metadata().unwrap().len(), 0);
        assert!(Image::open(place, copy(8, 2), true).is_err(), "a continuation of nothing");
    }

    #[test]
    fn pages_that_do_not_belong_to_the_copy_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut image =
            Image::open(Place::new(dir.path(), DbId::new(7)), copy(4, 1), false).unwrap();
        let mut check = |first: u32, bytes: usize, next: u32, ok: bool| {
            let taken = image.take(page(first), &vec![1; bytes], page(next));
            assert_eq!(taken.is_ok(), ok, "{first} {bytes} {next}");
        };
        check(1, 511, 2, false);
        check(1, 512, 6, false);
        check(1, 1024, 2, false);
        check(1, 1024, 3, true);
        check(2, 512, 3, false);
        check(u32::MAX, 512, 5, false);
        check(4, 512, 5, true);
        check(5, 0, 5, true);
    }

    #[test]
    fn the_lock_page_stays_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("x")).unwrap();
        let size = PageSize::MAX;
        let lock = size.lock_page();
        let first = page(lock.get() - 1);
        write_pages(&file, size, first, &vec![1; 3 * size.bytes()]).unwrap();
        let file = File::open(dir.path().join("x")).unwrap();
        let mut data = vec![9; 3 * size.bytes()];
        file.read_exact_at(&mut data, first.offset(size)).unwrap();
        let middle = size.bytes()..2 * size.bytes();
        assert!(data[middle].iter().all(|byte| *byte == 0));
        assert!(data[..size.bytes()].iter().all(|byte| *byte == 1));
        assert!(data[2 * size.bytes()..].iter().all(|byte| *byte == 1));
    }

    #[test]
    fn damaged_progress_is_no_progress() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), DbId::new(7));
        std::fs::write(&place.pages, b"").unwrap();
        for text in [
            "",
            "{}",
            "garbage",
            r#"{"epoch":0,"txid":1,"checksum":1,"page_size":512,"page_count":1,"next_page":1}"#,
        ] {
            std::fs::write(&place.progress, text).unwrap();
            assert_eq!(place.saved(), None, "{text}");
        }
    }

    #[test]
    fn copies_of_databases_that_are_gone_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, gone) = (DbId::new(1), DbId::new(2));
        for db in [kept, gone] {
            let mut image = Image::open(Place::new(dir.path(), db), copy(4, 1), false).unwrap();
            image.save().unwrap();
        }
        std::fs::write(dir.path().join("other"), b"").unwrap();
        Place::sweep(dir.path(), |db| db == kept);
        assert!(Place::new(dir.path(), kept).saved().is_some());
        assert!(Place::new(dir.path(), gone).saved().is_none());
        assert!(dir.path().join("other").exists());
    }
}
