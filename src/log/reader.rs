//! Reading the log beside its writer.
//!
//! A read takes a place from the index, then does its I/O without any lock. If records were removed
//! meanwhile it begins again. Every record is checked before it is handed out.

use std::fs::File;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::pieces::SMALL_BYTES;
use super::record::{self, HEADER_BYTES, Header};
use super::segment::{Mark, RECORDS_AT, SegmentId, Window, read_up_to};
use super::state::{Active, Closed, Index, Shared};
use super::{LogError, Payload, RecordInfo, StoredRecord};
use crate::types::{Pos, Txid};

/// Bytes read at once while looking for a record.
const WALK_BYTES: usize = 16 << 10;
/// Bytes read at once while taking records.
const PIECE_BYTES: usize = 1 << 20;
const UNFIT: &str = "the checksum of a record's content does not fit";

/// What lies behind a position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read<P = Bytes> {
    /// Records that follow it, oldest first; empty if there are none.
    Records(Vec<(RecordInfo, P)>),
    /// The position is not in the log: too old, or of another history.
    Gone,
}

impl<P> Read<P> {
    /// Whether the position is not in the log.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

/// A log's reader that does not keep its files open.
#[derive(Clone, Debug, Default)]
pub struct WeakLogReader {
    shared: Weak<Shared>,
}

impl WeakLogReader {
    /// A reader, if the log is still open.
    #[must_use]
    pub fn upgrade(&self) -> Option<LogReader> {
        self.shared.upgrade().map(LogReader::new)
    }
}

/// Reads a log while it is written.
///
/// A clone remembers where its last read ended: whoever follows the log keeps one for itself.
#[derive(Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
    hint: Mutex<Option<Hint>>,
}

/// Where the record behind `after` begins.
#[derive(Clone, Copy, Debug)]
struct Hint {
    generation: u64,
    after: Pos,
    segment: SegmentId,
    at: u64,
}

/// Where to look for a record.
pub(super) struct Place {
    generation: u64,
    pub(super) segment: SegmentId,
    /// `None` for a closed segment: it is opened by its path.
    file: Option<Arc<File>>,
    pub(super) end: u64,
    /// A record begins here.
    from: u64,
}

enum Plan {
    UpToDate,
    Gone,
    Look(Place),
}

/// A record's place and header.
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) header: Header,
}

impl Found {
    pub(super) fn end(&self) -> u64 {
        self.at + record::stored_bytes(self.header.info.ltx_bytes)
    }
}

