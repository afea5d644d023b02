//! LiteFS's files, which have no index and may be one LZ4 frame.

use std::io::Write as _;

use crate::ltx::checksum::FileCrc;

use super::*;

/// A v1 file of two pages, written by its description.
fn v1(is_compressed: bool) -> Vec<u8> {
    let header = header(512, 3, 2, 4);
    let mut bytes = header.to_bytes().to_vec();
    bytes[7] = u8::from(is_compressed);
    let mut crc = FileCrc::new();
    crc.update(&bytes);
    let mut pages = Vec::new();
    for no in [1u32, 3] {
        pages.extend(no.to_be_bytes());
        pages.extend([u8::try_from(no).unwrap(); 512]);
    }
    pages.extend([0; 4]);
    crc.update(&pages);
    if is_compressed {
        let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(&pages).unwrap();
        pages = encoder.finish().unwrap();
    }
    bytes.extend(pages);
    let post = Checksum::new(0x5678).get().to_be_bytes();
    crc.update(&post);
    bytes.extend(post);
    bytes.extend(crc.sum().get().to_be_bytes());
    bytes
}

#[test]
fn plain_and_compressed_files_are_read() {
    for is_compressed in [false, true] {
        let bytes = v1(is_compressed);
        let mut decoder = Decoder::open(&bytes[..], Format::V1).unwrap();
        let mut pages = Vec::new();
        while let Some(page) = decoder.next_page().unwrap() {
            pages.push((page.page.get(), page.data[0], page.data.len()));
        }
        assert_eq!(pages, [(1, 1, 512), (3, 3, 512)]);
        assert_eq!(decoder.finish().unwrap().post_apply, Some(Checksum::new(0x5678)));
    }
}

#[test]
fn cut_or_changed_files_are_refused() {
    for is_compressed in [false, true] {
        let bytes = v1(is_compressed);
        let read = |bytes: &[u8]| Decoder::open(bytes, Format::V1).and_then(Decoder::finish);
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at]).is_err(), "cut to {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            assert!(read(&changed).is_err(), "byte {at} changed");
        }
    }
}

#[test]
fn they_are_no_v3_files() {
    for is_compressed in [false, true] {
        assert!(LtxFile::parse(&v1(is_compressed)).is_err());
    }
    let message = LtxFile::parse(&v1(true)).unwrap_err().to_string();
    assert_eq!(message, "at byte 0: the flags 0x1 are unknown");
}

#[test]
fn a_merge_turns_them_into_v3() {
    let bytes = v1(true);
    let decoder = Decoder::open(&bytes[..], Format::V1).unwrap();
    let mut out = Vec::new();
    merge_streams(vec![decoder], &mut Compressor::default(), &mut out).unwrap();
    assert_eq!(LtxFile::parse(&out).unwrap().entries().len(), 2);
}
