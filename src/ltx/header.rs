//! The first 100 and the last 16 bytes of an LTX file.
//!
//! ```text
//! header                                   trailer, from the end
//!  0  magic "LTX1"      40  pre_apply       -16  post_apply
//!  4  flags             48  wal_offset       -8  file checksum
//!  8  page_size         56  wal_size
//! 12  commit            64  wal_salt1
//! 16  min_txid          68  wal_salt2
//! 24  max_txid          72  node_id
//! 32  timestamp, ms     80  reserved, 20 zero bytes
//! ```
//! All integers are big endian. Source: LTX v3, `Header` and `Trailer`.

use crate::types::{Checksum, NodeId, PageSize, Txid};

use super::Problem;

/// Bytes of a header.
pub const HEADER_LEN: usize = 100;
/// Bytes of a trailer.
pub const TRAILER_LEN: usize = 16;

const MAGIC: [u8; 4] = *b"LTX1";
const FLAGS_AT: usize = 4;
const PAGE_SIZE_AT: usize = FLAGS_AT + 4;
const COMMIT_AT: usize = PAGE_SIZE_AT + 4;
const MIN_TXID_AT: usize = COMMIT_AT + 4;
const MAX_TXID_AT: usize = MIN_TXID_AT + 8;
const TIMESTAMP_AT: usize = MAX_TXID_AT + 8;
const PRE_APPLY_AT: usize = TIMESTAMP_AT + 8;
const WAL_OFFSET_AT: usize = PRE_APPLY_AT + 8;
const WAL_SIZE_AT: usize = WAL_OFFSET_AT + 8;
const WAL_SALT1_AT: usize = WAL_SIZE_AT + 8;
const WAL_SALT2_AT: usize = WAL_SALT1_AT + 4;
const NODE_ID_AT: usize = WAL_SALT2_AT + 4;

/// The header's flag word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags(u32);

impl Flags {
    /// A file with checksums of the database before and after.
    pub const NONE: Self = Self(0);
    /// A file without them, as Litestream writes and restores it.
    pub const NO_CHECKSUM: Self = Self(2);

    /// `None` if a bit is set that v3 does not know.
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        if raw & !Self::NO_CHECKSUM.0 == 0 { Some(Self(raw)) } else { None }
    }

    /// The flag word as stored.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether the file carries the database's checksums.
    #[must_use]
    pub const fn has_checksums(self) -> bool {
        self.0 & Self::NO_CHECKSUM.0 == 0
    }
}

/// The part of a WAL that a change set came from; all zero if it did not come from one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalSource {
    /// Byte offset in the WAL; 0 = none.
    pub offset: i64,
    /// Bytes of the WAL.
    pub size: i64,
    /// First salt of the WAL header.
    pub salt1: u32,
    /// Second salt of the WAL header.
    pub salt2: u32,
}

/// What a change set covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whether checksums are carried.
    pub flags: Flags,
    /// Page size of the database.
    pub page_size: PageSize,
    /// Pages of the database afterwards; 0 = deleted.
    pub commit: u32,
    /// First transaction; 1 makes the file a snapshot, which holds every page.
    pub min_txid: Txid,
    /// Last transaction.
    pub max_txid: Txid,
    /// When it was committed, in milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
    /// Checksum of the database before; `None` exactly in snapshots and files without checksums.
    pub pre_apply: Option<Checksum>,
    /// Where the pages came from.
    pub wal: WalSource,
    /// The node that wrote the transaction; 0 = unknown or merged.
    pub node_id: NodeId,
}

/// Which rule of the header is broken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Not an LTX file at all.
    #[error("it does not begin with 'LTX1', so it is no LTX file")]
    Magic,
    /// A flag v3 does not know.
    #[error("the flags {0:#x} are unknown")]
    Flags(u32),
    /// Not a power of two from 512 to 65536.
    #[error("{0} is no page size")]
    PageSize(u32),
    /// A transaction number of 0 or 2^64-1.
    #[error("{0} is no transaction number")]
    Txid(u64),
    /// The first transaction is after the last.
    #[error("the first transaction {min} is after the last {max}")]
    TxidOrder {
        /// First transaction.
        min: Txid,
        /// Last transaction.
        max: Txid,
    },
    /// A WAL offset or size is negative.
    #[error("WAL offset {offset} or size {size} is negative")]
    WalNegative {
        /// WAL offset.
        offset: i64,
        /// WAL size.
        size: i64,
    },
    /// A WAL size or salt without a WAL offset.
    #[error("a WAL size or salt is given without a WAL offset")]
    WalWithoutOffset,
    /// A checksum before the first transaction.
    #[error("a snapshot (first transaction 1) has a pre-apply checksum")]
    PreApplyInSnapshot,
    /// A checksum where the flags say there is none.
    #[error("there is a pre-apply checksum although the flags say there are no checksums")]
    PreApplyNotAllowed,
    /// No checksum where the flags say there is one.
    #[error("the pre-apply checksum is missing")]
    PreApplyMissing,
    /// A checksum without its flag bit.
    #[error("the pre-apply checksum {0:016x} lacks its flag bit")]
    PreApplyFlagBit(u64),
}

