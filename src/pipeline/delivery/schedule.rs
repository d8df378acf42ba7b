//! Schedule of a sink's task, which decides when to send, to wait and to store acknowledgements: a
//! pure function of the time and of past events.
//!
//! Times are durations since the task started. [`RetryPolicy`](super::RetryPolicy) decides the next
//! step after a batch, and the delay after a failed one.

use std::time::Duration;

use super::{super::outbox::Head, RateLimit, SinkControl, StopMode};
use crate::platform::Timestamp;

/// After a full batch, entries that do not fill another one are sent when nothing was added for
/// this time: that was the end of a backlog.
const LULL: Duration = Duration::from_millis(50);
/// Time for which an acknowledgement waits to be stored together with new entries.
const PERSIST_DELAY: Duration = Duration::from_secs(1);
/// Shortest time after which entries in transit are delivered again.
const MIN_RECHECK: Duration = Duration::from_millis(100);

/// Decides the next step of a sink's task and its time.
#[derive(Clone, Debug, Default)]
pub(super) struct Schedule {
    rate_limit: Option<RateLimit>,
    /// True if the last batch was full: more of a backlog may follow at any moment.
    in_backlog: bool,
    /// True if a backlog has ended: the remaining entries are sent now.
    is_lull: bool,
    /// Position up to which everything is delivered.
    delivered: Option<Position>,
    /// Entries that were sent without an acknowledgement.
    in_transit: Option<InTransit>,
    /// Position up to which entries were in transit before the batch that is being sent.
    was_in_transit: Option<Position>,
    /// Time at which acknowledgements are stored, unless new entries are stored before.
    persist_at: Option<Duration>,
}

/// Entries that were sent without an acknowledgement, and that the sink recognises when they are
/// delivered again.
#[derive(Clone, Copy, Debug)]
struct InTransit {
    /// Position of the last one.
    through: Position,
    /// Time at which the first one counts as delivered.
    recheck_at: Duration,
    /// True if a batch from the cursor can hold no entry after them.
    is_full: bool,
}

/// A position in the outbox. Sequence numbers restart when the outbox is renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    renumbered_at: Timestamp,
    seq: u64,
}

impl Position {
    /// The last entry of the outbox.
    pub(super) fn end_of(head: &Head) -> Self {
        Self { renumbered_at: head.renumbered_at, seq: head.last_seq }
    }

    /// The entry `seq` under the numbering of `head`.
    pub(super) fn in_numbering_of(head: &Head, seq: u64) -> Self {
        Self { renumbered_at: head.renumbered_at, seq }
    }
}

/// Conditions on which entries in the outbox are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendRule {
    /// True if everything is due.
    pub flush: bool,
    /// A batch that holds an entry up to this one is due.
    pub flush_through: u64,
    /// Age at which an entry is due.
    pub flush_interval: Duration,
    /// Entries that were sent, and do not count as delivered yet.
    pub sent: Option<SentEntries>,
}

/// Entries after the cursor that were sent, and do not count as delivered yet: they are not due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentEntries {
    /// Number of the last one; the largest number if no other entry fits into their batch.
    pub through: u64,
    /// Time until the first one counts as delivered.
    pub recheck: Duration,
}

/// The entries that the next batch would hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Number of the first entry.
    pub(super) first_seq: u64,
    /// Time since the first entry was stored.
    pub(super) age: Duration,
    /// True if no more entries would fit.
    pub(super) is_full: bool,
    /// True if an entry among them, or behind them, must be sent at once.
    pub(super) is_urgent: bool,
    /// True if the batch is smaller than usual, since a larger one failed.
    pub(super) is_reduced: bool,
}

impl SendRule {
    /// Returns how long `waiting` entries wait; zero if they are due. They wait no longer than entries in
    /// transit before them, which are delivered again when the first counts as delivered.
    pub(super) fn wait(&self, waiting: &Waiting) -> Duration {
        let is_flushed = self.flush || waiting.first_seq <= self.flush_through;
        if is_flushed || waiting.is_urgent || waiting.is_full || waiting.is_reduced {
            return Duration::ZERO;
        }
        let recheck = self.sent.map_or(Duration::MAX, |sent| sent.recheck);
        self.flush_interval.saturating_sub(waiting.age).min(recheck)
    }
}

/// A pause of a sink's task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pause {
    /// Its length.
    pub(super) length: Duration,
    /// True if new entries end it. They may fill a batch; they do not shorten a wait for the
    /// receiver.
    pub(super) until_entries: bool,
    /// True if its end is the end of a backlog.
    is_lull: bool,
}

