//! The format as a whole: the reference's worked examples, and properties over random files.

#![allow(clippy::cast_possible_truncation, reason = "small numbers and noise")]

mod examples;
mod golden;
mod histories;
mod properties;
mod v1;

use crate::types::{Checksum, NodeId, PageNo, PageSize, Txid};

use super::*;

/// A header with checksums; a snapshot if `min` is 1.
fn header(page_size: u32, commit: u32, min: u64, max: u64) -> Header {
    Header {
        flags: Flags::NONE,
        page_size: PageSize::new(page_size).unwrap(),
        commit,
        min_txid: Txid::new(min).unwrap(),
        max_txid: Txid::new(max).unwrap(),
        timestamp_ms: 1000,
        pre_apply: (min > 1).then(|| Checksum::new(0x1234)),
        wal: WalSource::default(),
        node_id: NodeId::new(0),
    }
}

fn page(no: u32) -> PageNo {
    PageNo::new(no).unwrap()
}

/// Encodes with checksums (a snapshot's is computed) or without, as the header says.
fn encode(
    header: &Header,
    pages: &[(u32, Vec<u8>)],
    post: Checksum,
    encoding: PageEncoding,
) -> Result<Vec<u8>, EncodeError> {
    let mut compressor = Compressor::new(encoding);
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut compressor, &mut out, header)?;
    for (no, data) in pages {
        encoder.page(page(*no), data)?;
    }
    let trailer = if header.flags.has_checksums() {
        encoder.finish(post)?
    } else {
        encoder.finish_without_checksum()?
    };
    assert_eq!(out[out.len() - TRAILER_LEN..], trailer.to_bytes());
    Ok(out)
}

fn sum(page_size: u32, pages: &[(u32, Vec<u8>)]) -> Checksum {
    let mut sum = DatabaseSum::new(PageSize::new(page_size).unwrap());
    for (no, data) in pages {
        sum.toggle(page(*no), data);
    }
    sum.checksum()
}