impl Header {
    /// Whether the file holds a whole database.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.min_txid == Txid::FIRST
    }

    /// Checks every rule of LTX v3, in the reference's order.
    ///
    /// # Errors
    /// [`HeaderError`] says which rule is broken.
    pub fn check(&self) -> Result<(), HeaderError> {
        if self.min_txid > self.max_txid {
            return Err(HeaderError::TxidOrder { min: self.min_txid, max: self.max_txid });
        }
        let WalSource { offset, size, salt1, salt2 } = self.wal;
        if offset < 0 || size < 0 {
            return Err(HeaderError::WalNegative { offset, size });
        }
        if offset == 0 && (salt1 | salt2 != 0 || size != 0) {
            return Err(HeaderError::WalWithoutOffset);
        }
        match (self.is_snapshot(), self.flags.has_checksums(), self.pre_apply) {
            (true, _, Some(_)) => Err(HeaderError::PreApplyInSnapshot),
            (false, false, Some(_)) => Err(HeaderError::PreApplyNotAllowed),
            (false, true, None) => Err(HeaderError::PreApplyMissing),
            (true, _, None) | (false, false, None) | (false, true, Some(_)) => Ok(()),
        }
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`HeaderError`] says which rule is broken.
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        let raw = RawHeader::read(bytes)?;
        let flags = Flags::new(raw.flags).ok_or(HeaderError::Flags(raw.flags))?;
        let header = raw.believe(flags)?;
        header.check()?;
        Ok(header)
    }

    /// Reads and checks a header of a v1 file; says too whether its pages are compressed.
    pub(super) fn parse_v1(bytes: &[u8; HEADER_LEN]) -> Result<(Self, bool), HeaderError> {
        let raw = RawHeader::read(bytes)?;
        let is_compressed = match raw.flags {
            0 => false,
            1 => true,
            flags => return Err(HeaderError::Flags(flags)),
        };
        let header = raw.believe(Flags::NONE)?;
        header.check()?;
        Ok((header, is_compressed))
    }

    /// The header as stored.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(FLAGS_AT, &self.flags.0.to_be_bytes());
        put(PAGE_SIZE_AT, &self.page_size.get().to_be_bytes());
        put(COMMIT_AT, &self.commit.to_be_bytes());
        put(MIN_TXID_AT, &self.min_txid.get().to_be_bytes());
        put(MAX_TXID_AT, &self.max_txid.get().to_be_bytes());
        put(TIMESTAMP_AT, &self.timestamp_ms.to_be_bytes());
        put(PRE_APPLY_AT, &self.pre_apply.map_or(0, Checksum::get).to_be_bytes());
        put(WAL_OFFSET_AT, &self.wal.offset.to_be_bytes());
        put(WAL_SIZE_AT, &self.wal.size.to_be_bytes());
        put(WAL_SALT1_AT, &self.wal.salt1.to_be_bytes());
        put(WAL_SALT2_AT, &self.wal.salt2.to_be_bytes());
        put(NODE_ID_AT, &self.node_id.get().to_be_bytes());
        bytes
    }
}

/// The fields as stored, not believed yet; v1 and v3 have them at the same offsets.
struct RawHeader {
    flags: u32,
    page_size: u32,
    commit: u32,
    min_txid: u64,
    max_txid: u64,
    timestamp_ms: i64,
    pre_apply: u64,
    wal: WalSource,
    node_id: u64,
}

impl RawHeader {
    fn read(bytes: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        if bytes[..4] != MAGIC {
            return Err(HeaderError::Magic);
        }
        Ok(Self {
            flags: be32(bytes, FLAGS_AT),
            page_size: be32(bytes, PAGE_SIZE_AT),
            commit: be32(bytes, COMMIT_AT),
            min_txid: be64(bytes, MIN_TXID_AT),
            max_txid: be64(bytes, MAX_TXID_AT),
            timestamp_ms: be64(bytes, TIMESTAMP_AT).cast_signed(),
            pre_apply: be64(bytes, PRE_APPLY_AT),
            wal: WalSource {
                offset: be64(bytes, WAL_OFFSET_AT).cast_signed(),
                size: be64(bytes, WAL_SIZE_AT).cast_signed(),
                salt1: be32(bytes, WAL_SALT1_AT),
                salt2: be32(bytes, WAL_SALT2_AT),
            },
            node_id: be64(bytes, NODE_ID_AT),
        })
    }

    /// Gives the fields their types; the rules between them are [`Header::check`]'s.
    fn believe(self, flags: Flags) -> Result<Header, HeaderError> {
        let pre_apply = match self.pre_apply {
            0 => None,
            stored => {
                Some(Checksum::from_stored(stored).ok_or(HeaderError::PreApplyFlagBit(stored))?)
            }
        };
        Ok(Header {
            flags,
            page_size: PageSize::new(self.page_size)
                .ok_or(HeaderError::PageSize(self.page_size))?,
            commit: self.commit,
            min_txid: Txid::new(self.min_txid).ok_or(HeaderError::Txid(self.min_txid))?,
            max_txid: Txid::new(self.max_txid).ok_or(HeaderError::Txid(self.max_txid))?,
            timestamp_ms: self.timestamp_ms,
            pre_apply,
            wal: self.wal,
            node_id: NodeId::new(self.node_id),
        })
    }
}

