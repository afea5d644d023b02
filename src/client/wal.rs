//! The WAL and the wal-index of one database, opened through the mount: recover, append, restart.
//!
//! Source of the rules: SQLite wal.c (`walIndexRecover`, `walFrames`, `walRestartLog`), `os_unix.c` (`unixShmMap`).

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::Change;
use super::api::{ClientError, WalState};
use super::files::{MainFile, Paths, Step, Stop, at, open_companion, read_at};
use super::index::Index;
use super::lock;
use crate::sqlite::shm::{Block, IndexHeader, READ_MARK_FREE, READ_MARKS};
use crate::sqlite::{FrameHeader, LockRange, WalByteOrder, WalEncoder, WalHeader, WalHeaderError};
use crate::types::{PageNo, PageSize};

/// Frames are written in pieces of about this many bytes.
pub(super) const CHUNK: usize = 1 << 20;

/// The open `-wal` and `-shm`.
#[derive(Debug)]
pub(super) struct Wal {
    pub(super) wal: File,
    pub(super) index: Index,
    pub(super) write: bool,
    pub(super) ckpt: bool,
    buffer: Vec<u8>,
}

impl Wal {
    /// Opens both files, making them if need be, and joins their other users. The caller holds SHARED on the main file.
    pub(super) fn open(paths: &Paths, main: &MainFile) -> Step<Self> {
        let like = main.file.metadata().map_err(at("stat", &paths.main))?;
        let wal = open_companion(&paths.wal, &like)?;
        let shm = open_companion(&paths.shm, &like)?;
        join_users(&shm, paths)?;
        Ok(Self::borrow(wal, shm))
    }

    /// Opens both files as they are, without joining: for a look on behalf of somebody who has joined.
    pub(super) fn borrow(wal: File, shm: File) -> Self {
        let index = Index::new(shm);
        Self { wal, index, write: false, ckpt: false, buffer: Vec::new() }
    }

    /// Becomes the only writer. CKPT comes first, as in SQLite's own checkpoint, so that the two never wait for each
    /// other.
    pub(super) fn lock_writer(&mut self, paths: &Paths) -> Step<()> {
        if !self.ckpt {
            self.try_lock("CKPT", LockRange::CKPT, paths)?;
            self.ckpt = true;
        }
        if !self.write {
            self.try_lock("WRITE", LockRange::WRITE, paths)?;
            self.write = true;
            self.index.forget_copies();
        }
        Ok(())
    }

    pub(super) fn unlock_writer(&mut self, paths: &Paths) -> Result<(), ClientError> {
        if self.write {
            lock::unlock(&self.index.file, LockRange::WRITE).map_err(at("unlock", &paths.shm))?;
            self.write = false;
        }
        if self.ckpt {
            lock::unlock(&self.index.file, LockRange::CKPT).map_err(at("unlock", &paths.shm))?;
            self.ckpt = false;
        }
        Ok(())
    }

    fn try_lock(&self, name: &'static str, range: LockRange, paths: &Paths) -> Step<()> {
        if lock::try_exclusive(&self.index.file, range).map_err(at("lock", &paths.shm))? {
            return Ok(());
        }
        let holder = lock::holder(&self.index.file, range).unwrap_or(None);
        Err(Stop::Blocked { lock: name, holder })
    }

    /// Takes a lock of the wal-index, runs something, drops it. `None` if the lock is not free.
    pub(super) fn while_locked<T>(
        &mut self,
        range: LockRange,
        paths: &Paths,
        run: impl FnOnce(&mut Self) -> Result<T, ClientError>,
    ) -> Result<Option<T>, ClientError> {
        if !lock::try_exclusive(&self.index.file, range).map_err(at("lock", &paths.shm))? {
            return Ok(None);
        }
        let result = run(self);
        lock::unlock(&self.index.file, range).map_err(at("unlock", &paths.shm))?;
        result.map(Some)
    }

    /// The header, after rebuilding the index if it is not valid. The caller is the writer, so it is not just being
    /// written.
    pub(super) fn valid_header(&mut self, paths: &Paths) -> Step<IndexHeader> {
        debug_assert!(self.write && self.ckpt, "only a writer recovers");
        if let Some(header) = self.index.prefix(paths)?.header() {
            return Ok(header);
        }
        self.try_lock("RECOVER", LockRange::RECOVER, paths)?;
        let recovered = self.recover(paths);
        lock::unlock(&self.index.file, LockRange::RECOVER).map_err(at("unlock", &paths.shm))?;
        Ok(recovered?)
    }

