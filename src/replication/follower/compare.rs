//! Comparing the pages of a database with the primary's, by their sums, at one position.

use std::collections::BTreeSet;

use super::dial::Primary;
use crate::replication::error::{LinkError, Malformed};
use crate::replication::limits::CHUNK_TIMEOUT;
use crate::replication::link::receive;
use crate::replication::message::{SumsChunk, SumsRequest};
use crate::types::{Checksum, PageNo, Pos};

/// What a comparison with the primary found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Comparison {
    /// Both had this position.
    Compared {
        /// Pages that are not what they are on the primary.
        differing: BTreeSet<PageNo>,
        /// Pages that changed on the primary since, so that nothing can be said of them.
        changed: u32,
    },
    /// The position is not in the primary's log, which ends here.
    Gone(Pos),
    /// There is no connection to the primary.
    NotConnected,
}

/// The primary did not answer.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct CompareError(#[from] LinkError);

/// The sums of a whole database against those that arrive.
#[derive(Debug)]
struct Pages<'a> {
    ours: &'a [Checksum],
    next: u32,
    differing: BTreeSet<PageNo>,
    changed: u32,
}

impl<'a> Pages<'a> {
    fn new(ours: &'a [Checksum]) -> Self {
        Self { ours, next: 1, differing: BTreeSet::new(), changed: 0 }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.ours.len()).unwrap_or(u32::MAX)
    }

    fn sums(&mut self, first: PageNo, theirs: &[Checksum]) -> Result<(), Malformed> {
        if first.get() != self.next {
            return Err(Malformed::Unexpected("a sum of another page"));
        }
        for sum in theirs {
            if self.ours.get(self.next as usize - 1) != Some(sum) {
                self.differing.extend(PageNo::new(self.next));
            }
            self.next = self.next.saturating_add(1);
        }
        Ok(())
    }

    /// No more sums come: pages beyond are ours alone.
    fn sums_are_over(&mut self) {
        let beyond = self.next..=self.count();
        self.differing.extend(beyond.filter_map(PageNo::new));
        self.next = self.next.max(self.count().saturating_add(1));
    }

    fn changed(&mut self, pages: &[PageNo], kept: u32) {
        self.sums_are_over();
        for page in pages {
            self.differing.remove(page);
        }
        let count = u32::try_from(pages.iter().filter(|page| page.get() <= self.count()).count());
        self.changed = self.changed.saturating_add(count.unwrap_or(u32::MAX));
        if let Some(cut) = kept.checked_add(1).and_then(PageNo::new) {
            self.differing.split_off(&cut);
        }
    }
}

/// Compares `ours`, the sums of all pages at `request.pos`, page 1 first.
pub(super) async fn compare(
    primary: &Primary,
    request: SumsRequest,
    ours: &[Checksum],
) -> Result<Comparison, LinkError> {
    let mut chunks = primary.sums(request).await?;
    let mut pages = Pages::new(ours);
    loop {
        match receive(&mut chunks, CHUNK_TIMEOUT).await? {
            SumsChunk::Sums { first, sums } => pages.sums(first, &sums)?,
            SumsChunk::Changed { pages: changed, kept } => pages.changed(&changed, kept),
            SumsChunk::Gone { pos } => return Ok(Comparison::Gone(pos)),
            SumsChunk::Done { .. } => {
                pages.sums_are_over();
                let Pages { differing, changed, .. } = pages;
                return Ok(Comparison::Compared { differing, changed });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(raw: &[u64]) -> Vec<Checksum> {
        raw.iter().map(|sum| Checksum::new(*sum)).collect()
    }

    fn page(raw: u32) -> PageNo {
        PageNo::new(raw).unwrap()
    }

    fn check(theirs: &[u64], changed: &[u32], kept: u32, expected: &[u32]) {
        let ours = sums(&[1, 2, 3, 4]);
        let mut pages = Pages::new(&ours);
        pages.sums(page(1), &sums(theirs)).unwrap();
        let changed: Vec<PageNo> = changed.iter().copied().map(page).collect();
        pages.changed(&changed, kept);
        let found: Vec<u32> = pages.differing.iter().map(|page| page.get()).collect();
        assert_eq!(found, expected, "{theirs:?} {changed:?} {kept}");
    }

    #[test]
    fn pages_differ_unless_they_changed_meanwhile() {
        check(&[1, 2, 3, 4], &[], u32::MAX, &[]);
        check(&[1, 9, 3, 9], &[], u32::MAX, &[2, 4]);
        check(&[1, 9, 3, 9], &[4], u32::MAX, &[2]);
        // The primary has grown, and its new pages are in its log.
        check(&[1, 2, 3, 4, 5], &[5], u32::MAX, &[]);
        check(&[1, 2, 3, 4, 5], &[], u32::MAX, &[5]);
        // It has fewer pages: cut off since, or never there.
        check(&[1, 2], &[], 2, &[]);
        check(&[1, 2], &[], u32::MAX, &[3, 4]);
        // Cut off and grown again.
        check(&[1, 2, 9, 9], &[3, 4], 2, &[]);
    }

    #[test]
    fn sums_come_in_order() {
        let ours = sums(&[1, 2]);
        assert!(Pages::new(&ours).sums(page(2), &sums(&[2])).is_err());
    }
}
