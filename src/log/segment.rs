//! One segment file: its name, its header, and the walk over its records.
//!
//! ```text
//!   0  header, written once         512  seal, written again and again
//!      0    8  "WEIRSEGM"                0    8  "WEIRSEAL"
//!      8    2  format version            8    8  end: records before it are whole and durable
//!     10    2  0                        16    8  offset of the last of them, 0 = none
//!     12    4  history                  24   24  position after it
//!     16    8  nonce                    48    8  its timestamp
//!     24   24  position before the      56       zeros
//!              first record            508    4  CRC-32, from the seed
//!     48    8  timestamp of the record
//!              before the first
//!     56       zeros                  1024  records, see `record`; then zeros written ahead
//!    508    4  CRC-32 of 0..508
//! ```
//! A position is epoch, txid (0 = none) and checksum. The *seed* of a segment's other CRCs is the CRC-32
//! of its nonce, a random number. All big endian.
//!
//! A file is named after its *history* and its first transaction. A history is what [`super::Log::reset`]
//! begins: only the files of the highest one count.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, BufMut as _};

use super::record::{self, HEADER_BYTES, Header};
use super::{LogError, RecordInfo};
use crate::types::{Pos, Txid, parse_hex};

/// What a disk writes as a whole; the header and the seal are one each.
pub(super) const SECTOR: usize = 512;
pub(super) const SEAL_AT: u64 = SECTOR as u64;
/// Length of header and seal.
pub(super) const FRONT_BYTES: usize = 2 * SECTOR;
/// Where the first record is.
pub(super) const RECORDS_AT: u64 = FRONT_BYTES as u64;
const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"WEIRSEGM";
const SEAL_MAGIC: [u8; 8] = *b"WEIRSEAL";
const CRC_AT: usize = SECTOR - 4;

/// What a segment is: fixed when it is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentId {
    pub(super) history: u32,
    pub(super) nonce: u64,
    pub(super) base: Pos,
    pub(super) base_timestamp_ms: i64,
    /// Where the CRCs of its records begin.
    pub(super) seed: u32,
}

/// What is known to be whole and durable in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seal {
    pub(super) end: u64,
    /// Offset of the last record; 0 if there is none.
    pub(super) last_at: u64,
    pub(super) position: Pos,
    pub(super) timestamp_ms: i64,
}

/// Name of the file that begins with `first`.
pub(super) fn path(dir: &Path, history: u32, first: Txid) -> PathBuf {
    dir.join(format!("{history:08x}-{first}.seg"))
}

/// History and first transaction of a file name; `None` for other files. The last number is no history, so
/// that each has a next.
pub(super) fn parse_name(name: &OsStr) -> Option<(u32, Txid)> {
    let (history, first) = name.to_str()?.strip_suffix(".seg")?.split_once('-')?;
    let first = Txid::new(parse_hex(first)?)?;
    let history = u32::try_from(parse_hex(&format!("00000000{history}"))?).ok()?;
    (history < u32::MAX).then_some((history, first))
}

fn put_pos(out: &mut impl bytes::BufMut, pos: Pos) {
    out.put_u64(pos.epoch.get());
    out.put_u64(pos.txid_raw());
    out.put_u64(pos.checksum.get());
}

fn get_pos(fields: &mut &[u8]) -> Option<Pos> {
    let (epoch, txid, checksum) = (fields.get_u64(), fields.get_u64(), fields.get_u64());
    Pos::from_stored(epoch, txid, checksum)
}