impl Pause {
    /// A pause that new entries do not end.
    pub(super) fn fixed(length: Duration) -> Self {
        Self { length, until_entries: false, is_lull: false }
    }

    /// A pause until entries in transit count as delivered, or until there are new entries that
    /// may be sent.
    fn in_transit(length: Duration, until_entries: bool) -> Self {
        Self { length, until_entries, is_lull: false }
    }

    /// A pause that only new entries end.
    pub(super) fn until_entries() -> Self {
        Self { length: Duration::MAX, until_entries: true, is_lull: false }
    }
}

impl Schedule {
    /// Creates the schedule of a task that starts.
    pub(super) fn new(rate_limit: Option<RateLimit>) -> Self {
        Self { rate_limit, ..Self::default() }
    }

    /// Returns when entries are due, or `None` if everything up to `head` is delivered.
    pub(super) fn next_rule(
        &mut self,
        head: &Head,
        control: &SinkControl,
        now: Duration,
    ) -> Option<SendRule> {
        let is_lull = std::mem::take(&mut self.is_lull);
        if self.delivered == Some(Position::end_of(head)) {
            return None;
        }
        // A flush that was requested before a renumbering names numbers of another count.
        let is_current = control.flush.renumbered_at == head.renumbered_at;
        let requested = if is_current { control.flush.last_seq } else { 0 };
        let mut flush_through = requested.max(head.due_seq);
        let in_transit =
            self.in_transit.filter(|it| it.through.renumbered_at == head.renumbered_at);
        let sent = in_transit.and_then(|it| {
            let recheck = it.recheck_at.saturating_sub(now);
            if recheck.is_zero() {
                flush_through = flush_through.max(it.through.seq);
                return None;
            }
            let through = if it.is_full { u64::MAX } else { it.through.seq };
            Some(SentEntries { through, recheck })
        });
        Some(SendRule {
            flush: is_lull || control.stop == StopMode::WhenDrained,
            flush_through,
            flush_interval: control.shipping.flush_interval,
            sent,
        })
    }

    /// Returns true if everything is delivered but the last group, and that is small.
    pub(super) fn lacks_little(&self, head: &Head) -> bool {
        let last = head.last_group;
        last.is_small() && self.delivered == Some(Position::in_numbering_of(head, last.after_seq))
    }

    /// Records that entries up to `through` were sent without an acknowledgement. The first counts as
    /// delivered after `recheck`. `has_moved` is true if the cursor has moved.
    pub(super) fn in_transit(
        &mut self,
        through: Position,
        recheck: Duration,
        has_moved: bool,
        now: Duration,
    ) {
        let recheck_at = now + recheck.max(MIN_RECHECK);
        let was = self.was_in_transit.filter(|was| was.renumbered_at == through.renumbered_at);
        let was = was.filter(|was| was.seq >= through.seq);
        let is_full = !has_moved && was.is_some();
        self.in_transit = Some(InTransit { through: was.unwrap_or(through), recheck_at, is_full });
    }

    /// Returns the pause for entries in transit, the first of which counts as delivered after
    /// `recheck`.
    pub(super) fn pause_in_transit(&self, recheck: Duration) -> Pause {
        let is_full = self.in_transit.is_some_and(|it| it.is_full);
        Pause::in_transit(recheck, !is_full)
    }

    /// Returns the pause for entries that are not due for `rest`.
    pub(super) fn pause_for_more(&self, rest: Duration) -> Pause {
        let length = if self.in_backlog { rest.min(LULL) } else { rest };
        Pause { length, until_entries: true, is_lull: self.in_backlog }
    }

    /// Records that a pause ended because its time has passed.
    pub(super) fn pause_elapsed(&mut self, pause: &Pause) {
        self.is_lull = pause.is_lull;
    }

    /// Returns how long the rate limit forbids another request.
    pub(super) fn rate_limit_wait(&self, now: Duration) -> Duration {
        self.rate_limit.map_or(Duration::ZERO, |limit| limit.wait(now))
    }

    /// True if the sink has a rate limit.
    pub(super) fn has_rate_limit(&self) -> bool {
        self.rate_limit.is_some()
    }

    /// Records that a batch is about to be sent.
    pub(super) fn sending(&mut self, is_full: bool) {
        self.in_backlog = is_full;
        self.was_in_transit = self.in_transit.take().map(|it| it.through);
    }

