//! Times and order of the verification of files: its budget, the files that come first, and the limit
//! on reports. Does no I/O.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use ai_agent_stage::FileKey;

/// Pause after a verification as a multiple of its cost: it takes less than 0.02 % of a core.
const PAUSE_FACTOR: u32 = 5000;
/// Cost of a verification that is not measured: waking up for it, querying its cost, and the share of
/// storing the position of a pass, which is rare.
const OVERHEAD: Duration = Duration::from_micros(100);
/// Shortest pause, so that small files do not wake the agent often.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Cost after which a verification pauses: less than a tick of the system's clock.
pub(super) const BURST: Duration = Duration::from_millis(4);
/// Time after which a verification pauses whatever its cost is: other files wait for it.
pub(super) const BURST_TIME: Duration = Duration::from_millis(20);
/// Shortest time from the start of a pass over all files to the next.
const PASS_INTERVAL: Duration = Duration::from_secs(3600);
/// Time until the power supply is queried again on battery.
const BATTERY_RETRY: Duration = Duration::from_secs(600);
/// Interval at which the position of a pass is stored.
const STORE_INTERVAL: Duration = Duration::from_secs(600);

/// Largest number of reports in [`REPORT_INTERVAL`], of different files.
const MAX_REPORTS: usize = 20;
const REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// Decides when files are verified, and which comes next.
#[derive(Debug, Default)]
pub(super) struct VerifySchedule {
    /// End of the current pause. Nothing shortens it: it keeps the budget.
    due: Duration,
    /// Time at which the power supply is queried again.
    power_due: Duration,
    /// Start of the next pass.
    pass_due: Duration,
    /// True while all files are verified in turn.
    is_in_pass: bool,
    /// True if the verification of a file is not over, or its lines are not handed over yet.
    is_unfinished: bool,
    /// Time at which the position of the pass is stored next.
    store_due: Duration,
    /// Files that are verified before the others, each with the time from which on.
    suspects: BTreeMap<FileKey, Duration>,
    /// Files reported in the last [`REPORT_INTERVAL`], oldest first.
    reports: VecDeque<(Duration, FileKey)>,
}

