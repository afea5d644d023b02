//! The bytes that SQLite locks, in the database file and in `-shm`.
//!
//! Nobody reads or writes them: they only carry POSIX (or open-file-description) locks. Source: SQLite os.h
//! ("The following values specify the byte ranges"), `os_unix.c` (`UNIX_SHM_BASE`), wal.c (`WAL_WRITE_LOCK`).

/// A range of bytes to lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRange {
    /// First byte.
    pub start: u32,
    /// Number of bytes.
    pub len: u32,
}

impl LockRange {
    const fn byte(start: u32) -> Self {
        Self { start, len: 1 }
    }

    /// In the database file: held shared for a moment to become a reader, exclusive by a writer that waits for readers
    /// to leave and lets no new one in.
    pub const PENDING: Self = Self::byte(0x4000_0000);
    /// In the database file: held exclusive by the one writer of a rollback database.
    pub const RESERVED: Self = Self::byte(Self::PENDING.start + 1);
    /// In the database file: held shared by readers (of a WAL database: by every connection), exclusive to change the
    /// file in rollback mode.
    pub const SHARED: Self = Self { start: Self::PENDING.start + 2, len: 510 };

    /// In `-shm`: held exclusive by the one that appends to the WAL.
    pub const WRITE: Self = Self::byte(120);
    /// In `-shm`: held exclusive by the one that copies the WAL back into the database.
    pub const CKPT: Self = Self::byte(Self::WRITE.start + 1);
    /// In `-shm`: held exclusive by the one that rebuilds the wal-index.
    pub const RECOVER: Self = Self::byte(Self::CKPT.start + 1);
    /// In `-shm`: all readers that use a snapshot of the WAL, marks 1 to 4.
    pub const READERS_OF_WAL: Self = Self { start: Self::READ_BASE + 1, len: 4 };
    /// In `-shm`: held shared by every connection, exclusive by the first one to truncate what a crash left ("dead man's
    /// switch").
    pub const DMS: Self = Self::byte(128);

    const READ_BASE: u32 = Self::RECOVER.start + 1;

    /// In `-shm`: held shared by readers whose snapshot ends at read mark `mark` (0 to 4); 0 reads the database file
    /// only.
    #[must_use]
    pub const fn read(mark: u32) -> Self {
        assert!(mark < 5, "BUG: a wal-index has five read marks");
        Self::byte(Self::READ_BASE + mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_where_sqlite_has_them() {
        assert_eq!(LockRange::SHARED, LockRange { start: 0x4000_0002, len: 510 });
        assert_eq!(LockRange::read(4).start + 1, LockRange::DMS.start);
        assert_eq!(LockRange::READERS_OF_WAL.start, 124);
    }
}
