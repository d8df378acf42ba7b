//! Work at low priority.
//!
//! On Linux a thread that has lowered its priority may not raise it again without privileges, so
//! the work runs on a thread that ends with it.

use std::{panic::resume_unwind, thread};

/// Runs `work` on a new thread with low processor and disk priority, and waits for it; returns
/// `None` without running it if the system cannot start a thread.
///
/// # Panics
/// If `work` panics.
pub fn in_background<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let begin = || {
            lower();
            work()
        };
        let spawned =
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, begin).ok()?;
        match spawned.join() {
            Ok(done) => Some(done),
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// Lowers the priority of this thread, as far as the system permits.
#[cfg(target_os = "linux")]
fn lower() {
    /// About a tenth of the time of a competing thread. Not the lowest: a group that is half read
    /// must not take minutes on a busy machine, since new records wait for it.
    const NICE: i32 = 10;

    // On Linux this affects the thread only, and its I/O priority follows:
    // https://man7.org/linux/man-pages/man2/setpriority.2.html, ioprio_set.2.html
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "could not lower the priority");
    }
}

/// Lowers the priority of this thread, as far as the system permits.
#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
fn lower() {
    // SAFETY: takes numbers only, and affects the calling thread only.
    unsafe {
        libc::setpriority(libc::PRIO_DARWIN_THREAD, 0, libc::PRIO_DARWIN_BG);
    }
}

/// Lowers the priority of this thread, as far as the system permits.
#[cfg(windows)]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
fn lower() {
    use windows_sys::Win32::System::Threading::{
        GetCurrentThread, SetThreadPriority, THREAD_MODE_BACKGROUND_BEGIN,
    };

    // SAFETY: the handle is a constant for the calling thread.
    unsafe {
        SetThreadPriority(GetCurrentThread(), THREAD_MODE_BACKGROUND_BEGIN);
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
fn lower() {}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[test]
    fn background_work_has_low_priority_and_caller_has_not() {
        let before = getpriority_process(None).unwrap();
        let within = in_background("background", || getpriority_process(None).unwrap()).unwrap();
        assert!(within > before, "{within} {before}");
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn panic_of_the_work_is_passed_to_the_caller() {
        let caught = std::panic::catch_unwind(|| in_background("background", || panic!("oh")));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "oh");
    }
}
