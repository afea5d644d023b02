//! Pages as LZ4 blocks, and the legacy form: one LZ4 frame per page.
//!
//! Frames are walked here and not by a stream reader, because those look for a following frame and
//! swallow bytes that are no longer theirs. Source: LZ4 Frame Format 1.6.

use std::io::{self, Read};

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};

use super::Problem;

const FRAME_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// Version 1, independent blocks, content checksum; blocks of at most 64 KiB; checksum of the two.
const FRAME_DESCRIPTOR: [u8; 3] = [0x64, 0x40, 0xa7];
const BLOCK_IS_STORED: u32 = 1 << 31;

/// The most bytes a block of `len` bytes can need.
pub(super) fn bound(len: usize) -> usize {
    len + len / 255 + 16
}

/// Compresses page after page without allocating.
pub(super) struct BlockCompressor {
    table: CompressTable,
    block: Vec<u8>,
}

impl std::fmt::Debug for BlockCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCompressor").finish_non_exhaustive()
    }
}

impl BlockCompressor {
    pub(super) fn new() -> Self {
        Self { table: CompressTable::default(), block: Vec::new() }
    }

    /// The raw LZ4 block of a page, even if it is larger than the page.
    pub(super) fn block(&mut self, page: &[u8]) -> &[u8] {
        let room = lz4_flex::block::get_maximum_output_size(page.len());
        if self.block.len() < room {
            self.block.resize(room, 0);
        }
        let len = compress_into_with_table(page, &mut self.block, &mut self.table)
            .expect("BUG: the output has the largest size a block can need");
        &self.block[..len]
    }
}

/// Decompresses a block; `false` if it is broken or not exactly one page.
pub(super) fn decompress_block(block: &[u8], page: &mut [u8]) -> bool {
    decompress_into(block, page).is_ok_and(|len| len == page.len())
}

/// Appends a page as the frame that older writers made: one block, content checksum.
#[allow(clippy::little_endian_bytes, reason = "LZ4 frames are little endian")]
pub(super) fn put_frame(compressor: &mut BlockCompressor, page: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&FRAME_MAGIC);
    out.extend_from_slice(&FRAME_DESCRIPTOR);
    let block = compressor.block(page);
    let (len, flag, block) = if block.len() < page.len() {
        (block.len(), 0, block)
    } else {
        (page.len(), BLOCK_IS_STORED, page)
    };
    let len = u32::try_from(len).expect("BUG: a page is at most 64 KiB");
    out.extend_from_slice(&(len | flag).to_le_bytes());
    out.extend_from_slice(block);
    out.extend_from_slice(&[0; 4]);
    let mut hash = Xxh32::new();
    hash.update(page);
    out.extend_from_slice(&hash.sum().to_le_bytes());
}

/// What is wrong with an LZ4 frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// No frame here.
    #[error("no LZ4 frame begins here")]
    Magic,
    /// A kind of frame that no LTX writer makes.
    #[error("an LZ4 frame with the descriptor {0:02x} {1:02x} is not supported")]
    Descriptor(u8, u8),
    /// The descriptor is damaged.
    #[error("the LZ4 frame's descriptor is damaged")]
    DescriptorChecksum,
    /// A block larger than the frame allows.
    #[error("an LZ4 block claims {0} bytes, more than its frame allows")]
    BlockSize(u32),
    /// A block that cannot be decompressed.
    #[error("an LZ4 block is damaged")]
    Block,
    /// The content differs from what was compressed.
    #[error("the LZ4 frame's content checksum does not match")]
    ContentChecksum,
    /// The frame ends before the content is complete.
    #[error("the LZ4 frame ends too early")]
    TooShort,
    /// The frame goes on after the content is complete.
    #[error("the LZ4 frame holds more than expected")]
    TooLong,
}

/// Either the frame is bad, or its bytes cannot be had.
pub(super) enum FrameFailure {
    Frame(FrameError),
    Read(io::Error),
}