fn close_sector(bytes: &mut [u8; SECTOR], seed: u32) {
    let crc = record::payload_crc(seed, &bytes[..CRC_AT], &[]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
}

fn sector_is_whole(bytes: &[u8], seed: u32) -> bool {
    bytes[CRC_AT..SECTOR] == record::payload_crc(seed, &bytes[..CRC_AT], &[]).to_be_bytes()
}

impl SegmentId {
    pub(super) fn new(history: u32, nonce: u64, base: Pos, base_timestamp_ms: i64) -> Self {
        let seed = crc32fast::hash(&nonce.to_be_bytes());
        Self { history, nonce, base, base_timestamp_ms, seed }
    }

    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        path(dir, self.history, self.base.next_txid())
    }

    /// The first [`FRONT_BYTES`] of the file.
    pub(super) fn encode(&self) -> [u8; FRONT_BYTES] {
        let mut bytes = [0; SECTOR];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u16(VERSION);
        out.put_u16(0);
        out.put_u32(self.history);
        out.put_u64(self.nonce);
        put_pos(&mut out, self.base);
        out.put_i64(self.base_timestamp_ms);
        close_sector(&mut bytes, 0);
        let mut file = [0; FRONT_BYTES];
        file[..SECTOR].copy_from_slice(&bytes);
        file
    }

    /// Reads the beginning of a segment file.
    ///
    /// # Errors
    /// [`LogError::Damaged`] or [`LogError::Version`].
    pub(super) fn decode(bytes: &[u8], path: &Path) -> Result<Self, LogError> {
        let damaged = |what| LogError::Damaged { path: path.to_owned(), offset: 0, what };
        let sector = bytes.get(..SECTOR).ok_or_else(|| damaged("the header is cut short"))?;
        if sector[..8] != MAGIC {
            return Err(damaged("it does not begin as a segment does"));
        }
        if !sector_is_whole(sector, 0) {
            return Err(damaged("the header's checksum does not fit"));
        }
        let mut fields = &sector[8..];
        let version = fields.get_u16();
        if version != VERSION {
            return Err(LogError::Version {
                path: path.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        fields.advance(2);
        let history = fields.get_u32();
        let nonce = fields.get_u64();
        let base = get_pos(&mut fields).ok_or_else(|| damaged("the base is no position"))?;
        let id = Self::new(history, nonce, base, fields.get_i64());
        if path.file_name().and_then(parse_name) != Some((history, base.next_txid())) {
            return Err(damaged("the file's name is not what its header says"));
        }
        Ok(id)
    }
}

impl Seal {
    pub(super) fn encode(&self, seed: u32) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let mut out = &mut bytes[..];
        out.put_slice(&SEAL_MAGIC);
        out.put_u64(self.end);
        out.put_u64(self.last_at);
        put_pos(&mut out, self.position);
        out.put_i64(self.timestamp_ms);
        close_sector(&mut bytes, seed);
        bytes
    }

    /// `None` if there is none or a torn one: a seal is only ever a shortcut.
    pub(super) fn decode(seed: u32, bytes: &[u8]) -> Option<Self> {
        let sector = bytes.get(SECTOR..FRONT_BYTES)?;
        if sector[..8] != SEAL_MAGIC || !sector_is_whole(sector, seed) {
            return None;
        }
        let mut fields = &sector[8..];
        let end = fields.get_u64();
        let last_at = fields.get_u64();
        let position = get_pos(&mut fields)?;
        Some(Self { end, last_at, position, timestamp_ms: fields.get_i64() })
    }
}

/// A window on a file that moves forward: few reads, bounded memory.
pub(super) struct Window<'a> {
    file: &'a File,
    /// Reads stop here.
    limit: u64,
    buffer: Vec<u8>,
    start: u64,
    filled: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a File, limit: u64, capacity: usize) -> Self {
        Self { file, limit, buffer: vec![0; capacity.max(HEADER_BYTES)], start: 0, filled: 0 }
    }

    /// The bytes at `offset`, as many as `wanted` but not more than the capacity; fewer at the end.
    pub(super) fn bytes(&mut self, offset: u64, wanted: usize) -> io::Result<&[u8]> {
        let left = usize::try_from(self.limit.saturating_sub(offset)).unwrap_or(usize::MAX);
        let wanted = wanted.min(left).min(self.buffer.len());
        let inside =
            offset >= self.start && offset + wanted as u64 <= self.start + self.filled as u64;
        if !inside {
            let length = self.buffer.len().min(left);
            self.start = offset;
            self.filled = 0;
            self.filled = read_up_to(self.file, &mut self.buffer[..length], offset)?;
        }
        let from = usize::try_from(offset - self.start).expect("BUG: a window beyond memory");
        let to = (from + wanted).min(self.filled);
        Ok(self.buffer.get(from..to).unwrap_or(&[]))
    }

    /// The header at `offset`; `None` if there is no whole one or its record passes the limit.
    pub(super) fn header(&mut self, seed: u32, offset: u64) -> io::Result<Option<Header>> {
        let header = Header::decode(seed, self.bytes(offset, HEADER_BYTES)?);
        let limit = self.limit;
        Ok(header.filter(|h| offset + record::stored_bytes(h.info.ltx_bytes) <= limit))
    }

    /// Whether the payload of the record at `offset` is whole.
    pub(super) fn payload_is_whole(
        &mut self,
        seed: u32,
        offset: u64,
        header: &Header,
    ) -> io::Result<bool> {
        let mut crc = crc32fast::Hasher::new_with_initial(seed);
        let mut at = offset + HEADER_BYTES as u64;
        let end = offset + record::stored_bytes(header.info.ltx_bytes);
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let piece = self.bytes(at, left)?;
            if piece.is_empty() {
                return Ok(false);
            }
            crc.update(piece);
            at += piece.len() as u64;
        }
        Ok(crc.finalize() == header.payload_crc)
    }
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Where a record is, for finding others from there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    /// Last transaction of the record.
    pub(super) max: Txid,
    pub(super) at: u64,
}

