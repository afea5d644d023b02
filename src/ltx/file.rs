//! An LTX file in memory.

use crate::types::{Checksum, PageNo};

use super::checksum::{DatabaseSum, FileCrc};
use super::frame::{self, END_OF_PAGES, Head};
use super::header::be64;
use super::lz4::{self, FrameBuffers, FrameReader};
use super::order::PageOrder;
use super::{
    DecodeError, HEADER_LEN, Header, HeaderError, PageEntry, Problem, TRAILER_LEN, Trailer, index,
};

/// A checked LTX file and where its pages are.
#[derive(Clone, Debug)]
pub struct LtxFile<'a> {
    bytes: &'a [u8],
    header: Header,
    trailer: Trailer,
    entries: Vec<PageEntry>,
}

impl<'a> LtxFile<'a> {
    /// Checks everything: order, completeness, each page, the index, the checksums.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        Self::parse_with(bytes, |_, _| ())
    }

    /// Like [`Self::parse`], and hands out each page on the way, which saves decompressing it
    /// again. The pages count only if the whole file is accepted in the end.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn parse_with(
        bytes: &'a [u8],
        mut each: impl FnMut(PageNo, &[u8]),
    ) -> Result<Self, DecodeError> {
        let header = parse_header(bytes)?;
        let mut crc = FileCrc::new();
        crc.update(&bytes[..HEADER_LEN]);
        let mut snapshot_sum = DatabaseSum::new(header.page_size);
        let sums_pages = header.is_snapshot() && header.flags.has_checksums();
        let mut walk = Walk::new(bytes, &header);
        let mut data = vec![0; header.page_size.bytes()];
        while let Some(entry) = walk.next(&mut data)? {
            let stored = stored(bytes, entry);
            crc.update(frame::hashed_head(stored));
            crc.update(&data);
            if sums_pages {
                snapshot_sum.toggle(entry.page, &data);
            }
            each(entry.page, &data);
        }
        let Walk { at, mut index, entries, .. } = walk;
        index::close(&mut index);
        check_index(bytes, at, &index)?;
        let trailer_at = at + index.len();
        let trailer_bytes = bytes
            .get(trailer_at..trailer_at + TRAILER_LEN)
            .ok_or_else(|| truncated(bytes, "trailer"))?;
        let trailer = parse_trailer(trailer_at, trailer_bytes, &header)?;
        if bytes.len() > trailer_at + TRAILER_LEN {
            return Err(error(trailer_at + TRAILER_LEN, Problem::TrailingBytes));
        }
        crc.update(&END_OF_PAGES);
        crc.update(&index);
        crc.update(&trailer_bytes[..8]);
        check_sums(
            trailer_at as u64,
            trailer,
            crc.sum(),
            sums_pages.then(|| snapshot_sum.checksum()),
        )?;
        Ok(Self { bytes, header, trailer, entries })
    }

    /// Reads header, index and trailer only. For bytes that another checksum already vouches for:
    /// pages and checksums are not checked, though nothing here panics on any bytes.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn parse_trusted(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let header = parse_header(bytes)?;
        let trailer_at = bytes
            .len()
            .checked_sub(TRAILER_LEN)
            .filter(|at| *at >= HEADER_LEN + END_OF_PAGES.len() + 1 + 8)
            .ok_or_else(|| truncated(bytes, "trailer"))?;
        let trailer = parse_trailer(trailer_at, &bytes[trailer_at..], &header)?;
        let index_end = trailer_at - 8;
        let index_len = be64(bytes, index_end);
        let index_at = usize::try_from(index_len)
            .ok()
            .filter(|len| *len > 0)
            .and_then(|len| index_end.checked_sub(len))
            .filter(|at| *at >= HEADER_LEN + END_OF_PAGES.len())
            .ok_or_else(|| error(index_end, Problem::IndexLength(index_len)))?;
        let entries = trusted_entries(&header, &bytes[index_at..index_end], index_at as u64)?;
        Ok(Self { bytes, header, trailer, entries })
    }

    /// What the file covers.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The checksums at its end.
    #[must_use]
    pub fn trailer(&self) -> Trailer {
        self.trailer
    }

    /// The file's bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The pages in ascending order.
    #[must_use]
    pub fn entries(&self) -> &[PageEntry] {
        &self.entries
    }

    /// Where a page is; `None` if the file does not have it.
    #[must_use]
    pub fn entry(&self, page: PageNo) -> Option<PageEntry> {
        let at = self.entries.binary_search_by_key(&page, |entry| entry.page).ok()?;
        Some(self.entries[at])
    }

    /// Decompresses a page of this file into `data`, which has the length of a page.
    ///
    /// # Errors
    /// [`DecodeError`] if the page is damaged, which cannot happen after [`Self::parse`].
    ///
    /// # Panics
    /// If `data` is not as long as a page, or the entry is of another file.
    pub fn read(&self, entry: PageEntry, data: &mut [u8]) -> Result<(), DecodeError> {
        decode_page(entry, stored(self.bytes, entry), &self.header, data)
    }

    /// A page as it is stored, page header included.
    pub(super) fn stored(&self, entry: PageEntry) -> &'a [u8] {
        stored(self.bytes, entry)
    }
}

