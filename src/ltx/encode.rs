//! Writes an LTX file: header, pages, index, trailer.
//!
//! Always true: what [`Encoder::finish`] returned `Ok` for passes [`super::LtxFile::parse`].
//! No allocation per page; a [`Compressor`] kept between files saves those per file too.

use std::io::{self, Write};

use crate::types::{Checksum, PageNo};

use super::checksum::{DatabaseSum, FileCrc};
use super::lz4::{self, BlockCompressor};
use super::order::PageOrder;
use super::{Header, HeaderError, OrderError, PageEntry, Trailer, frame, index};

/// How pages are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PageEncoding {
    /// A raw LZ4 block with its size before it; what readers since 2026 understand.
    #[default]
    Block,
    /// A raw LZ4 block of literals only: twice the bytes, a twentieth of the time. The same readers.
    Plain,
    /// An LZ4 frame per page, for Litestream up to 0.5.15.
    Frame,
}

impl PageEncoding {
    /// Whether a page stored like this need not be compressed anew for this encoding.
    fn accepts(self, stored: &[u8], page_size: usize) -> bool {
        if stored.is_empty() {
            return false;
        }
        let is_block = frame::hashed_head(stored).len() == frame::SIZED_HEAD_LEN;
        match self {
            Self::Block => is_block && stored.len() < page_size,
            Self::Plain => is_block,
            Self::Frame => !is_block,
        }
    }
}

/// Reusable memory of encoders, and the choice of encoding.
#[derive(Debug)]
pub struct Compressor {
    encoding: PageEncoding,
    blocks: BlockCompressor,
    stored: Vec<u8>,
    index: Vec<u8>,
}

impl Compressor {
    /// Takes about 10 KiB at first and keeps what the largest file needed.
    #[must_use]
    pub fn new(encoding: PageEncoding) -> Self {
        Self { encoding, blocks: BlockCompressor::new(), stored: Vec::new(), index: Vec::new() }
    }

    /// How its pages are compressed.
    #[must_use]
    pub fn encoding(&self) -> PageEncoding {
        self.encoding
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self::new(PageEncoding::default())
    }
}

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The header breaks a rule.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A page may not come here, or one is missing.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// A page of another size than the header says.
    #[error("page {page} has {len} bytes, the database's pages have {expected}")]
    PageLength {
        /// The page.
        page: PageNo,
        /// Its length.
        len: usize,
        /// The page size.
        expected: usize,
    },
    /// The flags say "no checksums" but one is given, or the reverse.
    #[error("a post-apply checksum is given exactly if the header's flags say so")]
    PostApplyFlag,
    /// The format has no deletion without checksums.
    #[error("a deleted database cannot be written without checksums")]
    DeletionWithoutChecksum,
    /// A deleted database has the empty checksum.
    #[error("a deleted database cannot have the checksum {0}")]
    PostApplyOfNothing(Checksum),
    /// A snapshot's pages do not add up to its checksum.
    #[error("the snapshot's pages add up to {computed}, not to {promised}")]
    PostApplyMismatch {
        /// What the caller says.
        promised: Checksum,
        /// What the pages say.
        computed: Checksum,
    },
    /// The writer failed. Never happens with a `Vec`.
    #[error("write: {0}")]
    Write(#[from] io::Error),
}

/// Writes one file into `W`: a `&mut Vec<u8>` or any stream. Pages come in ascending order.
///
/// ```
/// use weir::ltx::{Compressor, Encoder, Flags, Header, LtxFile, WalSource, page_sum};
/// use weir::types::{NodeId, PageNo, PageSize, Txid};
///
/// let header = Header {
///     flags: Flags::NONE,
///     page_size: PageSize::MIN,
///     commit: 1,
///     min_txid: Txid::FIRST,
///     max_txid: Txid::FIRST,
///     timestamp_ms: 0,
///     pre_apply: None,
///     wal: WalSource::default(),
///     node_id: NodeId::new(7),
/// };
/// let mut compressor = Compressor::default();
/// let mut out = Vec::new();
/// let mut encoder = Encoder::begin(&mut compressor, &mut out, &header)?;
/// encoder.page(PageNo::FIRST, &[0; 512])?;
/// encoder.finish(page_sum(PageNo::FIRST, &[0; 512]))?;
/// assert_eq!(LtxFile::parse(&out)?.header().commit, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Encoder<'c, W> {
    out: W,
    written: u64,
    header: Header,
    crc: FileCrc,
    order: PageOrder,
    /// Sum over a snapshot's pages, to hold it against the promise at the end.
    snapshot_sum: Option<DatabaseSum>,
    compressor: &'c mut Compressor,
}

