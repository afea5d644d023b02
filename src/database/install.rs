//! Replaces a replica's database by a complete image from the primary.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::images::pages_of;
use super::recover::sum_pages;
use super::requests::{database_size, read_or_zeros};
use super::state::{State, Tracked};
use super::{Database, OpError, disk_error};
use crate::client::Change;
use crate::log::PageSums;
use crate::ltx;
use crate::types::{Checksum, PageNo, PageSize, Pos};

/// Pages that are compared under one hold of the database's lock.
const DIFFERENCE_STEP: usize = 512;
/// How long an open waits for a file that is being replaced.
const INSTALL_WAIT_MAX: Duration = Duration::from_secs(60);

/// A complete image whose checksum is the one of its position.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    /// The position it is at.
    pub pos: Pos,
    file: Arc<File>,
    page_size: PageSize,
    pages: u32,
    sums: Vec<(PageNo, Checksum)>,
}

impl Image {
    /// Reads an image and checks it. O(database).
    ///
    /// # Errors
    /// [`OpError::WrongImage`] if it is not at that position.
    pub fn check(db: &Database, path: &Path, pos: Pos) -> Result<Self, OpError> {
        let fail = disk_error("read image", path);
        let file = File::open(path).map_err(&fail)?;
        let len = file.metadata().map_err(&fail)?.len();
        let (page_size, pages) = match database_size(&file).map_err(&fail)? {
            Some(size) => size,
            // A database that lost all its pages: the next transaction says how large they are.
            None if len == 0 && pos.checksum == Checksum::EMPTY => (PageSize::MIN, 0),
            None => {
                let (promised, actual) = (pos.checksum, Checksum::EMPTY);
                return Err(OpError::WrongImage { db: db.name(), promised, actual });
            }
        };
        let mut sums = Vec::with_capacity(pages as usize);
        let actual = sum_pages(&file, page_size, pages, |page, sum| sums.push((page, sum)))
            .map_err(&fail)?;
        if actual != pos.checksum {
            return Err(OpError::WrongImage { db: db.name(), promised: pos.checksum, actual });
        }
        Ok(Self { path: path.to_owned(), pos, file: Arc::new(file), page_size, pages, sums })
    }
}

impl Database {
    /// Notes durably that the file is being replaced: after a crash it needs a fresh copy. From now on applications that
    /// open it wait. Returns whether one has it open already.
    ///
    /// # Errors
    /// The note could not be stored.
    pub fn begin_install(&self) -> Result<bool, OpError> {
        let mut state = self.state.lock();
        state.drop_pending();
        let Some(tracked) = &mut state.tracked else {
            return Err(OpError::NotTracked(self.name()));
        };
        tracked.meta.installing = true;
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        tracked.meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        state.is_installing = true;
        let is_used = state.open_by_application > 0;
        if !is_used {
            // Another file takes the name, and nobody has pages of this one.
            self.shown.clear();
        }
        Ok(is_used)
    }

    /// The replacement is over, whether it worked or not.
    pub fn end_install(&self) {
        self.state.lock().is_installing = false;
        self.quiet.notify_all();
    }

    /// Waits, for a bounded time, until the file is not being replaced.
    pub fn wait_for_install(&self) {
        let deadline = Instant::now() + INSTALL_WAIT_MAX;
        let mut state = self.state.lock();
        while state.is_installing {
            if self.quiet.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }

    /// The pages in which the database's file or log differ from an image, as one change.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn difference(&self, image: &Image) -> Result<Change, OpError> {
        let name = self.name();
        let path = self.shared.files.join(name.as_path());
        let fail = disk_error("read database", &path);
        let main = super::requests::open_regular(&path, false)
            .map_err(&fail)?
            .ok_or_else(|| fail(std::io::ErrorKind::NotFound.into()))?;
        let mut pages = Vec::new();
        let mut data = vec![0; image.page_size.bytes()];
        for step in image.sums.chunks(DIFFERENCE_STEP) {
            // Nothing is applied meanwhile, so the state stays; but opens and closes must not wait for the whole file.
            let in_log: Vec<bool> = {
                let mut state = self.state.lock();
                let Some(tracked) = state.tracked.as_mut() else {
                    return Err(OpError::NotTracked(name));
                };
                let same_size = tracked.page_size == image.page_size;
                let known_pages = tracked.pages;
                let sums = &mut tracked.files(&self.shared)?.sums;
                let mut in_log = |page: PageNo, sum: Checksum| {
                    Ok(same_size && page.get() <= known_pages && sums.get(page)? == Some(sum))
                };
                step.iter()
                    .map(|(page, sum)| in_log(*page, *sum))
                    .collect::<Result<_, OpError>>()?
            };
            for ((page, sum), in_log) in step.iter().zip(in_log) {
                if in_log {
                    read_or_zeros(&main, *page, image.page_size, &mut data).map_err(&fail)?;
                    if ltx::page_sum(*page, &data) == *sum {
                        continue;
                    }
                }
                pages.push(*page);
            }
        }
        let Image { page_size, pages: commit, .. } = *image;
        let pages = pages_of(Arc::clone(&image.file), page_size, pages)
            .map_err(disk_error("read image", &image.path))?;
        Ok(Change { page_size, commit, pages })
    }

