//! What the allocator keeps of memory that was freed.
//!
//! By default glibc has an arena per thread and raises its threshold for mapped blocks with each large one freed: after
//! one bulk load a node kept several hundred megabytes. With these settings it falls back to what it uses.

/// Memory blocks from this size on are mapped, and so given back at once. One page of any size stays below.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 256 << 10;

/// Sets limits for the whole process; called once, before threads are started.
pub fn limit() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 4),
        (libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN),
        (libc::M_TRIM_THRESHOLD, MAPPED_BYTES_MIN),
    ] {
        // SAFETY: mallopt changes the allocator's parameters only; it has no other conditions.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives unused memory back. Takes about a millisecond per hundred megabytes; call it seldom.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim releases free pages of the heap; it has no conditions.
    unsafe {
        libc::malloc_trim(0);
    }
}
