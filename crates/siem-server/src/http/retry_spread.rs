//! Spreads the senders that are refused under load over time, so that they do not return together.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time over which served and refused requests are compared.
const PERIOD: Duration = Duration::from_secs(10);
/// Shortest and longest time over which refused requests are spread.
const WINDOW: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(300));

/// Times after which refused senders should try again.
#[derive(Debug, Default)]
pub(super) struct RetrySpread(Mutex<Option<State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// Start of the current period.
    start: Instant,
    current: Counts,
    previous: Counts,
    /// Number of refusals.
    number: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    served: u32,
    refused: u32,
}

impl RetrySpread {
    /// Counts a request that was served.
    pub(super) fn serve(&self, now: Instant) {
        self.update(now, |state| state.current.served = state.current.served.saturating_add(1));
    }

    /// Counts a refused request, and returns the time after which its sender should try again: at
    /// least a second. The refused are spread evenly over the time that serving them will take.
    pub(super) fn refuse(&self, now: Instant) -> Duration {
        self.update(now, |state| {
            state.current.refused = state.current.refused.saturating_add(1);
            state.number = state.number.wrapping_add(1);
            Duration::from_secs(1) + state.window().mul_f64(place(state.number))
        })
    }

    fn update<T>(&self, now: Instant, change: impl FnOnce(&mut State) -> T) -> T {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = guard.get_or_insert_with(|| State::new(now));
        state.advance(now);
        change(state)
    }
}

impl State {
    fn new(now: Instant) -> Self {
        let none = Counts::default();
        Self { start: now, current: none, previous: none, number: 0 }
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.start);
        if passed < PERIOD {
            return;
        }
        self.previous = if passed < 2 * PERIOD { self.current } else { Counts::default() };
        (self.start, self.current) = (now, Counts::default());
    }

    /// Time in which as many requests are served as were refused.
    fn window(&self) -> Duration {
        let served = self.previous.served.saturating_add(self.current.served).max(1);
        let refused = self.previous.refused.saturating_add(self.current.refused);
        let window = PERIOD.mul_f64(f64::from(refused) / f64::from(served));
        window.clamp(WINDOW.0, WINDOW.1)
    }
}

/// Returns a place from 0 to 1 such that those of successive numbers are spread evenly.
fn place(number: u32) -> f64 {
    // The multiples of the golden ratio, <https://en.wikipedia.org/wiki/Low-discrepancy_sequence>.
    (f64::from(number) * 0.618_033_988_749_895).fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_senders_return_evenly() {
        let (spread, now) = (RetrySpread::default(), Instant::now());
        (0..5_000).for_each(|_| spread.serve(now));
        let later = now + PERIOD / 2;
        let times: Vec<_> = (0..20_000).map(|_| spread.refuse(later)).collect();
        let mut seconds = [0_u32; 60];
        for time in &times[10_000..] {
            seconds[usize::try_from(time.as_secs()).unwrap()] += 1;
        }
        // The last of them would be served after 40 s. No second gets many more than its share.
        let most = *seconds.iter().max().unwrap();
        assert!(most <= 500, "{seconds:?}");
        assert!(times.iter().all(|time| *time >= Duration::from_secs(1)));
        assert!(times.last() < Some(&Duration::from_secs(60)));
    }

    #[test]
    fn load_of_the_past_is_forgotten() {
        let (spread, now) = (RetrySpread::default(), Instant::now());
        for _ in 0..20_000 {
            spread.refuse(now);
        }
        let later = now + 3 * PERIOD;
        spread.serve(later);
        assert!(spread.refuse(later) <= Duration::from_secs(1) + WINDOW.0 + PERIOD);
    }
}