/// The end of an LTX file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Checksum of the database afterwards; `None` exactly in files without checksums.
    pub post_apply: Option<Checksum>,
    /// Checksum of everything before it, pages uncompressed.
    pub file: Checksum,
}

impl Trailer {
    /// Reads a trailer by the rules of its header; the sums themselves are checked elsewhere.
    pub(super) fn parse(bytes: &[u8; TRAILER_LEN], header: &Header) -> Result<Self, Problem> {
        let (post, file) = (be64(bytes, 0), be64(bytes, 8));
        let post_apply = if header.flags.has_checksums() {
            Some(Checksum::from_stored(post).ok_or(Problem::PostApplyFlagBit(post))?)
        } else if post == 0 {
            None
        } else {
            return Err(Problem::PostApplyNotAllowed);
        };
        if let (0, Some(sum)) = (header.commit, post_apply)
            && sum != Checksum::EMPTY
        {
            return Err(Problem::PostApplyOfNothing(sum));
        }
        let file = Checksum::from_stored(file).ok_or(Problem::FileChecksumFlagBit(file))?;
        Ok(Self { post_apply, file })
    }

    /// The trailer as stored.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(&self.post_apply.map_or(0, Checksum::get).to_be_bytes());
        bytes[8..].copy_from_slice(&self.file.get().to_be_bytes());
        bytes
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("BUG: two bytes are two bytes"))
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("BUG: four bytes are four bytes"))
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("BUG: eight bytes are eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn increment() -> Header {
        Header {
            flags: Flags::NONE,
            page_size: PageSize::new(4096).unwrap(),
            commit: 7,
            min_txid: Txid::new(2).unwrap(),
            max_txid: Txid::new(9).unwrap(),
            timestamp_ms: -1,
            pre_apply: Some(Checksum::new(5)),
            wal: WalSource { offset: 32, size: 0, salt1: 1, salt2: 2 },
            node_id: NodeId::new(0xabcd),
        }
    }

    fn check(change: impl FnOnce(&mut Header), expected: HeaderError) {
        let mut header = increment();
        change(&mut header);
        assert_eq!(header.check(), Err(expected));
        assert!(Header::parse(&header.to_bytes()).is_err());
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let header = increment();
        assert_eq!(Header::parse(&header.to_bytes()), Ok(header));
        let snapshot = Header { min_txid: Txid::FIRST, pre_apply: None, ..header };
        assert_eq!(Header::parse(&snapshot.to_bytes()), Ok(snapshot));
    }

    #[test]
    fn each_rule_has_its_error() {
        let txid = |raw| Txid::new(raw).unwrap();
        check(
            |h| h.max_txid = Txid::FIRST,
            HeaderError::TxidOrder { min: txid(2), max: Txid::FIRST },
        );
        check(|h| h.wal.offset = -1, HeaderError::WalNegative { offset: -1, size: 0 });
        check(|h| h.wal.size = -1, HeaderError::WalNegative { offset: 32, size: -1 });
        check(|h| h.wal.offset = 0, HeaderError::WalWithoutOffset);
        check(
            |h| h.wal = WalSource { size: 1, ..WalSource::default() },
            HeaderError::WalWithoutOffset,
        );
        check(|h| h.min_txid = Txid::FIRST, HeaderError::PreApplyInSnapshot);
        check(|h| h.flags = Flags::NO_CHECKSUM, HeaderError::PreApplyNotAllowed);
        check(|h| h.pre_apply = None, HeaderError::PreApplyMissing);
    }

    #[test]
    fn stored_nonsense_is_named() {
        let with = |at: usize, field: &[u8]| {
            let mut bytes = increment().to_bytes();
            bytes[at..at + field.len()].copy_from_slice(field);
            Header::parse(&bytes).unwrap_err()
        };
        assert_eq!(with(0, b"SQLi"), HeaderError::Magic);
        assert_eq!(with(4, &1u32.to_be_bytes()), HeaderError::Flags(1));
        assert_eq!(with(8, &1000u32.to_be_bytes()), HeaderError::PageSize(1000));
        assert_eq!(with(16, &0u64.to_be_bytes()), HeaderError::Txid(0));
        assert_eq!(with(24, &u64::MAX.to_be_bytes()), HeaderError::Txid(u64::MAX));
        assert_eq!(with(40, &5u64.to_be_bytes()), HeaderError::PreApplyFlagBit(5));
    }

    #[test]
    fn reserved_bytes_are_ignored() {
        let mut bytes = increment().to_bytes();
        bytes[99] = 1;
        assert_eq!(Header::parse(&bytes), Ok(increment()));
    }
}