    /// What others see of the WAL.
    pub(super) fn state(&self, paths: &Paths) -> Result<WalState, ClientError> {
        let prefix = self.index.prefix(paths)?;
        let header = prefix.header().unwrap_or_default();
        Ok(WalState {
            salts: header.salts,
            frames: header.frames,
            backfilled: prefix.backfill().min(header.frames),
            pages: header.pages,
            chain: header.chain,
        })
    }

    /// Rebuilds the index from the WAL. SQLite wal.c, `walIndexRecover`.
    fn recover(&mut self, paths: &Paths) -> Result<IndexHeader, ClientError> {
        let mut header = IndexHeader::default();
        if let Some(wal) = self.read_wal_header(paths)? {
            header.big_endian = wal.order == WalByteOrder::Big;
            header.salts = wal.salts;
            self.list_valid_frames(&wal, &mut header, paths)?;
        }
        self.index.make_whole(0, paths)?;
        self.index.flush(paths)?;
        self.index.set_header(&header, paths)?;
        self.index.set_backfill(0, paths)?;
        self.index.set_backfill_attempted(header.frames, paths)?;
        self.index.set_read_mark(0, 0, paths)?;
        for mark in 1..READ_MARKS {
            let has_frames = mark == 1 && header.frames != 0;
            let frames = if has_frames { header.frames } else { READ_MARK_FREE };
            // A mark that a reader uses stays: it has seen the same frames.
            self.while_locked(LockRange::read(mark), paths, |wal| {
                wal.index.set_read_mark(mark, frames, paths)
            })?;
        }
        Ok(header)
    }

    /// The header of the WAL; `None` if there is no valid one, which means that the WAL is empty.
    pub(super) fn read_wal_header(&self, paths: &Paths) -> Result<Option<WalHeader>, ClientError> {
        let mut bytes = [0; WalHeader::SIZE];
        let filled = read_at(&self.wal, &mut bytes, 0).map_err(at("read", &paths.wal))?;
        match WalHeader::parse(&bytes[..filled]) {
            Ok(header) => Ok(Some(header)),
            Err(WalHeaderError::Version(_)) => Err(paths.damaged("-wal")),
            Err(_) => Ok(None),
        }
    }

    fn list_valid_frames(
        &mut self,
        wal: &WalHeader,
        header: &mut IndexHeader,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        let len = self.wal.metadata().map_err(at("stat", &paths.wal))?.len();
        let frame_len = FrameHeader::SIZE + wal.page_size.bytes();
        let mut piece = vec![0; (CHUNK / frame_len).max(1) * frame_len];
        let mut chain = wal.checksum;
        let mut frame = 0;
        let frames = wal.frames(len);
        while frame < frames {
            let filled = read_at(&self.wal, &mut piece, wal.frame_offset(frame + 1));
            let filled = filled.map_err(at("read", &paths.wal))?;
            for bytes in piece[..filled].chunks_exact(frame_len) {
                let (head, image) = bytes.split_at(FrameHeader::SIZE);
                let Some((found, after)) = wal.verify(chain, head, image) else { return Ok(()) };
                frame += 1;
                chain = after;
                self.index.list(header.frames, frame, found.page, paths)?;
                if found.commit != 0 {
                    header.frames = frame;
                    header.pages = found.commit;
                    header.page_size = Some(wal.page_size);
                    header.chain = chain;
                }
            }
            if filled < frame_len {
                break;
            }
        }
        Ok(())
    }

    /// Starts the WAL from its beginning again if all of it is in the main file and no reader needs it.
    /// SQLite wal.c, `walRestartLog`.
    fn restart_if_possible(
        &mut self,
        header: &mut IndexHeader,
        paths: &Paths,
    ) -> Result<(), ClientError> {
        let backfilled = self.index.prefix(paths)?.backfill();
        if backfilled == 0 || backfilled < header.frames {
            return Ok(());
        }
        let mut restarted = *header;
        restarted.frames = 0;
        restarted.salts = header.salts.next(rand::random());
        let done = self.while_locked(LockRange::READERS_OF_WAL, paths, |wal| {
            wal.index.restart(&restarted, paths)
        })?;
        if done.is_some() {
            *header = restarted;
        }
        Ok(())
    }

