//! Source of the current time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last time that has a text, in ms since 1970: later ones have a year of five digits.
const LATEST: Duration = Duration::from_millis(253_402_300_799_999);

/// Source of the current time; tests replace it.
pub trait Clock: Send + Sync + 'static {
    /// Returns the current time.
    fn now(&self) -> SystemTime;
}

/// The system clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the only place that reads the system clock")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Formats a time as in files and responses: RFC 3339, milliseconds, UTC. The year is 1970 at least,
/// and 9999 at most.
pub(crate) fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time.clamp(UNIX_EPOCH, UNIX_EPOCH + LATEST)).to_string()
}

/// Parses a time in RFC 3339 notation, UTC.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}
