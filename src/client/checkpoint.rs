//! Copies the WAL back into the database file, as far as readers allow.
//!
//! Source of the rules: SQLite wal.c, `walCheckpoint`, mode PASSIVE. Unlike there, nothing is synced: the log restores
//! both files after a crash.

use std::os::unix::fs::FileExt as _;

use super::api::ClientError;
use super::files::{MainFile, Paths, Step, at};
use super::wal::{CHUNK, Wal};
use crate::sqlite::shm::{Block, IndexHeader, READ_MARK_FREE, READ_MARKS};
use crate::sqlite::{FrameHeader, LockRange};
use crate::types::{PageNo, PageSize};

/// A WAL with this many frames is copied back after a transaction, as by SQLite's default.
pub(super) const FRAMES_MAX: u32 = 1000;

impl Wal {
    /// Copies back what no reader's snapshot forbids. The caller is the writer.
    pub(super) fn checkpoint(&mut self, main: &MainFile, paths: &Paths) -> Step<()> {
        let header = self.valid_header(paths)?;
        let Some(page_size) = header.page_size.filter(|_| header.frames != 0) else {
            return Ok(());
        };
        let backfilled = self.index.prefix(paths)?.backfill();
        if header.frames <= backfilled {
            return Ok(());
        }
        let safe = self.last_safe_frame(&header, paths)?;
        if safe <= backfilled {
            return Ok(());
        }
        // Readers of the database file alone hold mark 0. If there are any now, the next time will do.
        self.while_locked(LockRange::read(0), paths, |wal| {
            wal.index.set_backfill_attempted(safe, paths)?;
            let pages = wal.latest_frames(backfilled, safe, header.pages, paths)?;
            wal.copy_back(&pages, page_size, main, paths)?;
            if safe == header.frames {
                let len = u64::from(header.pages) * u64::from(page_size.get());
                if main.len(&paths.main)? != len {
                    main.file.set_len(len).map_err(at("truncate", &paths.main))?;
                }
            }
            wal.index.set_backfill(safe, paths)
        })?;
        Ok(())
    }

    /// The last frame that may be copied back: readers with an older snapshot still need the database file without the
    /// frames beyond it. Marks that no reader uses are moved out of the way.
    fn last_safe_frame(&mut self, header: &IndexHeader, paths: &Paths) -> Result<u32, ClientError> {
        let mut safe = header.frames;
        for mark in 1..READ_MARKS {
            let frame = self.index.prefix(paths)?.read_mark(mark);
            if safe <= frame {
                continue;
            }
            let moved = if mark == 1 { safe } else { READ_MARK_FREE };
            let free = self.while_locked(LockRange::read(mark), paths, |wal| {
                wal.index.set_read_mark(mark, moved, paths)
            })?;
            if free.is_none() {
                safe = frame;
            }
        }
        Ok(safe)
    }

    /// Pages of the frames after `from` up to `to` with the last frame of each, in page order; none beyond the end of
    /// the database.
    fn latest_frames(
        &mut self,
        from: u32,
        to: u32,
        pages: u32,
        paths: &Paths,
    ) -> Result<Vec<(PageNo, u32)>, ClientError> {
        let mut listed = Vec::with_capacity((to - from) as usize);
        for frame in from + 1..=to {
            let page = self.index.block(Block::containing(frame), paths)?.page(frame);
            let page = page.ok_or_else(|| paths.damaged("-shm"))?;
            if page.get() <= pages {
                listed.push((page, frame));
            }
        }
        listed.sort_unstable();
        // Of equal pages the last one counts.
        listed.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 = later.1;
            }
            same
        });
        Ok(listed)
    }

    /// Copies frames to their pages; neighbours are written at once.
    fn copy_back(
        &mut self,
        pages: &[(PageNo, u32)],
        page_size: PageSize,
        main: &MainFile,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        let run_max = (CHUNK / page_size.bytes()).max(1);
        let neighbours = pages.chunk_by(|a, b| a.0.get() + 1 == b.0.get());
        for run in neighbours.flat_map(|run| run.chunks(run_max)) {
            let mut images = vec![0; run.len() * page_size.bytes()];
            for ((_, frame), image) in run.iter().zip(images.chunks_exact_mut(page_size.bytes())) {
                let offset = FrameHeader::offset(page_size, *frame) + FrameHeader::SIZE as u64;
                let read = self.wal.read_exact_at(image, offset);
                read.map_err(at("read", &paths.wal))?;
            }
            let written = main.file.write_all_at(&images, run[0].0.offset(page_size));
            written.map_err(at("write", &paths.main))?;
        }
        Ok(())
    }
}