    /// Appends a change as one transaction and makes it visible. SQLite wal.c, `walFrames`.
    pub(super) fn append(&mut self, change: &Change, paths: &Paths) -> Step<()> {
        let appended = self.try_append(change, paths);
        if appended.is_err() {
            self.index.forget_copies();
        }
        appended
    }

    fn try_append(&mut self, change: &Change, paths: &Paths) -> Step<()> {
        let mut header = self.valid_header(paths)?;
        self.restart_if_possible(&mut header, paths)?;
        let committed = header.frames;
        if committed != 0 && header.page_size != Some(change.page_size) {
            return Err(Stop::Blocked { lock: "WAL, which is being read", holder: None });
        }
        let mut encoder = WalEncoder::resume(header.order(), header.salts, header.chain);
        self.buffer.clear();
        let mut at_offset = FrameHeader::offset(change.page_size, committed + 1);
        if committed == 0 {
            // The frames behind this header must not be taken for those of the generation before.
            header.salts = header.salts.next(rand::random());
            let sequence =
                self.read_wal_header(paths)?.map_or(0, |wal| wal.sequence.wrapping_add(1));
            let begin = WalHeader::new(change.page_size, sequence, header.salts);
            header.big_endian = begin.order == WalByteOrder::Big;
            encoder = WalEncoder::begin(&begin);
            self.buffer.extend_from_slice(&begin.encode());
            at_offset = 0;
        }
        let mut image = vec![0; change.page_size.bytes()];
        let mut frame = committed;
        for (index, page) in change.pages.numbers().enumerate() {
            let is_last = index + 1 == change.pages.len();
            let commit = if is_last { change.commit } else { 0 };
            change.pages.read(index, &mut image).map_err(at("read a change of", &paths.main))?;
            encoder.frame(page, commit, &image, &mut self.buffer);
            if CHUNK <= self.buffer.len() || is_last {
                let written = self.wal.write_all_at(&self.buffer, at_offset);
                written.map_err(at("write", &paths.wal))?;
                at_offset += self.buffer.len() as u64;
                self.buffer.clear();
            }
        }
        self.buffer.shrink_to(CHUNK);
        for page in change.pages.numbers() {
            frame += 1;
            self.index.list(committed, frame, page, paths)?;
        }
        self.index.flush(paths)?;
        header.change = header.change.wrapping_add(1);
        header.frames = frame;
        header.pages = change.commit;
        header.page_size = Some(change.page_size);
        header.chain = encoder.chain();
        Ok(self.index.set_header(&header, paths)?)
    }

    /// The image of a page as readers see it now.
    pub(super) fn read_page(
        &mut self,
        page: PageNo,
        page_size: PageSize,
        main: &MainFile,
        paths: &Paths,
    ) -> Step<Vec<u8>> {
        let header = self.valid_header(paths)?;
        let mut image = vec![0; page_size.bytes()];
        for index in (0..=Block::containing(header.frames)).rev() {
            let found = self.index.block(index, paths)?.find(page, header.frames);
            if let Some(frame) = found.map_err(|_| paths.damaged("-shm"))? {
                let offset = FrameHeader::offset(page_size, frame) + FrameHeader::SIZE as u64;
                let read = self.wal.read_exact_at(&mut image, offset);
                read.map_err(at("read", &paths.wal))?;
                return Ok(image);
            }
        }
        let read = main.file.read_exact_at(&mut image, page.offset(page_size));
        read.map_err(at("read", &paths.main))?;
        Ok(image)
    }
}

/// Takes the "dead man's switch" of `-shm`: the first user finds it free and empties the file, whatever a crash left in
/// it. SQLite `os_unix.c`, `unixLockSharedMemory`.
fn join_users(shm: &File, paths: &Paths) -> Step<()> {
    let path = &paths.shm;
    let blocked =
        || Stop::Blocked { lock: "DMS", holder: lock::holder(shm, LockRange::DMS).unwrap_or(None) };
    match lock::is_exclusive(shm, LockRange::DMS).map_err(at("lock", path))? {
        Some(true) => return Err(blocked()),
        Some(false) => (),
        None => {
            if !lock::try_exclusive(shm, LockRange::DMS).map_err(at("lock", path))? {
                return Err(blocked());
            }
            // SQLite leaves three bytes, to tell this from other truncations.
            shm.set_len(3).map_err(at("truncate", path))?;
        }
    }
    if lock::try_shared(shm, LockRange::DMS).map_err(at("lock", path))? {
        Ok(())
    } else {
        Err(blocked())
    }
}
