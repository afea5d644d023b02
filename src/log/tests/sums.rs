//! Page sums do what a vector does, over crashes and damage.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::tempdir;
use crate::log::{PageSums, SumsError};
use crate::types::{Checksum, Epoch, PageNo, PageSize, Pos, Txid};

const BLOCK: u64 = 4096;

fn page(number: u32) -> PageNo {
    PageNo::new(number).unwrap()
}

fn at(txid: u64) -> Pos {
    Pos { epoch: Epoch::new(1), txid: Txid::new(txid), checksum: Checksum::new(txid * 3) }
}

fn size() -> PageSize {
    PageSize::new(4096).unwrap()
}

#[test]
fn sums_survive_a_flush_and_nothing_else() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    assert_eq!((sums.as_of(), sums.pages(), sums.page_size()), (Pos::ZERO, 0, size()));
    assert_eq!(sums.get(page(1)).unwrap(), None);
    for number in [1, 511, 512, 100_000] {
        sums.set(page(number), Checksum::new(u64::from(number)));
    }
    assert_eq!(sums.dirty_blocks(), 3);
    sums.flush(at(7)).unwrap();
    assert_eq!(sums.dirty_blocks(), 0);
    sums.set(page(1), Checksum::new(99));
    drop(sums);
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!((sums.as_of(), sums.pages()), (at(7), 100_000));
    for number in [1, 511, 512, 100_000] {
        assert_eq!(sums.get(page(number)).unwrap(), Some(Checksum::new(u64::from(number))));
    }
    for number in [2, 510, 513, 50_000, 99_999, 100_001] {
        assert_eq!(sums.get(page(number)).unwrap(), None, "page {number}");
    }
    assert_eq!(sums.damaged_blocks(), 0);
    // The zero checksum has its flag bit and is known.
    sums.set(page(2), Checksum::EMPTY);
    sums.flush(at(8)).unwrap();
    assert_eq!(PageSums::open(&path).unwrap().get(page(2)).unwrap(), Some(Checksum::EMPTY));
}

#[test]
fn a_damaged_block_makes_its_pages_unknown_and_no_others() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    for number in 1..=1500 {
        sums.set(page(number), Checksum::new(u64::from(number)));
    }
    sums.flush(at(1)).unwrap();
    drop(sums);
    let whole = fs::read(&path).unwrap();
    for bit in (3 * BLOCK * 8..4 * BLOCK * 8).step_by(41) {
        let mut bytes = whole.clone();
        bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
        fs::write(&path, bytes).unwrap();
        let mut sums = PageSums::open(&path).unwrap();
        for number in [1, 511, 1023, 1500] {
            assert!(sums.get(page(number)).unwrap().is_some());
        }
        for number in [512, 600, 1022] {
            assert_eq!(sums.get(page(number)).unwrap(), None, "bit {bit}");
        }
        assert_eq!(sums.damaged_blocks(), 1);
    }
    // Setting a sum in it heals the block; the others stay unknown.
    let mut sums = PageSums::open(&path).unwrap();
    sums.set(page(600), Checksum::new(1));
    sums.flush(at(2)).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.get(page(600)).unwrap(), Some(Checksum::new(1)));
    assert_eq!(sums.get(page(601)).unwrap(), None);
    assert_eq!(sums.damaged_blocks(), 0);
}

#[test]
fn a_block_in_another_blocks_place_is_damaged() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    sums.set(page(1), Checksum::new(1));
    sums.set(page(1000), Checksum::new(1));
    sums.flush(at(1)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 2 * BLOCK).unwrap();
    file.write_all_at(&block, 3 * BLOCK).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.get(page(512)).unwrap(), None);
    assert_eq!(sums.damaged_blocks(), 1);
}

#[test]
fn a_torn_header_falls_back_to_the_one_before() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    for txid in 1..=4 {
        sums.set(page(3), Checksum::new(txid));
        sums.flush(at(txid)).unwrap();
        let whole = fs::read(&path).unwrap();
        let slots = [0, 1].map(|slot| slot * usize::try_from(BLOCK).unwrap());
        let mut positions = Vec::new();
        for slot in slots {
            let mut torn = whole.clone();
            torn[slot + 30..slot + 512].fill(0);
            let other = dir.path().join("torn");
            fs::write(&other, torn).unwrap();
            positions.push(PageSums::open(&other).unwrap().as_of().txid_raw());
        }
        positions.sort_unstable();
        assert_eq!(positions, [txid - 1, txid]);
    }
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] ^= 1;
    bytes[usize::try_from(BLOCK).unwrap() + 8] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(PageSums::open(&path), Err(SumsError::NoHeader { .. })));
    fs::write(&path, b"short").unwrap();
    assert!(matches!(PageSums::open(&path), Err(SumsError::NoHeader { .. })));
}

