//! Files made by the reference encoder, byte by byte, and files that break one rule each.

use super::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn example_a() -> Vec<u8> {
    hex("4c545831 00000000 00000200 00000003
         0000000000000002 0000000000000004
         fffffffffffffc18 8000000000001234
         0000000000000000 0000000000000000
         00000000 00000000 0000000000000000
         0000000000000000000000000000000000000000
         00000001 0001 00000018
         1f310100ffda000200000200b03131313131313131313131
         00000003 0001 00000018
         1f330100ffda000200000200b03333333333333333333333
         000000000000
         016422 03860122 00 0000000000000008
         8000000000005678 d1f8ea546c262bd3")
}

fn example_b() -> Vec<u8> {
    hex("4c545831 00000002 00001000 00000002
         0000000000000005 0000000000000005
         00000000000007d0 0000000000000000
         0000000000000000 0000000000000000 0000000000000000 0000000000000000
         0000000000000000000000000000000000000000
         00000002 0001 00000026
         1fa50100 ffffffffffffffffffffffffffffff e8 000200000200b0 a5a5a5a5a5a5a5a5a5a5a5
         000000000000
         026430 00 0000000000000004
         0000000000000000 c231c44dd37c4fc6")
}

fn problem(bytes: &[u8]) -> (u64, Problem) {
    let error = LtxFile::parse(bytes).unwrap_err();
    (error.offset, error.problem)
}

#[test]
fn the_reference_increment_is_read_in_every_part() {
    let bytes = example_a();
    assert_eq!(bytes.len(), 206);
    let file = LtxFile::parse(&bytes).unwrap();
    let expected = Header { timestamp_ms: -1000, ..header(512, 3, 2, 4) };
    assert_eq!(*file.header(), expected);
    assert_eq!(file.trailer().post_apply, Some(Checksum::new(0x5678)));
    let pages: Vec<u32> = file.entries().iter().map(|entry| entry.page.get()).collect();
    assert_eq!(pages, [1, 3]);
    let mut data = [0; 512];
    file.read(file.entry(page(3)).unwrap(), &mut data).unwrap();
    assert_eq!(data, [b'3'; 512]);
    assert_eq!(file.entry(page(2)), None);
}

#[test]
fn the_reference_file_without_checksums_is_read() {
    let bytes = example_b();
    assert_eq!(bytes.len(), 182);
    let file = LtxFile::parse(&bytes).unwrap();
    assert!(!file.header().flags.has_checksums());
    assert_eq!(file.trailer().post_apply, None);
    let mut data = [0; 4096];
    file.read(file.entries()[0], &mut data).unwrap();
    assert_eq!(data, [0xa5; 4096]);
}

#[test]
fn what_we_write_of_the_reference_examples_is_read_the_same() {
    let increment = Header { timestamp_ms: -1000, ..header(512, 3, 2, 4) };
    let pages = [(1, vec![b'1'; 512]), (3, vec![b'3'; 512])];
    let ours = encode(&increment, &pages, Checksum::new(0x5678), PageEncoding::Block).unwrap();
    let reference = example_a();
    assert_eq!(ours[..100], reference[..100]);
    let file = LtxFile::parse(&ours).unwrap();
    let theirs = LtxFile::parse(&reference).unwrap();
    assert_eq!(file.header(), theirs.header());
    let (mut a, mut b) = ([0; 512], [0; 512]);
    for (ours, its) in file.entries().iter().zip(theirs.entries()) {
        file.read(*ours, &mut a).unwrap();
        theirs.read(*its, &mut b).unwrap();
        assert_eq!((ours.page, a), (its.page, b));
    }
}

#[test]
fn small_snapshots_have_the_reference_checksums() {
    let empty = Header { timestamp_ms: 0, ..header(512, 0, 1, 1) };
    let bytes = encode(&empty, &[], Checksum::EMPTY, PageEncoding::Block).unwrap();
    assert_eq!(LtxFile::parse(&bytes).unwrap().trailer().file.get(), 0xef75_2d54_4ac8_c48f);

    let zeros = Header { commit: 1, ..empty };
    let post = page_sum(page(1), &[0; 512]);
    assert_eq!(post.get(), 0xefb1_f44f_ecd9_9000);
    encode(&zeros, &[(1, vec![0; 512])], post, PageEncoding::Block).unwrap();

    // The file checksum covers the size of the block, so it is the reference's block here.
    let mut reference = zeros.to_bytes().to_vec();
    reference.extend(hex("00000001 0001 00000018
                          1f000100ffda000200000200b00000000000000000000000
                          000000000000 016422 00 0000000000000004
                          efb1f44fecd99000 eb5121d56d33a656"));
    LtxFile::parse(&reference).unwrap();
}

#[test]
fn the_encoder_refuses_what_no_file_may_hold() {
    let zeros = |no| (no, vec![0; 512]);
    let post = Checksum::new(1);
    let order = |header: &Header, pages: &[(u32, Vec<u8>)]| match encode(
        header,
        pages,
        post,
        PageEncoding::Block,
    ) {
        Err(EncodeError::Order(error)) => Some(error),
        Ok(_) | Err(_) => None,
    };
    let increment = header(512, 5, 2, 2);
    let twice = OrderError::NotAscending { page: page(2), previous: 2 };
    assert_eq!(order(&increment, &[zeros(2), zeros(2)]), Some(twice));
    let beyond = OrderError::BeyondCommit { page: page(6), commit: 5 };
    assert_eq!(order(&increment, &[zeros(6)]), Some(beyond));
    let big = header(65536, 20_000, 2, 2);
    let lock = [(16_385, vec![0; 65536])];
    assert_eq!(order(&big, &lock), Some(OrderError::LockPage(page(16_385))));

    let snapshot = header(512, 2, 1, 1);
    assert_eq!(order(&snapshot, &[zeros(2)]), Some(OrderError::Missing(1)));

    let short = encode(&increment, &[(1, vec![0; 511])], post, PageEncoding::Block);
    assert!(matches!(short, Err(EncodeError::PageLength { len: 511, expected: 512, .. })));
    let wrong = encode(&snapshot, &[zeros(1), zeros(2)], post, PageEncoding::Block);
    assert!(matches!(wrong, Err(EncodeError::PostApplyMismatch { .. })));
    let deletion = encode(&header(512, 0, 2, 2), &[], post, PageEncoding::Block);
    assert!(matches!(deletion, Err(EncodeError::PostApplyOfNothing(_))));
}

#[test]
fn a_snapshot_without_its_last_page_is_never_finished() {
    let half = Header { flags: Flags::NO_CHECKSUM, ..header(512, 2, 1, 1) };
    let result = encode(&half, &[(1, vec![0; 512])], Checksum::EMPTY, PageEncoding::Block);
    assert!(matches!(result, Err(EncodeError::Order(OrderError::Missing(2)))));
}

#[test]
fn a_deletion_without_checksums_does_not_exist() {
    let header = Header { flags: Flags::NO_CHECKSUM, pre_apply: None, ..header(512, 0, 2, 2) };
    let result = encode(&header, &[], Checksum::EMPTY, PageEncoding::Block);
    assert!(matches!(result, Err(EncodeError::DeletionWithoutChecksum)));
}

#[test]
fn a_snapshot_skips_the_lock_page() {
    let size = PageSize::MAX;
    let lock = size.lock_page().get();
    let header = Header { flags: Flags::NO_CHECKSUM, ..header(size.get(), lock + 1, 1, 1) };
    let mut compressor = Compressor::default();
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(&mut compressor, &mut out, &header).unwrap();
    let zeros = vec![0; size.bytes()];
    for no in (1..lock).chain([lock + 1]) {
        encoder.page(page(no), &zeros).unwrap();
    }
    encoder.finish_without_checksum().unwrap();
    assert_eq!(LtxFile::parse(&out).unwrap().entries().len(), lock as usize);
}

/// The reference calls all of these fine.
#[test]
fn files_that_the_reference_accepts_although_they_are_wrong_are_refused() {
    let reference = example_b();
    let with = |at: usize, byte: u8| {
        let mut bytes = reference.clone();
        bytes[at] = byte;
        problem(&bytes)
    };
    // commit 1: the only page is 2.
    assert!(matches!(with(15, 1), (100, Problem::Order(OrderError::BeyondCommit { .. }))));
    // transactions 1..5: a snapshot without page 1.
    assert!(matches!(with(23, 1), (100, Problem::Order(OrderError::Missing(1)))));
    // The index says page 3.
    assert!(matches!(with(154, 3), (154, Problem::Index)));
    // The index says it is 5 bytes long.
    assert!(matches!(with(165, 5), (165, Problem::Index)));
}

#[test]
fn what_follows_the_trailer_is_refused() {
    let mut bytes = example_a();
    bytes.push(0);
    assert!(matches!(problem(&bytes), (206, Problem::TrailingBytes)));
}

#[test]
fn a_damaged_file_is_named_by_offset() {
    let damaged = |at: usize, byte: u8| {
        let mut bytes = example_a();
        bytes[at] = byte;
        problem(&bytes)
    };
    assert!(matches!(damaged(85, 1), (198, Problem::FileChecksumMismatch { .. })));
    assert!(matches!(damaged(105, 3), (100, Problem::PageFlags { flags: 3, .. })));
    assert!(matches!(damaged(106, 0xff), (106, Problem::BlockTooLarge { .. })));
    assert!(matches!(damaged(190, 0), (190, Problem::PostApplyFlagBit(0x5678))));
    assert!(matches!(damaged(198, 0), (190, Problem::FileChecksumFlagBit(_))));
    let message = LtxFile::parse(b"SQLite format 3\0").unwrap_err().to_string();
    assert_eq!(message, "at byte 0: it does not begin with 'LTX1', so it is no LTX file");
}

#[test]
fn reserved_bytes_count_in_the_file_checksum_but_may_be_anything() {
    let mut bytes = example_a();
    bytes[99] = 1;
    let (_, Problem::FileChecksumMismatch { computed, .. }) = problem(&bytes) else {
        panic!("not noticed")
    };
    bytes[198..].copy_from_slice(&computed.get().to_be_bytes());
    LtxFile::parse(&bytes).unwrap();
}
