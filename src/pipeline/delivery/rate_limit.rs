//! Rate limit of a sink: a pure function of the sizes and times of its requests.

use std::time::Duration;

/// Unused bandwidth is kept for this time: a timer that is a little late costs nothing, and a pause
/// does not earn a burst.
const CREDIT: Duration = Duration::from_secs(1);

/// A token bucket from which each batch is taken whole. If it is overdrawn, the next batch waits
/// until it is not, so that the mean rate is kept with batches of any size.
///
/// Times count from any fixed moment and never decrease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// Time at which everything that was sent is paid for.
    paid_at: Duration,
}

impl RateLimit {
    /// Creates a limit of `bytes_per_second`, at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Duration::ZERO }
    }

    /// Returns how long the next batch waits.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    /// Records that `bytes` were sent, starting at `started`.
    pub fn sent(&mut self, bytes: u64, started: Duration) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(started.saturating_sub(CREDIT)).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batch_waits_until_the_previous_one_is_paid_for() {
        let at = Duration::from_millis;
        let mut limit = RateLimit::new(1000);
        // Time in ms, bytes sent then, and how long the next batch waits.
        for (now, bytes, wait) in [
            (0, 500, 500),
            // Sent in time: nothing is owed and nothing saved.
            (500, 500, 500),
            // A timer that was late by 100 ms is compensated.
            (1100, 500, 400),
            (1500, 4000, 4000),
            // Sent too early, as at shutdown: it is owed in addition.
            (3500, 1000, 3000),
            // A day without batches saves one second and no more.
            (86_400_000, 1000, 0),
            (86_400_000, 10, 10),
        ] {
            limit.sent(bytes, at(now));
            assert_eq!(limit.wait(at(now)), at(wait), "at {now}");
            assert_eq!(limit.wait(at(now + wait)), Duration::ZERO, "at {now}");
        }
    }

    /// With any size and time of batches, a window holds at most its rate, the credit of one
    /// second, and one batch.
    #[test]
    fn no_window_exceeds_the_rate() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let rate = random.u64(1024..1 << 24);
            let largest = random.u64(1..4 << 20);
            let (mut limit, mut now, mut sent) = (RateLimit::new(rate), Duration::ZERO, Vec::new());
            for _ in 0..100 {
                let bytes = random.u64(1..=largest);
                limit.sent(bytes, now);
                sent.push((now, bytes));
                now += limit.wait(now) + Duration::from_micros(random.u64(0..3_000_000));
            }
            for first in 0..sent.len() {
                let mut sum = 0;
                for (at, bytes) in &sent[first..] {
                    sum += bytes;
                    let window = (*at - sent[first].0).as_secs_f64() + 1.0;
                    let most = window * rate as f64 + largest as f64 + 1.0;
                    assert!(sum as f64 <= most, "{sum} bytes in {window} s at {rate}");
                }
            }
        }
    }

    #[test]
    fn extreme_values_do_not_overflow() {
        let mut limit = RateLimit::new(1);
        limit.sent(u64::MAX, Duration::MAX);
        limit.sent(u64::MAX, Duration::ZERO);
        assert_eq!(limit.wait(Duration::MAX), Duration::ZERO);
        assert!(limit.wait(Duration::ZERO) > Duration::from_secs(1 << 32));
    }
}
