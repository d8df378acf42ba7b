//! Processor's time of this process and of the programs that it has run.

use std::time::Duration;

/// Returns the processor's time that the threads of this process have used, and the programs that it started
/// and that have ended. Where the system does not tell, the time since the first call.
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
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()) + of_children()
}

/// Returns the processor's time of the programs that this process has waited for.
#[cfg(any(target_os = "macos", all(target_os = "linux", target_env = "gnu")))]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
fn of_children() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the given structure only, for which zeros are valid.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |it: libc::timeval| {
        let micros = u64::try_from(it.tv_usec).unwrap_or_default();
        Duration::from_secs(u64::try_from(it.tv_sec).unwrap_or_default())
            + Duration::from_micros(micros)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Returns the processor's time that the threads of this process have used, in ticks of the system's clock,
/// which are up to 16 ms long. Nothing that is measured starts programs on Windows.
#[cfg(windows)]
#[expect(unsafe_code, reason = "there is no safe wrapper")]
#[must_use]
pub fn of_process() -> Duration {
    use windows_sys::Win32::{
        Foundation::FILETIME,
        System::Threading::{GetCurrentProcess, GetProcessTimes},
    };

    let [mut created, mut ended, mut kernel, mut user] = [FILETIME::default(); 4];
    // SAFETY: the handle is a constant for this process, and the call fills the given structures only.
    let is_known = unsafe {
        let process = GetCurrentProcess();
        GetProcessTimes(process, &raw mut created, &raw mut ended, &raw mut kernel, &raw mut user)
    };
    if is_known == 0 {
        return since_start();
    }
    // Units of 100 ns.
    let time = |it: FILETIME| {
        let units = u64::from(it.dwHighDateTime) << 32 | u64::from(it.dwLowDateTime);
        Duration::new(
            units / 10_000_000,
            u32::try_from(units % 10_000_000 * 100).unwrap_or_default(),
        )
    };
    time(kernel) + time(user)
}

/// Returns the time since the first call.
#[cfg(not(any(windows, target_os = "macos", all(target_os = "linux", target_env = "gnu"))))]
#[must_use]
pub fn of_process() -> Duration {
    since_start()
}

fn since_start() -> Duration {
    use std::{sync::LazyLock, time::Instant};
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::process::Command;

    use super::*;

    /// On macOS the power supply is queried by a program.
    #[test]
    fn time_of_programs_that_have_ended_counts() {
        let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; read t r < /proc/$$/schedstat; echo $t";
        let before = of_process();
        let output = Command::new("/bin/sh").args(["-c", script]).output().unwrap();
        let elapsed = of_process() - before;
        let nanos: u64 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let of_program = Duration::from_nanos(nanos);
        assert!(
            !of_program.is_zero() && elapsed >= of_program * 9 / 10,
            "{elapsed:?} {of_program:?}"
        );
    }
}
