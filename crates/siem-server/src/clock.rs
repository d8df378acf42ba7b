//! Where time comes from.

use std::time::SystemTime;

/// Tells the time; tests have one that they move.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> SystemTime;
}

/// The clock of the system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place where the system is asked")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// The time as it stands in files and answers: RFC 3339, milliseconds, UTC.
pub(crate) fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}
