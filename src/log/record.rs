//! One record of the log: what it says of itself, and its bytes.
//!
//! ```text
//! offset size
//!      0    4  "WREC"
//!      4    2  length of this header: 104
//!      6    2  flags: 1 = the WAL fields mean something
//!      8    8  min txid
//!     16    8  max txid
//!     24    8  epoch
//!     32    8  database checksum before
//!     40    8  database checksum after
//!     48    4  page size
//!     52    4  database size in pages after
//!     56    4  number of pages in the LTX file
//!     60    4  length of the LTX file
//!     64    8  timestamp, ms since the Unix epoch
//!     72   16  WAL: salt 1, salt 2, first frame, last frame
//!     88    8  last transaction that was durable when this record was written, 0 = none
//!     96    4  CRC-32 of the LTX file and the padding
//!    100    4  CRC-32 of bytes 0..100
//!    104    n  LTX file
//!        0..7  zeros up to a multiple of 8
//! ```
//! All big endian. Both CRCs begin with the segment's seed, so bytes of another segment are no record.

use bytes::{Buf as _, BufMut as _};

use crate::types::{Checksum, Epoch, PageSize, Pos, Txid};

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = HEADER_LENGTH as usize;
const HEADER_LENGTH: u16 = 104;
/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// How each record begins.
pub(super) const MAGIC: [u8; 4] = *b"WREC";
const FLAG_WAL: u16 = 1;
const CRC_AT: usize = HEADER_BYTES - 4;
static PADDING: [u8; ALIGN] = [0; ALIGN];

/// A record's header as it was read and found whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) info: RecordInfo,
    /// Last transaction that was durable when this record was written; 0 = none.
    pub(super) durable_txid: u64,
    pub(super) payload_crc: u32,
}

/// Zeros that follow an LTX file of this length.
pub(super) fn padding(ltx_bytes: u32) -> &'static [u8] {
    let tail = (HEADER_BYTES + ltx_bytes as usize) % ALIGN;
    if tail == 0 { &[] } else { &PADDING[tail..] }
}

/// Bytes that a record takes in the segment.
pub(super) fn stored_bytes(ltx_bytes: u32) -> u64 {
    (HEADER_BYTES as u64 + u64::from(ltx_bytes)).next_multiple_of(ALIGN as u64)
}

/// CRC of a record's LTX file and padding.
pub(super) fn payload_crc(seed: u32, ltx: &[u8], padding: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(ltx);
    crc.update(padding);
    crc.finalize()
}

impl Header {
    pub(super) fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let info = &self.info;
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u16(HEADER_LENGTH);
        out.put_u16(if info.wal.is_some() { FLAG_WAL } else { 0 });
        out.put_u64(info.min.get());
        out.put_u64(info.max.get());
        out.put_u64(info.epoch.get());
        out.put_u64(info.pre.get());
        out.put_u64(info.post.get());
        out.put_u32(info.page_size.get());
        out.put_u32(info.commit);
        out.put_u32(info.pages);
        out.put_u32(info.ltx_bytes);
        out.put_i64(info.timestamp_ms);
        let wal = info.wal.unwrap_or(WalSpan { salts: (0, 0), start_frame: 0, end_frame: 0 });
        out.put_u32(wal.salts.0);
        out.put_u32(wal.salts.1);
        out.put_u32(wal.start_frame);
        out.put_u32(wal.end_frame);
        out.put_u64(self.durable_txid);
        out.put_u32(self.payload_crc);
        let crc = payload_crc(seed, &bytes[..CRC_AT], &[]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// `None` if the bytes are too few or not a whole header of this segment.
    pub(super) fn decode(seed: u32, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let mut fields = bytes;
        if bytes[..4] != MAGIC {
            return None;
        }
        fields.advance(MAGIC.len());
        let crc = payload_crc(seed, &bytes[..CRC_AT], &[]);
        if bytes[CRC_AT..] != crc.to_be_bytes() || fields.get_u16() != HEADER_LENGTH {
            return None;
        }
        let flags = fields.get_u16();
        let min = Txid::new(fields.get_u64())?;
        let max = Txid::new(fields.get_u64())?;
        let epoch = Epoch::new(fields.get_u64());
        let pre = Checksum::from_stored(fields.get_u64())?;
        let post = Checksum::from_stored(fields.get_u64())?;
        let page_size = PageSize::new(fields.get_u32())?;
        let commit = fields.get_u32();
        let pages = fields.get_u32();
        let ltx_bytes = fields.get_u32();
        let timestamp_ms = fields.get_i64();
        let wal = WalSpan {
            salts: (fields.get_u32(), fields.get_u32()),
            start_frame: fields.get_u32(),
            end_frame: fields.get_u32(),
        };
        let wal = (flags & FLAG_WAL != 0).then_some(wal);
        let durable_txid = fields.get_u64();
        let payload_crc = fields.get_u32();
        let info = RecordInfo {
            min,
            max,
            epoch,
            pre,
            post,
            page_size,
            commit,
            pages,
            timestamp_ms,
            wal,
            ltx_bytes,
        };
        Some(Self { info, durable_txid, payload_crc })
    }
}

/// Which frames of the WAL a transaction came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct WalSpan {
    /// Both salts of the WAL's header.
    pub salts: (u32, u32),
    /// First frame, counted from 1.
    pub start_frame: u32,
    /// Last frame, the one with the commit size.
    pub end_frame: u32,
}