impl From<FrameError> for FrameFailure {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<io::Error> for FrameFailure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl FrameFailure {
    /// The problem it is, with the bad frame described by the caller.
    pub(super) fn describe(self, frame: impl FnOnce(FrameError) -> Problem) -> Problem {
        match self {
            Self::Frame(error) => frame(error),
            Self::Read(error) => read_problem(error, "LZ4 frame"),
        }
    }
}

/// An early end of file is a property of the file, everything else one of the reader.
pub(super) fn read_problem(error: io::Error, part: &'static str) -> Problem {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        Problem::Truncated { part }
    } else {
        Problem::Read(error)
    }
}

/// Memory that frames are decompressed in; at most 8 MiB, reusable.
#[derive(Debug, Default)]
pub(super) struct FrameBuffers {
    packed: Vec<u8>,
    plain: Vec<u8>,
    at: usize,
}

/// Reads the content of exactly one frame and not a byte beyond its end.
#[derive(Debug)]
pub(super) struct FrameReader {
    block_max: usize,
    has_block_sums: bool,
    has_content_sum: bool,
    hash: Xxh32,
    ended: bool,
}

impl FrameReader {
    /// Reads a frame whose whole content is exactly `out`.
    pub(super) fn read_whole(
        source: &mut impl Read,
        buffers: &mut FrameBuffers,
        out: &mut [u8],
    ) -> Result<(), FrameFailure> {
        let mut frame = Self::begin(source, buffers)?;
        frame.read(source, buffers, out)?;
        frame.end(source, buffers)
    }

    /// Reads the frame's header.
    pub(super) fn begin(
        source: &mut impl Read,
        buffers: &mut FrameBuffers,
    ) -> Result<Self, FrameFailure> {
        let mut head = [0; 7];
        source.read_exact(&mut head[..6])?;
        if head[..4] != FRAME_MAGIC {
            return Err(FrameError::Magic.into());
        }
        let (flags, size) = (head[4], head[5]);
        let (version, linked, dictionary) = (flags >> 6, flags & 0x20 == 0, flags & 1 != 0);
        if version != 1 || linked || dictionary || flags & 2 != 0 || size & 0x8f != 0 {
            return Err(FrameError::Descriptor(flags, size).into());
        }
        let mut hash = Xxh32::new();
        hash.update(&head[4..6]);
        if flags & 8 != 0 {
            let mut content_size = [0; 8];
            source.read_exact(&mut content_size)?;
            hash.update(&content_size);
        }
        source.read_exact(&mut head[6..])?;
        if u32::from(head[6]) != hash.sum() >> 8 & 0xff {
            return Err(FrameError::DescriptorChecksum.into());
        }
        let block_max = match size >> 4 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(FrameError::Descriptor(flags, size).into()),
        };
        buffers.plain.clear();
        buffers.at = 0;
        Ok(Self {
            block_max,
            has_block_sums: flags & 0x10 != 0,
            has_content_sum: flags & 4 != 0,
            hash: Xxh32::new(),
            ended: false,
        })
    }

    /// Fills `out` with content.
    pub(super) fn read(
        &mut self,
        source: &mut impl Read,
        buffers: &mut FrameBuffers,
        mut out: &mut [u8],
    ) -> Result<(), FrameFailure> {
        while !out.is_empty() {
            if buffers.at == buffers.plain.len() && !self.block(source, buffers)? {
                return Err(FrameError::TooShort.into());
            }
            let ready = &buffers.plain[buffers.at..];
            let len = ready.len().min(out.len());
            let (head, tail) = std::mem::take(&mut out).split_at_mut(len);
            head.copy_from_slice(&ready[..len]);
            buffers.at += len;
            out = tail;
        }
        Ok(())
    }

    /// Reads the frame's end; nothing may be left of its content.
    pub(super) fn end(
        mut self,
        source: &mut impl Read,
        buffers: &mut FrameBuffers,
    ) -> Result<(), FrameFailure> {
        if buffers.at != buffers.plain.len() || (!self.ended && self.block(source, buffers)?) {
            return Err(FrameError::TooLong.into());
        }
        Ok(())
    }

    /// Decompresses the next block; `false` after the last one, when the checksum has been read too.
    #[allow(clippy::little_endian_bytes, reason = "LZ4 frames are little endian")]
    fn block(
        &mut self,
        source: &mut impl Read,
        buffers: &mut FrameBuffers,
    ) -> Result<bool, FrameFailure> {
        if self.ended {
            return Ok(false);
        }
        let mut word = [0; 4];
        source.read_exact(&mut word)?;
        let word_value = u32::from_le_bytes(word);
        if word_value == 0 {
            self.ended = true;
            if self.has_content_sum {
                source.read_exact(&mut word)?;
                if u32::from_le_bytes(word) != self.hash.sum() {
                    return Err(FrameError::ContentChecksum.into());
                }
            }
            return Ok(false);
        }
        let size = word_value & !BLOCK_IS_STORED;
        if size as usize > self.block_max {
            return Err(FrameError::BlockSize(size).into());
        }
        let FrameBuffers { packed, plain, at } = buffers;
        *at = 0;
        packed.resize(size as usize, 0);
        source.read_exact(packed)?;
        if word_value & BLOCK_IS_STORED == 0 {
            plain.resize(self.block_max, 0);
            let len = decompress_into(packed, plain).map_err(|_| FrameError::Block)?;
            plain.truncate(len);
        } else {
            std::mem::swap(packed, plain);
        }
        self.hash.update(plain);
        if self.has_block_sums {
            source.read_exact(&mut word)?;
        }
        Ok(true)
    }
}

