//! Detection of the systemd journal on standard error.

use super::environment::Environment;

/// Returns whether standard error is connected to the journal, which adds timestamps itself and
/// reads the priority from a prefix such as `<4>`.
/// <https://www.freedesktop.org/software/systemd/man/latest/sd-daemon.html>
#[must_use]
#[cfg(target_os = "linux")]
pub fn reads_stderr(environment: &Environment) -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    // Child processes of a service inherit the variable even if their standard error goes
    // elsewhere.
    let stream = environment.process_value("JOURNAL_STREAM").and_then(|stream| stream.to_str());
    stream == Some(&*format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// There is no journal on this system.
#[must_use]
#[cfg(not(target_os = "linux"))]
pub fn reads_stderr(_: &Environment) -> bool {
    false
}
