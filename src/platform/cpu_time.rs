//! Processor's time of this process.

use std::time::Duration;

/// Returns the processor's time that the threads of this process have used. Where the system does not tell,
/// the time since the first call.
#[cfg(any(target_os = "macos", all(target_os = "linux", target_env = "gnu")))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
#[must_use]
pub fn of_process() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the given structure only.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0 {
        return since_start();
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Returns the time since the first call.
#[cfg(not(any(target_os = "macos", all(target_os = "linux", target_env = "gnu"))))]
#[must_use]
pub fn of_process() -> Duration {
    since_start()
}

fn since_start() -> Duration {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}
