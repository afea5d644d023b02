//! Nanoseconds per page of the change-set format: `cargo bench --bench ltx`.
//!
//! Numbers quoted anywhere carry machine, date and this command.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::hint::black_box;
use std::time::Instant;

use weir::ltx::{
    Compressor, Encoder, Flags, Header, LtxFile, PageEncoding, WalSource, merge, page_sum,
};
use weir::types::{Checksum, NodeId, PageNo, PageSize, Txid};

const PAGES: u32 = 256;

fn main() {
    println!("nanoseconds per page");
    println!("content     page  page_sum    GB/s   block   plain   parse    read   merge   ratio");
    for page_size in [4096, 65536] {
        for (name, make) in [
            ("rows", rows as fn(usize, u32) -> Vec<u8>),
            ("zeros", |len, _| vec![0; len]),
            ("noise", noise),
        ] {
            let pages: Vec<Vec<u8>> = (1..=PAGES).map(|no| make(page_size, no)).collect();
            measure(name, page_size, &pages);
        }
    }
    single(PageEncoding::Block);
    single(PageEncoding::Plain);
}

fn measure(name: &str, page_size: usize, pages: &[Vec<u8>]) {
    let numbered = || (1..).zip(pages).map(|(no, data)| (PageNo::new(no).unwrap(), data));
    let sum_ns = per_page(|| {
        for (page, data) in numbered() {
            black_box(page_sum(page, black_box(data)));
        }
    });
    let header = header(page_size);
    let mut out = Vec::new();
    let mut encode_ns = |encoding| {
        let mut compressor = Compressor::new(encoding);
        per_page(|| {
            out.clear();
            let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).unwrap();
            for (page, data) in numbered() {
                encoder.page(page, data).unwrap();
            }
            encoder.finish(Checksum::EMPTY).unwrap();
        })
    };
    let plain_ns = encode_ns(PageEncoding::Plain);
    let block_ns = encode_ns(PageEncoding::Block);
    let parse_ns = per_page(|| {
        black_box(LtxFile::parse(black_box(&out)).unwrap());
    });
    let mut data = vec![0; page_size];
    let trusted_ns = per_page(|| {
        let file = LtxFile::parse_trusted(black_box(&out)).unwrap();
        for entry in file.entries() {
            file.read(*entry, &mut data).unwrap();
        }
    });
    let file = LtxFile::parse_trusted(&out).unwrap();
    let mut compressor = Compressor::default();
    let mut merged = Vec::new();
    let merge_ns = per_page(|| {
        merged.clear();
        merge(std::slice::from_ref(&file), &mut compressor, &mut merged).unwrap();
    });
    let raw = pages.len() * page_size;
    println!(
        "{name:8}{page_size:>8}{sum_ns:>10.0}{:>8.1}{block_ns:>8.0}{plain_ns:>8.0}{parse_ns:>8.0}{trusted_ns:>8.0}{merge_ns:>8.0}{:>8.2}",
        page_size as f64 / sum_ns,
        out.len() as f64 / raw as f64,
    );
}

/// A commit of one page: what a small transaction costs.
fn single(encoding: PageEncoding) {
    let data = rows(4096, 1);
    let mut compressor = Compressor::new(encoding);
    let mut out = Vec::new();
    let header = header(4096);
    let rounds = 20_000u32;
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..rounds {
                out.clear();
                let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).unwrap();
                encoder.page(PageNo::FIRST, black_box(&data)).unwrap();
                encoder.finish(Checksum::EMPTY).unwrap();
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
        })
        .fold(f64::INFINITY, f64::min);
    println!("a file of one 4096-byte page, {encoding:?}: {best:.0} ns, {} bytes", out.len());
}

/// Nanoseconds per page, the best of several runs.
fn per_page(mut run: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_millis() < 300 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best * 1e9 / f64::from(PAGES)
}

fn header(page_size: usize) -> Header {
    Header {
        flags: Flags::NONE,
        page_size: PageSize::new(u32::try_from(page_size).unwrap()).unwrap(),
        commit: PAGES,
        min_txid: Txid::new(2).unwrap(),
        max_txid: Txid::new(2).unwrap(),
        timestamp_ms: 0,
        pre_apply: Some(Checksum::EMPTY),
        wal: WalSource::default(),
        node_id: NodeId::new(1),
    }
}

/// Something like a leaf of a table: cell pointers, a gap, rows of numbers, words and keys.
fn rows(len: usize, no: u32) -> Vec<u8> {
    let words = ["alpha", "bravo", "order", "pending", "shipped", "invoice", "customer", "note"];
    let mut state = u64::from(no).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut page = vec![0; len];
    page[0] = 13;
    let (mut low, mut high) = (8, len);
    while high > low + len / 10 + 100 {
        let key = random();
        let word = |bits: u64| words[usize::try_from(bits % 8).unwrap()];
        let row = format!(
            "\x05\x00\x2d\x21{key:016x}{} {} {}@example.com 2026-08-{:02}",
            word(key),
            word(key >> 8),
            word(key >> 16),
            key % 28 + 1
        );
        high -= row.len();
        page[high..high + row.len()].copy_from_slice(row.as_bytes());
        let at = u16::try_from(high & 0xffff).unwrap();
        page[low..low + 2].copy_from_slice(&at.to_be_bytes());
        low += 2;
    }
    page
}

fn noise(len: usize, no: u32) -> Vec<u8> {
    let mut state = u64::from(no) | (1 << 40);
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes
}
