//! Writing a database in rollback mode, and rolling back a transaction that a dead process left behind.

use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::Change;
use super::api::ClientError;
use super::files::{MainFile, Paths, Step, at, len_or_zero, open_to_read, read_at, remove};
use super::lock;
use super::wal::CHUNK;
use crate::sqlite::{Journal, JournalHeader, LockRange, Reading, super_journal};
use crate::types::PageSize;

/// Writes a change into the database file. The caller holds EXCLUSIVE.
pub(super) fn write_pages(
    change: &Change,
    main: &mut MainFile,
    paths: &Paths,
) -> Result<(), ClientError> {
    debug_assert!(main.is_exclusive(), "readers must be out");
    let page_size = change.page_size;
    let pages = &change.pages;
    let run_max = (CHUNK / page_size.bytes()).max(1);
    let mut images = Vec::new();
    let mut begin = 0;
    while begin < pages.len() {
        let first = pages.number(begin);
        let is_next = |n: usize| {
            begin + n < pages.len()
                && pages.number(begin + n).get() as usize == first.get() as usize + n
        };
        let run = (1..run_max).take_while(|n| is_next(*n)).count() + 1;
        images.resize(run * page_size.bytes(), 0);
        for (index, image) in (begin..).zip(images.chunks_exact_mut(page_size.bytes())) {
            pages.read(index, image).map_err(at("read a change of", &paths.main))?;
        }
        let written = main.file.write_all_at(&images, first.offset(page_size));
        written.map_err(at("write", &paths.main))?;
        begin += run;
    }
    let last = pages.numbers().last();
    let written_to = last.map_or(0, |page| page.offset(page_size) + u64::from(page_size.get()));
    let len = u64::from(change.commit) * u64::from(page_size.get());
    main.set_len_after_write(written_to, len, &paths.main)
}

/// Rolls back a transaction whose process died, if there is one. The caller holds SHARED; EXCLUSIVE is taken for the
/// time being. SQLite pager.c, `hasHotJournal` and `sqlite3PagerSharedLock`.
pub(super) fn roll_back_if_hot(main: &mut MainFile, paths: &Paths) -> Step<()> {
    if !is_hot(main, paths)? {
        return Ok(());
    }
    main.lock_exclusive(&paths.main)?;
    // Another process may have done it meanwhile.
    if is_hot(main, paths)? {
        if main.len(&paths.main)? != 0 {
            play_back(main, paths)?;
            // The journal is the only way back, so it goes after the pages are safe.
            main.file.sync_data().map_err(at("sync", &paths.main))?;
        }
        remove(&paths.journal)?;
    }
    main.unlock_exclusive(&paths.main)?;
    Ok(())
}

/// Whether a journal is left to be rolled back: it begins with something, and no process is in its transaction.
fn is_hot(main: &MainFile, paths: &Paths) -> Result<bool, ClientError> {
    let len = len_or_zero(&paths.journal)?;
    if len == 0 {
        return Ok(false);
    }
    let reserved =
        lock::holder(&main.file, LockRange::RESERVED).map_err(at("lock", &paths.main))?;
    if reserved.is_some() {
        return Ok(false);
    }
    let file = open_to_read(&paths.journal).map_err(at("open", &paths.journal))?;
    let mut first = [0; 1];
    let filled = read_at(&file, &mut first, 0).map_err(at("read", &paths.journal))?;
    Ok(JournalHeader::may_be_hot(&first[..filled]))
}

/// Copies the pages of a journal back, unless it belongs to a transaction over several databases that did commit.
fn play_back(main: &MainFile, paths: &Paths) -> Result<(), ClientError> {
    let path = &paths.journal;
    let file = open_to_read(path).map_err(at("open", path))?;
    let len = file.metadata().map_err(at("stat", path))?.len();
    let read = |offset: u64, buffer: &mut [u8]| read_at(&file, buffer, offset);
    if let Some(name) = super_journal(read, len).map_err(at("read", path))? {
        let name = PathBuf::from(std::ffi::OsString::from_vec(name));
        if len_or_zero(&name)? == 0 {
            return Ok(());
        }
    }
    let page_size = main.header(&paths.main)?.map(|header| header.page_size);
    let page_size = page_size.or(PageSize::new(4096)).expect("BUG: 4096 is a page size");
    let journal = Journal::open(read, len, page_size, Reading::AfterCrash);
    let Some(mut journal) = journal.map_err(at("read", path))? else { return Ok(()) };
    let page_size = journal.page_size();
    let before = u64::from(journal.header().pages) * u64::from(page_size.get());
    while let Some(record) = journal.next().map_err(at("read", path))? {
        let written = main.file.write_all_at(journal.image(), record.page.offset(page_size));
        written.map_err(at("write", &paths.main))?;
    }
    main.file.set_len(before).map_err(at("truncate", &paths.main))
}
