//! The write-ahead log: a header, then frames of one page each.
//!
//! ```text
//! header, 32 bytes                       frame header, 24 bytes, then the page
//!   0  magic 0x377f0682, +1: big-endian    0  page number
//!   4  version 3007000                     4  database size in pages if it commits, else 0
//!   8  page size                           8  salts, as in the header
//!  12  checkpoint sequence                16  checksum over the header's first 24 bytes and,
//!  16  salts                                  for each frame up to this one, its first 8 bytes and page
//!  24  checksum over bytes 0..24
//! ```
//! A frame counts if its salts are the header's and its checksum continues the chain; a transaction is
//! everything up to a counting frame that commits. The bytes of a restarted WAL stay behind, which is what
//! salts and chain tell apart. Source: SQLite file format, section 4.

use super::be::{get_u32, put_u32};
use crate::types::{PageNo, PageSize};

const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

const HEADER_VERSION: usize = 4;
const HEADER_PAGE_SIZE: usize = HEADER_VERSION + 4;
const HEADER_SEQUENCE: usize = HEADER_PAGE_SIZE + 4;
const HEADER_SALTS: usize = HEADER_SEQUENCE + 4;
const HEADER_CHECKSUM: usize = HEADER_SALTS + 8;

const FRAME_COMMIT: usize = 4;
const FRAME_SALTS: usize = FRAME_COMMIT + 4;
const FRAME_CHECKSUM: usize = FRAME_SALTS + 8;

/// Two numbers that tell one generation of a WAL from the one before it; kept as the bytes they are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Salts(pub [u8; 8]);

impl Salts {
    /// The salts of the next generation: the first number rises by one, the second is new.
    ///
    /// SQLite wal.c, `walRestartHdr`.
    #[must_use]
    pub fn next(self, random: u32) -> Self {
        let mut bytes = [0; 8];
        put_u32(&mut bytes, 0, get_u32(&self.0, 0).wrapping_add(1));
        put_u32(&mut bytes, 4, random);
        Self(bytes)
    }

    fn at(bytes: &[u8], at: usize) -> Self {
        let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
        Self(field.expect("BUG: the salts lie outside their structure"))
    }
}

/// Byte order of the words that a WAL's checksums add up: the order of the machine that began it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WalByteOrder {
    /// Magic 0x377f0682.
    Little,
    /// Magic 0x377f0683.
    Big,
}

impl WalByteOrder {
    /// This machine's order, which SQLite uses for a WAL it begins.
    pub const NATIVE: Self = if cfg!(target_endian = "big") { Self::Big } else { Self::Little };
}

/// The running checksum of a WAL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct WalChecksum(pub u32, pub u32);

impl WalChecksum {
    /// The checksum with more bytes added; their number must be a multiple of 8 (a rest is ignored).
    ///
    /// The two additions of a step depend on the step before, so this runs at 8 bytes in two cycles at
    /// best; everything else is kept off that path. SQLite wal.c, `walChecksumBytes`.
    #[must_use]
    pub fn update(self, order: WalByteOrder, bytes: &[u8]) -> Self {
        debug_assert_eq!(bytes.len() % 8, 0, "checksums add up words in pairs");
        match order {
            WalByteOrder::Big => self.fold(bytes, u32::from_be_bytes),
            #[allow(
                clippy::little_endian_bytes,
                reason = "the format follows the writer's machine"
            )]
            WalByteOrder::Little => self.fold(bytes, u32::from_le_bytes),
        }
    }

    #[inline(always)]
    fn fold(self, bytes: &[u8], word: impl Fn([u8; 4]) -> u32) -> Self {
        let Self(mut first, mut second) = self;
        let mut step = |pair: &[u8; 8]| {
            let [a, b, c, d, e, f, g, h] = *pair;
            first = first.wrapping_add(word([a, b, c, d])).wrapping_add(second);
            second = second.wrapping_add(word([e, f, g, h])).wrapping_add(first);
        };
        let (blocks, rest) = bytes.as_chunks::<64>();
        for block in blocks {
            block.as_chunks::<8>().0.iter().for_each(&mut step);
        }
        rest.as_chunks::<8>().0.iter().for_each(&mut step);
        Self(first, second)
    }

    /// The checksum stored at an offset.
    fn at(bytes: &[u8], at: usize) -> Self {
        Self(get_u32(bytes, at), get_u32(bytes, at + 4))
    }

    fn put(self, bytes: &mut [u8], at: usize) {
        put_u32(bytes, at, self.0);
        put_u32(bytes, at + 4, self.1);
    }
}

