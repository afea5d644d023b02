//! The free pages of a database: a chain of trunk pages, each listing leaves.
//!
//! ```text
//! page 1, offset 32: first trunk, 0 = none     trunk page:  0  next trunk, 0 = none
//!                                                           4  number of leaves
//!                                                           8  leaves (u32 each)
//! ```
//! A leaf's content means nothing, so SQLite does not journal a leaf that a transaction takes into use: after a
//! rollback the file holds there what the transaction wrote. Source: SQLite file format, section 1.5; btree.c,
//! `allocateBtreePage`.

use std::collections::BTreeSet;

use super::be::get_u32;
use crate::types::{PageNo, PageSize};

const FIRST_TRUNK: usize = 32;
const NEXT: usize = 0;
const COUNT: usize = NEXT + 4;
const LEAVES: usize = COUNT + 4;

/// The leaves among the free pages of a database of `pages` pages, ascending. A damaged chain ends where it stops
/// making sense.
///
/// `read` fills a buffer with a page.
///
/// # Errors
/// Those of `read`.
pub fn free_leaves<E>(
    page_size: PageSize,
    pages: u32,
    mut read: impl FnMut(PageNo, &mut [u8]) -> Result<(), E>,
) -> Result<Vec<PageNo>, E> {
    let exists = |page: u32| PageNo::new(page).filter(|page| page.get() <= pages);
    let mut leaves = BTreeSet::new();
    let mut trunks = BTreeSet::new();
    let mut data = vec![0; page_size.bytes()];
    read(PageNo::FIRST, &mut data)?;
    let mut next = exists(get_u32(&data, FIRST_TRUNK));
    while let Some(trunk) = next.filter(|trunk| trunks.insert(*trunk)) {
        read(trunk, &mut data)?;
        let listed = data[LEAVES..].as_chunks::<4>().0;
        let count = usize::try_from(get_u32(&data, COUNT)).unwrap_or(usize::MAX);
        let listed = listed.iter().take(count).map(|leaf| u32::from_be_bytes(*leaf));
        leaves.extend(listed.filter_map(exists));
        next = exists(get_u32(&data, NEXT));
    }
    Ok(leaves.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn check(trunks: &[(u32, u32, u32, &[u32])], first: u32, expected: &[u32]) {
        let size = PageSize::new(512).unwrap();
        let mut file = vec![0; 512 * 9];
        let mut put =
            |at: usize, value: u32| file[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put(FIRST_TRUNK, first);
        for (page, next, count, leaves) in trunks {
            let at = (*page as usize - 1) * 512;
            put(at, *next);
            put(at + COUNT, *count);
            leaves.iter().enumerate().for_each(|(n, leaf)| put(at + LEAVES + n * 4, *leaf));
        }
        let found = free_leaves(size, 9, |page, data: &mut [u8]| {
            let at = (page.get() as usize - 1) * 512;
            data.copy_from_slice(&file[at..at + 512]);
            Ok::<_, Infallible>(())
        });
        let found: Vec<u32> = found.unwrap().iter().map(|page| page.get()).collect();
        assert_eq!(found, expected, "{trunks:?}");
    }

    #[test]
    fn leaves_of_all_trunks_are_found() {
        check(&[], 0, &[]);
        check(&[(3, 0, 0, &[])], 3, &[]);
        check(&[(3, 5, 2, &[9, 4]), (5, 0, 1, &[2, 7])], 3, &[2, 4, 9]);
    }

    #[test]
    fn a_damaged_chain_ends() {
        check(&[(3, 3, 1, &[4])], 3, &[4]);
        check(&[(3, 99, 1, &[4])], 3, &[4]);
        check(&[(3, 0, u32::MAX, &[4, 100, 0])], 3, &[4]);
        check(&[], 10, &[]);
    }
}