    /// A request of `bytes`, started at `started`, has ended, with or without success.
    pub(super) fn sent(&mut self, bytes: u64, started: Duration) {
        if let Some(limit) = &mut self.rate_limit {
            limit.sent(bytes, started);
        }
    }

    /// Everything up to `position` is acknowledged. `is_first` means that no earlier
    /// acknowledgement waits to be stored.
    pub(super) fn acknowledged(&mut self, position: Position, is_first: bool, now: Duration) {
        self.delivered = Some(position);
        if is_first {
            self.persist_at = None;
        }
        self.persist_at.get_or_insert(now + PERSIST_DELAY);
    }

    /// Returns the time at which pending acknowledgements must be stored, if there are any.
    pub(super) fn persist_at(&self) -> Option<Duration> {
        self.persist_at
    }

    /// Returns whether acknowledgements must be stored now.
    pub(super) fn must_persist(&self, now: Duration) -> bool {
        self.persist_at.is_some_and(|due| due <= now)
    }

    /// Records that acknowledgements are stored, or, after a failure, will be stored at `retry_at`.
    pub(super) fn persisted(&mut self, retry_at: Option<Duration>) {
        self.persist_at = retry_at;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::outbox::LastGroup, *};
    use crate::config::ShippingSettings;

    const INTERVAL: Duration = Duration::from_secs(300);
    const NOW: Duration = Duration::ZERO;

    fn control() -> SinkControl {
        let shipping = ShippingSettings { flush_interval: INTERVAL, ..ShippingSettings::default() };
        SinkControl::new(shipping, u64::MAX)
    }

    fn head(last_seq: u64) -> Head {
        Head { last_seq, ..Head::default() }
    }

    fn waiting(age: u64) -> Waiting {
        let age = Duration::from_secs(age);
        Waiting { first_seq: 5, age, is_full: false, is_urgent: false, is_reduced: false }
    }

    #[test]
    fn entries_are_due_by_age_or_for_a_reason() {
        let rule = Schedule::default().next_rule(&head(9), &control(), NOW).unwrap();
        let sent = |recheck| {
            let sent = SentEntries { through: 4, recheck: Duration::from_secs(recheck) };
            SendRule { sent: Some(sent), ..rule }
        };
        let rows = [
            ("behind entries in transit", sent(20), waiting(0), 20),
            ("due before entries in transit", sent(20), waiting(290), 10),
            ("new", rule, waiting(0), 300),
            ("older", rule, waiting(299), 1),
            ("old", rule, waiting(300), 0),
            ("full", rule, Waiting { is_full: true, ..waiting(0) }, 0),
            ("urgent", rule, Waiting { is_urgent: true, ..waiting(0) }, 0),
            ("reduced", rule, Waiting { is_reduced: true, ..waiting(0) }, 0),
            ("flushed", SendRule { flush: true, ..rule }, waiting(0), 0),
            ("flushed by number", SendRule { flush_through: 5, ..rule }, waiting(0), 0),
            ("after the flushed ones", SendRule { flush_through: 4, ..rule }, waiting(0), 300),
        ];
        for (what, rule, waiting, expected) in rows {
            assert_eq!(rule.wait(&waiting), Duration::from_secs(expected), "{what}");
        }
    }