impl VerifySchedule {
    /// Returns true if files may be verified at `now`.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.until_due(now).is_zero()
    }

    /// Time until files may be verified.
    pub(super) fn until_due(&self, now: Duration) -> Duration {
        let has_work = self.is_in_pass || self.is_unfinished;
        let pass = if has_work { Duration::ZERO } else { self.pass_due };
        let work = self.suspects.values().copied().fold(pass, Duration::min);
        self.due.max(self.power_due).max(work).saturating_sub(now)
    }

    /// Begins a pause after a verification that took `cost` of the processor's time.
    pub(super) fn pause(&mut self, now: Duration, cost: Duration) {
        let pause = cost.saturating_add(OVERHEAD).saturating_mul(PAUSE_FACTOR);
        self.due = now.saturating_add(pause.max(MIN_PAUSE));
    }

    /// Records whether a file remains that is due after the pause.
    pub(super) fn set_unfinished(&mut self, is_unfinished: bool) {
        self.is_unfinished = is_unfinished;
    }

    /// Postpones the verification while lines of a file wait to be handed over.
    pub(super) fn wait_for_room(&mut self, now: Duration) {
        self.due = self.due.max(now + MIN_PAUSE);
    }

    /// Postpones the verification on battery.
    pub(super) fn wait_for_mains(&mut self, now: Duration) {
        self.power_due = now + BATTERY_RETRY;
    }

    /// Queries the power supply soon: it may have changed while the machine slept.
    pub(super) fn resume(&mut self, now: Duration) {
        self.power_due = self.power_due.min(now + MIN_PAUSE);
    }

    /// Verifies a file before the others: its times have changed and its size has not.
    pub(super) fn add_suspect(&mut self, key: FileKey, from: Duration) {
        self.suspects.entry(key).or_insert(from);
    }

    /// Returns the next file that is verified before the others.
    pub(super) fn next_suspect(&mut self, now: Duration) -> Option<FileKey> {
        let next = self.suspects.iter().min_by_key(|(_, from)| **from)?;
        let (key, from) = (*next.0, *next.1);
        (from <= now).then(|| self.suspects.remove(&key)).map(|_| key)
    }

    /// Returns true while all files are verified in turn, and begins a pass that is due.
    pub(super) fn is_in_pass(&mut self, now: Duration) -> bool {
        if !self.is_in_pass && now >= self.pass_due {
            self.is_in_pass = true;
            self.pass_due = now + PASS_INTERVAL;
        }
        self.is_in_pass
    }

    /// Ends a pass.
    pub(super) fn end_pass(&mut self) {
        self.is_in_pass = false;
    }

    /// Returns true if the position of the pass has to be stored.
    pub(super) fn must_store(&mut self, now: Duration, is_over: bool) -> bool {
        let is_due = is_over || now >= self.store_due;
        if is_due {
            self.store_due = now + STORE_INTERVAL;
        }
        is_due
    }

    /// Verifies a file soon whose report was discarded, and permits a report about it.
    pub(super) fn discard_report(&mut self, key: FileKey) {
        self.reports.retain(|(_, reported)| *reported != key);
        self.suspects.insert(key, Duration::ZERO);
    }

    /// Records a report about a file if one is permitted; if not, the file is verified again when it
    /// is. A file is reported once in an hour, and at most 20 files are.
    pub(super) fn may_report(&mut self, key: FileKey, now: Duration) -> bool {
        while self.reports.front().is_some_and(|(at, _)| *at + REPORT_INTERVAL <= now) {
            self.reports.pop_front();
        }
        let own = self.reports.iter().find(|(_, reported)| *reported == key);
        let is_full = self.reports.len() >= MAX_REPORTS;
        let oldest = self.reports.front().filter(|_| is_full);
        match own.or(oldest) {
            Some((at, _)) => {
                self.suspects.insert(key, *at + REPORT_INTERVAL);
                false
            }
            None => {
                self.reports.push_back((now, key));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The clock is that of a machine on which each burst costs another amount.
    #[test]
    fn verification_stays_within_its_budget() {
        let mut schedule = VerifySchedule::default();
        let (mut now, mut spent, mut bursts) = (Duration::ZERO, Duration::ZERO, 0);
        let end = 24 * HOUR;
        while now < end {
            assert!(schedule.is_in_pass(now), "a pass without end");
            if schedule.is_due(now) {
                let cost = Duration::from_micros(10 + 977 * bursts % 5000);
                (spent, bursts) = (spent + cost, bursts + 1);
                now += cost;
                schedule.pause(now, cost);
            }
            now += schedule.until_due(now).max(millis(1));
        }
        assert!(spent <= end / PAUSE_FACTOR + millis(5), "{spent:?}");
        assert!(spent >= end / PAUSE_FACTOR / 2, "the budget is used: {spent:?}");
    }

    #[test]
    fn nothing_is_due_between_two_passes() {
        let mut schedule = VerifySchedule::default();
        assert!(schedule.is_due(Duration::ZERO) && schedule.is_in_pass(Duration::ZERO));
        schedule.pause(Duration::ZERO, millis(1));
        assert_eq!(schedule.until_due(Duration::ZERO), millis(5500));
        schedule.end_pass();
        assert_eq!(schedule.until_due(millis(5500)), HOUR - millis(5500));
        assert!(!schedule.is_in_pass(HOUR - millis(1)));
        schedule.wait_for_mains(HOUR);
        assert_eq!(schedule.until_due(HOUR), BATTERY_RETRY);
        schedule.resume(HOUR);
        assert_eq!(schedule.until_due(HOUR), MIN_PAUSE);
    }

    /// A machine that wakes up often did without most of its pauses.
    #[test]
    fn resume_does_not_shorten_a_pause() {
        let mut schedule = VerifySchedule::default();
        schedule.pause(HOUR, millis(4));
        schedule.wait_for_mains(HOUR);
        schedule.resume(HOUR);
        assert_eq!(schedule.until_due(HOUR), millis(20_500));
    }

    #[test]
    fn unfinished_file_is_due_after_the_pause() {
        let mut schedule = VerifySchedule { pass_due: HOUR, ..VerifySchedule::default() };
        schedule.set_unfinished(true);
        schedule.pause(Duration::ZERO, millis(2));
        assert_eq!(schedule.until_due(Duration::ZERO), millis(10_500));
        schedule.wait_for_room(millis(10_000));
        assert_eq!(schedule.until_due(millis(10_000)), MIN_PAUSE);
        schedule.set_unfinished(false);
        assert_eq!(schedule.until_due(Duration::ZERO), HOUR);
    }

    #[test]
    fn suspect_is_verified_before_the_next_pass() {
        let mut schedule = VerifySchedule { pass_due: HOUR, ..VerifySchedule::default() };
        schedule.add_suspect(FileKey(2), millis(20));
        schedule.add_suspect(FileKey(1), millis(30));
        schedule.add_suspect(FileKey(2), millis(90));
        assert_eq!(schedule.until_due(Duration::ZERO), millis(20));
        assert_eq!(schedule.next_suspect(millis(10)), None);
        assert_eq!(schedule.next_suspect(millis(30)), Some(FileKey(2)));
        assert_eq!(schedule.next_suspect(millis(30)), Some(FileKey(1)));
        assert_eq!(schedule.next_suspect(HOUR), None);
        assert!(!schedule.is_in_pass(millis(30)));
    }

    #[test]
    fn reports_are_limited_and_none_is_lost() {
        let mut schedule = VerifySchedule { pass_due: 9 * HOUR, ..VerifySchedule::default() };
        assert!(schedule.may_report(FileKey(1), Duration::ZERO));
        assert!(!schedule.may_report(FileKey(1), HOUR / 2), "one report of a file in an hour");
        for key in 2..=20 {
            assert!(schedule.may_report(FileKey(key), HOUR / 2));
        }
        assert!(!schedule.may_report(FileKey(21), HOUR / 2), "too many files");
        assert_eq!(schedule.until_due(HOUR / 2), HOUR / 2);
        assert_eq!(schedule.next_suspect(HOUR), Some(FileKey(1)));
        assert_eq!(schedule.next_suspect(HOUR), Some(FileKey(21)));
        assert!(schedule.may_report(FileKey(21), HOUR));
    }
}
