//! What must hold for any bytes at all; fuzz targets and property tests call it.

use crate::types::{Checksum, NodeId, PageNo, PageSize, Txid};

use super::lz4::{self, BlockCompressor, FrameBuffers, FrameReader};
use super::{
    Compressor, DatabaseSum, Decoder, Encoder, Flags, Format, Header, LtxFile, PageEncoding,
    Problem, WalSource, merge, merge_streams,
};

/// Decodes anything in every way. Nothing may panic, take memory that the input does not justify, or
/// disagree.
///
/// # Panics
/// If two ways of reading disagree: a bug.
pub fn fuzz_ltx_decode(data: &[u8]) {
    check(data);
    // Chance does not find file checksums, so what lies behind them is reached by putting it right.
    if let Err(error) = LtxFile::parse(data)
        && let Problem::FileChecksumMismatch { computed, .. } = error.problem
    {
        let mut repaired = data.to_vec();
        let at = repaired.len() - 8;
        repaired[at..].copy_from_slice(&computed.get().to_be_bytes());
        check(&repaired);
    }
}

fn check(data: &[u8]) {
    let strict = LtxFile::parse(data);
    let streamed = Decoder::new(data).and_then(Decoder::finish);
    match (&strict, &streamed) {
        (Ok(file), Ok(trailer)) => assert_eq!(file.trailer(), *trailer, "BUG: other trailers"),
        (Err(strict), Err(streamed)) => {
            assert_eq!(strict.to_string(), streamed.to_string(), "BUG: other errors");
        }
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => {
            panic!("BUG: in memory {strict:?}, as a stream {streamed:?}")
        }
    }
    if let Ok(trusted) = LtxFile::parse_trusted(data) {
        let mut page = vec![0; trusted.header().page_size.bytes()];
        let readable =
            trusted.entries().iter().filter(|entry| trusted.read(**entry, &mut page).is_ok());
        let readable = readable.count();
        if strict.is_ok() {
            assert_eq!(readable, trusted.entries().len(), "BUG: a checked page is not readable");
        }
    } else {
        assert!(strict.is_err(), "BUG: checked, but not trusted");
    }
    if let Ok(file) = strict {
        check_again(&file);
    }
    if let Ok(mut decoder) = Decoder::open(data, Format::V1) {
        while let Ok(Some(_)) = decoder.next_page() {}
    }
}

/// What is accepted can be written again and is then the same, unless the format cannot write it.
fn check_again(file: &LtxFile<'_>) {
    let mut compressor = Compressor::default();
    let mut out = Vec::new();
    let Ok(mut encoder) = Encoder::begin(&mut compressor, &mut out, file.header()) else { return };
    let mut page = vec![0; file.header().page_size.bytes()];
    for entry in file.entries() {
        file.read(*entry, &mut page).expect("BUG: a checked page is not readable");
        encoder.page(entry.page, &page).expect("BUG: a checked page cannot be written");
    }
    let end = match file.trailer().post_apply {
        Some(post_apply) => encoder.finish(post_apply),
        None => encoder.finish_without_checksum(),
    };
    end.expect("BUG: a checked file cannot be written");
    let again = LtxFile::parse(&out).expect("BUG: what was written is not accepted");
    assert_eq!(again.header(), file.header(), "BUG: other headers");
}