    /// Readers see the image's content: a new history begins at its position. `is_in_the_file` says that it is in the
    /// database file and not only in the WAL; until it is, a crash means a fresh copy.
    ///
    /// # Errors
    /// The log could not be begun anew; after a restart a fresh copy is needed.
    pub fn installed(&self, image: &Image, is_in_the_file: bool) -> Result<(), OpError> {
        let name = self.name();
        let mut state = self.state.lock();
        let Some(tracked) = state.tracked.as_mut() else { return Err(OpError::NotTracked(name)) };
        let dir = Tracked::log_dir(&self.shared, tracked.id);
        tracked.main = None;
        let files = match tracked.files(&self.shared) {
            Ok(files) => {
                files.log.reset(image.pos)?;
                files
            }
            Err(_) => {
                // The log was damaged beyond opening; nothing in it is needed any more.
                let log = crate::log::Log::recreate(&dir, image.pos, self.shared.log)?;
                let sums = PageSums::create(&super::sums_path(&dir), image.page_size)?;
                tracked.files.insert(super::Files::new(log, sums))
            }
        };
        files.sums.reset(image.page_size);
        for (page, sum) in &image.sums {
            files.sums.set(*page, *sum);
        }
        files.sums.flush(image.pos)?;
        tracked.pos = image.pos;
        tracked.page_size = image.page_size;
        tracked.pages = image.pages;
        tracked.backfilled = if is_in_the_file { image.pos } else { Pos::ZERO };
        tracked.meta.installing = !is_in_the_file;
        tracked.meta.unlogged = false;
        tracked.meta.lost_from_txid = 0;
        tracked.meta.only_received = true;
        tracked.meta.durable_txid = tracked.backfilled.txid_raw();
        tracked.meta.clean = None;
        let main = tracked.main(&self.shared, &name)?;
        let fail = disk_error("sync database", name.as_path());
        main.sync_all().map_err(&fail)?;
        tracked.meta.is_for(&main.metadata().map_err(&fail)?);
        tracked.meta.save(&dir).map_err(disk_error("write meta", &dir))?;
        let State { quarantine, applied, .. } = &mut *state;
        *quarantine = None;
        *applied = image.pos;
        state.drop_pending();
        self.publish(&state);
        Ok(())
    }

    /// Page sums of `count` pages from `first` on, for finding the pages that differ between two nodes.
    /// Pages beyond the end are left out; the lock page counts as an empty one.
    ///
    /// # Errors
    /// The sums could not be read, or one is not known.
    pub fn page_sums(&self, first: PageNo, count: u32) -> Result<Vec<Checksum>, OpError> {
        let name = self.name();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let Some(tracked) = state.tracked.as_mut() else { return Err(OpError::NotTracked(name)) };
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let end = first.get().saturating_add(count).min(pages.saturating_add(1));
        let mut found = Vec::with_capacity(count.min(pages) as usize);
        for page in (first.get()..end).filter_map(PageNo::new) {
            found.push(if page == page_size.lock_page() {
                Checksum::EMPTY
            } else {
                self.sum_of(state, page)?
            });
        }
        Ok(found)
    }
}