/// xxHash 32 with seed 0, the checksum of LZ4 frames.
#[derive(Clone, Debug)]
struct Xxh32 {
    lanes: [u32; 4],
    pending: [u8; 16],
    pending_len: usize,
    total: u32,
    is_long: bool,
}

impl Xxh32 {
    const PRIMES: [u32; 5] = [0x9e37_79b1, 0x85eb_ca77, 0xc2b2_ae3d, 0x27d4_eb2f, 0x1656_67b1];

    fn new() -> Self {
        let [p1, p2, ..] = Self::PRIMES;
        Self {
            lanes: [p1.wrapping_add(p2), p2, 0, 0u32.wrapping_sub(p1)],
            pending: [0; 16],
            pending_len: 0,
            total: 0,
            is_long: false,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the length counts modulo 2^32")]
    fn update(&mut self, mut bytes: &[u8]) {
        self.total = self.total.wrapping_add(bytes.len() as u32);
        if self.pending_len > 0 {
            let len = bytes.len().min(16 - self.pending_len);
            self.pending[self.pending_len..self.pending_len + len].copy_from_slice(&bytes[..len]);
            self.pending_len += len;
            bytes = &bytes[len..];
            if self.pending_len < 16 {
                return;
            }
            let stripe = self.pending;
            self.stripe(&stripe);
            self.pending_len = 0;
        }
        let stripes = bytes.chunks_exact(16);
        let rest = stripes.remainder();
        for stripe in stripes {
            self.stripe(stripe);
        }
        self.pending[..rest.len()].copy_from_slice(rest);
        self.pending_len = rest.len();
    }

    fn stripe(&mut self, stripe: &[u8]) {
        let [p1, p2, ..] = Self::PRIMES;
        self.is_long = true;
        for (lane, word) in self.lanes.iter_mut().zip(stripe.chunks_exact(4)) {
            let mixed = lane.wrapping_add(le32(word).wrapping_mul(p2));
            *lane = mixed.rotate_left(13).wrapping_mul(p1);
        }
    }

    fn sum(&self) -> u32 {
        let [p1, p2, p3, p4, p5] = Self::PRIMES;
        let [a, b, c, d] = self.lanes;
        let mut sum = if self.is_long {
            let high = c.rotate_left(12).wrapping_add(d.rotate_left(18));
            a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(high)
        } else {
            p5
        };
        sum = sum.wrapping_add(self.total);
        let words = self.pending[..self.pending_len].chunks_exact(4);
        let rest = words.remainder();
        for word in words {
            sum = sum.wrapping_add(le32(word).wrapping_mul(p3)).rotate_left(17).wrapping_mul(p4);
        }
        for byte in rest {
            sum = sum.wrapping_add(u32::from(*byte).wrapping_mul(p5));
            sum = sum.rotate_left(11).wrapping_mul(p1);
        }
        sum = (sum ^ sum >> 15).wrapping_mul(p2);
        sum = (sum ^ sum >> 13).wrapping_mul(p3);
        sum ^ sum >> 16
    }
}

#[allow(clippy::little_endian_bytes, reason = "LZ4 frames are little endian")]
fn le32(word: &[u8]) -> u32 {
    u32::from_le_bytes(word.try_into().expect("BUG: a chunk of four bytes"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn hash(bytes: &[u8]) -> u32 {
        let mut hash = Xxh32::new();
        hash.update(bytes);
        hash.sum()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut step = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(|_| step()).collect()
    }

    fn read_frame(mut bytes: &[u8], len: usize) -> Result<(Vec<u8>, usize), FrameFailure> {
        let total = bytes.len();
        let mut buffers = FrameBuffers::default();
        let mut content = vec![0; len];
        let mut frame = FrameReader::begin(&mut bytes, &mut buffers)?;
        frame.read(&mut bytes, &mut buffers, &mut content)?;
        frame.end(&mut bytes, &mut buffers)?;
        Ok((content, total - bytes.len()))
    }

    #[test]
    fn xxh32_has_the_published_values() {
        assert_eq!(hash(b""), 0x02cc_5d05);
        assert_eq!(hash(b"a"), 0x550d_7456);
        assert_eq!(hash(b"Nobody inspects the spammish repetition"), 0xe229_3b2f);
    }

    #[test]
    fn xxh32_does_not_depend_on_the_pieces() {
        let bytes = noise(200);
        for cut in 0..bytes.len() {
            let mut hash_in_pieces = Xxh32::new();
            hash_in_pieces.update(&bytes[..cut]);
            hash_in_pieces.update(&bytes[cut..]);
            assert_eq!(hash_in_pieces.sum(), hash(&bytes));
        }
    }

    #[test]
    fn our_frames_are_read_by_others_and_by_us() {
        for page in [vec![7; 4096], noise(4096), noise(65536), vec![0; 512]] {
            let mut frame = Vec::new();
            put_frame(&mut BlockCompressor::new(), &page, &mut frame);
            let mut theirs = Vec::new();
            lz4_flex::frame::FrameDecoder::new(&frame[..]).read_to_end(&mut theirs).unwrap();
            assert!(theirs == page);
            let len = frame.len();
            frame.extend_from_slice(&FRAME_MAGIC);
            let Ok((ours, read)) = read_frame(&frame, page.len()) else { panic!("not read") };
            assert!(ours == page);
            assert_eq!(read, len, "not a byte beyond the frame's end");
        }
    }

    #[test]
    fn frames_of_several_blocks_with_all_checksums_are_read() {
        let content = noise(150_000);
        let info = lz4_flex::frame::FrameInfo::new()
            .content_checksum(true)
            .block_checksums(true)
            .content_size(Some(150_000))
            .block_size(lz4_flex::frame::BlockSize::Max64KB);
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(&content).unwrap();
        let frame = encoder.finish().unwrap();
        let Ok((ours, _)) = read_frame(&frame, content.len()) else { panic!("not read") };
        assert!(ours == content);
    }

    #[test]
    fn a_frame_of_another_length_is_refused() {
        let mut frame = Vec::new();
        put_frame(&mut BlockCompressor::new(), &[1; 1024], &mut frame);
        let refusal = |len| match read_frame(&frame, len) {
            Err(FrameFailure::Frame(error)) => Some(error),
            Ok(_) | Err(FrameFailure::Read(_)) => None,
        };
        assert_eq!(refusal(1023), Some(FrameError::TooLong));
        assert_eq!(refusal(1025), Some(FrameError::TooShort));
    }

    #[test]
    fn a_short_block_is_no_page() {
        let mut compressor = BlockCompressor::new();
        let block = compressor.block(&[1; 511]).to_vec();
        assert!(!decompress_block(&block, &mut [0; 512]));
        assert!(decompress_block(&block, &mut [0; 511]));
        assert!(!decompress_block(&block, &mut [0; 510]));
    }
}
