//! Merging: histories of a small database, applied one by one and merged.

use proptest::prelude::*;

use super::properties::{encodings, page_data, pages_of};
use super::*;

const PAGE_SIZE: u32 = 512;

/// One transaction: the database's size afterwards, and the pages it writes.
#[derive(Clone, Debug)]
struct Change {
    commit: u32,
    pages: Vec<(u32, Vec<u8>)>,
    encoding: PageEncoding,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let page = (1..8u32, page_data(PAGE_SIZE as usize));
    let change = (1..8u32, prop::collection::vec(page, 0..5), encodings());
    let change = change.prop_map(|(commit, pages, encoding)| Change { commit, pages, encoding });
    prop::collection::vec(change, 1..7)
}

/// The database as a list of pages.
type Pages = Vec<Vec<u8>>;

fn checksum(pages: &Pages) -> Checksum {
    let numbered: Vec<_> = (1..).zip(pages.iter().cloned()).collect();
    sum(PAGE_SIZE, &numbered)
}

/// What apply does: write the pages, cut to size; a hole would read as zeros.
fn apply(pages: &mut Pages, file: &LtxFile<'_>) {
    let commit = file.header().commit as usize;
    pages.resize(commit.max(pages.len()), vec![0; PAGE_SIZE as usize]);
    for (no, data) in pages_of(file) {
        pages[no as usize - 1] = data;
    }
    pages.truncate(commit);
}

/// Carries out a change and writes its file: the chosen pages and all that are new.
fn commit(pages: &mut Pages, change: &Change, txid: u64, has_checksums: bool) -> Vec<u8> {
    let before = checksum(pages);
    let grown_from = pages.len();
    pages.resize(change.commit as usize, vec![0; PAGE_SIZE as usize]);
    let mut written: Vec<u32> =
        (1..=change.commit).filter(|no| txid == 1 || *no as usize > grown_from).collect();
    for (no, data) in change.pages.iter().filter(|(no, _)| *no <= change.commit) {
        pages[*no as usize - 1].clone_from(data);
        written.push(*no);
    }
    written.sort_unstable();
    written.dedup();
    let images: Vec<_> =
        written.into_iter().map(|no| (no, pages[no as usize - 1].clone())).collect();
    let mut header = header(PAGE_SIZE, change.commit, txid, txid);
    header.pre_apply = (txid > 1 && has_checksums).then_some(before);
    header.flags = if has_checksums { Flags::NONE } else { Flags::NO_CHECKSUM };
    encode(&header, &images, checksum(pages), change.encoding).unwrap()
}

fn merge_all(files: &[Vec<u8>]) -> Result<Vec<u8>, MergeError> {
    let inputs: Vec<_> = files.iter().map(|bytes| LtxFile::parse_trusted(bytes).unwrap()).collect();
    let mut out = Vec::new();
    merge(&inputs, &mut Compressor::default(), &mut out).map(|_| out)
}

