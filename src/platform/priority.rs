//! Work that gives way to everything else on the machine.
//!
//! A thread that has lowered its priority may not raise it again without rights, on Linux. So the
//! work is done by a thread that ends with it.

use std::{panic::resume_unwind, thread};

/// Does `work` on a thread of its own with a low priority for processor and disk, and waits for it;
/// `None`, and nothing is done, when the system gives no thread.
///
/// # Panics
/// As `work` does.
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

/// Lowers the priority of this thread, as far as the system lets it.
#[cfg(target_os = "linux")]
fn lower() {
    /// A tenth of what a thread gets that competes with it. Not the least: a group that is half read
    /// must not wait for minutes on a machine that is busy, since what is new comes after it.
    const NICE: i32 = 10;

    // On Linux it is the thread's, and the priority of its I/O follows:
    // https://man7.org/linux/man-pages/man2/setpriority.2.html, ioprio_set.2.html
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the priority stays as it is");
    }
}

/// Lowers the priority of this thread, as far as the system lets it.
#[cfg(target_os = "macos")]
#[expect(unsafe_code, reason = "no safe call lowers that of a thread")]
fn lower() {
    // SAFETY: takes numbers only, and says something of the calling thread alone.
    unsafe {
        libc::setpriority(libc::PRIO_DARWIN_THREAD, 0, libc::PRIO_DARWIN_BG);
    }
}

/// Lowers the priority of this thread, as far as the system lets it.
#[cfg(windows)]
#[expect(unsafe_code, reason = "no safe call lowers that of a thread")]
fn lower() {
    use windows_sys::Win32::System::Threading::{
        GetCurrentThread, SetThreadPriority, THREAD_MODE_BACKGROUND_BEGIN,
    };

    // SAFETY: the handle is a constant that means the calling thread.
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
    fn the_work_gives_way_and_whoever_waits_for_it_does_not() {
        let before = getpriority_process(None).unwrap();
        let within = in_background("background", || getpriority_process(None).unwrap()).unwrap();
        assert!(within > before, "{within} {before}");
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn a_panic_of_the_work_is_one_of_the_caller() {
        let caught = std::panic::catch_unwind(|| in_background("background", || panic!("oh")));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "oh");
    }
}