/// Decompresses one page from its stored form.
pub(super) fn decode_page(
    entry: PageEntry,
    stored: &[u8],
    header: &Header,
    data: &mut [u8],
) -> Result<(), DecodeError> {
    assert_eq!(data.len(), header.page_size.bytes(), "BUG: not the length of a page");
    let in_file = |error: DecodeError| {
        let offset = entry.offset.saturating_add(error.offset);
        DecodeError { offset, ..error }
    };
    let (page, stop) = read_page(stored, 0, header, data).map_err(in_file)?;
    if page != Some(entry.page) || stop != stored.len() {
        return Err(DecodeError::at(entry.offset, Problem::Index));
    }
    Ok(())
}

/// Checks the bytes of an index, its end mark included, that begins at `index_at`.
pub(super) fn trusted_entries(
    header: &Header,
    index: &[u8],
    index_at: u64,
) -> Result<Vec<PageEntry>, DecodeError> {
    let index_error = || DecodeError::at(index_at, Problem::Index);
    let (end_mark, index) = index.split_last().ok_or_else(index_error)?;
    let entries = index::entries(index).filter(|_| *end_mark == 0).ok_or_else(index_error)?;
    let mut order = PageOrder::new(header);
    let mut at = HEADER_LEN as u64;
    for entry in &entries {
        order.next(entry.page).map_err(|problem| DecodeError::at(index_at, problem))?;
        if entry.offset != at || (entry.size as usize) < frame::SIZED_HEAD_LEN {
            return Err(index_error());
        }
        at = at.checked_add(entry.size.into()).ok_or_else(index_error)?;
    }
    order.end().map_err(|problem| DecodeError::at(index_at, problem))?;
    if at.checked_add(END_OF_PAGES.len() as u64) != Some(index_at) {
        return Err(index_error());
    }
    Ok(entries)
}

/// Goes from page to page and collects what the index must be.
struct Walk<'a> {
    bytes: &'a [u8],
    header: Header,
    order: PageOrder,
    at: usize,
    index: Vec<u8>,
    entries: Vec<PageEntry>,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a [u8], header: &Header) -> Self {
        let order = PageOrder::new(header);
        let (index, entries) = (Vec::new(), Vec::new());
        Self { bytes, header: *header, order, at: HEADER_LEN, index, entries }
    }

    /// Decompresses the next page; `None` after the end mark.
    fn next(&mut self, data: &mut [u8]) -> Result<Option<PageEntry>, DecodeError> {
        let at = self.at;
        let (page, end) = read_page(self.bytes, at, &self.header, data)?;
        self.at = end;
        let Some(page) = page else {
            self.order.end().map_err(|problem| error(at, problem))?;
            return Ok(None);
        };
        self.order.next(page).map_err(|problem| error(at, problem))?;
        let size = u32::try_from(end - at).expect("BUG: a stored page is limited");
        let entry = PageEntry { page, offset: at as u64, size };
        index::push(&mut self.index, entry);
        self.entries.push(entry);
        Ok(Some(entry))
    }
}