#[test]
fn sums_of_pages_that_were_cut_off_do_not_come_back() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    for number in 1..=3000 {
        sums.set(page(number), Checksum::new(u64::from(number)));
    }
    sums.flush(at(1)).unwrap();
    // Smaller than it will be found: the header says 1000, the file holds 3000.
    sums.truncate(1000);
    sums.flush(at(2)).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.pages(), 1000);
    sums.truncate(3000);
    for number in [1001, 1022, 1023, 2999] {
        assert_eq!(sums.get(page(number)).unwrap(), None, "page {number}");
    }
    sums.flush(at(3)).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.pages(), 3000);
    assert_eq!(sums.get(page(1000)).unwrap(), Some(Checksum::new(1000)));
    for number in [1001, 1022, 1023, 2999] {
        assert_eq!(sums.get(page(number)).unwrap(), None, "page {number}");
    }
}

// With nothing but the size changed, and the position the same, a flush wrote nothing.
#[test]
fn a_flush_keeps_a_size_that_only_shrank() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    let mut sums = PageSums::create(&path, size()).unwrap();
    (1..=9).for_each(|number| sums.set(page(number), Checksum::new(1)));
    sums.flush(at(1)).unwrap();
    sums.truncate(4);
    sums.flush(at(1)).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!(sums.pages(), 4);
    let other = PageSize::new(512).unwrap();
    sums.reset(other);
    sums.flush(at(1)).unwrap();
    let mut sums = PageSums::open(&path).unwrap();
    assert_eq!((sums.pages(), sums.page_size()), (0, other));
    let before = fs::read(&path).unwrap();
    sums.flush(at(1)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before, "nothing changed, so nothing is written");
}

// The next flush counted beyond the last number.
#[test]
fn a_header_that_has_counted_too_far_is_none() {
    let dir = tempdir();
    let path = dir.path().join("sums");
    for generation in [u64::MAX, u64::MAX - 1, u64::MAX / 2] {
        drop(PageSums::create(&path, size()).unwrap());
        let mut bytes = fs::read(&path).unwrap();
        let slot = usize::try_from(BLOCK).unwrap();
        bytes[slot + 24..slot + 32].copy_from_slice(&generation.to_be_bytes());
        let crc = crc32fast::hash(&bytes[slot..slot + 508]).to_be_bytes();
        bytes[slot + 508..slot + 512].copy_from_slice(&crc);
        fs::write(&path, bytes).unwrap();
        assert!(matches!(PageSums::open(&path), Err(SumsError::NoHeader { .. })), "{generation}");
    }
}

#[test]
fn memory_is_bounded_by_what_is_dirty() {
    let dir = tempdir();
    let mut sums = PageSums::create(&dir.path().join("sums"), size()).unwrap();
    for number in (1..=511 * 3000).step_by(511) {
        sums.set(page(number), Checksum::new(u64::from(number)));
    }
    assert_eq!(sums.dirty_blocks(), 3000);
    sums.flush(at(1)).unwrap();
    assert!(sums.blocks_in_memory() <= 1024);
    for number in (1..=511 * 3000).step_by(511) {
        assert_eq!(sums.get(page(number)).unwrap(), Some(Checksum::new(u64::from(number))));
    }
    assert!(sums.blocks_in_memory() <= 1024);
}

#[derive(Clone, Debug)]
enum Step {
    Set(u32, u64),
    Truncate(u32),
    Flush,
    /// The process ends; what was not flushed is lost.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let number = prop_oneof![1..1100_u32, 1..80_000_u32];
    prop_oneof![
        20 => (number.clone(), any::<u64>()).prop_map(|(n, sum)| Step::Set(n, sum)),
        2 => number.prop_map(Step::Truncate),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn sums_do_what_a_vector_does(steps in prop::collection::vec(step(), 1..150)) {
        let dir = tempdir();
        let path = dir.path().join("sums");
        let mut sums = PageSums::create(&path, size()).unwrap();
        let mut model: Vec<Option<Checksum>> = Vec::new();
        let mut flushed = (model.clone(), Pos::ZERO);
        for (txid, step) in (1..).zip(steps) {
            match step {
                Step::Set(number, sum) => {
                    let index = number as usize - 1;
                    model.resize(model.len().max(index + 1), None);
                    model[index] = Some(Checksum::new(sum));
                    sums.set(page(number), Checksum::new(sum));
                }
                Step::Truncate(pages) => {
                    model.resize(pages as usize, None);
                    sums.truncate(pages);
                }
                Step::Flush => {
                    sums.flush(at(txid)).unwrap();
                    flushed = (model.clone(), at(txid));
                    prop_assert_eq!(sums.dirty_blocks(), 0);
                }
                Step::Reopen => {
                    sums = PageSums::open(&path).unwrap();
                    model = flushed.0.clone();
                    prop_assert_eq!(sums.as_of(), flushed.1);
                }
            }
            prop_assert_eq!(sums.pages() as usize, model.len());
            for number in [1, 511, 512, 1000, sums.pages().max(1), sums.pages() + 1] {
                let expected = model.get(number as usize - 1).copied().flatten();
                prop_assert_eq!(sums.get(page(number)).unwrap(), expected);
            }
        }
        for (index, expected) in model.iter().enumerate() {
            let number = u32::try_from(index + 1).unwrap();
            prop_assert_eq!(sums.get(page(number)).unwrap(), *expected);
        }
        prop_assert_eq!(sums.damaged_blocks(), 0);
    }
}
