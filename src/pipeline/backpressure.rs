//! Decides when reading pauses: a pure function of the space that outbox and disk have.

pub use siem_protocol::agent_event::Shortage;

/// Part of the outbox that is reserved for events, which report that reading is paused.
const EVENT_RESERVE: u64 = 16 << 20;
/// Free space on the disk that is left to other programs.
const FREE: u64 = 64 << 20;

/// Decides when reading pauses and resumes, with a gap between the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backpressure {
    max_bytes: u64,
    full: Option<Shortage>,
    is_half_full: bool,
}

/// A change found by [`Backpressure::update`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Reading pauses.
    Filled(Shortage),
    /// Reading resumes.
    Recovered,
}

impl Backpressure {
    /// Creates the state for an outbox of at most `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes, full: None, is_half_full: false }
    }

    /// Changes the maximum size of the outbox.
    pub fn resize(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
    }

    /// Updates the state: the outbox holds `stored` bytes, and the disk has `free` bytes, if known.
    pub fn update(&mut self, stored: u64, free: Option<u64>) -> Option<Change> {
        let cap = self.cap();
        // Once full, reading resumes only when there is space for a while.
        let (cap, least) = match self.full {
            None => (cap, FREE),
            Some(_) => (cap / 8 * 7, FREE / 4 * 5),
        };
        let shortage = if free.is_some_and(|free| free < least) {
            Some(Shortage::Disk)
        } else if stored >= cap {
            Some(Shortage::Outbox)
        } else {
            None
        };
        let before = std::mem::replace(&mut self.full, shortage);
        match (before, shortage) {
            (None, Some(shortage)) => Some(Change::Filled(shortage)),
            (Some(_), None) => Some(Change::Recovered),
            _ => None,
        }
    }

    /// Returns whether an outbox that holds `stored` bytes is full.
    #[must_use]
    pub fn would_fill(&self, stored: u64) -> bool {
        stored >= self.cap()
    }

    fn cap(&self) -> u64 {
        self.max_bytes.saturating_sub(EVENT_RESERVE)
    }

    /// Returns whether so few bytes are free on the disk that paused reading stays paused.
    #[must_use]
    pub fn is_low(free: u64) -> bool {
        free < FREE / 4 * 5
    }

    /// Returns whether the outbox has become more than half full since the last call.
    pub fn passed_half(&mut self, stored: u64) -> bool {
        let was_half = std::mem::replace(&mut self.is_half_full, stored > self.max_bytes / 2);
        self.is_half_full && !was_half
    }

    /// Returns which space is short if reading is paused.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        self.full
    }

    /// Returns whether reading is paused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn full_outbox_pauses_reading_until_an_eighth_is_free() {
        let mut state = Backpressure::new(96 * MB);
        assert_eq!(state.update(79 * MB, None), None);
        assert!(!state.is_full());
        assert_eq!(state.update(80 * MB, None), Some(Change::Filled(Shortage::Outbox)));
        assert_eq!(state.update(95 * MB, None), None);
        assert_eq!(state.update(75 * MB, None), None);
        assert!(state.is_full());
        assert_eq!(state.update(69 * MB, None), Some(Change::Recovered));
        assert_eq!(state.update(75 * MB, None), None);
    }

    #[test]
    fn full_disk_pauses_reading_until_80_mb_are_free() {
        let mut state = Backpressure::new(1 << 30);
        assert_eq!(state.update(0, Some(64 * MB)), None);
        assert_eq!(state.update(0, Some(63 * MB)), Some(Change::Filled(Shortage::Disk)));
        assert_eq!(state.update(0, Some(70 * MB)), None);
        assert_eq!(state.update(0, Some(80 * MB)), Some(Change::Recovered));
    }

    #[test]
    fn half_full_outbox_is_reported_once_until_it_shrinks() {
        let mut state = Backpressure::new(100 * MB);
        let reported = [10, 51, 60, 50, 40, 51].map(|stored| state.passed_half(stored * MB));
        assert_eq!(reported, [false, true, false, false, false, true]);
    }
}
