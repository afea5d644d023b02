//! Makes the commit of a writer visible that died after its frames were in the WAL and in the log, but before it
//! updated the wal-index.
//!
//! Without it the next writer would overwrite those frames, and log and database would part.

use std::os::unix::fs::FileExt as _;

use super::api::{Abandoned, ClientError};
use super::files::{Paths, at, open_to_write};
use super::wal::Wal;
use crate::sqlite::shm::BLOCK_SIZE;
use crate::sqlite::{FrameHeader, WalByteOrder};

/// Lists the abandoned frames and moves the header to their end. `false` if others see them already, or if they are
/// not in this WAL any more.
///
/// No lock is taken: the dead process still holds WRITE, which the caller knows.
pub(super) fn publish(paths: &Paths, abandoned: Abandoned) -> Result<bool, ClientError> {
    let open = |path| open_to_write(path).map_err(at("open", path));
    let (wal, shm) = (open(&paths.wal)?, open(&paths.shm)?);
    if shm.metadata().map_err(at("stat", &paths.shm))?.len() < BLOCK_SIZE as u64 {
        return Ok(false);
    }
    let mut wal = Wal::borrow(wal, shm);
    // A header that is half written is no header: the next connection recovers, and finds the commit in the WAL.
    let Some(mut header) = wal.index.prefix(paths)?.header() else { return Ok(false) };
    let Some(wal_header) = wal.read_wal_header(paths)? else { return Ok(false) };
    let committed = header.frames;
    // The first writer of an empty WAL chooses salts that the index does not know before its commit.
    let same_wal = committed == 0 || header.salts == wal_header.salts;
    if abandoned.frames <= committed || abandoned.salts != wal_header.salts || !same_wal {
        return Ok(false);
    }
    for frame in committed + 1..=abandoned.frames {
        let mut bytes = [0; FrameHeader::SIZE];
        let read = wal.wal.read_exact_at(&mut bytes, wal_header.frame_offset(frame));
        read.map_err(at("read", &paths.wal))?;
        let found = FrameHeader::parse(&bytes).filter(|found| found.salts == abandoned.salts);
        let found = found.ok_or_else(|| paths.damaged("-wal"))?;
        wal.index.list(committed, frame, found.page, paths)?;
        header.chain = found.checksum;
        header.pages = found.commit;
    }
    if header.pages != abandoned.pages {
        return Err(paths.damaged("-wal"));
    }
    header.change = header.change.wrapping_add(1);
    header.frames = abandoned.frames;
    header.page_size = Some(wal_header.page_size);
    header.salts = abandoned.salts;
    header.big_endian = wal_header.order == WalByteOrder::Big;
    wal.index.flush(paths)?;
    wal.index.set_header(&header, paths)?;
    Ok(true)
}
