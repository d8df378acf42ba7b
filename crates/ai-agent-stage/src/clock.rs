//! Time, supplied from outside so that tests can move it.

use std::{
    fmt,
    ops::Sub,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// A moment by the wall clock, in milliseconds since 1970-01-01 UTC. May go back.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timestamp(pub u64);

impl Sub for Timestamp {
    type Output = Duration;

    /// Returns the time elapsed since `earlier`; zero if `earlier` is the later one.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-11-21T20:00:00.000Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The last millisecond of the year 9999, the largest that the format can express.
        let millis = self.0.min(253_402_300_799_999);
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).fmt(f)
    }
}

/// Clock: the system's, or one that a test advances.
pub trait Clock: Send + Sync {
    /// Current time by the wall clock.
    fn now(&self) -> Timestamp;

    /// Monotonic time since some fixed moment before the agent started.
    fn uptime(&self) -> Duration {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamp_prints_rfc_3339() {
        assert_eq!(Timestamp(1_795_291_200_120).to_string(), "2026-11-21T20:00:00.120Z");
        assert!(Timestamp(u64::MAX).to_string().starts_with("9999-12-31"));
    }

    #[test]
    fn difference_to_a_later_moment_is_zero() {
        assert_eq!(Timestamp(7) - Timestamp(5), Duration::from_millis(2));
        assert_eq!(Timestamp(5) - Timestamp(7), Duration::ZERO);
    }
}
