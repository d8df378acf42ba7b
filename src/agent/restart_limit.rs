//! How often everything began again of late.

use std::time::Duration;

/// For how long it counts that everything began again.
const LATELY: Duration = Duration::from_secs(3600);

/// Counts how often everything began again. An agent runs for months: what happened last week says
/// nothing about now.
#[derive(Debug, Default)]
pub(crate) struct Restarts(Vec<Duration>);

impl Restarts {
    /// Whether everything may begin again `now`, by the time that the agent is up: at most `most`
    /// times within an hour. If so, it counts.
    pub(crate) fn allow(&mut self, most: usize, now: Duration) -> bool {
        self.0.retain(|at| now.saturating_sub(*at) < LATELY);
        let is_allowed = self.0.len() < most;
        if is_allowed {
            self.0.push(now);
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_within_the_last_hour_counts() {
        let mut restarts = Restarts::default();
        let mut at = |minute: u64| restarts.allow(3, Duration::from_secs(60 * minute));
        assert_eq!([0, 10, 20, 30, 59].map(&mut at), [true, true, true, false, false]);
        // The first is an hour old now, and what was refused did not count.
        assert_eq!([60, 61, 70, 80, 90].map(&mut at), [true, false, true, true, false]);
        assert!(!Restarts::default().allow(0, Duration::ZERO));
    }
}
