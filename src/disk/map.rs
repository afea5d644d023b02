//! Files mapped into memory and shared with other processes.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::mm::{MapFlags, ProtFlags};

/// A part of a file, mapped shared: what other processes store there is seen here and the reverse.
///
/// Access is by atomic words only. Who maps a file makes sure that it is not truncated while mapped: touching a page
/// beyond the end of the file is a fatal signal.
#[derive(Debug)]
pub struct SharedMap {
    base: NonNull<AtomicU32>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and has no thread affinity; it is read and written as atomics.
unsafe impl Send for SharedMap {}
// SAFETY: as above; `words` hands out nothing but atomics.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps `bytes` bytes of a file from `offset` on, both multiples of the system's page size.
    ///
    /// # Errors
    /// The file ends before the mapping does, or the system refuses.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        if file.metadata()?.len() < offset.saturating_add(bytes as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses an unused address, so no memory of ours is replaced.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, bytes })
    }

    /// The first `N` words of the mapping; `None` if it is shorter.
    #[must_use]
    pub fn words<const N: usize>(&self) -> Option<&[AtomicU32; N]> {
        if self.bytes / size_of::<AtomicU32>() < N {
            return None;
        }
        // SAFETY: the mapping is page-aligned, at least N words long (checked) and lives as long as `self`, which
        // unmaps it only when dropped; any bit pattern is an AtomicU32, and all access by this process is atomic.
        Some(unsafe { self.base.cast::<[AtomicU32; N]>().as_ref() })
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what mmap returned, and references into it cannot outlive `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn two_mappings_of_a_file_share_their_words() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32768).unwrap();
        let one = SharedMap::new(&file, 0, 32768).unwrap();
        let other = SharedMap::new(&file, 0, 32768).unwrap();
        one.words::<8192>().unwrap()[5].store(7, Ordering::Release);
        assert_eq!(other.words::<8192>().unwrap()[5].load(Ordering::Acquire), 7);
        assert!(one.words::<8193>().is_none());
    }

    #[test]
    fn a_short_file_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32767).unwrap();
        let error = SharedMap::new(&file, 0, 32768).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
