//! Whether there is room to read on: a pure function of what the outbox and the disk hold.

/// Of the outbox's cap, kept for events: they tell the SIEM that reading waits.
const FOR_EVENTS: u64 = 16 << 20;
/// Of the disk, left to others.
const FREE: u64 = 64 << 20;

/// Says when reading stops and when it goes on, with a gap between the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backpressure {
    max_bytes: u64,
    full: Option<Shortage>,
    is_half: bool,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The outbox holds as much as it may.
    Outbox,
    /// The disk is nearly full.
    Disk,
}

impl Shortage {
    /// The word for it in an event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Disk => "disk",
        }
    }
}

impl From<Shortage> for siem_protocol::event::Shortage {
    fn from(shortage: Shortage) -> Self {
        match shortage {
            Shortage::Outbox => Self::Outbox,
            Shortage::Disk => Self::Disk,
        }
    }
}

/// What changed since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Reading stops.
    Filled(Shortage),
    /// Reading goes on.
    Recovered,
}

impl Backpressure {
    /// Backpressure for an outbox that may hold `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self { max_bytes, full: None, is_half: false }
    }

    /// The outbox may hold `max_bytes` from now on.
    pub fn resize(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
    }

    /// Looks again: the outbox holds `stored` bytes, the disk has `free` bytes, if that is known.
    pub fn update(&mut self, stored: u64, free: Option<u64>) -> Option<Change> {
        let cap = self.cap();
        // Once full, reading goes on only when there is room for a good while.
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

    /// Whether an outbox that holds `stored` bytes is full.
    #[must_use]
    pub fn would_fill(&self, stored: u64) -> bool {
        stored >= self.cap()
    }

    fn cap(&self) -> u64 {
        self.max_bytes.saturating_sub(FOR_EVENTS)
    }

    /// Whether so few bytes are free on the disk that reading which waits goes on waiting.
    #[must_use]
    pub fn is_low(free: u64) -> bool {
        free < FREE / 4 * 5
    }

    /// Whether the outbox has come to hold more than half of what it may, since the last time that
    /// this was asked.
    pub fn passed_half(&mut self, stored: u64) -> bool {
        let was_half = std::mem::replace(&mut self.is_half, stored > self.max_bytes / 2);
        self.is_half && !was_half
    }

    /// What there is too little of, if reading waits.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        self.full
    }

    /// Whether reading waits.
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
    fn a_full_outbox_stops_reading_until_an_eighth_is_free() {
        let mut room = Backpressure::new(96 * MB);
        assert_eq!(room.update(79 * MB, None), None);
        assert!(!room.is_full());
        assert_eq!(room.update(80 * MB, None), Some(Change::Filled(Shortage::Outbox)));
        assert_eq!(room.update(95 * MB, None), None);
        assert_eq!(room.update(75 * MB, None), None);
        assert!(room.is_full());
        assert_eq!(room.update(69 * MB, None), Some(Change::Recovered));
        assert_eq!(room.update(75 * MB, None), None);
    }

    #[test]
    fn a_full_disk_stops_reading_until_there_is_more_than_a_little() {
        let mut room = Backpressure::new(1 << 30);
        assert_eq!(room.update(0, Some(64 * MB)), None);
        assert_eq!(room.update(0, Some(63 * MB)), Some(Change::Filled(Shortage::Disk)));
        assert_eq!(room.update(0, Some(70 * MB)), None);
        assert_eq!(room.update(0, Some(80 * MB)), Some(Change::Recovered));
    }

    #[test]
    fn half_an_outbox_is_said_once_until_it_is_less() {
        let mut room = Backpressure::new(100 * MB);
        let said = [10, 51, 60, 50, 40, 51].map(|stored| room.passed_half(stored * MB));
        assert_eq!(said, [false, true, false, false, false, true]);
    }
}