/// Decompresses the page stored at `at` and says where it ends; no page at the end mark.
fn read_page(
    bytes: &[u8],
    at: usize,
    header: &Header,
    data: &mut [u8],
) -> Result<(Option<PageNo>, usize), DecodeError> {
    let take = |at: usize, len: usize, part| {
        bytes.get(at..at.saturating_add(len)).ok_or_else(|| truncated(bytes, part))
    };
    let head: &[u8; frame::HEAD_LEN] = take(at, frame::HEAD_LEN, "page header")?
        .try_into()
        .expect("BUG: the slice has this length");
    let content_at = at + frame::HEAD_LEN;
    match Head::parse(head).map_err(|problem| error(at, problem))? {
        Head::End => Ok((None, content_at)),
        Head::Block(page) => {
            let size: &[u8; 4] = take(content_at, 4, "page header")?
                .try_into()
                .expect("BUG: the slice has this length");
            let size = frame::block_size(page, header.page_size, size)
                .map_err(|problem| error(content_at, problem))?;
            let block = take(content_at + 4, size, "page")?;
            if !lz4::decompress_block(block, data) {
                let problem = Problem::BadBlock { page, page_size: header.page_size };
                return Err(error(content_at + 4, problem));
            }
            Ok((Some(page), content_at + 4 + size))
        }
        Head::Frame(page) => {
            let mut rest = &bytes[content_at..];
            FrameReader::read_whole(&mut rest, &mut FrameBuffers::default(), data).map_err(
                |failure| {
                    let problem = failure.describe(|problem| Problem::Frame { page, problem });
                    error(content_at, problem)
                },
            )?;
            Ok((Some(page), bytes.len() - rest.len()))
        }
    }
}

fn parse_header(bytes: &[u8]) -> Result<Header, DecodeError> {
    let Some(head) = bytes.first_chunk() else {
        let is_ltx = bytes.starts_with(b"LTX1");
        return Err(if is_ltx { truncated(bytes, "header") } else { error(0, HeaderError::Magic) });
    };
    Header::parse(head).map_err(|problem| error(0, problem))
}

fn parse_trailer(at: usize, bytes: &[u8], header: &Header) -> Result<Trailer, DecodeError> {
    let bytes = bytes.try_into().expect("BUG: the caller cut out a trailer");
    Trailer::parse(bytes, header).map_err(|problem| error(at, problem))
}

/// Compares the stored index with the one that the pages imply.
fn check_index(bytes: &[u8], at: usize, expected: &[u8]) -> Result<(), DecodeError> {
    let found = &bytes[at..];
    let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
    if same == expected.len() {
        return Ok(());
    }
    if same == found.len() {
        return Err(truncated(bytes, "page index"));
    }
    Err(error(at + same, Problem::Index))
}

/// Holds the computed sums against the stored ones.
pub(super) fn check_sums(
    trailer_at: u64,
    trailer: Trailer,
    file: Checksum,
    snapshot: Option<Checksum>,
) -> Result<(), DecodeError> {
    if trailer.file != file {
        let problem = Problem::FileChecksumMismatch { stored: trailer.file, computed: file };
        return Err(DecodeError::at(trailer_at + 8, problem));
    }
    if let (Some(stored), Some(computed)) = (trailer.post_apply, snapshot)
        && stored != computed
    {
        return Err(DecodeError::at(trailer_at, Problem::PostApplyMismatch { stored, computed }));
    }
    Ok(())
}

fn stored(bytes: &[u8], entry: PageEntry) -> &[u8] {
    let at = usize::try_from(entry.offset).expect("BUG: the entry is of another file");
    &bytes[at..at + entry.size as usize]
}

fn truncated(bytes: &[u8], part: &'static str) -> DecodeError {
    error(bytes.len(), Problem::Truncated { part })
}

fn error(at: usize, problem: impl Into<Problem>) -> DecodeError {
    DecodeError::at(at as u64, problem)
}