/// Merges change sets that follow each other, in both ways, and damaged ones.
///
/// # Panics
/// If the two ways differ from each other or from applying one after another: a bug.
pub fn fuzz_ltx_merge(data: &[u8]) {
    let mut script = data.iter().copied();
    let mut next = || script.next().unwrap_or(0);
    let Some(page_size) = PageSize::new(512 << (next() % 3)) else { return };
    let mut first = Txid::new(1 + u64::from(next() % 3)).unwrap_or(Txid::FIRST);
    let mut pages: Vec<u8> = if first == Txid::FIRST { Vec::new() } else { vec![0; 5] };
    let mut sum = sum_of(page_size, &pages);
    let mut files = Vec::new();
    for _ in 0..=next() % 5 {
        let (commit, chosen, fill, encoding) = (next() % 9, next(), next(), next());
        let header = Header {
            flags: Flags::NONE,
            page_size,
            commit: u32::from(commit),
            min_txid: first,
            max_txid: first,
            timestamp_ms: 0,
            pre_apply: (first != Txid::FIRST).then_some(sum),
            wal: WalSource::default(),
            node_id: NodeId::new(1),
        };
        let before = pages.len();
        pages.resize(usize::from(commit), 0);
        let encoding = [PageEncoding::Block, PageEncoding::Plain, PageEncoding::Frame]
            [usize::from(encoding % 3)];
        let mut compressor = Compressor::new(encoding);
        let mut out = Vec::new();
        let mut encoder = Encoder::begin(&mut compressor, &mut out, &header)
            .expect("BUG: a header that breaks no rule");
        for (index, page) in pages.iter_mut().enumerate() {
            if index >= before || first == Txid::FIRST || chosen >> (index % 8) & 1 == 1 {
                *page = fill.wrapping_add(u8::try_from(index).unwrap_or(0));
                let number = PageNo::new(1 + u32::try_from(index).unwrap_or(0));
                let number = number.expect("BUG: one more than 0 is not 0");
                encoder
                    .page(number, &vec![*page; page_size.bytes()])
                    .expect("BUG: pages in order are refused");
            }
        }
        sum = sum_of(page_size, &pages);
        encoder.finish(sum).expect("BUG: a whole file is refused");
        files.push(out);
        first = first.next();
    }
    let merged = merged_alike(&files).expect("BUG: files that follow each other are not merged");
    let merged = LtxFile::parse(&merged).expect("BUG: the merged file is refused");
    assert_eq!(merged.trailer().post_apply, Some(sum), "BUG: another end");
    let mut page = vec![0; page_size.bytes()];
    for entry in merged.entries() {
        merged.read(*entry, &mut page).expect("BUG: a merged page is not readable");
        assert_eq!(page[0], pages[entry.page.get() as usize - 1], "BUG: page {}", entry.page);
    }
    // One of them damaged, missing or twice.
    let at = usize::from(next()) % files.len();
    match next() % 3 {
        0 => drop(files.remove(at)),
        1 => files.push(files[at].clone()),
        _ => {
            let file = &mut files[at];
            let place = usize::from(u16::from_be_bytes([next(), next()])) % file.len();
            file[place] ^= next().max(1);
        }
    }
    merged_alike(&files);
}

fn sum_of(page_size: PageSize, pages: &[u8]) -> Checksum {
    let mut sum = DatabaseSum::new(page_size);
    for (number, fill) in (1..).zip(pages) {
        if let Some(page) = PageNo::new(number) {
            sum.toggle(page, &vec![*fill; page_size.bytes()]);
        }
    }
    sum.checksum()
}

/// The files merged, if both ways can.
fn merged_alike(files: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut compressor = Compressor::default();
    let parsed: Result<Vec<_>, _> = files.iter().map(|file| LtxFile::parse(file)).collect();
    let mut in_memory = Vec::new();
    let whole = parsed.ok().and_then(|parsed| merge(&parsed, &mut compressor, &mut in_memory).ok());
    let decoders: Result<Vec<_>, _> = files.iter().map(|file| Decoder::new(&file[..])).collect();
    let mut streamed = Vec::new();
    let stream =
        decoders.ok().and_then(|files| merge_streams(files, &mut compressor, &mut streamed).ok());
    assert_eq!(whole, stream, "BUG: merging in memory and as a stream differ");
    whole.map(|_| {
        assert!(in_memory == streamed, "BUG: other bytes");
        in_memory
    })
}

/// LZ4 blocks and frames from anywhere, and those of our own.
///
/// # Panics
/// If what was compressed is not what comes out: a bug.
pub fn fuzz_lz4(data: &[u8]) {
    let Some((head, rest)) = data.split_at_checked(2) else { return };
    let mut page = vec![0; 512 << (head[0] % 8)];
    let _is_a_page = lz4::decompress_block(rest, &mut page);
    let mut buffers = FrameBuffers::default();
    let read = |mut frame: &[u8], buffers: &mut FrameBuffers, page: &mut [u8]| {
        FrameReader::read_whole(&mut frame, buffers, page).is_ok()
    };
    read(rest, &mut buffers, &mut page);
    // A frame's descriptor has a checksum that chance finds, its magic is not.
    let framed = [&[0x04, 0x22, 0x4d, 0x18, 0x64, 0x40, 0xa7][..], rest].concat();
    read(&framed, &mut buffers, &mut page);

    let original: Vec<u8> =
        rest.iter().copied().chain([head[1]]).cycle().take(page.len()).collect();
    let mut compressor = BlockCompressor::new();
    let block = compressor.block(&original);
    assert!(block.len() <= lz4::bound(original.len()), "BUG: larger than the bound");
    assert!(lz4::decompress_block(block, &mut page), "BUG: its own block is refused");
    assert_eq!(page, original, "BUG: another page");
    let mut frame = Vec::new();
    lz4::put_frame(&mut compressor, &original, &mut frame);
    page.fill(0);
    assert!(read(&frame, &mut buffers, &mut page), "BUG: its own frame is refused");
    assert_eq!(page, original, "BUG: another page");
    let at = usize::from(head[0]) * 31 % frame.len();
    frame[at] ^= head[1].max(1);
    // All but the bytes that only say how the content is stored are covered by its checksum.
    if read(&frame, &mut buffers, &mut page) {
        assert_eq!(page, original, "BUG: a damaged frame is another page");
    }
}