/// What the log knows about one record without decoding it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordInfo {
    /// First transaction in it.
    pub min: Txid,
    /// Last transaction in it.
    pub max: Txid,
    /// Epoch of the primary that wrote `max`.
    pub epoch: Epoch,
    /// Database checksum before `min`.
    pub pre: Checksum,
    /// Database checksum after `max`.
    pub post: Checksum,
    /// Page size after `max`.
    pub page_size: PageSize,
    /// Database size in pages after `max`.
    pub commit: u32,
    /// Number of pages in it.
    pub pages: u32,
    /// When it was committed: milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Where in the WAL it came from; `None` for all other sources.
    pub wal: Option<WalSpan>,
    /// Length of its LTX file.
    pub ltx_bytes: u32,
}

impl RecordInfo {
    /// The position after it.
    #[must_use]
    pub fn pos(&self) -> Pos {
        Pos { epoch: self.epoch, txid: Some(self.max), checksum: self.post }
    }

    /// Whether it may come right after `position`.
    #[must_use]
    pub fn follows(&self, position: Pos) -> bool {
        self.min == position.next_txid()
            && self.max >= self.min
            && self.max < Txid::END
            && self.pre == position.checksum
            && self.epoch >= position.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> Header {
        let info = RecordInfo {
            min: Txid::new(7).unwrap(),
            max: Txid::new(9).unwrap(),
            epoch: Epoch::new(3),
            pre: Checksum::new(11),
            post: Checksum::new(12),
            page_size: PageSize::new(65536).unwrap(),
            commit: 100,
            pages: 5,
            timestamp_ms: -1,
            wal: Some(WalSpan { salts: (1, 2), start_frame: 3, end_frame: 4 }),
            ltx_bytes: 1234,
        };
        Header { info, durable_txid: 6, payload_crc: 0xdead_beef }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let mut header = sample();
        assert_eq!(Header::decode(5, &header.encode(5)), Some(header));
        header.info.wal = None;
        assert_eq!(Header::decode(5, &header.encode(5)), Some(header));
    }

    #[test]
    fn a_header_of_another_segment_or_with_a_flipped_bit_is_none() {
        let bytes = sample().encode(5);
        assert_eq!(Header::decode(6, &bytes), None);
        assert_eq!(Header::decode(5, &bytes[..HEADER_BYTES - 1]), None);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(5, &flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn records_begin_at_multiples_of_eight() {
        for length in 0..32 {
            let stored = stored_bytes(length);
            assert_eq!(stored % 8, 0);
            let padded = HEADER_BYTES + length as usize + padding(length).len();
            assert_eq!(padded as u64, stored, "{length}");
        }
    }
}
