//! How much memory the process keeps without using it.
//!
//! glibc gives each thread a heap of its own and keeps what is freed in it for that thread. Here
//! large buffers go from one thread to the next, so that every heap would keep some: one for all
//! halves the resident memory of catching up. Other systems' allocators are left as they are.

/// Lets all threads share one heap. To be called before there is a second thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "no safe call sets it")]
pub fn share_one_heap() {
    // SAFETY: only sets a number, before there is another thread. That it may fail does no harm.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back to the system what is free.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "no safe call does it")]
pub fn give_back() {
    // SAFETY: touches only what is free, under the heap's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets all threads share one heap.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_one_heap() {}

/// Gives back to the system what is free.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
