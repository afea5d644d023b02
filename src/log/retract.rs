//! Removing records from the end of the log so that no crash brings them back.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use super::journal::{End, Log};
use super::reader::{Found, Place};
use super::segment::{RECORDS_AT, SEAL_AT, SECTOR, SegmentId};
use super::state::{Active, Index, disk, open_segment};
use super::{LogError, RecordInfo};
use crate::disk::sync_dir;
use crate::types::Pos;

/// Where the log will end.
struct Target {
    segment: SegmentId,
    end: u64,
    /// The record that will be the last.
    last: Option<(u64, RecordInfo)>,
}

/// Removes the records behind `to`, which is not the log's end.
///
/// The order matters: the index changes first, so that readers begin again and the syncer seals nothing;
/// then the seal that promises the records goes, durably; then whole files from the newest on, then the tail of the one that stays. A
/// crash in between leaves a log that ends at `to` or later, never one with a gap.
pub(super) fn retract(log: &mut Log, to: Pos) -> Result<(), LogError> {
    let target = target(log, to)?;
    let shared = Arc::clone(&log.shared);
    let sync = Arc::clone(&log.sync);
    let path = target.segment.path(&shared.dir);
    let is_active = target.segment == log.end.segment;
    let file = if is_active {
        Arc::clone(&log.end.file)
    } else {
        open_segment(&path).map(Arc::new).map_err(disk("open segment", &path))?
    };
    let (removed, seal_goes) = {
        let mut index = shared.index.write();
        // A seal that the syncer writes from here on would be for an older generation: it does not.
        index.generation += 1;
        index.sequence += 1;
        let stays = |base: Pos| base.txid_raw() <= target.segment.base.txid_raw();
        let mut removed = Vec::new();
        while index.active.id != target.segment {
            removed.push(index.active.id);
            let closed = index.closed.pop_back().expect("BUG: the segment was in the index");
            let mut active = Active::new(closed.id, Arc::clone(&file));
            active.marks = closed.marks.to_vec();
            active.sealed_to = closed.seal.end;
            index.active = active;
        }
        index.unsynced.retain(|unsynced| stays(unsynced.id.base) && unsynced.id != target.segment);
        let Index { active, position, last, dir_is_dirty, .. } = &mut *index;
        active.end = target.end;
        active.last_at = target.last.map_or(0, |(at, _)| at);
        active.marks.retain(|mark| mark.at < target.end);
        active.recent.clear();
        *position = to;
        *last = target.last.map(|(_, info)| info);
        let seal_goes = active.sealed_to > target.end;
        if seal_goes {
            active.sealed_to = 0;
        }
        *dir_is_dirty |= !removed.is_empty();
        (removed, seal_goes)
    };
    log.end =
        End { at: target.end, position: to, ..End::new(target.segment, Arc::clone(&file), to) };
    sync.retracted(to);

    let failed = || sync.fail(disk("remove records from segment", &path));
    if seal_goes {
        file.write_all_at(&[0; SECTOR], SEAL_AT).map_err(failed())?;
        sync.fdatasync(&file).map_err(failed())?;
    }
    for segment in &removed {
        let path = segment.path(&shared.dir);
        fs::remove_file(&path).map_err(sync.fail(disk("remove segment", &path)))?;
    }
    if !removed.is_empty() {
        sync_dir(&shared.dir).map_err(sync.fail(disk("sync log directory", &shared.dir)))?;
    }
    crate::disk::set_len("log", &file, target.end).map_err(failed())?;
    log.end.file_bytes = target.end;
    sync.fdatasync(&file).map_err(failed())
}

fn target(log: &Log, to: Pos) -> Result<Target, LogError> {
    let none = || LogError::NoSuchPosition { path: log.shared.dir.clone(), position: to };
    if to == log.base() {
        let index = log.shared.index.read();
        let segment = index.closed.front().map_or(index.active.id, |oldest| oldest.id);
        return Ok(Target { segment, end: RECORDS_AT, last: None });
    }
    let found: Option<(Place, Found)> = match to.txid {
        Some(txid) => log.reader.locate(txid)?,
        None => None,
    };
    let (place, found) = found.ok_or_else(none)?;
    if found.header.info.pos() != to {
        return Err(none());
    }
    let last = Some((found.at, found.header.info));
    Ok(Target { segment: place.segment, end: found.end(), last })
}