impl Clone for LogReader {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), hint: Mutex::new(*self.hint.lock()) }
    }
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, hint: Mutex::new(None) }
    }

    /// A reader that does not keep the log's files open.
    #[must_use]
    pub fn downgrade(&self) -> WeakLogReader {
        WeakLogReader { shared: Arc::downgrade(&self.shared) }
    }

    /// The position before the first record.
    #[must_use]
    pub fn base(&self) -> Pos {
        self.shared.index.read().base()
    }

    /// Bytes of all records, about.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        let index = self.shared.index.read();
        index.closed.iter().map(|closed| closed.bytes).sum::<u64>() + index.active.end
    }

    /// Records behind `after`, at least one if there are any, then as many as fit in `bytes_max` and are
    /// in the same segment.
    ///
    /// # Errors
    /// [`LogError::Damaged`], or the disk refused.
    pub fn read(&self, after: Pos, bytes_max: usize) -> Result<Read, LogError> {
        let bytes = |payload: Payload| match payload {
            Payload::Memory(bytes) => bytes,
            Payload::Stored(_) => unreachable!("BUG: all of it was to be in memory"),
        };
        Ok(match self.read_with(after, bytes_max, u64::MAX)? {
            Read::Records(records) => {
                Read::Records(records.into_iter().map(|(info, ltx)| (info, bytes(ltx))).collect())
            }
            Read::Gone => Read::Gone,
        })
    }

    /// As [`LogReader::read`], but a first record larger than `bytes_max` and than 2 MiB comes alone and is not read
    /// into memory.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub fn read_lazily(&self, after: Pos, bytes_max: usize) -> Result<Read<Payload>, LogError> {
        self.read_with(after, bytes_max, SMALL_BYTES.max(bytes_max as u64))
    }

    fn read_with(
        &self,
        after: Pos,
        bytes_max: usize,
        in_memory_max: u64,
    ) -> Result<Read<Payload>, LogError> {
        loop {
            let place = match self.plan(after) {
                Plan::UpToDate => return Ok(Read::Records(Vec::new())),
                Plan::Gone => return Ok(Read::Gone),
                Plan::Look(place) => place,
            };
            let result = self.read_at(&place, after, bytes_max, in_memory_max);
            if self.still_holds(&place) {
                return result;
            }
        }
    }

    /// The record whose last transaction is `txid`; `None` if the log has none.
    ///
    /// # Errors
    /// As for [`LogReader::read`].
    pub fn info_at(&self, txid: Txid) -> Result<Option<RecordInfo>, LogError> {
        Ok(self.locate(txid)?.map(|(_, found)| found.header.info))
    }

    /// The oldest record.
    pub(super) fn first(&self) -> Result<Option<RecordInfo>, LogError> {
        loop {
            let place = {
                let index = self.shared.index.read();
                let number = index.base().txid_raw() + 1;
                Txid::new(number).and_then(|txid| place_of(&index, txid))
            };
            let Some(place) = place else { return Ok(None) };
            let result = self.find(&place, Txid::FIRST);
            if self.still_holds(&place) {
                return Ok(result?.map(|found| found.header.info));
            }
        }
    }

    /// The record whose last transaction is `txid`, and its segment.
    pub(super) fn locate(&self, txid: Txid) -> Result<Option<(Place, Found)>, LogError> {
        loop {
            let place = place_of(&self.shared.index.read(), txid);
            let Some(place) = place else { return Ok(None) };
            let result = self.find(&place, txid);
            if self.still_holds(&place) {
                let found = result?.filter(|found| found.header.info.max == txid);
                return Ok(found.map(|found| (place, found)));
            }
        }
    }

    /// Whether nothing was removed from the end, and the segment not from the beginning.
    fn still_holds(&self, place: &Place) -> bool {
        let index = self.shared.index.read();
        index.generation == place.generation
            && index.base().txid_raw() <= place.segment.base.txid_raw()
    }

    fn plan(&self, after: Pos) -> Plan {
        let index = self.shared.index.read();
        if after == index.position {
            return Plan::UpToDate;
        }
        let txid = after.txid_raw();
        if txid >= index.position.txid_raw() || txid < index.base().txid_raw() {
            return Plan::Gone;
        }
        let Some(mut place) = place_of(&index, after.next_txid()) else { return Plan::Gone };
        if txid == place.segment.base.txid_raw() {
            if after != place.segment.base {
                return Plan::Gone;
            }
            place.from = RECORDS_AT;
        }
        Plan::Look(place)
    }

    fn read_at(
        &self,
        place: &Place,
        after: Pos,
        bytes_max: usize,
        in_memory_max: u64,
    ) -> Result<Read<Payload>, LogError> {
        let file = &self.file(place)?;
        let hint = *self.hint.lock();
        let hint = hint.filter(|h| {
            h.generation == place.generation && h.after == after && h.segment == place.segment
        });
        let start = match (hint, after.txid) {
            (Some(hint), _) => hint.at,
            (None, Some(txid)) if after != place.segment.base => {
                match self.find_in(file, place, txid)? {
                    Some(found) if found.header.info.pos() == after => found.end(),
                    Some(_) | None => return Ok(Read::Gone),
                }
            }
            (None, _) => RECORDS_AT,
        };
        let (records, end) = match self.large(file, place, start, in_memory_max)? {
            Some(found) => {
                let (info, end) = (found.header.info, found.end());
                let path = place.segment.path(&self.shared.dir);
                let (file, seed) = (Arc::clone(file), place.segment.seed);
                let stored = StoredRecord::new(file, path, start, found.header, seed);
                (vec![(info, Payload::Stored(stored))], end)
            }
            None => {
                let (records, end) = self.records(file, place, start, bytes_max)?;
                let in_memory = |(info, ltx)| (info, Payload::Memory(ltx));
                (records.into_iter().map(in_memory).collect(), end)
            }
        };
        if let Some((last, _)) = records.last() {
            *self.hint.lock() = Some(Hint {
                generation: place.generation,
                after: last.pos(),
                segment: place.segment,
                at: end,
            });
        }
        Ok(Read::Records(records))
    }

    /// The record at `start` if it is larger than `in_memory_max`.
    fn large(
        &self,
        file: &File,
        place: &Place,
        start: u64,
        in_memory_max: u64,
    ) -> Result<Option<Found>, LogError> {
        // Without a look at the file where nothing that large can be.
        if place.end.saturating_sub(start) <= in_memory_max {
            return Ok(None);
        }
        let header = Window::new(file, place.end, HEADER_BYTES)
            .header(place.segment.seed, start)
            .map_err(self.shared.disk("read segment", &place.segment))?;
        let header = header.filter(|h| u64::from(h.info.ltx_bytes) > in_memory_max);
        Ok(header.map(|header| Found { at: start, header }))
    }

    /// Reads whole records from `start` on; returns where the next one begins.
    ///
    /// In pieces, so that memory is taken for what is found, not for what a length promises.
    fn records(
        &self,
        file: &File,
        place: &Place,
        start: u64,
        bytes_max: usize,
    ) -> Result<(Vec<(RecordInfo, Bytes)>, u64), LogError> {
        let mut records = Vec::new();
        let mut at = start;
        let mut left = bytes_max;
        while at < place.end {
            let wanted = left.saturating_add(HEADER_BYTES).min(PIECE_BYTES);
            let piece = self.bytes(file, place, at, wanted)?;
            let (end, is_full) = self.whole_records(place, at, &piece, &mut left, &mut records)?;
            let took_some = end > at;
            at = end;
            if is_full && !records.is_empty() {
                break;
            }
            if !took_some {
                // A record that does not fit into the piece, or alone is more than was asked for.
                let (record, end) = self.long_record(file, place, at)?;
                left = left.saturating_sub(record.1.len());
                records.push(record);
                at = end;
            }
        }
        Ok((records, at))
    }

    /// Takes the records that lie whole in `piece`, which was read at `start`; returns where they end, and whether
    /// the next one is more than is `left` to take.
    fn whole_records(
        &self,
        place: &Place,
        start: u64,
        piece: &Bytes,
        left: &mut usize,
        records: &mut Vec<(RecordInfo, Bytes)>,
    ) -> Result<(u64, bool), LogError> {
        let mut at = 0;
        while piece.len() - at >= HEADER_BYTES {
            let offset = start + at as u64;
            let (header, stored) = self.checked_header(place, offset, &piece[at..])?;
            let ltx_bytes = header.info.ltx_bytes as usize;
            if ltx_bytes > *left {
                return Ok((offset, true));
            }
            if stored > piece.len() - at {
                break;
            }
            let ltx = self.checked_payload(place, offset, &header, piece.slice(at..at + stored))?;
            records.push((header.info, ltx));
            *left -= ltx_bytes;
            at += stored;
        }
        Ok((start + at as u64, false))
    }

    /// One record of any length. A long one is compared with its checksum before memory is taken for it.
    fn long_record(
        &self,
        file: &File,
        place: &Place,
        at: u64,
    ) -> Result<((RecordInfo, Bytes), u64), LogError> {
        let seed = place.segment.seed;
        let begin = self.bytes(file, place, at, HEADER_BYTES)?;
        let (header, stored) = self.checked_header(place, at, &begin)?;
        if stored > PIECE_BYTES {
            let is_whole = Window::new(file, place.end, WALK_BYTES)
                .payload_is_whole(seed, at, &header)
                .map_err(self.shared.disk("read segment", &place.segment))?;
            if !is_whole {
                return Err(self.damaged(place, at, UNFIT));
            }
        }
        let bytes = self.bytes(file, place, at, stored)?.slice(..stored);
        let ltx = self.checked_payload(place, at, &header, bytes)?;
        Ok(((header.info, ltx), at + stored as u64))
    }

    /// The header at `at`, where `bytes` begin, and the length of its record.
    fn checked_header(
        &self,
        place: &Place,
        at: u64,
        bytes: &[u8],
    ) -> Result<(Header, usize), LogError> {
        let header = Header::decode(place.segment.seed, bytes)
            .ok_or_else(|| self.damaged(place, at, "no record where one was written"))?;
        let stored = record::stored_bytes(header.info.ltx_bytes);
        if stored > place.end - at {
            return Err(self.damaged(place, at, "a record reaches beyond the end"));
        }
        Ok((header, usize::try_from(stored).unwrap_or(usize::MAX)))
    }

    /// The LTX file of a record.
    fn checked_payload(
        &self,
        place: &Place,
        at: u64,
        header: &Header,
        record: Bytes,
    ) -> Result<Bytes, LogError> {
        let crc = record::payload_crc(place.segment.seed, &record[HEADER_BYTES..], &[]);
        if crc != header.payload_crc {
            return Err(self.damaged(place, at, UNFIT));
        }
        Ok(record.slice(HEADER_BYTES..HEADER_BYTES + header.info.ltx_bytes as usize))
    }

    /// `wanted` bytes at `at`, fewer if the records end before.
    fn bytes(&self, file: &File, place: &Place, at: u64, wanted: usize) -> Result<Bytes, LogError> {
        let left = usize::try_from(place.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut buffer = vec![0; wanted.max(WALK_BYTES).min(left)];
        let filled = read_up_to(file, &mut buffer, at)
            .map_err(self.shared.disk("read segment", &place.segment))?;
        if filled < buffer.len() {
            return Err(self.damaged(place, at + filled as u64, "the file is cut short"));
        }
        Ok(Bytes::from(buffer))
    }

    fn find(&self, place: &Place, txid: Txid) -> Result<Option<Found>, LogError> {
        self.find_in(&*self.file(place)?, place, txid)
    }

    /// The first record at or behind the place that reaches `txid`.
    fn find_in(&self, file: &File, place: &Place, txid: Txid) -> Result<Option<Found>, LogError> {
        let mut window = Window::new(file, place.end, WALK_BYTES);
        let mut at = place.from;
        while at < place.end {
            let header = window
                .header(place.segment.seed, at)
                .map_err(self.shared.disk("read segment", &place.segment))?
                .ok_or_else(|| self.damaged(place, at, "no record where one was written"))?;
            let found = Found { at, header };
            if header.info.max >= txid {
                return Ok(Some(found));
            }
            at = found.end();
        }
        Ok(None)
    }

    fn file(&self, place: &Place) -> Result<Arc<File>, LogError> {
        if let Some(file) = &place.file {
            return Ok(Arc::clone(file));
        }
        let file = File::open(place.segment.path(&self.shared.dir));
        file.map(Arc::new).map_err(self.shared.disk("open segment", &place.segment))
    }

    fn damaged(&self, place: &Place, offset: u64, what: &'static str) -> LogError {
        LogError::Damaged { path: place.segment.path(&self.shared.dir), offset, what }
    }
}

