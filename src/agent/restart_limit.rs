//! Limit on how often the pipeline is restarted after a fault.

use std::time::Duration;

/// Restarts that are older do not count.
const WINDOW: Duration = Duration::from_secs(3600);

/// Counts restarts within the last hour. An agent runs for months, so older faults do not indicate a
/// present problem.
#[derive(Debug, Default)]
pub(super) struct RestartLimit(Vec<Duration>);

impl RestartLimit {
    /// Counts a restart at `uptime` and returns true, unless there were `max` within the last hour.
    pub(super) fn allow(&mut self, max: usize, uptime: Duration) -> bool {
        self.0.retain(|at| uptime.saturating_sub(*at) < WINDOW);
        let is_allowed = self.0.len() < max;
        if is_allowed {
            self.0.push(uptime);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_restarts_within_the_last_hour_count() {
        let mut limit = RestartLimit::default();
        let mut at = |minute: u64| limit.allow(3, Duration::from_secs(60 * minute));
        assert_eq!([0, 10, 20, 30, 59].map(&mut at), [true, true, true, false, false]);
        // The first is an hour old now, and refused restarts did not count.
        assert_eq!([60, 61, 70, 80, 90].map(&mut at), [true, false, true, true, false]);
        assert!(!RestartLimit::default().allow(0, Duration::ZERO));
    }
}
