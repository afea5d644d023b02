//! An LTX file whose bytes are elsewhere, read page by page in any order.
//!
//! For bytes that another checksum already vouches for, as [`super::LtxFile::parse_trusted`]; nothing here panics on
//! any bytes. Memory: 16 bytes per page.

use std::io;

use super::file::{decode_page, trusted_entries};
use super::{DecodeError, HEADER_LEN, Header, PageEntry, Problem, TRAILER_LEN, Trailer};

/// Header, trailer and page index of a file.
#[derive(Clone, Debug)]
pub struct IndexedFile {
    header: Header,
    trailer: Trailer,
    entries: Vec<PageEntry>,
}

impl IndexedFile {
    /// Reads what is not pages of a file of `len` bytes; `read` fills a buffer from an offset.
    ///
    /// # Errors
    /// [`DecodeError`] says where and what is wrong, also if `read` failed.
    pub fn open(
        len: u64,
        read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<Self, DecodeError> {
        let fill = |at: u64, buffer: &mut [u8]| {
            read(at, buffer).map_err(|error| DecodeError::at(at, error))
        };
        let end_len = (TRAILER_LEN + 8) as u64;
        let index_end = len
            .checked_sub(end_len)
            .filter(|at| *at > HEADER_LEN as u64)
            .ok_or_else(|| DecodeError::at(len, Problem::Truncated { part: "trailer" }))?;
        let mut head = [0; HEADER_LEN];
        fill(0, &mut head)?;
        let header = Header::parse(&head).map_err(|problem| DecodeError::at(0, problem))?;
        let mut index_len = [0; 8];
        fill(index_end, &mut index_len)?;
        let index_len = u64::from_be_bytes(index_len);
        let mut trailer = [0; TRAILER_LEN];
        fill(index_end + 8, &mut trailer)?;
        let trailer = Trailer::parse(&trailer, &header)
            .map_err(|problem| DecodeError::at(index_end + 8, problem))?;
        let index_at = index_end
            .checked_sub(index_len)
            .filter(|at| index_len > 0 && *at >= HEADER_LEN as u64)
            .ok_or_else(|| DecodeError::at(index_end, Problem::IndexLength(index_len)))?;
        let index_len = usize::try_from(index_len)
            .map_err(|_| DecodeError::at(index_end, Problem::IndexLength(index_len)))?;
        let mut index = vec![0; index_len];
        fill(index_at, &mut index)?;
        let entries = trusted_entries(&header, &index, index_at)?;
        Ok(Self { header, trailer, entries })
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

    /// The pages in ascending order.
    #[must_use]
    pub fn entries(&self) -> &[PageEntry] {
        &self.entries
    }

    /// Decompresses a page: `stored` are its [`PageEntry::size`] bytes, `data` has the length of a page.
    ///
    /// # Errors
    /// [`DecodeError`] if the page is damaged.
    ///
    /// # Panics
    /// If `data` is not as long as a page.
    pub fn decode(
        &self,
        entry: PageEntry,
        stored: &[u8],
        data: &mut [u8],
    ) -> Result<(), DecodeError> {
        decode_page(entry, stored, &self.header, data)
    }
}