/// The segment that holds `txid`, and a record in it from which to look; `None` if no segment does.
fn place_of(index: &Index, txid: Txid) -> Option<Place> {
    let number = txid.get();
    if number <= index.base().txid_raw() || number > index.position.txid_raw() {
        return None;
    }
    let generation = index.generation;
    // A place to find both the record of `txid` and the one before it, so marks behind that do not serve.
    let before = number - 1;
    if number > index.active.id.base.txid_raw() {
        let Active { id, file, end, .. } = &index.active;
        let recent = index.active.recent.iter().rev().find(|mark| mark.max.get() <= before);
        let from = recent.map_or_else(|| from_marks(&index.active.marks, before), |mark| mark.at);
        let file = Some(Arc::clone(file));
        return Some(Place { generation, segment: *id, file, end: *end, from });
    }
    let behind = index.closed.partition_point(|closed| closed.seal.position.txid_raw() < number);
    let Closed { id, seal, marks, .. } = index.closed.get(behind)?;
    let from = from_marks(marks, before);
    Some(Place { generation, segment: *id, file: None, end: seal.end, from })
}

fn from_marks(marks: &[Mark], txid: u64) -> u64 {
    let behind = marks.partition_point(|mark| mark.max.get() <= txid);
    behind.checked_sub(1).map_or(RECORDS_AT, |before| marks[before].at)
}