    #[test]
    fn flush_request_before_a_renumbering_is_ignored() {
        let mut control = control();
        control.flush = head(7);
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next_rule(&head(9), &control, NOW).unwrap().flush_through, 7);
        let renumbered = Head { renumbered_at: Timestamp(1), ..head(9) };
        assert_eq!(schedule.next_rule(&renumbered, &control, NOW).unwrap().flush_through, 0);
    }

    /// Otherwise the network's thread would read what may be on the disk only.
    #[test]
    fn little_is_lacking_only_after_all_but_a_small_group() {
        let lacks_little = |delivered, after_seq, bytes, renumbered_at| {
            let mut schedule = Schedule::default();
            schedule.acknowledged(Position::end_of(&head(delivered)), true, Duration::ZERO);
            let last_group = LastGroup { after_seq, bytes };
            schedule.lacks_little(&Head { last_group, renumbered_at, ..head(9) })
        };
        let before = Timestamp::default();
        assert!(lacks_little(8, 8, 1000, before));
        assert!(!lacks_little(7, 8, 1000, before), "two groups");
        assert!(!lacks_little(8, 8, 100_000, before), "a large group");
        assert!(!lacks_little(8, 8, 1000, Timestamp(1)), "another numbering");
        assert!(!Schedule::default().lacks_little(&head(9)), "nothing is known to be delivered");
    }

    #[test]
    fn nothing_is_due_once_all_is_delivered() {
        let mut schedule = Schedule::default();
        schedule.acknowledged(Position::end_of(&head(9)), true, Duration::ZERO);
        assert_eq!(schedule.next_rule(&head(9), &control(), NOW), None);
        assert!(schedule.next_rule(&head(10), &control(), NOW).is_some(), "a new entry");
        let renumbered = Head { renumbered_at: Timestamp(1), ..head(9) };
        assert!(schedule.next_rule(&renumbered, &control(), NOW).is_some(), "another numbering");
    }

    #[test]
    fn end_of_a_backlog_is_sent_after_a_lull() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.pause_for_more(INTERVAL).length, INTERVAL, "no backlog");
        schedule.sending(true);
        let pause = schedule.pause_for_more(INTERVAL);
        assert_eq!((pause.length, pause.until_entries), (LULL, true));
        schedule.pause_elapsed(&pause);
        assert!(schedule.next_rule(&head(9), &control(), NOW).unwrap().flush);
        assert!(!schedule.next_rule(&head(9), &control(), NOW).unwrap().flush, "once");
    }

    #[test]
    fn entries_in_transit_are_not_due_until_the_first_is_old_enough() {
        let at = Duration::from_secs;
        let mut schedule = Schedule::default();
        let sent = |schedule: &mut Schedule, now| {
            schedule.next_rule(&head(20), &control(), at(now)).unwrap().sent
        };
        schedule.sending(false);
        schedule.in_transit(Position::end_of(&head(9)), at(30), false, at(100));
        assert_eq!(sent(&mut schedule, 110), Some(SentEntries { through: 9, recheck: at(20) }));
        assert!(schedule.pause_in_transit(at(20)).until_entries);
        // The batch holds nothing but them, so that new entries cannot be sent.
        schedule.sending(true);
        schedule.in_transit(Position::end_of(&head(9)), at(20), false, at(110));
        let all = SentEntries { through: u64::MAX, recheck: at(20) };
        assert_eq!(sent(&mut schedule, 110), Some(all));
        assert!(!schedule.pause_in_transit(at(20)).until_entries);
        // They are delivered again, so that the sink can tell which ones count.
        let rule = schedule.next_rule(&head(20), &control(), at(130)).unwrap();
        assert_eq!((rule.sent, rule.flush_through), (None, 9));
        let renumbered = Head { renumbered_at: Timestamp(1), ..head(9) };
        assert_eq!(schedule.next_rule(&renumbered, &control(), at(110)).unwrap().sent, None);
    }

    #[test]
    fn acknowledgements_are_stored_a_second_after_the_first() {
        let at = Duration::from_millis;
        let mut schedule = Schedule::default();
        let position = Position::end_of(&head(9));
        schedule.acknowledged(position, true, at(0));
        schedule.acknowledged(position, false, at(900));
        assert_eq!(schedule.persist_at(), Some(at(1000)));
        // New entries have been stored, and the earlier acknowledgements with them.
        schedule.acknowledged(position, true, at(950));
        assert_eq!(schedule.persist_at(), Some(at(1950)));
        assert!(!schedule.must_persist(at(1949)) && schedule.must_persist(at(1950)));
        schedule.persisted(Some(at(7000)));
        assert_eq!(schedule.persist_at(), Some(at(7000)), "a failure is retried");
        schedule.persisted(None);
        assert!(!schedule.must_persist(at(100_000)));
    }

    /// One task with a made-up outbox and receiver: entries are added at random, requests take time
    /// and fail at random.
    struct Task {
        random: fastrand::Rng,
        schedule: Schedule,
        control: SinkControl,
        now: Duration,
        /// Time at which each entry is added, by number from 1.
        added: Vec<Duration>,
        batch_size: usize,
        acknowledged: usize,
        /// Time of the first acknowledgement that is not stored.
        unstored_since: Option<Duration>,
        /// Until when a failed request or the rate limit forbids the next one.
        blocked_until: Duration,
    }

    impl Task {
        fn new(seed: u64) -> Self {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut at = Duration::ZERO;
            let added = (0..random.usize(1..300)).map(|_| {
                let is_backlog = random.u32(..4) > 0;
                at += Duration::from_millis(if is_backlog { 0 } else { random.u64(..400_000) });
                at
            });
            let added = added.collect();
            let rate_limit = random.bool().then(|| RateLimit::new(random.u64(1..2000)));
            let batch_size = random.usize(1..50);
            let (schedule, control) = (Schedule::new(rate_limit), control());
            let (now, blocked_until) = (Duration::ZERO, Duration::ZERO);
            Self {
                random,
                schedule,
                control,
                now,
                added,
                batch_size,
                acknowledged: 0,
                unstored_since: None,
                blocked_until,
            }
        }

        fn last(&self) -> usize {
            self.added.partition_point(|at| *at <= self.now)
        }

        fn run(&mut self) {
            while self.acknowledged < self.added.len() || self.schedule.persist_at().is_some() {
                if self.random.u32(..20) == 0 {
                    self.control.flush = head(self.last() as u64);
                }
                let pause = self.step();
                self.pause(pause);
            }
        }

        /// Simulates one round of the task; `None` starts the next one at once.
        fn step(&mut self) -> Option<Pause> {
            let last = self.last();
            let Some(rule) = self.schedule.next_rule(&head(last as u64), &self.control, self.now)
            else {
                return Some(Pause::until_entries());
            };
            let count = (last - self.acknowledged).min(self.batch_size);
            if count == 0 {
                return Some(Pause::until_entries());
            }
            let first = self.acknowledged;
            let waiting = Waiting {
                first_seq: first as u64 + 1,
                age: self.now - self.added[first],
                is_full: count == self.batch_size,
                is_urgent: false,
                is_reduced: false,
            };
            let wait = rule.wait(&waiting);
            if !wait.is_zero() {
                assert!(waiting.age < INTERVAL && !waiting.is_full, "{waiting:?} is overdue");
                assert!(waiting.first_seq > self.control.flush.last_seq, "was to be flushed");
                return Some(self.schedule.pause_for_more(wait));
            }
            let owed = self.schedule.rate_limit_wait(self.now);
            if !owed.is_zero() {
                self.blocked_until = self.now + owed;
                return Some(Pause::fixed(owed));
            }
            self.send(first + count, waiting.is_full)
        }

        fn send(&mut self, end: usize, is_full: bool) -> Option<Pause> {
            assert!(self.now >= self.blocked_until, "sent too early");
            let started = self.now;
            self.schedule.sending(is_full);
            self.now += Duration::from_millis(self.random.u64(..5000));
            self.schedule.sent(100 * (end - self.acknowledged) as u64, started);
            if self.random.u32(..4) == 0 {
                let delay = Duration::from_millis(self.random.u64(..60_000));
                self.blocked_until = self.now + delay;
                return Some(Pause::fixed(delay));
            }
            self.acknowledged = end;
            let is_first = self.unstored_since.is_none();
            self.unstored_since.get_or_insert(self.now);
            let position = Position::end_of(&head(end as u64));
            self.schedule.acknowledged(position, is_first, self.now);
            if self.schedule.must_persist(self.now) {
                self.persist();
            }
            None
        }

        fn persist(&mut self) {
            let since = self.unstored_since.take().unwrap();
            // A request that was under way may have taken up to five seconds.
            let longest = PERSIST_DELAY + Duration::from_secs(5);
            assert!(self.now - since <= longest, "acknowledged {since:?}, stored {:?}", self.now);
            self.schedule.persisted(None);
        }

        fn pause(&mut self, pause: Option<Pause>) {
            let Some(pause) = pause else { return };
            let mut end = self.now.saturating_add(pause.length);
            let mut is_elapsed = true;
            if let Some(next) = self.added.get(self.last()).filter(|_| pause.until_entries)
                && *next < end
            {
                (end, is_elapsed) = (*next, false);
            }
            while let Some(due) = self.schedule.persist_at().filter(|due| *due < end) {
                self.now = self.now.max(due);
                self.persist();
            }
            if end == Duration::MAX {
                return;
            }
            self.now = end;
            if is_elapsed {
                self.schedule.pause_elapsed(&pause);
            }
        }
    }

    /// No entry waits longer than it may, none is sent before it may be, and no acknowledgement
    /// stays unstored; and every task comes to an end.
    #[test]
    fn every_random_task_keeps_its_promises() {
        for seed in 0..2000 {
            let mut task = Task::new(seed);
            task.run();
            assert_eq!(task.acknowledged, task.added.len(), "seed {seed}");
        }
    }
}
