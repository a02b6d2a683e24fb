//! The C library's heap, kept as small as what is in it.
//!
//! Problem: glibc gives each thread a heap of its own, up to eight a CPU, and keeps what is freed in them. Each of the controller's workers
//! has held a large record or manifest at some time, so a controller of which 1,500 large edits were asked held 133 MB of which five thread
//! heaps were 86 MB, and kept it (measured; docs/ARCHITECTURE.md). Approach: one heap for all threads, whose free pages are given back with
//! each resync. Threads that meet at it wait for microseconds; none of them allocates for a living.

#![allow(unsafe_code, reason = "mallopt(3) and malloc_trim(3) have no safe counterpart")]

/// Has all threads share one heap. To be called before there are any.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, touches nothing of ours, and knows this parameter; a refusal leaves things as they are.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives free pages back to the kernel. Takes milliseconds for a heap of a hundred megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the heap's own locks and releases only pages that nothing allocated lies in.
    unsafe {
        libc::malloc_trim(0);
    }
}