fn merge_all_streamed(files: &[Vec<u8>]) -> Result<Vec<u8>, MergeError> {
    let inputs: Vec<_> = files.iter().map(|bytes| Decoder::new(&bytes[..]).unwrap()).collect();
    let mut out = Vec::new();
    merge_streams(inputs, &mut Compressor::default(), &mut out).map(|_| out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_merge_does_what_its_inputs_do_one_by_one(
        changes in changes(),
        first in 1..3u64,
        has_checksums in any::<bool>(),
    ) {
        let mut now: Pages = if first == 1 { vec![] } else { vec![vec![9; 512]; 4] };
        let base = now.clone();
        let numbered = (first..).zip(&changes);
        let files: Vec<_> =
            numbered.map(|(txid, c)| commit(&mut now, c, txid, has_checksums)).collect();

        let merged = merge_all(&files).unwrap();
        let file = LtxFile::parse(&merged).unwrap();
        let mut one_step = base;
        apply(&mut one_step, &file);
        prop_assert_eq!(&one_step, &now);
        let last = LtxFile::parse(files.last().unwrap()).unwrap();
        prop_assert_eq!(file.header().min_txid.get(), first);
        prop_assert_eq!(file.header().max_txid, last.header().max_txid);
        prop_assert_eq!(file.trailer().post_apply, has_checksums.then(|| checksum(&now)));

        prop_assert!(merge_all_streamed(&files).unwrap() == merged, "the stream differs");

        // In two steps it is the same too.
        let cut = files.len() / 2;
        if cut > 0 {
            let halves = [merge_all(&files[..cut]).unwrap(), merge_all(&files[cut..]).unwrap()];
            let halves = merge_all(&halves).unwrap();
            prop_assert_eq!(pages_of(&LtxFile::parse(&halves).unwrap()), pages_of(&file));
        }
    }
}

fn zeros(numbers: impl IntoIterator<Item = u32>) -> Vec<(u32, Vec<u8>)> {
    numbers.into_iter().map(|no| (no, vec![0; 512])).collect()
}

fn increment(min: u64, commit: u32, pages: impl IntoIterator<Item = u32>) -> Vec<u8> {
    let header = header(512, commit, min, min);
    encode(&header, &zeros(pages), Checksum::new(0x1234), PageEncoding::Block).unwrap()
}

fn refusal(files: &[Vec<u8>]) -> String {
    let error = merge_all(files).unwrap_err().to_string();
    assert_eq!(merge_all_streamed(files).unwrap_err().to_string(), error);
    error
}

#[test]
fn inputs_that_do_not_follow_each_other_are_refused() {
    assert_eq!(refusal(&[]), "there is nothing to merge");
    let message = refusal(&[increment(2, 3, [1]), increment(4, 3, [1])]);
    let gap = "input 1 begins at transaction 0000000000000004, 0000000000000003 would follow";
    assert_eq!(message, gap);
    assert!(refusal(&[increment(3, 3, [1]), increment(2, 3, [1])]).starts_with("input 1 begins"));

    let other = Header { pre_apply: Some(Checksum::new(5)), ..header(512, 3, 3, 3) };
    let other = encode(&other, &[], Checksum::new(6), PageEncoding::Block).unwrap();
    let message = refusal(&[increment(2, 3, [1]), other]);
    assert!(message.starts_with("input 1 wants the checksum 8000000000000005"), "{message}");

    let big = encode(&header(1024, 3, 3, 3), &[], Checksum::new(6), PageEncoding::Block).unwrap();
    let message = refusal(&[increment(2, 3, [1]), big]);
    assert_eq!(message, "input 1 has pages of 1024 bytes, those before it 512");
}

#[test]
fn a_merge_never_invents_a_page_that_shrinking_took_away() {
    // Page 3 is written, cut off, and the database grows over it without writing it again.
    let message = refusal(&[increment(2, 3, [3]), increment(3, 1, []), increment(4, 3, [])]);
    assert_eq!(message, "the database grows beyond page 3, but no input has that page afterwards");
    let message = refusal(&[increment(2, 1, []), increment(3, 3, [3])]);
    assert_eq!(message, "the database grows beyond page 2, but no input has that page afterwards");
    let grown = merge_all(&[increment(2, 3, [3]), increment(3, 1, []), increment(4, 3, [2, 3])]);
    assert_eq!(LtxFile::parse(&grown.unwrap()).unwrap().entries().len(), 2);
}

#[test]
fn pages_beyond_the_final_end_are_dropped() {
    let merged = merge_all(&[increment(2, 5, [1, 4, 5]), increment(3, 2, [2])]).unwrap();
    let file = LtxFile::parse(&merged).unwrap();
    let pages: Vec<_> = file.entries().iter().map(|entry| entry.page.get()).collect();
    assert_eq!(pages, [1, 2]);
}

#[test]
fn one_input_without_checksums_leaves_none() {
    let without = Header { flags: Flags::NO_CHECKSUM, pre_apply: None, ..header(512, 3, 3, 3) };
    let without = encode(&without, &[], Checksum::EMPTY, PageEncoding::Block).unwrap();
    let merged = merge_all(&[increment(2, 3, [1]), without]).unwrap();
    let file = LtxFile::parse(&merged).unwrap();
    assert!(!file.header().flags.has_checksums());
}

#[test]
fn compressed_pages_are_copied_as_they_are() {
    let header = header(512, 3, 2, 2);
    for encoding in [PageEncoding::Block, PageEncoding::Frame, PageEncoding::Plain] {
        let input = encode(&header, &zeros([1]), Checksum::new(1), encoding).unwrap();
        let file = LtxFile::parse(&input).unwrap();
        for target in [PageEncoding::Block, PageEncoding::Frame, PageEncoding::Plain] {
            let mut out = Vec::new();
            merge(std::slice::from_ref(&file), &mut Compressor::new(target), &mut out).unwrap();
            LtxFile::parse(&out).unwrap();
            let direct = encode(&header, &zeros([1]), Checksum::new(1), target).unwrap();
            let is_copied = target == PageEncoding::Plain && encoding == PageEncoding::Block;
            let expected = if is_copied { input.len() } else { direct.len() };
            assert_eq!(out.len(), expected, "{encoding:?} as {target:?}");
        }
    }
}

#[test]
fn a_damaged_input_is_named() {
    let mut damaged = increment(3, 3, [1]);
    let at = damaged.len() - 1;
    damaged[at] ^= 1;
    let error = merge_all_streamed(&[increment(2, 3, [1]), damaged]).unwrap_err();
    assert!(matches!(error, MergeError::Input { input: 1, .. }));
}
