//! Schedule of requests for the managed configuration: a pure function of the outcomes.

use std::time::Duration;

/// Longest wait after the first failure; it doubles with each failure that follows.
const FIRST: Duration = Duration::from_secs(5);
/// Shortest wait after a failure, so that a fleet does not hammer the server by chance.
const SHORTEST: Duration = Duration::from_secs(1);

/// Outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The server responded, or refused: an earlier request would have the same result.
    Answered,
    /// No response, or an error that is likely to be temporary.
    Failed,
}

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct PollSchedule {
    failures: u32,
}

impl PollSchedule {
    /// Returns the time until the next request. `jitter` is random, from 0 to 1.
    pub(super) fn next(&mut self, outcome: Outcome, interval: Duration, jitter: f64) -> Duration {
        let poll = interval.mul_f64(0.9 + 0.2 * jitter);
        if outcome == Outcome::Answered {
            self.failures = 0;
            return poll;
        }
        let longest = FIRST.saturating_mul(1 << self.failures.min(20)).min(interval);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(jitter).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome::*, *};

    #[test]
    fn a_failure_is_retried_sooner_than_the_interval() {
        let interval = Duration::from_secs(300);
        let table: &[(&[Outcome], f64, f64)] = &[
            // Outcomes, the last at the end; jitter; seconds until the next request.
            (&[Answered], 0.0, 270.0),
            (&[Answered], 0.5, 300.0),
            (&[Answered], 1.0, 330.0),
            (&[Failed], 1.0, 5.0),
            (&[Failed], 0.5, 2.5),
            (&[Failed], 0.0, 1.0),
            (&[Failed, Failed], 1.0, 10.0),
            (&[Failed, Failed, Failed], 1.0, 20.0),
            (&[Failed; 7], 1.0, 300.0),
            (&[Failed; 200], 1.0, 300.0),
            (&[Failed, Failed, Answered], 0.5, 300.0),
            (&[Failed, Failed, Answered, Failed], 1.0, 5.0),
        ];
        for (outcomes, jitter, seconds) in table {
            let mut schedule = PollSchedule::default();
            let waits = outcomes.iter().map(|outcome| schedule.next(*outcome, interval, *jitter));
            let last = waits.last().unwrap();
            assert_eq!(last, Duration::from_secs_f64(*seconds), "{outcomes:?} {jitter}");
        }
    }
}
