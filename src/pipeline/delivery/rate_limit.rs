//! How fast a sink may send: a pure function of what it sent and when.

use std::time::Duration;

/// What was not sent counts for so long: a pause does not earn a flood, and a timer that is a little
/// late costs nothing.
const CREDIT: Duration = Duration::from_secs(1);

/// A bucket that fills with time and that each batch is taken out of, whole: when it is overdrawn,
/// the next batch waits until it is not. So the mean is kept, whatever the size of batches.
///
/// Times are those since any moment before; they never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// When all that was sent is paid for.
    paid_at: Duration,
}

impl RateLimit {
    /// So many bytes a second; at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid_at: Duration::ZERO }
    }

    /// How long the next batch waits.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    /// So many bytes were sent, beginning at `begun`.
    pub fn sent(&mut self, bytes: u64, begun: Duration) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.paid_at = self.paid_at.max(begun.saturating_sub(CREDIT)).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_batch_waits_until_the_last_one_is_paid_for() {
        let at = Duration::from_millis;
        let mut pace = RateLimit::new(1000);
        // When in ms, how much is sent then, and how long what comes at once after it waits.
        for (now, bytes, wait) in [
            (0, 500, 500),
            // It went in time: nothing is owed and nothing saved.
            (500, 500, 500),
            // A timer that was late by 100 ms is made up for.
            (1100, 500, 400),
            (1500, 4000, 4000),
            // Sent though it was too early, as a resend at shutdown: it is owed on top.
            (3500, 1000, 3000),
            // A day without anything saves one second and no more.
            (86_400_000, 1000, 0),
            (86_400_000, 10, 10),
        ] {
            pace.sent(bytes, at(now));
            assert_eq!(pace.wait(at(now)), at(wait), "at {now}");
            assert_eq!(pace.wait(at(now + wait)), Duration::ZERO, "at {now}");
        }
    }

    /// Whatever batches come, and however late, no window holds more than its rate, what one second
    /// saves, and one batch.
    #[test]
    fn no_window_holds_more_than_it_may() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            let rate = random.u64(1024..1 << 24);
            let largest = random.u64(1..4 << 20);
            let (mut pace, mut now, mut sent) = (RateLimit::new(rate), Duration::ZERO, Vec::new());
            for _ in 0..100 {
                let bytes = random.u64(1..=largest);
                pace.sent(bytes, now);
                sent.push((now, bytes));
                now += pace.wait(now) + Duration::from_micros(random.u64(0..3_000_000));
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
    fn nothing_overflows() {
        let mut pace = RateLimit::new(1);
        pace.sent(u64::MAX, Duration::MAX);
        pace.sent(u64::MAX, Duration::ZERO);
        assert_eq!(pace.wait(Duration::MAX), Duration::ZERO);
        assert!(pace.wait(Duration::ZERO) > Duration::from_secs(1 << 32));
    }
}
