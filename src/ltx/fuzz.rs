//! What must hold for any bytes at all; a fuzz target and a property test call it.

use super::{Compressor, Decoder, Encoder, Format, LtxFile, Problem};

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
