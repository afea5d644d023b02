//! Makes one change set of several that follow each other.
//!
//! Always true: applying the result equals applying the inputs in order. Of each page the last image
//! stays, pages beyond the final end are dropped. Source: LTX v3, `Compactor`; unlike it, the checksums
//! are kept when all inputs have them, and inputs that do not follow each other are refused.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{Read, Write};

use crate::types::{Checksum, NodeId, PageNo, PageSize, Txid};

use super::{
    Compressor, DecodeError, Decoder, EncodeError, Encoder, Flags, Header, LtxFile, Trailer,
    WalSource,
};

/// Why change sets were not merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("there is nothing to merge")]
    Nothing,
    /// The page size changes.
    #[error("input {input} has pages of {found} bytes, those before it {expected}")]
    PageSize {
        /// Which input, counted from 0.
        input: usize,
        /// Page size of the first input.
        expected: PageSize,
        /// Its page size.
        found: PageSize,
    },
    /// A transaction is missing or doubled between two inputs.
    #[error("input {input} begins at transaction {found}, {expected} would follow")]
    Gap {
        /// Which input, counted from 0.
        input: usize,
        /// The transaction that would follow.
        expected: Txid,
        /// Its first transaction.
        found: Txid,
    },
    /// The inputs are of different histories.
    #[error(
        "input {input} wants the checksum {found} before it, the one before it leaves {expected}"
    )]
    Diverged {
        /// Which input, counted from 0.
        input: usize,
        /// What the input before leaves.
        expected: Checksum,
        /// What this one wants.
        found: Checksum,
    },
    /// The database grew over a page that no later input has.
    #[error("the database grows beyond page {0}, but no input has that page afterwards")]
    Hole(u32),
    /// An input is damaged.
    #[error("input {input}: {error}")]
    Input {
        /// Which input, counted from 0.
        input: usize,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Output(#[from] EncodeError),
}

/// Merges files in memory and appends the result to `out`. Memory: the indexes and the result.
///
/// # Errors
/// [`MergeError`]; `out` then ends with half a file.
pub fn merge(
    inputs: &[LtxFile<'_>],
    compressor: &mut Compressor,
    out: &mut Vec<u8>,
) -> Result<Trailer, MergeError> {
    let headers: Vec<Header> = inputs.iter().map(|input| *input.header()).collect();
    let header = merged_header(&headers)?;
    for (i, pair) in inputs.windows(2).enumerate() {
        check_checksums(i + 1, pair[0].trailer(), pair[1].header())?;
    }
    let last = inputs.last().ok_or(MergeError::Nothing)?;
    let mut survivors = Survivors::new(&headers);
    let mut entries: Vec<_> = inputs.iter().map(|input| input.entries().iter()).collect();
    for (input, entries) in entries.iter().enumerate() {
        survivors.offer(input, entries.as_slice().first().map(|entry| entry.page));
    }
    let mut data = vec![0; header.page_size.bytes()];
    let mut passed = Vec::new();
    let mut encoder = Encoder::begin(compressor, out, &header)?;
    while let Some((page, input)) = survivors.next()? {
        std::mem::swap(&mut passed, &mut survivors.passed);
        for passed in passed.iter().copied() {
            let entry = entries[passed].next().expect("BUG: it offered its next page");
            if passed == input && page.get() <= header.commit {
                let file = &inputs[input];
                file.read(*entry, &mut data).map_err(|error| MergeError::Input { input, error })?;
                encoder.copy(page, &data, file.stored(*entry))?;
            }
            survivors.offer(passed, entries[passed].as_slice().first().map(|entry| entry.page));
        }
    }
    survivors.end()?;
    end(encoder, header, last.trailer())
}

/// Merges files of any size. Memory: a few pages per input and eight bytes per page of the result.
///
/// # Errors
/// [`MergeError`]; `out` then holds half a file, or a whole one made of inputs that are damaged.
pub fn merge_streams<R: Read, W: Write>(
    mut inputs: Vec<Decoder<R>>,
    compressor: &mut Compressor,
    out: W,
) -> Result<Trailer, MergeError> {
    let headers: Vec<Header> = inputs.iter().map(|input| *input.header()).collect();
    let header = merged_header(&headers)?;
    let mut survivors = Survivors::new(&headers);
    let mut current = Vec::with_capacity(inputs.len());
    for (input, decoder) in inputs.iter_mut().enumerate() {
        let page = Current::read(input, decoder)?;
        survivors.offer(input, page.page);
        current.push(page);
    }
    let mut passed = Vec::new();
    let mut encoder = Encoder::begin(compressor, out, &header)?;
    while let Some((page, input)) = survivors.next()? {
        if page.get() <= header.commit {
            encoder.copy(page, &current[input].data, &current[input].stored)?;
        }
        std::mem::swap(&mut passed, &mut survivors.passed);
        for passed in passed.iter().copied() {
            current[passed].advance(passed, &mut inputs[passed])?;
            survivors.offer(passed, current[passed].page);
        }
    }
    survivors.end()?;
    let mut before: Option<Trailer> = None;
    for (input, decoder) in inputs.into_iter().enumerate() {
        let trailer = decoder.finish().map_err(|error| MergeError::Input { input, error })?;
        if let Some(before) = before {
            check_checksums(input, before, &headers[input])?;
        }
        before = Some(trailer);
    }
    end(encoder, header, before.ok_or(MergeError::Nothing)?)
}

fn end<W: Write>(
    encoder: Encoder<'_, W>,
    header: Header,
    last: Trailer,
) -> Result<Trailer, MergeError> {
    Ok(match last.post_apply {
        Some(post_apply) if header.flags.has_checksums() => encoder.finish(post_apply)?,
        Some(_) | None => encoder.finish_without_checksum()?,
    })
}

/// The header of the result: where the first begins and the last ends.
fn merged_header(headers: &[Header]) -> Result<Header, MergeError> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Err(MergeError::Nothing);
    };
    for (i, pair) in headers.windows(2).enumerate() {
        let input = i + 1;
        if pair[1].page_size != first.page_size {
            let (expected, found) = (first.page_size, pair[1].page_size);
            return Err(MergeError::PageSize { input, expected, found });
        }
        let expected = pair[0].max_txid.next();
        if pair[1].min_txid != expected {
            return Err(MergeError::Gap { input, expected, found: pair[1].min_txid });
        }
    }
    let has_checksums = headers.iter().all(|header| header.flags.has_checksums());
    Ok(Header {
        flags: if has_checksums { Flags::NONE } else { Flags::NO_CHECKSUM },
        page_size: first.page_size,
        commit: last.commit,
        min_txid: first.min_txid,
        max_txid: last.max_txid,
        timestamp_ms: last.timestamp_ms,
        pre_apply: first.pre_apply.filter(|_| has_checksums),
        wal: WalSource::default(),
        node_id: NodeId::new(0),
    })
}