impl<'c, W: Write> Encoder<'c, W> {
    /// Writes the header. With a `Vec` the file is appended to what is there.
    ///
    /// # Errors
    /// [`EncodeError::Header`], [`EncodeError::DeletionWithoutChecksum`], [`EncodeError::Write`].
    pub fn begin(
        compressor: &'c mut Compressor,
        out: W,
        header: &Header,
    ) -> Result<Self, EncodeError> {
        header.check()?;
        let has_checksums = header.flags.has_checksums();
        if header.commit == 0 && !has_checksums {
            return Err(EncodeError::DeletionWithoutChecksum);
        }
        compressor.index.clear();
        let sums_pages = header.is_snapshot() && has_checksums;
        let mut encoder = Self {
            out,
            written: 0,
            header: *header,
            crc: FileCrc::new(),
            order: PageOrder::new(header),
            snapshot_sum: sums_pages.then(|| DatabaseSum::new(header.page_size)),
            compressor,
        };
        let bytes = header.to_bytes();
        encoder.crc.update(&bytes);
        encoder.put(&bytes)?;
        Ok(encoder)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.written
    }

    /// Compresses and writes a page.
    ///
    /// # Errors
    /// [`EncodeError::PageLength`], [`EncodeError::Order`] (lock page, not ascending, beyond the
    /// end, gap in a snapshot), [`EncodeError::Write`]. The file is not usable afterwards.
    pub fn page(&mut self, page: PageNo, data: &[u8]) -> Result<(), EncodeError> {
        self.check_length(page, data)?;
        let Compressor { encoding, blocks, stored, .. } = &mut *self.compressor;
        stored.clear();
        stored.extend_from_slice(&page.get().to_be_bytes());
        match encoding {
            PageEncoding::Block => frame::put_block(blocks.block(data), stored),
            PageEncoding::Plain => frame::put_literals(data, stored),
            PageEncoding::Frame => {
                stored.extend_from_slice(&[0; 2]);
                lz4::put_frame(blocks, data, stored);
            }
        }
        let stored = std::mem::take(stored);
        let result = self.stored_page(page, data, &stored);
        self.compressor.stored = stored;
        result
    }

    /// Writes a page that another file has, without compressing it again where that is possible.
    pub(super) fn copy(
        &mut self,
        page: PageNo,
        data: &[u8],
        stored: &[u8],
    ) -> Result<(), EncodeError> {
        if self.compressor.encoding.accepts(stored, self.header.page_size.bytes()) {
            self.stored_page(page, data, stored)
        } else {
            self.page(page, data)
        }
    }

    fn stored_page(&mut self, page: PageNo, data: &[u8], stored: &[u8]) -> Result<(), EncodeError> {
        self.check_length(page, data)?;
        self.order.next(page)?;
        if let Some(sum) = &mut self.snapshot_sum {
            sum.toggle(page, data);
        }
        self.crc.update(frame::hashed_head(stored));
        self.crc.update(data);
        let size = u32::try_from(stored.len()).expect("BUG: a frame is little more than 64 KiB");
        index::push(&mut self.compressor.index, PageEntry { page, offset: self.written, size });
        self.put(stored)
    }

    /// Writes the end of a file with checksums; `post_apply` is the database's afterwards.
    ///
    /// # Errors
    /// [`EncodeError::Order`] if a snapshot is incomplete, [`EncodeError::PostApplyFlag`],
    /// [`EncodeError::PostApplyOfNothing`], [`EncodeError::PostApplyMismatch`], [`EncodeError::Write`].
    pub fn finish(self, post_apply: Checksum) -> Result<Trailer, EncodeError> {
        if !self.header.flags.has_checksums() {
            return Err(EncodeError::PostApplyFlag);
        }
        if self.header.commit == 0 && post_apply != Checksum::EMPTY {
            return Err(EncodeError::PostApplyOfNothing(post_apply));
        }
        if let Some(computed) = self.snapshot_sum.map(DatabaseSum::checksum)
            && computed != post_apply
        {
            return Err(EncodeError::PostApplyMismatch { promised: post_apply, computed });
        }
        self.end(Some(post_apply))
    }

    /// Writes the end of a file without checksums.
    ///
    /// # Errors
    /// [`EncodeError::Order`] if a snapshot is incomplete, [`EncodeError::PostApplyFlag`],
    /// [`EncodeError::Write`].
    pub fn finish_without_checksum(self) -> Result<Trailer, EncodeError> {
        if self.header.flags.has_checksums() {
            return Err(EncodeError::PostApplyFlag);
        }
        self.end(None)
    }

    fn end(mut self, post_apply: Option<Checksum>) -> Result<Trailer, EncodeError> {
        self.order.end()?;
        let mut index = std::mem::take(&mut self.compressor.index);
        index::close(&mut index);
        self.crc.update(&frame::END_OF_PAGES);
        self.crc.update(&index);
        self.crc.update(&post_apply.map_or(0, Checksum::get).to_be_bytes());
        let trailer = Trailer { post_apply, file: self.crc.sum() };
        self.put(&frame::END_OF_PAGES)?;
        self.put(&index)?;
        self.compressor.index = index;
        self.put(&trailer.to_bytes())?;
        Ok(trailer)
    }

    fn check_length(&self, page: PageNo, data: &[u8]) -> Result<(), EncodeError> {
        let expected = self.header.page_size.bytes();
        if data.len() == expected {
            Ok(())
        } else {
            Err(EncodeError::PageLength { page, len: data.len(), expected })
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}