/// Why bytes are not the header of a WAL. SQLite treats such a WAL as empty.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WalHeaderError {
    /// Fewer than 32 bytes.
    #[error("{0} bytes are too short for a WAL header")]
    Short(usize),
    /// Not a WAL.
    #[error("not a WAL: magic {0:#010x}")]
    Magic(u32),
    /// Written by a SQLite of the future.
    #[error("unknown WAL version {0}")]
    Version(u32),
    /// No power of two from 512 to 65536.
    #[error("{0} is not a page size")]
    PageSize(u32),
    /// Torn or damaged.
    #[error("the checksum of the WAL header does not match")]
    Checksum,
}

/// A valid WAL header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// Byte order of the checksums.
    pub order: WalByteOrder,
    /// Size of a page.
    pub page_size: PageSize,
    /// Number of restarts.
    pub sequence: u32,
    /// What every frame of this generation repeats.
    pub salts: Salts,
    /// Where the chain of frame checksums begins.
    pub checksum: WalChecksum,
}

impl WalHeader {
    /// Length of the header in bytes.
    pub const SIZE: usize = 32;

    /// A header for a new generation, in this machine's byte order.
    #[must_use]
    pub fn new(page_size: PageSize, sequence: u32, salts: Salts) -> Self {
        let order = WalByteOrder::NATIVE;
        let mut header = Self { order, page_size, sequence, salts, checksum: WalChecksum(0, 0) };
        let bytes = header.encode();
        header.checksum = WalChecksum::default().update(order, &bytes[..HEADER_CHECKSUM]);
        header
    }

    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`WalHeaderError`] says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, WalHeaderError> {
        if bytes.len() < Self::SIZE {
            return Err(WalHeaderError::Short(bytes.len()));
        }
        let order = match get_u32(bytes, 0) {
            MAGIC => WalByteOrder::Little,
            magic if magic == MAGIC + 1 => WalByteOrder::Big,
            other => return Err(WalHeaderError::Magic(other)),
        };
        let size = get_u32(bytes, HEADER_PAGE_SIZE);
        let page_size = PageSize::new(size).ok_or(WalHeaderError::PageSize(size))?;
        let checksum = WalChecksum::at(bytes, HEADER_CHECKSUM);
        if WalChecksum::default().update(order, &bytes[..HEADER_CHECKSUM]) != checksum {
            return Err(WalHeaderError::Checksum);
        }
        // After the checksum: a torn header is no sign of a future version.
        match get_u32(bytes, HEADER_VERSION) {
            VERSION => (),
            other => return Err(WalHeaderError::Version(other)),
        }
        Ok(Self {
            order,
            page_size,
            sequence: get_u32(bytes, HEADER_SEQUENCE),
            salts: Salts::at(bytes, HEADER_SALTS),
            checksum,
        })
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let magic = match self.order {
            WalByteOrder::Little => MAGIC,
            WalByteOrder::Big => MAGIC + 1,
        };
        put_u32(&mut bytes, 0, magic);
        put_u32(&mut bytes, HEADER_VERSION, VERSION);
        put_u32(&mut bytes, HEADER_PAGE_SIZE, self.page_size.get());
        put_u32(&mut bytes, HEADER_SEQUENCE, self.sequence);
        bytes[HEADER_SALTS..HEADER_CHECKSUM].copy_from_slice(&self.salts.0);
        self.checksum.put(&mut bytes, HEADER_CHECKSUM);
        bytes
    }

    /// Length of a frame, header and page.
    #[must_use]
    pub fn frame_size(&self) -> u64 {
        FrameHeader::frame_size(self.page_size)
    }

    /// Byte offset of a frame in the WAL; frames count from 1 (and 0 gives the offset of the first one).
    #[must_use]
    pub fn frame_offset(&self, frame: u32) -> u64 {
        FrameHeader::offset(self.page_size, frame)
    }

    /// Number of whole frames that a WAL of some length has room for.
    #[must_use]
    pub fn frames(&self, wal_len: u64) -> u32 {
        let bytes = wal_len.saturating_sub(Self::SIZE as u64);
        u32::try_from(bytes / self.frame_size()).unwrap_or(u32::MAX)
    }

    /// The chain after a frame if the frame belongs to this WAL and continues the chain `before` it.
    #[must_use]
    pub fn verify(
        &self,
        before: WalChecksum,
        frame_header: &[u8],
        page: &[u8],
    ) -> Option<(FrameHeader, WalChecksum)> {
        let frame = FrameHeader::parse(frame_header)?;
        if frame.salts != self.salts || page.len() != self.page_size.bytes() {
            return None;
        }
        let after =
            before.update(self.order, &frame_header[..FRAME_SALTS]).update(self.order, page);
        (after == frame.checksum).then_some((frame, after))
    }
}

