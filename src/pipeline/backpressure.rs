//! Decides when reading pauses: pure functions of the space that outbox and disk have, and of what
//! waits for delivery.

use std::{collections::BTreeMap, time::Duration};

pub use siem_protocol::agent_event::Shortage;

use super::outbox::SinkBacklog;

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

/// Decides how much of a backlog is read: what waits for delivery delays live records, which are
/// behind it, and the session files are a buffer without that effect.
#[derive(Clone, Debug, Default)]
pub struct BackfillPacer {
    sinks: BTreeMap<String, DeliveryRate>,
}

/// Rate at which a sink acknowledges bytes while it has some.
#[derive(Clone, Debug, Default)]
struct DeliveryRate {
    acknowledged: u64,
    is_waiting: bool,
    /// Time of the last update, and of the last acknowledgement.
    updated: Duration,
    moved: Duration,
    /// Recent bytes, and the seconds that they took; older ones count less.
    bytes: f64,
    seconds: f64,
}

impl BackfillPacer {
    /// Bytes that may wait for delivery whatever the rate, and at most.
    const LEAST: u64 = 1 << 20;
    const MOST: u64 = 32 << 20;
    /// Time in which the waiting bytes can be delivered. A live record also waits for the rest of its
    /// batch: the two together are to take about 5 s.
    const TIME: f64 = 4.5;
    /// Time without an acknowledgement after which other sinks do not wait for a sink.
    const STALLED: Duration = Duration::from_secs(10);

    /// Returns how many more bytes of a backlog may be stored at `now`, a time that never goes back.
    ///
    /// The slowest sink decides, of those that make progress: a receiver that is down for a week does
    /// not keep the backlog from the others.
    pub fn update(&mut self, now: Duration, sinks: &[SinkBacklog]) -> u64 {
        self.sinks.retain(|name, _| sinks.iter().any(|sink| sink.name == *name));
        let (mut room, mut room_of_all) = (None::<u64>, None::<u64>);
        for sink in sinks {
            let new = DeliveryRate { updated: now, moved: now, ..DeliveryRate::default() };
            let known = self
                .sinks
                .entry(sink.name.clone())
                .or_insert_with(|| DeliveryRate { acknowledged: sink.acknowledged, ..new });
            known.update(now, sink);
            let limit = known.limit();
            let left = limit.saturating_sub(sink.waiting);
            // A few bytes are not worth a group of their own.
            let left = if left < limit / 8 { 0 } else { left };
            let least = |room: Option<u64>| Some(room.map_or(left, |room| room.min(left)));
            if sink.waiting == 0 || now.saturating_sub(known.moved) < Self::STALLED {
                room = least(room);
            }
            room_of_all = least(room_of_all);
        }
        room.or(room_of_all).unwrap_or(u64::MAX)
    }

    /// Returns the time until a sink counts as stalled if it acknowledges nothing; `None` if only
    /// acknowledgements change how much may be stored.
    pub fn until_stalled(&self, now: Duration) -> Option<Duration> {
        let waiting = self.sinks.values().filter(|sink| sink.is_waiting);
        let left = waiting.map(|sink| (sink.moved + Self::STALLED).saturating_sub(now));
        left.filter(|left| !left.is_zero()).min()
    }
}

impl DeliveryRate {
    /// Time after which a measured rate counts half.
    const HALF_LIFE: f64 = 5.0;

    fn update(&mut self, now: Duration, sink: &SinkBacklog) {
        let passed = now.saturating_sub(self.updated).as_secs_f64();
        let bytes = sink.acknowledged.saturating_sub(self.acknowledged);
        if self.is_waiting {
            let kept = (-passed / Self::HALF_LIFE).exp2();
            self.seconds = self.seconds * kept + passed;
            // They were delivered since the last acknowledgement, and count as if halfway through that
            // time: without this, the rate is overrated at the moment at which it is used.
            let since = now.saturating_sub(self.moved).as_secs_f64();
            let weight = (-since / 2.0 / Self::HALF_LIFE).exp2();
            #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
            let bytes = bytes as f64 * weight;
            self.bytes = self.bytes * kept + bytes;
        }
        if bytes > 0 || sink.waiting == 0 {
            self.moved = now;
        }
        (self.acknowledged, self.updated) = (sink.acknowledged, now);
        self.is_waiting = sink.waiting > 0;
    }

