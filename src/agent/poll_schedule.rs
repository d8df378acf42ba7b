//! When the server is asked next: a pure function of what came.

use std::time::Duration;

/// The first wait after a failure is up to this long, and up to twice as long after each that
/// follows.
const FIRST: Duration = Duration::from_secs(5);
/// The least wait after a failure, so that chance does not make a fleet hammer at a server.
const LEAST: Duration = Duration::from_secs(1);

/// What came of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer, good or refused: asking sooner would bring the same.
    Answered,
    /// None, or one that is likely to pass by itself.
    Failed,
}

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Polls {
    failures: u32,
}

impl Polls {
    /// How long to wait before the server is asked again. `jitter` is random, from 0 to 1.
    pub(crate) fn next(&mut self, outcome: Outcome, interval: Duration, jitter: f64) -> Duration {
        let poll = interval.mul_f64(0.9 + 0.2 * jitter);
        if outcome == Outcome::Answered {
            self.failures = 0;
            return poll;
        }
        let most = FIRST.saturating_mul(1 << self.failures.min(20)).min(interval);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(jitter).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::{Outcome::*, *};

    #[test]
    fn an_answer_waits_for_the_next_poll_and_a_failure_for_less() {
        let interval = Duration::from_secs(300);
        let table: &[(&[Outcome], f64, f64)] = &[
            // What came, the last at the end; chance; seconds until the next.
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
            let mut polls = Polls::default();
            let waits = outcomes.iter().map(|outcome| polls.next(*outcome, interval, *jitter));
            let last = waits.last().unwrap();
            assert_eq!(last, Duration::from_secs_f64(*seconds), "{outcomes:?} {jitter}");
        }
    }
}