fn check_checksums(input: usize, before: Trailer, header: &Header) -> Result<(), MergeError> {
    match (before.post_apply, header.pre_apply) {
        (Some(expected), Some(found)) if expected != found => {
            Err(MergeError::Diverged { input, expected, found })
        }
        (Some(_) | None, Some(_) | None) => Ok(()),
    }
}

/// Chooses page after page the input with the last image, and notices holes.
struct Survivors {
    heap: BinaryHeap<Reverse<(PageNo, usize)>>,
    /// The inputs whose next page the chosen one replaces, itself included. The caller takes the list,
    /// advances them and offers their next pages.
    passed: Vec<usize>,
    /// For each input, the smallest size of the database after it: an image of a page beyond that
    /// is gone.
    smallest_after: Vec<u32>,
    commit: u32,
    /// The next page that must come, because the database was once smaller.
    due: u32,
    lock_page: PageNo,
}

impl Survivors {
    fn new(headers: &[Header]) -> Self {
        let commit = headers.last().map_or(0, |header| header.commit);
        let mut smallest_after = vec![u32::MAX; headers.len()];
        let mut smallest = u32::MAX;
        for (slot, header) in smallest_after.iter_mut().zip(headers).rev() {
            *slot = smallest;
            smallest = smallest.min(header.commit);
        }
        let page_size = headers.first().map_or(PageSize::MAX, |header| header.page_size);
        let due = smallest.min(commit).saturating_add(1);
        let lock_page = page_size.lock_page();
        Self { heap: BinaryHeap::new(), passed: Vec::new(), smallest_after, commit, due, lock_page }
    }

    /// Says which page an input has next.
    fn offer(&mut self, input: usize, page: Option<PageNo>) {
        if let Some(page) = page {
            self.heap.push(Reverse((page, input)));
        }
    }

    /// The next page and the input with its last image.
    fn next(&mut self) -> Result<Option<(PageNo, usize)>, MergeError> {
        let Some(Reverse((page, mut input))) = self.heap.pop() else { return Ok(None) };
        self.passed.clear();
        self.passed.push(input);
        while let Some(Reverse((same, later))) = self.heap.peek().copied()
            && same == page
        {
            self.heap.pop();
            self.passed.push(later);
            input = later;
        }
        if page.get() > self.commit {
            return Ok(Some((page, input)));
        }
        if page.get() > self.smallest_after[input] {
            return Err(MergeError::Hole(page.get()));
        }
        self.skip_lock_page();
        if page.get() >= self.due {
            if page.get() != self.due {
                return Err(MergeError::Hole(self.due));
            }
            self.due = self.due.saturating_add(1);
        }
        Ok(Some((page, input)))
    }

    /// Checks that no page is missing at the end.
    fn end(&mut self) -> Result<(), MergeError> {
        self.skip_lock_page();
        if self.due <= self.commit { Err(MergeError::Hole(self.due)) } else { Ok(()) }
    }

    fn skip_lock_page(&mut self) {
        if self.due == self.lock_page.get() {
            self.due += 1;
        }
    }
}

/// The page an input has next, owned: the decoder's buffers are borrowed while reading.
#[derive(Debug, Default)]
struct Current {
    page: Option<PageNo>,
    data: Vec<u8>,
    stored: Vec<u8>,
}

impl Current {
    fn read<R: Read>(input: usize, decoder: &mut Decoder<R>) -> Result<Self, MergeError> {
        let mut current = Self::default();
        current.advance(input, decoder)?;
        Ok(current)
    }

    fn advance<R: Read>(
        &mut self,
        input: usize,
        decoder: &mut Decoder<R>,
    ) -> Result<(), MergeError> {
        let page = decoder.next_page().map_err(|error| MergeError::Input { input, error })?;
        self.page = page.map(|page| page.page);
        if let Some(page) = page {
            self.data.clear();
            self.data.extend_from_slice(page.data);
            self.stored.clear();
            self.stored.extend_from_slice(page.stored);
        }
        Ok(())
    }
}
