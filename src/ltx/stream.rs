//! Reads an LTX file of any size, page by page.
//!
//! As strict as [`super::LtxFile::parse`], and the only reader of v1. Memory: one page, its stored form,
//! and about eight bytes per page for the index that the file must end with.

use std::io::{self, Read};

use crate::types::PageNo;

use super::checksum::{DatabaseSum, FileCrc};
use super::file::check_sums;
use super::frame::{self, END_OF_PAGES, HEAD_LEN, Head, SIZED_HEAD_LEN};
use super::lz4::{self, FrameBuffers, FrameReader, read_problem};
use super::order::PageOrder;
use super::{
    DecodeError, Format, HEADER_LEN, Header, HeaderError, PageEntry, Problem, TRAILER_LEN, Trailer,
    index,
};

/// Reads one file from `R`, which should be buffered.
#[derive(Debug)]
pub struct Decoder<R> {
    source: Source<R>,
    body: Body,
    header: Header,
    crc: FileCrc,
    order: PageOrder,
    snapshot_sum: Option<DatabaseSum>,
    /// The index that the pages so far imply.
    index: Vec<u8>,
    data: Vec<u8>,
    stored: Vec<u8>,
    buffers: FrameBuffers,
    is_at_end: bool,
}

/// How the pages are stored.
#[derive(Debug)]
enum Body {
    /// Each page by itself, and an index.
    V3,
    /// Page numbers and pages, bare.
    V1,
    /// The same inside one LZ4 frame; `None` after its end.
    V1Compressed(Option<FrameReader>),
}

/// A page just read.
#[derive(Clone, Copy, Debug)]
pub struct Page<'d> {
    /// Its number.
    pub page: PageNo,
    /// Its content.
    pub data: &'d [u8],
    /// Its stored form, page header included; empty in v1.
    pub(super) stored: &'d [u8],
}

impl<R: Read> Decoder<R> {
    /// Reads the header of a v3 file.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn new(source: R) -> Result<Self, DecodeError> {
        Self::open(source, Format::V3)
    }

    /// Reads the header of a file of a given form.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn open(source: R, format: Format) -> Result<Self, DecodeError> {
        let mut source = Source { inner: source, offset: 0 };
        let mut buffers = FrameBuffers::default();
        let bytes = source.header()?;
        let bad_header = |problem| DecodeError::at(0, problem);
        let (header, body) = match format {
            Format::V3 => (Header::parse(&bytes).map_err(bad_header)?, Body::V3),
            Format::V1 => match Header::parse_v1(&bytes).map_err(bad_header)? {
                (header, false) => (header, Body::V1),
                (header, true) => {
                    let at = source.offset;
                    let frame = FrameReader::begin(&mut source, &mut buffers)
                        .map_err(|e| DecodeError::at(at, e.describe(Problem::FrameBlock)))?;
                    (header, Body::V1Compressed(Some(frame)))
                }
            },
        };
        let mut crc = FileCrc::new();
        crc.update(&bytes);
        let sums_pages = header.is_snapshot() && header.flags.has_checksums();
        Ok(Self {
            source,
            body,
            header,
            crc,
            order: PageOrder::new(&header),
            snapshot_sum: sums_pages.then(|| DatabaseSum::new(header.page_size)),
            index: Vec::new(),
            data: vec![0; header.page_size.bytes()],
            stored: Vec::new(),
            buffers,
            is_at_end: false,
        })
    }

    /// What the file covers.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes read so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.source.offset
    }

    /// Reads the next page; `None` after the last. Believe the pages only after [`Self::finish`].
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong. The decoder is not usable afterwards.
    pub fn next_page(&mut self) -> Result<Option<Page<'_>>, DecodeError> {
        if self.is_at_end {
            return Ok(None);
        }
        let at = self.source.offset;
        let page = match self.body {
            Body::V3 => self.read_v3()?,
            Body::V1 | Body::V1Compressed(_) => self.read_v1()?,
        };
        let Some(page) = page else {
            self.order.end().map_err(|problem| DecodeError::at(at, problem))?;
            self.is_at_end = true;
            return Ok(None);
        };
        self.order.next(page).map_err(|problem| DecodeError::at(at, problem))?;
        if let Some(sum) = &mut self.snapshot_sum {
            sum.toggle(page, &self.data);
        }
        if self.stored.is_empty() {
            self.crc.update(&page.get().to_be_bytes());
        } else {
            let size = u32::try_from(self.stored.len()).expect("BUG: a stored page is limited");
            index::push(&mut self.index, PageEntry { page, offset: at, size });
            self.crc.update(frame::hashed_head(&self.stored));
        }
        self.crc.update(&self.data);
        Ok(Some(Page { page, data: &self.data, stored: &self.stored }))
    }

    /// Reads what is left and checks index and checksums; nothing may follow.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong.
    pub fn finish(mut self) -> Result<Trailer, DecodeError> {
        while self.next_page()?.is_some() {}
        if matches!(self.body, Body::V3) {
            self.crc.update(&END_OF_PAGES);
            index::close(&mut self.index);
            self.source.expect(&self.index)?;
            self.crc.update(&self.index);
        } else {
            self.crc.update(&[0; 4]);
        }
        let at = self.source.offset;
        let mut bytes = [0; TRAILER_LEN];
        self.source.fill(&mut bytes, "trailer")?;
        let trailer =
            Trailer::parse(&bytes, &self.header).map_err(|problem| DecodeError::at(at, problem))?;
        self.source.expect_end()?;
        self.crc.update(&bytes[..8]);
        let snapshot_sum = self.snapshot_sum.map(DatabaseSum::checksum);
        check_sums(at, trailer, self.crc.sum(), snapshot_sum)?;
        Ok(trailer)
    }

    /// Reads a page into `data` and `stored`; `None` at the end mark.
    fn read_v3(&mut self) -> Result<Option<PageNo>, DecodeError> {
        let Self { source, header, data, stored, buffers, .. } = self;
        let at = source.offset;
        let mut head = [0; HEAD_LEN];
        source.fill(&mut head, "page header")?;
        stored.clear();
        stored.extend_from_slice(&head);
        match Head::parse(&head).map_err(|problem| DecodeError::at(at, problem))? {
            Head::End => Ok(None),
            Head::Block(page) => {
                let at = source.offset;
                let mut size = [0; 4];
                source.fill(&mut size, "page header")?;
                stored.extend_from_slice(&size);
                let size = frame::block_size(page, header.page_size, &size)
                    .map_err(|problem| DecodeError::at(at, problem))?;
                stored.resize(SIZED_HEAD_LEN + size, 0);
                source.fill(&mut stored[SIZED_HEAD_LEN..], "page")?;
                if !lz4::decompress_block(&stored[SIZED_HEAD_LEN..], data) {
                    let problem = Problem::BadBlock { page, page_size: header.page_size };
                    return Err(DecodeError::at(at + 4, problem));
                }
                Ok(Some(page))
            }
            Head::Frame(page) => {
                let at = source.offset;
                let mut source = Recorder { inner: source, record: stored };
                FrameReader::read_whole(&mut source, buffers, data).map_err(|failure| {
                    let problem = failure.describe(|problem| Problem::Frame { page, problem });
                    DecodeError::at(at, problem)
                })?;
                Ok(Some(page))
            }
        }
    }

    /// Reads a page into `data`; `None` at the end mark.
    fn read_v1(&mut self) -> Result<Option<PageNo>, DecodeError> {
        let mut number = [0; 4];
        self.fill_v1(&mut number, "page number")?;
        let Some(page) = PageNo::new(u32::from_be_bytes(number)) else {
            if let Body::V1Compressed(frame) = &mut self.body {
                let at = self.source.offset;
                let frame = frame.take().expect("BUG: the frame ends once");
                frame.end(&mut self.source, &mut self.buffers).map_err(|failure| {
                    DecodeError::at(at, failure.describe(Problem::FrameBlock))
                })?;
            }
            return Ok(None);
        };
        let mut data = std::mem::take(&mut self.data);
        let result = self.fill_v1(&mut data, "page");
        self.data = data;
        result.map(|()| Some(page))
    }

    fn fill_v1(&mut self, bytes: &mut [u8], part: &'static str) -> Result<(), DecodeError> {
        let Body::V1Compressed(Some(frame)) = &mut self.body else {
            return self.source.fill(bytes, part);
        };
        let at = self.source.offset;
        frame
            .read(&mut self.source, &mut self.buffers, bytes)
            .map_err(|failure| DecodeError::at(at, failure.describe(Problem::FrameBlock)))
    }
}

