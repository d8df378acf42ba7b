//! Detects that the machine has slept: the wall clock continues then, and the monotonic clock that all
//! timers use does not.

use std::time::Duration;

use crate::platform::{Clock, Timestamp};

/// Difference between the clocks that means sleep. Setting the wall clock has the same effect, which is
/// harmless: everything is checked once more.
const DIFFERENCE: Duration = Duration::from_secs(30);

/// Compares the clocks with their values at the last call.
#[derive(Clone, Copy, Debug)]
pub(super) struct SleepDetector {
    wall: Timestamp,
    uptime: Duration,
}

impl SleepDetector {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self { wall: clock.now(), uptime: clock.uptime() }
    }

    /// Returns true if the clocks have diverged by more than 30 s since the last call.
    pub(super) fn has_slept(&mut self, clock: &dyn Clock) -> bool {
        let before = std::mem::replace(self, Self::new(clock));
        let elapsed = self.uptime.saturating_sub(before.uptime);
        let expected =
            before.wall.0.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        Duration::from_millis(self.wall.0.abs_diff(expected)) > DIFFERENCE
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct TwoClocks {
        wall: u64,
        uptime: u64,
    }

    impl Clock for TwoClocks {
        fn now(&self) -> Timestamp {
            Timestamp(self.wall * 1000)
        }

        fn uptime(&self) -> Duration {
            Duration::from_secs(self.uptime)
        }
    }

    #[test]
    fn clocks_that_diverge_mean_sleep() {
        let (wall, uptime) = (Cell::new(1_000_000), Cell::new(50));
        let clock = || TwoClocks { wall: wall.get(), uptime: uptime.get() };
        let mut detector = SleepDetector::new(&clock());
        let mut after = |wall_seconds: i64, seconds: u64| {
            wall.set(wall.get().saturating_add_signed(wall_seconds));
            uptime.set(uptime.get() + seconds);
            detector.has_slept(&clock())
        };
        assert!(!after(2, 2));
        assert!(!after(32, 2), "a small correction");
        assert!(after(33, 2), "it is beyond 30 s");
        assert!(!after(3600, 3600), "both clocks continue");
        assert!(after(28_800, 2), "a night");
        assert!(!after(2, 2), "it is detected once");
        assert!(after(-3600, 2), "the clock was set back");
    }
}
