//! The read-only files that tell applications about replication, as LiteFS has them.
//!
//! `.primary` (root; only on a replica that knows its primary), `.lag` (root), and `<db>-pos` beside each
//! tracked database. They have no backing file; their inode numbers lie in a range of their own. Nothing about
//! them is cached by the kernel, because they change without a request.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::{AtFlags, Stat};

use super::backing::{Backing, mtime_seconds};
use crate::store::{Role, Store};
use crate::types::DbName;

/// Special inode numbers have these upper 16 bits; no backing file system numbers its files like that.
const RANGE: u64 = 0xfeed << 48;
const RANGE_MASK: u64 = 0xffff << 48;
const PRIMARY_INO: u64 = RANGE;
const LAG_INO: u64 = RANGE | 1;

/// Length that `stat` reports for `.lag`: sign, nine digits, newline. Ten digits push the newline out.
const LAG_LENGTH: usize = 11;

/// A special file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Special {
    /// `.primary`
    Primary,
    /// `.lag`
    Lag,
    /// `<db>-pos`
    Position(DbName),
}

/// Whether an inode number belongs to a special file.
pub(super) fn is_special_ino(ino: u64) -> bool {
    ino & RANGE_MASK == RANGE
}

/// Whether a name may become a special file without a request that says so: the kernel must not remember
/// that it is absent.
pub(super) fn may_appear(is_root: bool, name: &OsStr) -> bool {
    let name = name.as_bytes();
    (is_root && (name == b".primary" || name == b".lag")) || name.ends_with(b"-pos")
}

impl Special {
    /// The special file that a name stands for, whether it exists at the moment or not.
    pub(super) fn named(store: &Store, is_root: bool, path: &DbName) -> Option<Self> {
        match path.as_bytes() {
            b".primary" if is_root => Some(Self::Primary),
            b".lag" if is_root => Some(Self::Lag),
            other => {
                let db = DbName::new(other.strip_suffix(b"-pos")?).ok()?;
                store.by_name(&db).map(|_| Self::Position(db))
            }
        }
    }

    /// What a reader gets; `None` while the file does not exist.
    pub(super) fn text(&self, store: &Store) -> Option<Vec<u8>> {
        match self {
            Self::Primary => match store.role() {
                Role::Replica { primary: Some(name) } => Some(format!("{name}\n").into_bytes()),
                Role::Replica { primary: None } | Role::Primary { .. } => None,
            },
            Self::Lag => Some(lag_text(store.lag_ms())),
            Self::Position(db) => {
                let db = store.by_name(db)?;
                Some(format!("{}\n", db.applied()).into_bytes())
            }
        }
    }

    /// Attributes; `None` while the file does not exist. `root` gives owner and group.
    pub(super) fn attributes(
        &self,
        store: &Store,
        backing: &Backing,
        root: &Stat,
    ) -> Option<FileAttr> {
        let text = self.text(store)?;
        let (ino, mtime) = match self {
            Self::Primary => (PRIMARY_INO, Duration::ZERO),
            Self::Lag => (LAG_INO, Duration::ZERO),
            Self::Position(name) => {
                let main =
                    rustix::fs::statat(backing.root(), name.as_path(), AtFlags::SYMLINK_NOFOLLOW)
                        .ok()?;
                let wal = name.with_suffix("-wal").and_then(|wal| {
                    rustix::fs::statat(backing.root(), wal.as_path(), AtFlags::SYMLINK_NOFOLLOW)
                        .ok()
                });
                // The nanoseconds come from the transaction number: two commits within one tick of the
                // file system's clock must not leave the same time.
                let seconds = mtime_seconds(&main).max(wal.as_ref().map_or(0, mtime_seconds));
                let txid = store.by_name(name)?.applied().txid_raw();
                let nanos = u32::try_from(txid % 1_000_000_000).unwrap_or(0);
                (RANGE | (main.st_ino & !RANGE_MASK), Duration::new(seconds, nanos))
            }
        };
        let time = UNIX_EPOCH + mtime;
        Some(FileAttr {
            ino: INodeNo(ino),
            size: text.len() as u64,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o444,
            nlink: 1,
            uid: root.st_uid,
            gid: root.st_gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// LiteFS's `%+010d\n`, cut to the length that `stat` reports.
fn lag_text(lag_ms: i64) -> Vec<u8> {
    let lag = lag_ms.clamp(0, i64::from(i32::MAX));
    let mut text = format!("{lag:+010}\n").into_bytes();
    text.truncate(LAG_LENGTH);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_written_as_litefs_writes_it() {
        let cases: [(i64, &[u8]); 5] = [
            (0, b"+000000000\n"),
            (42, b"+000000042\n"),
            (-5, b"+000000000\n"),
            (999_999_999, b"+999999999\n"),
            (i64::from(i32::MAX), b"+2147483647"),
        ];
        for (lag, expected) in cases {
            assert_eq!(lag_text(lag), expected, "{lag}");
        }
    }

    #[test]
    fn names_that_may_appear_are_not_cached_as_absent() {
        for (is_root, name, expected) in [
            (true, ".primary", true),
            (true, ".lag", true),
            (false, ".lag", false),
            (false, "x.db-pos", true),
            (true, "x.db-wal", false),
        ] {
            assert_eq!(may_appear(is_root, OsStr::new(name)), expected, "{name}");
        }
    }
}
