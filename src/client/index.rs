//! The wal-index of one database, through reads and writes of `-shm` under the mount.
//!
//! # Why it is not mapped
//! SQLite maps this file. A read or write of a descriptor goes to the same pages in the kernel's cache, so other
//! connections see the same bytes at the same time either way. But a process that maps a file of its own mount cannot
//! die: the kernel takes a dead process's memory apart *before* its descriptors, writes the changed pages of such a
//! mapping back, and waits for `/dev/fuse` to answer, which that same process still holds open. (Seen: killed with -9,
//! it stays until somebody ends the connection by force.) Besides, a user who truncates the file would kill us by a
//! signal.
//!
//! What only a writer changes (page numbers and hash tables) is kept as a copy while WRITE is held, and written in one
//! piece for each block.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::api::ClientError;
use super::files::{Paths, at, read_at};
use crate::sqlite::shm::{
    BACKFILL_AT, BACKFILL_ATTEMPTED_AT, BLOCK_SIZE, Block, HEADERS_SIZE, IndexDamaged, IndexHeader,
    PREFIX_SIZE, Prefix, READ_MARK_FREE, READ_MARKS, read_mark_at,
};
use crate::types::PageNo;

/// An open `-shm`.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) file: File,
    /// Copies of blocks; right only while WRITE is held.
    copies: Vec<Block>,
    /// The file is at least this long: nobody truncates it while we are one of its users. Asking the file each time
    /// would cost two requests to the mount.
    len_known: u64,
}

impl Index {
    pub(super) fn new(file: File) -> Self {
        Self { file, copies: Vec::new(), len_known: 0 }
    }

    /// Another process may have written: what is copied is not right any more.
    pub(super) fn forget_copies(&mut self) {
        self.copies.clear();
    }

    /// Header, backfill and marks as they are now.
    pub(super) fn prefix(&self, paths: &Paths) -> Result<Prefix, ClientError> {
        let mut bytes = [0; PREFIX_SIZE];
        read_at(&self.file, &mut bytes, 0).map_err(at("read", &paths.shm))?;
        Ok(Prefix::new(&bytes))
    }

    /// Makes what was listed so far visible to other connections.
    ///
    /// SQLite stores the second copy first; here both go in one write. A reader takes a header only if both copies are
    /// equal and the checksum is right, so it never takes a mixture, whatever the order.
    pub(super) fn set_header(
        &self,
        header: &IndexHeader,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        self.write(&header.encode(), 0, paths)
    }

    /// The header of a WAL that begins again, with no frame copied back and no reader.
    pub(super) fn restart(&self, header: &IndexHeader, paths: &Paths) -> Result<(), ClientError> {
        self.set_header(header, paths)?;
        let mut rest = [0; PREFIX_SIZE - HEADERS_SIZE];
        for mark in 2..READ_MARKS {
            let offset = read_mark_at(mark) - HEADERS_SIZE as u64;
            let offset = usize::try_from(offset).expect("BUG: marks are in the prefix");
            rest[offset..offset + 4].copy_from_slice(&number(READ_MARK_FREE));
        }
        self.write(&rest, HEADERS_SIZE as u64, paths)
    }

    pub(super) fn set_backfill(&self, frames: u32, paths: &Paths) -> Result<(), ClientError> {
        self.write(&number(frames), BACKFILL_AT, paths)
    }

    pub(super) fn set_backfill_attempted(
        &self,
        frames: u32,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        self.write(&number(frames), BACKFILL_ATTEMPTED_AT, paths)
    }

    /// Moves a read mark; its lock must be held exclusively.
    pub(super) fn set_read_mark(
        &self,
        mark: u32,
        frame: u32,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        self.write(&number(frame), read_mark_at(mark), paths)
    }

    fn write(&self, bytes: &[u8], offset: u64, paths: &Paths) -> Result<(), ClientError> {
        self.file.write_all_at(bytes, offset).map_err(at("write", &paths.shm))
    }

    /// The copy of a block. The caller holds WRITE, or knows that nobody writes.
    pub(super) fn block(&mut self, index: u32, paths: &Paths) -> Result<&mut Block, ClientError> {
        let known = self.copies.iter().position(|copy| copy.index() == index);
        let place = match known {
            Some(place) => place,
            None => {
                let mut bytes = vec![0; BLOCK_SIZE];
                let offset = u64::from(index) * BLOCK_SIZE as u64;
                read_at(&self.file, &mut bytes, offset).map_err(at("read", &paths.shm))?;
                self.copies.push(Block::new(index, bytes));
                self.copies.len() - 1
            }
        };
        Ok(&mut self.copies[place])
    }

    /// Lists a frame in the copy; [`Index::flush`] makes it real, and only a new header makes it count.
    pub(super) fn list(
        &mut self,
        committed: u32,
        frame: u32,
        page: PageNo,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        let block = self.block(Block::containing(frame), paths)?;
        block.append(frame, page, committed).map_err(|IndexDamaged { .. }| paths.damaged("-shm"))
    }

    /// Writes what was listed. Blocks are made whole first, because others map them whole. Keeps only the last copy:
    /// the next transaction goes on there.
    pub(super) fn flush(&mut self, paths: &Paths) -> Result<(), ClientError> {
        self.copies.sort_by_key(Block::index);
        let mut copies = std::mem::take(&mut self.copies);
        let written = copies.iter_mut().try_for_each(|copy| {
            self.make_whole(copy.index(), paths)?;
            match copy.take_changes() {
                Some((offset, bytes)) => self.write(bytes, offset, paths),
                None => Ok(()),
            }
        });
        self.copies = copies;
        written?;
        self.copies.drain(..self.copies.len().saturating_sub(1));
        Ok(())
    }

    /// Extends the file to the end of a block. The bytes are really written, so that a full disk is noticed here and not
    /// by a signal in a process that maps them.
    pub(super) fn make_whole(&mut self, index: u32, paths: &Paths) -> Result<(), ClientError> {
        let end = (u64::from(index) + 1) * BLOCK_SIZE as u64;
        if end <= self.len_known {
            return Ok(());
        }
        let len = self.file.metadata().map_err(at("stat", &paths.shm))?.len();
        let missing = usize::try_from(end.saturating_sub(len)).unwrap_or(0);
        if missing != 0 {
            self.write(&vec![0; missing], len, paths)?;
        }
        self.len_known = end;
        Ok(())
    }
}

#[allow(clippy::host_endian_bytes, reason = "the wal-index is in the machine's own order")]
fn number(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}
