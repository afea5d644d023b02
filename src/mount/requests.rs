//! Counts of requests by kind, and a brake on repeated log lines.
//!
//! The counts show what an application costs: an autocommit SELECT must cost none.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::disk::clock;

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// A kind of request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "the names are FUSE's own")]
        pub enum RequestKind { $($kind,)* }

        impl RequestKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kind's name, as FUSE has it, in lower case.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)* }
            }
        }
    };
}

kinds! {
    Lookup "lookup",
    Forget "forget",
    Getattr "getattr",
    Setattr "setattr",
    Readlink "readlink",
    Mknod "mknod",
    Mkdir "mkdir",
    Unlink "unlink",
    Rmdir "rmdir",
    Symlink "symlink",
    Rename "rename",
    Link "link",
    Open "open",
    Create "create",
    Read "read",
    Write "write",
    Flush "flush",
    Release "release",
    Fsync "fsync",
    Opendir "opendir",
    Readdir "readdir",
    Readdirplus "readdirplus",
    Releasedir "releasedir",
    Fsyncdir "fsyncdir",
    Statfs "statfs",
    Setxattr "setxattr",
    Getxattr "getxattr",
    Listxattr "listxattr",
    Removexattr "removexattr",
    Fallocate "fallocate",
    Lseek "lseek",
    Other "other",
}

/// At most one line about a failing disk in this time.
const QUIET: Duration = Duration::from_secs(1);

/// The counters of one mount.
#[derive(Debug)]
pub(super) struct Requests {
    counts: [AtomicU64; RequestKind::ALL.len()],
    logged_ms: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), logged_ms: AtomicU64::new(0) }
    }
}

impl Requests {
    /// Counts one request.
    pub(super) fn count(&self, kind: RequestKind) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All counts so far.
    pub(super) fn snapshot(&self) -> RequestCounts {
        let counts = std::array::from_fn(|index| self.counts[index].load(Ordering::Relaxed));
        RequestCounts { counts }
    }

    /// Whether a line about a serious error may be logged now.
    pub(super) fn may_log(&self) -> bool {
        let now = u64::try_from(clock::boottime().as_millis()).unwrap_or(u64::MAX);
        let last = self.logged_ms.load(Ordering::Relaxed);
        let quiet = u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX);
        (last == 0 || now.saturating_sub(last) >= quiet)
            && self
                .logged_ms
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// How many requests of each kind came from the kernel.
#[derive(Clone, PartialEq, Eq)]
pub struct RequestCounts {
    counts: [u64; RequestKind::ALL.len()],
}

impl RequestCounts {
    /// The number for one kind.
    #[must_use]
    pub fn of(&self, kind: RequestKind) -> u64 {
        self.counts[kind as usize]
    }

    /// What was added since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let counts =
            std::array::from_fn(|index| self.counts[index].saturating_sub(before.counts[index]));
        Self { counts }
    }

    /// The number for all kinds except FORGET, which the kernel sends whenever it likes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum::<u64>() - self.of(RequestKind::Forget)
    }
}

impl std::fmt::Debug for RequestCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted = RequestKind::ALL.iter().filter(|kind| self.of(**kind) > 0);
        f.debug_map().entries(counted.map(|kind| (kind.name(), self.of(*kind)))).finish()
    }
}
