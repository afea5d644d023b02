//! Compares the pages on disk with their sums.

use std::os::unix::fs::FileExt as _;

use super::requests::{database_size, read_or_zeros};
use super::state::State;
use super::{Database, OpError, disk_error};
use crate::ltx;
use crate::types::PageNo;

impl Database {
    /// Pages from `first` on, up to `count`, whose content is not what the log says. Commits wait meanwhile, so
    /// ask for a few hundred at a time. On a replica pages that are only in the WAL count as different: copy
    /// the WAL back first.
    ///
    /// # Errors
    /// A file could not be read.
    pub fn differing_pages(&self, first: PageNo, count: u32) -> Result<Vec<PageNo>, OpError> {
        let name = self.name();
        let path = self.shared.files.join(name.as_path());
        let mut state = self.state.lock();
        let State { tracked, wal, rollback, .. } = &mut *state;
        let Some(tracked) = tracked.as_mut() else { return Err(OpError::NotTracked(name)) };
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let main = tracked.main(&self.shared, &name)?;
        let wal_file = match name.with_suffix("-wal") {
            Some(wal_name) if wal.captured() > 0 => {
                let path = self.shared.files.join(wal_name.as_path());
                super::requests::open_regular(&path, false)
                    .map_err(disk_error("open WAL", &path))?
            }
            Some(_) | None => None,
        };
        let sums = &mut tracked.files(&self.shared)?.sums;
        let open: std::collections::BTreeSet<PageNo> = rollback.pages().collect();
        let mut differing = Vec::new();
        let mut data = vec![0; page_size.bytes()];
        let end = first.get().saturating_add(count).min(pages.saturating_add(1));
        for page in (first.get()..end).filter_map(PageNo::new) {
            if page == page_size.lock_page() || open.contains(&page) {
                continue;
            }
            match (wal.frame_of(page), &wal_file) {
                (Some(frame), Some(file)) => {
                    let read = |at: u64, buffer: &mut [u8]| file.read_exact_at(buffer, at);
                    wal.read_image(frame, &mut data, &read)
                        .map_err(disk_error("read WAL", &path))?;
                }
                (Some(_) | None, _) => read_or_zeros(&main, page, page_size, &mut data)
                    .map_err(disk_error("read database", &path))?,
            }
            if sums.get(page)? != Some(ltx::page_sum(page, &data)) {
                differing.push(page);
            }
        }
        Ok(differing)
    }

    /// Whether the database file holds what it held before the open transaction.
    pub(super) fn is_rolled_back(&self, state: &mut State) -> Result<bool, OpError> {
        let name = self.name();
        let State { tracked, rollback, .. } = state;
        let Some(tracked) = tracked.as_mut() else { return Ok(true) };
        let (page_size, pages) = (tracked.page_size, tracked.pages);
        let file = tracked.main(&self.shared, &name)?;
        let fail = disk_error("read database", name.as_path());
        if database_size(&file).map_err(&fail)? != Some((page_size, pages)) {
            return Ok(pages == 0);
        }
        let sums = &mut tracked.files(&self.shared)?.sums;
        let mut data = vec![0; page_size.bytes()];
        for page in rollback.pages().filter(|page| *page != page_size.lock_page()) {
            read_or_zeros(&file, page, page_size, &mut data).map_err(&fail)?;
            if page.get() <= pages && sums.get(page)? != Some(ltx::page_sum(page, &data)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
