//! Memory of the process, and settings of the allocator.
//!
//! glibc has a heap per thread and keeps freed memory in it. Here large buffers move between
//! threads, so every heap would keep some of them; sharing one heap halves the resident memory
//! while reading old files. Allocators of other systems are left unchanged.

/// Makes all threads share one heap, which keeps large buffers for the next ones. Must be called before
/// a second thread starts.
///
/// By default, glibc maps and unmaps a buffer of some megabytes each time, and shrinks the heap whenever
/// 128 KB at its end are free: while old files are read, page faults took about 4 % of the CPU.
/// [`release_free`] returns the memory when the work is done.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn share_one_heap() {
    const MB: libc::c_int = 1 << 20;
    // SAFETY: sets numbers before there is another thread. A failure does no harm.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 8 * MB);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 * MB);
    }
}

/// Returns free memory to the system.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn release_free() {
    // SAFETY: touches free memory only, under the lock of the heap.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's code and constants. The kernel maps what runs again, from its page cache:
/// of an idle agent, half of the resident memory was code that only the start had used, because
/// each access maps 64 KB around it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn release_code() {
    /// Unmaps the segments of the program, which comes before its libraries, and ends the iteration.
    unsafe extern "C" fn release(
        program: *mut libc::dl_phdr_info,
        _: libc::size_t,
        _: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library passes a description of a loaded object.
        let (base, segments) = unsafe {
            let program = &*program;
            let count = usize::from(program.dlpi_phnum);
            (program.dlpi_addr, std::slice::from_raw_parts(program.dlpi_phdr, count))
        };
        let page = rustix::param::page_size() as u64;
        for segment in segments {
            if segment.p_type != libc::PT_LOAD || segment.p_flags & libc::PF_W != 0 {
                continue;
            }
            let start = base + segment.p_vaddr;
            let first_page = start / page * page;
            let size = (start + segment.p_memsz - first_page) / page * page;
            // SAFETY: the pages are mapped from a file and never written, so that they have the
            // same content when they are mapped again. A failure does no harm.
            unsafe {
                libc::madvise(first_page as *mut _, size as usize, libc::MADV_DONTNEED);
            }
        }
        1
    }
    // SAFETY: the function takes what it is called with, and no data.
    unsafe {
        libc::dl_iterate_phdr(Some(release), std::ptr::null_mut());
    }
}

/// Does nothing on this system.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_one_heap() {}

/// Does nothing on this system.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_free() {}

/// Does nothing on this system.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn release_code() {}

/// Returns the resident memory of this process in bytes, if known.
#[cfg(target_os = "linux")]
#[must_use]
pub fn resident() -> Option<u64> {
    let pages: u64 =
        std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns the resident memory of this process in bytes, if known.
#[cfg(target_os = "macos")]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn resident() -> Option<u64> {
    let size = i32::try_from(size_of::<libc::proc_taskinfo>()).ok()?;
    let pid = i32::try_from(std::process::id()).ok()?;
    let mut info = std::mem::MaybeUninit::<libc::proc_taskinfo>::zeroed();
    // SAFETY: the size of the buffer is correct, and all zeros are a valid value of its type.
    unsafe {
        let at = info.as_mut_ptr().cast();
        let written = libc::proc_pidinfo(pid, libc::PROC_PIDTASKINFO, 0, at, size);
        (written == size).then(|| info.assume_init().pti_resident_size)
    }
}

/// Returns the resident memory of this process in bytes, if known.
#[cfg(windows)]
#[must_use]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
pub fn resident() -> Option<u64> {
    use windows_sys::Win32::System::{
        ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS},
        Threading::GetCurrentProcess,
    };

    let size = u32::try_from(size_of::<PROCESS_MEMORY_COUNTERS>()).ok()?;
    let mut counters = PROCESS_MEMORY_COUNTERS { cb: size, ..Default::default() };
    // SAFETY: the size of the buffer is correct.
    let found = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, size) };
    (found != 0).then_some(counters.WorkingSetSize as u64)
}

/// Returns the resident memory of this process in bytes, if known.
#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
#[must_use]
pub fn resident() -> Option<u64> {
    None
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Returns the resident kilobytes of the program's largest mapping of code.
    fn resident_code() -> u64 {
        let mut is_code = false;
        let mut largest = (0, 0);
        let mut size = 0;
        for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kilobytes = || words[1].parse::<u64>().unwrap();
            match words[0] {
                "Size:" => size = kilobytes(),
                "Rss:" if is_code => largest = largest.max((size, kilobytes())),
                name if !name.ends_with(':') => is_code = words[1] == "r-xp",
                _ => {}
            }
        }
        largest.1
    }

    #[test]
    fn released_code_is_mapped_again_when_it_runs() {
        let before = resident_code();
        release_code();
        let after = resident_code();
        assert!(after < before, "{after} of {before} KB");
        assert!(after > 0);
    }
}
