//! Whether what is written to standard error goes to the journal of systemd.

use super::Environment;

/// Whether it does: the journal keeps the time itself, and takes `<4>` at the beginning of a line
/// for how bad it is. <https://www.freedesktop.org/software/systemd/man/latest/sd-daemon.html>
#[must_use]
#[cfg(target_os = "linux")]
pub fn reads_stderr(environment: &Environment) -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    // The variable is inherited by whatever a service starts, also with another standard error.
    let stream = environment.process_value("JOURNAL_STREAM").and_then(|stream| stream.to_str());
    stream == Some(&*format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// There is none.
#[must_use]
#[cfg(not(target_os = "linux"))]
pub fn reads_stderr(_: &Environment) -> bool {
    false
}