/// The header of one frame. Whether the frame counts is told by [`WalHeader::verify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Which page the frame holds.
    pub page: PageNo,
    /// Size of the database in pages if the frame commits a transaction, else 0.
    pub commit: u32,
    /// The salts of the frame's generation.
    pub salts: Salts,
    /// The chain after this frame.
    pub checksum: WalChecksum,
}

impl FrameHeader {
    /// Length of the frame header in bytes.
    pub const SIZE: usize = 24;

    /// Length of a frame, header and page.
    #[must_use]
    pub fn frame_size(page_size: PageSize) -> u64 {
        Self::SIZE as u64 + u64::from(page_size.get())
    }

    /// Byte offset of a frame in the WAL; frames count from 1.
    #[must_use]
    pub fn offset(page_size: PageSize, frame: u32) -> u64 {
        WalHeader::SIZE as u64 + u64::from(frame.saturating_sub(1)) * Self::frame_size(page_size)
    }

    /// Reads a frame header; `None` if there are too few bytes or the page number is 0.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < Self::SIZE {
            return None;
        }
        Some(Self {
            page: PageNo::new(get_u32(bytes, 0))?,
            commit: get_u32(bytes, FRAME_COMMIT),
            salts: Salts::at(bytes, FRAME_SALTS),
            checksum: WalChecksum::at(bytes, FRAME_CHECKSUM),
        })
    }

    /// The frame header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        put_u32(&mut bytes, 0, self.page.get());
        put_u32(&mut bytes, FRAME_COMMIT, self.commit);
        bytes[FRAME_SALTS..FRAME_CHECKSUM].copy_from_slice(&self.salts.0);
        self.checksum.put(&mut bytes, FRAME_CHECKSUM);
        bytes
    }
}

/// Encodes frames that continue a WAL.
#[derive(Clone, Copy, Debug)]
pub struct WalEncoder {
    order: WalByteOrder,
    salts: Salts,
    chain: WalChecksum,
}

impl WalEncoder {
    /// Continues after the header itself.
    #[must_use]
    pub fn begin(header: &WalHeader) -> Self {
        Self { order: header.order, salts: header.salts, chain: header.checksum }
    }

    /// Continues after a frame whose checksum is `chain`.
    #[must_use]
    pub fn resume(order: WalByteOrder, salts: Salts, chain: WalChecksum) -> Self {
        Self { order, salts, chain }
    }

    /// Appends a frame to `out`. `commit` is the size of the database in pages, or 0 within a transaction.
    pub fn frame(&mut self, page: PageNo, commit: u32, image: &[u8], out: &mut Vec<u8>) {
        let mut frame =
            FrameHeader { page, commit, salts: self.salts, checksum: WalChecksum(0, 0) };
        self.chain =
            self.chain.update(self.order, &frame.encode()[..FRAME_SALTS]).update(self.order, image);
        frame.checksum = self.chain;
        out.extend_from_slice(&frame.encode());
        out.extend_from_slice(image);
    }