/// Marks are at least this far apart, so the index of a segment is about 1/4000 of it.
pub(super) const MARK_BYTES: u64 = 64 << 10;

/// What a scan found in a segment.
#[derive(Clone, Debug)]
pub(super) struct Scanned {
    pub(super) end: u64,
    pub(super) position: Pos,
    pub(super) last: Option<(u64, RecordInfo)>,
    pub(super) marks: Vec<Mark>,
}

/// Walks over whole records that follow each other, from a known place to the first that is none.
pub(super) fn scan(
    window: &mut Window<'_>,
    seed: u32,
    from: u64,
    position: Pos,
) -> io::Result<Scanned> {
    let mut found = Scanned { end: from, position, last: None, marks: Vec::new() };
    let mut next_mark = 0;
    while let Some(header) = window.header(seed, found.end)? {
        if !header.info.follows(found.position)
            || !window.payload_is_whole(seed, found.end, &header)?
        {
            break;
        }
        if found.end >= next_mark {
            found.marks.push(Mark { max: header.info.max, at: found.end });
            next_mark = found.end + MARK_BYTES;
        }
        found.last = Some((found.end, header.info));
        found.position = header.info.pos();
        found.end += record::stored_bytes(header.info.ltx_bytes);
    }
    Ok(found)
}

/// What lies behind the last whole record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tail {
    /// Nothing, or zeros that were written ahead.
    Clean,
    /// The remains of writes that never became durable.
    Torn,
    /// A later record says that a transaction behind `after` had been durable.
    Damaged,
}

/// After so many zeros the system is asked where the next byte is that was ever written.
const HOLE_BYTES: u64 = 256 << 10;

/// Where data begins at or behind `at`, the holes of a sparse file left out; `None` if nothing but holes follows.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data.max(at))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks at what lies between the last whole record and the end of the file.
pub(super) fn tail(window: &mut Window<'_>, seed: u32, from: u64, after: Pos) -> io::Result<Tail> {
    let mut found = Tail::Clean;
    let mut at = from;
    let mut zeros = 0;
    loop {
        let bytes = window.bytes(at, SECTOR)?;
        if bytes.is_empty() {
            return Ok(found);
        }
        let length = bytes.len();
        if bytes.iter().all(|byte| *byte == 0) {
            at += length as u64;
            zeros += length as u64;
            if zeros >= HOLE_BYTES {
                zeros = 0;
                let Some(data) = next_data(window.file, at)? else { return Ok(found) };
                // Records begin at multiples of their alignment, and so do steps of a sector from `from`.
                at += (data - at) / SECTOR as u64 * SECTOR as u64;
            }
            continue;
        }
        zeros = 0;
        found = Tail::Torn;
        let starts: Vec<u64> = (0..length)
            .step_by(record::ALIGN)
            .filter(|start| bytes[*start..].starts_with(&record::MAGIC))
            .map(|start| at + start as u64)
            .collect();
        for start in starts {
            let header = Header::decode(seed, window.bytes(start, HEADER_BYTES)?);
            if header.is_some_and(|h| h.durable_txid > after.txid_raw()) {
                return Ok(Tail::Damaged);
            }
        }
        at += length as u64;
    }
}
