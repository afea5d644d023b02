//! The change counter that readers of a replica see.
//!
//! A connection in rollback mode keeps its cached pages as long as the counter in the file's header stands still. With
//! `locking_mode=EXCLUSIVE` SQLite moves it once, however many transactions follow, because nobody else can read
//! meanwhile; on a replica others do. There whoever applies shows readers a counter that moves with every change. It
//! exists in the mount only: the file keeps the primary's bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Database, FileRole, Origin};
use crate::sqlite::DatabaseHeader;

/// A counter that is shown in the place of the file's own.
#[derive(Debug, Default)]
pub(super) struct Shown(AtomicU64);

impl Shown {
    const IS_SET: u64 = 1 << 32;

    pub(super) fn set(&self, counter: u32) {
        self.0.store(Self::IS_SET | u64::from(counter), Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Release);
    }

    fn get(&self) -> Option<u32> {
        let raw = self.0.load(Ordering::Acquire);
        u32::try_from(raw & !Self::IS_SET).ok().filter(|_| raw & Self::IS_SET != 0)
    }
}

impl Database {
    /// Puts the shown counter into what was read of the database file.
    pub fn show_counter(&self, role: FileRole, offset: u64, data: &mut [u8]) {
        // The kernel reads whole pages of its own, so the header is read from its beginning or not at all.
        if role != FileRole::Main || offset != 0 || data.len() < DatabaseHeader::VALID_FOR_AT.end {
            return;
        }
        let Some(counter) = self.shown.get() else { return };
        let is_same = data[DatabaseHeader::COUNTER_AT] == data[DatabaseHeader::VALID_FOR_AT];
        data[DatabaseHeader::COUNTER_AT].copy_from_slice(&counter.to_be_bytes());
        if is_same {
            data[DatabaseHeader::VALID_FOR_AT].copy_from_slice(&counter.to_be_bytes());
        }
    }

    /// Whether a write is for readers only: `client` sets the counter by writing nothing but it.
    pub(super) fn is_for_show(&self, origin: Origin, offset: u64, data: &[u8]) -> bool {
        let Ok(counter) = <[u8; 4]>::try_from(data) else { return false };
        if origin != Origin::Daemon || self.shared.is_primary() {
            return false;
        }
        if offset == DatabaseHeader::COUNTER_AT.start as u64 {
            self.shown.set(u32::from_be_bytes(counter));
            return true;
        }
        offset == DatabaseHeader::VALID_FOR_AT.start as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_shown_until_it_is_cleared() {
        let shown = Shown::default();
        assert_eq!(shown.get(), None);
        for counter in [0, 7, u32::MAX] {
            shown.set(counter);
            assert_eq!(shown.get(), Some(counter));
        }
        shown.clear();
        assert_eq!(shown.get(), None);
    }
}
