//! Files that older and other writers made, kept in `tests/data/ltx`.

use super::properties::pages_of;
use super::*;

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ltx/", $name)).as_slice()
    };
}

/// What the noise page of the golden files holds.
fn noise() -> Vec<u8> {
    let mut state = 1u32;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..512).map(|_| step()).collect()
}

/// Page 1 of one digit, page 3 of noise.
fn two_pages() -> Vec<(u32, Vec<u8>)> {
    vec![(1, vec![b'1'; 512]), (3, noise())]
}

fn two_pages_header() -> Header {
    Header { timestamp_ms: -1000, ..header(512, 3, 2, 4) }
}

fn read_v1(bytes: &[u8]) -> (Vec<(u32, Vec<u8>)>, Trailer) {
    let mut decoder = Decoder::open(bytes, Format::V1).unwrap();
    let mut pages = Vec::new();
    while let Some(page) = decoder.next_page().unwrap() {
        pages.push((page.page.get(), page.data.to_vec()));
    }
    (pages, decoder.finish().unwrap())
}

#[test]
fn a_snapshot_by_the_reference_is_the_database() {
    let database = golden!("reference-snapshot.db");
    let file = LtxFile::parse(golden!("reference-snapshot-v3.ltx")).unwrap();
    let pages = pages_of(&file);
    assert!(pages.iter().flat_map(|(_, data)| data).eq(database));
    assert_eq!(file.trailer().post_apply, Some(sum(512, &pages)));
    let (pages_v1, trailer_v1) = read_v1(golden!("reference-plain-v1.ltx"));
    assert_eq!(pages_v1, pages);
    assert_eq!(trailer_v1.post_apply, file.trailer().post_apply);
}

#[test]
fn increments_by_the_reference_are_read() {
    let file = LtxFile::parse(golden!("reference-increment-v3.ltx")).unwrap();
    assert_eq!(file.entries().len(), 2);
    let file = LtxFile::parse(golden!("reference-no-checksum-v3.ltx")).unwrap();
    assert_eq!(pages_of(&file), [(2, vec![0xa5; 4096])]);
}

#[test]
fn frames_and_v1_by_the_reference_are_read() {
    let file = LtxFile::parse(golden!("reference-frames-v3.ltx")).unwrap();
    assert_eq!(*file.header(), two_pages_header());
    assert_eq!(pages_of(&file), two_pages());
    assert_eq!(read_v1(golden!("reference-compressed-v1.ltx")).0, two_pages());
}

#[test]
fn our_frames_are_the_reference_s_to_the_byte_but_for_compression() {
    let header = two_pages_header();
    let pages = [(1, noise()), (3, noise())];
    let ours = encode(&header, &pages, Checksum::new(0x5678), PageEncoding::Frame).unwrap();
    let reference = golden!("reference-frames-v3.ltx");
    let theirs = LtxFile::parse(reference).unwrap();
    let noise_page = theirs.entry(page(3)).unwrap();
    let at = noise_page.offset as usize;
    let stored = &reference[at..at + noise_page.size as usize];
    assert_eq!(ours[100 + stored.len()..100 + 2 * stored.len()], *stored);
}

#[test]
fn what_we_write_stays_what_we_wrote() {
    for (encoding, golden) in [
        (PageEncoding::Block, golden!("weir-block.ltx")),
        (PageEncoding::Plain, golden!("weir-plain.ltx")),
        (PageEncoding::Frame, golden!("weir-frame.ltx")),
    ] {
        let post = Checksum::new(0x5678);
        let now = encode(&two_pages_header(), &two_pages(), post, encoding).unwrap();
        let golden = LtxFile::parse(golden).unwrap();
        assert_eq!(*golden.header(), two_pages_header());
        assert_eq!(pages_of(&golden), two_pages());
        // Another version of the compressor may find other blocks; without it the bytes are fixed.
        if encoding == PageEncoding::Plain {
            assert_eq!(now, golden.bytes());
        }
    }
}
