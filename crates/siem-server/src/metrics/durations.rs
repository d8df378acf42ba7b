//! Durations as a histogram.

use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds in seconds: a batch takes milliseconds, a wait for a turn up to 10 s.
const SECONDS: [f64; 12] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Durations, counted by their size. Clones count together.
#[derive(Clone, Debug)]
pub struct Durations(pub(super) Histogram);

impl Durations {
    /// Counts the time since `begun`.
    pub(crate) fn count_since(&self, begun: Instant) {
        self.count(begun.elapsed());
    }

    /// Counts a duration.
    pub(crate) fn count(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self(histogram())
    }
}

/// Creates a histogram with the bounds of durations.
pub(super) fn histogram() -> Histogram {
    Histogram::new(SECONDS)
}
