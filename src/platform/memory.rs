//! How much memory the process has, and what it keeps without using it.
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
pub fn release_free() {
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
pub fn release_free() {}

/// Bytes of memory that this process has, as far as the system says so.
#[cfg(target_os = "linux")]
#[must_use]
pub fn resident() -> Option<u64> {
    let pages: u64 =
        std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Bytes of memory that this process has, as far as the system says so.
#[cfg(target_os = "macos")]
#[must_use]
#[expect(unsafe_code, reason = "no safe call says it")]
pub fn resident() -> Option<u64> {
    let size = i32::try_from(size_of::<libc::proc_taskinfo>()).ok()?;
    let pid = i32::try_from(std::process::id()).ok()?;
    let mut info = std::mem::MaybeUninit::<libc::proc_taskinfo>::zeroed();
    // SAFETY: the buffer is as long as it is said to be, and all zeros are a value of its type.
    unsafe {
        let at = info.as_mut_ptr().cast();
        let written = libc::proc_pidinfo(pid, libc::PROC_PIDTASKINFO, 0, at, size);
        (written == size).then(|| info.assume_init().pti_resident_size)
    }
}

/// Bytes of memory that this process has, as far as the system says so.
#[cfg(windows)]
#[must_use]
#[expect(unsafe_code, reason = "no safe call says it")]
pub fn resident() -> Option<u64> {
    use windows_sys::Win32::System::{
        ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS},
        Threading::GetCurrentProcess,
    };

    let size = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).ok()?;
    let mut counters = PROCESS_MEMORY_COUNTERS { cb: size, ..Default::default() };
    // SAFETY: the buffer is as long as it is said to be.
    let found = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, size) };
    (found != 0).then_some(counters.WorkingSetSize as u64)
}

/// Bytes of memory that this process has, as far as the system says so.
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
#[must_use]
pub fn resident() -> Option<u64> {
    None
}