/// A reader that knows where it is.
#[derive(Debug)]
struct Source<R> {
    inner: R,
    offset: u64,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        self.offset += len as u64;
        Ok(len)
    }
}

impl<R: Read> Source<R> {
    fn fill(&mut self, bytes: &mut [u8], part: &'static str) -> Result<(), DecodeError> {
        self.read_exact(bytes)
            .map_err(|error| DecodeError::at(self.offset, read_problem(error, part)))
    }

    /// A short file that does not even begin like one is called that and not truncated.
    fn header(&mut self) -> Result<[u8; HEADER_LEN], DecodeError> {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        self.by_ref()
            .take(HEADER_LEN as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| DecodeError::at(self.offset, error))?;
        if !bytes.starts_with(b"LTX1") {
            return Err(DecodeError::at(0, HeaderError::Magic));
        }
        let truncated = Problem::Truncated { part: "header" };
        bytes.try_into().map_err(|_| DecodeError::at(self.offset, truncated))
    }

    /// Reads bytes that are known before.
    fn expect(&mut self, expected: &[u8]) -> Result<(), DecodeError> {
        let at = self.offset;
        let mut found = Vec::with_capacity(expected.len());
        self.by_ref()
            .take(expected.len() as u64)
            .read_to_end(&mut found)
            .map_err(|error| DecodeError::at(self.offset, error))?;
        let same = found.iter().zip(expected).take_while(|(a, b)| a == b).count();
        if same < found.len() {
            return Err(DecodeError::at(at + same as u64, Problem::Index));
        }
        if same < expected.len() {
            return Err(DecodeError::at(self.offset, Problem::Truncated { part: "page index" }));
        }
        Ok(())
    }

    fn expect_end(&mut self) -> Result<(), DecodeError> {
        let at = self.offset;
        loop {
            match self.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(DecodeError::at(at, Problem::TrailingBytes)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(DecodeError::at(at, error)),
            }
        }
    }
}

/// Keeps what is read through it.
struct Recorder<'a, R> {
    inner: &'a mut R,
    record: &'a mut Vec<u8>,
}

impl<R: Read> Read for Recorder<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buf)?;
        self.record.extend_from_slice(&buf[..len]);
        Ok(len)
    }
}