    /// Bytes that may wait for the sink.
    fn limit(&self) -> u64 {
        let seconds = self.seconds.max(0.001);
        let bytes = BackfillPacer::TIME * self.bytes / seconds;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let bytes = bytes as u64;
        bytes.clamp(BackfillPacer::LEAST, BackfillPacer::MOST)
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

    fn sink(name: &str, acknowledged: u64, waiting: u64) -> SinkBacklog {
        SinkBacklog { name: name.to_owned(), acknowledged, waiting }
    }

    /// Lets a receiver acknowledge `rate` bytes per second for 30 s; returns the room with nothing
    /// waiting.
    fn room_at(rate: u64) -> u64 {
        let mut pacer = BackfillPacer::default();
        for tick in 0..300 {
            pacer.update(
                Duration::from_millis(100) * tick,
                &[sink("a", u64::from(tick) * rate / 10, MB)],
            );
        }
        pacer.update(Duration::from_secs(30), &[sink("a", 30 * rate, 0)])
    }

    #[test]
    fn backlog_waits_for_a_few_seconds_of_delivery() {
        assert_eq!(room_at(0), MB);
        assert_eq!(room_at(MB / 10), MB);
        assert!((44 * MB / 10..46 * MB / 10).contains(&room_at(MB)), "{}", room_at(MB));
        assert_eq!(room_at(100 * MB), 32 * MB);
        assert_eq!(BackfillPacer::default().update(Duration::ZERO, &[]), u64::MAX);
    }

    #[test]
    fn idle_time_does_not_lower_the_rate() {
        let mut pacer = BackfillPacer::default();
        for second in 0..30 {
            pacer.update(Duration::from_secs(second), &[sink("a", second * MB, MB)]);
        }
        pacer.update(Duration::from_secs(30), &[sink("a", 30 * MB, 0)]);
        let room = pacer.update(Duration::from_secs(3600), &[sink("a", 30 * MB, 0)]);
        assert!(room > 4 * MB, "{room}");
    }

    #[test]
    fn stalled_sink_does_not_keep_the_backlog_from_others() {
        let mut pacer = BackfillPacer::default();
        let mut room = |second: u64| {
            let sinks = [sink("dead", 0, 2 * MB), sink("live", second * MB, MB / 2)];
            pacer.update(Duration::from_secs(second), &sinks)
        };
        assert_eq!((0..10).map(&mut room).max(), Some(0));
        assert!(room(10) > MB / 2);
        assert_eq!(pacer.until_stalled(Duration::from_secs(10)), Some(BackfillPacer::STALLED));
        let mut alone = BackfillPacer::default();
        let rooms =
            (0..100).map(|it| alone.update(Duration::from_secs(it), &[sink("a", 0, 2 * MB)]));
        assert_eq!(rooms.max(), Some(0));
    }

    /// Delays of live records behind a backlog of 2 GB, at a receiver of 1 MB/s.
    fn live_delays(is_paced: bool) -> Vec<u64> {
        const TICK: Duration = Duration::from_millis(10);
        const RATE: u64 = 1_000_000 / 100;
        const GROUP: u64 = 1_500_000;
        const BATCH: u64 = 700_000;
        let mut pacer = BackfillPacer::default();
        let (mut backlog, mut stored, mut acknowledged) = (2_000_000_000_u64, 0, 0);
        let (mut batch_end, mut sent) = (0, 0);
        let mut live = std::collections::VecDeque::new();
        let mut delays = Vec::new();
        for tick in 0..30_000_u32 {
            if tick % 10 == 0 {
                stored += 2_000;
                live.push_back((stored, tick));
            }
            let room = pacer.update(TICK * tick, &[sink("a", acknowledged, stored - acknowledged)]);
            let group = if is_paced { GROUP.min(room) } else { GROUP }.min(backlog);
            // A transaction takes 50 ms.
            if tick % 5 == 0 {
                (stored, backlog) = (stored + group, backlog - group);
            }
            sent = (sent + RATE).min(batch_end);
            if sent == batch_end {
                acknowledged = batch_end;
                batch_end = stored.min(batch_end + BATCH);
                while live.front().is_some_and(|(end, _)| *end <= acknowledged) {
                    let (_, since) = live.pop_front().unwrap();
                    delays.push(u64::from(tick - since) * 10);
                }
            }
        }
        delays.extend(live.iter().map(|(_, since)| u64::from(30_000 - since) * 10));
        delays.sort_unstable();
        delays
    }

    /// Backfill filled the outbox, and live records waited for an hour behind it.
    #[test]
    fn live_records_behind_a_backlog_take_at_most_six_seconds() {
        let p99 = |delays: &[u64]| delays[delays.len() * 99 / 100];
        let paced = live_delays(true);
        assert!(p99(&paced) <= 6_000, "{}", p99(&paced));
        assert!(p99(&live_delays(false)) > 100_000, "the case shows nothing");
    }
}