    /// The chain after the last frame.
    #[must_use]
    pub fn chain(&self) -> WalChecksum {
        self.chain
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every frame of a WAL that counts, as (page, commit).
    fn scan(wal: &[u8]) -> Vec<(u32, u32)> {
        let Ok(header) = WalHeader::parse(wal) else { return Vec::new() };
        let mut chain = header.checksum;
        let mut found = Vec::new();
        for n in 1..=header.frames(wal.len() as u64) {
            let start = usize::try_from(header.frame_offset(n)).unwrap();
            let (head, rest) = wal[start..].split_at(FrameHeader::SIZE);
            let page = &rest[..header.page_size.bytes()];
            let Some((frame, after)) = header.verify(chain, head, page) else { break };
            chain = after;
            found.push((frame.page.get(), frame.commit));
        }
        found
    }

    fn sqlite_wal() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "pragma journal_mode=wal; create table t(a); insert into t values(1);
             insert into t values(randomblob(9000));",
        )
        .unwrap();
        std::fs::read(dir.path().join("x.db-wal")).unwrap()
    }

    #[test]
    fn a_wal_written_by_sqlite_is_read() {
        let wal = sqlite_wal();
        let frames = scan(&wal);
        assert_eq!(frames.iter().filter(|frame| frame.1 != 0).count(), 3);
        assert_eq!(frames.len(), (wal.len() - 32) / (24 + 4096));
        assert_eq!(WalHeader::parse(&wal).unwrap().encode(), wal[..32]);
    }

    #[test]
    fn a_flipped_bit_ends_the_chain() {
        let mut wal = sqlite_wal();
        let whole = scan(&wal).len();
        let last = wal.len() - 1;
        wal[last] ^= 1;
        assert_eq!(scan(&wal).len(), whole - 1);
        wal[32 + 24 + 100] ^= 1;
        assert_eq!(scan(&wal), []);
    }

    #[test]
    fn encoded_frames_are_read_back_in_both_byte_orders() {
        for order in [WalByteOrder::Little, WalByteOrder::Big] {
            let mut header =
                WalHeader::new(PageSize::MIN, 7, Salts([1, 2, 3, 4, 5, 6, 7, 8]).next(99));
            header.order = order;
            header.checksum = WalChecksum::default().update(order, &header.encode()[..24]);
            let mut wal = header.encode().to_vec();
            let mut encoder = WalEncoder::begin(&header);
            encoder.frame(PageNo::new(2).unwrap(), 0, &[7; 512], &mut wal);
            let mut encoder = WalEncoder::resume(order, header.salts, encoder.chain());
            encoder.frame(PageNo::FIRST, 2, &[9; 512], &mut wal);
            assert_eq!(scan(&wal), [(2, 0), (1, 2)], "{order:?}");
        }
    }

    #[test]
    fn each_broken_field_has_its_error() {
        let good = WalHeader::new(PageSize::MIN, 0, Salts::default()).encode();
        let check = |at: usize, value: u8, error: WalHeaderError| {
            let mut bytes = good;
            bytes[at] = value;
            assert_eq!(WalHeader::parse(&bytes), Err(error));
        };
        check(0, 0, WalHeaderError::Magic(0x007f_0682));
        check(11, 1, WalHeaderError::PageSize(513));
        check(31, good[31] ^ 1, WalHeaderError::Checksum);
        check(7, 0, WalHeaderError::Checksum);
        assert_eq!(WalHeader::parse(&good[..31]), Err(WalHeaderError::Short(31)));
    }

    proptest! {
        #[test]
        fn the_checksum_equals_its_definition(words in prop::collection::vec(any::<(u32, u32)>(), 0..70)) {
            let bytes: Vec<u8> =
                words.iter().flat_map(|(a, b)| [a.to_be_bytes(), b.to_be_bytes()].concat()).collect();
            let mut expected = (1u32, 2u32);
            for (a, b) in words {
                expected.0 = expected.0.wrapping_add(a).wrapping_add(expected.1);
                expected.1 = expected.1.wrapping_add(b).wrapping_add(expected.0);
            }
            let sum = WalChecksum(1, 2).update(WalByteOrder::Big, &bytes);
            prop_assert_eq!((sum.0, sum.1), expected);
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000), big in any::<bool>()) {
            let _frame = FrameHeader::parse(&bytes);
            let _ignored = WalHeader::parse(&bytes);
            let mut wal = WalHeader::new(PageSize::MIN, u32::from(big), Salts::default()).encode().to_vec();
            wal.extend(bytes);
            scan(&wal);
        }
    }
}
