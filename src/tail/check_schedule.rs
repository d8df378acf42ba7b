//! CheckSchedule of checks for changes: rare full sweeps and frequent checks of single files, limited by
//! their cost.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::FileKey;

use crate::platform::Clock;

/// Time after its last change during which a file is checked often.
const HOT: Duration = Duration::from_secs(600);
/// Interval between checks of hot files with a watcher, and without.
const HOT_WATCHED: Duration = Duration::from_secs(5);
const HOT_UNWATCHED: Duration = Duration::from_secs(1);
/// Largest number of hot files: after a backlog all files may have changed recently.
const HOT_FILES: usize = 256;
/// Time between two checks of hot files as a multiple of its duration, and the longest such time.
const HOT_COST_FACTOR: u32 = 1000;
const HOT_MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Shortest time between two sweeps with a watcher, and without.
const SWEEP_WATCHED: Duration = Duration::from_secs(30);
const SWEEP_UNWATCHED: Duration = Duration::from_secs(1);
/// Time between two sweeps as a multiple of their duration, for regular sweeps and for those that
/// hints request.
const SWEEP_COST_FACTOR: u32 = 2000;
const HINTED_COST_FACTOR: u32 = 20;
/// Time after the first sweep at which watching starts even if a backlog is still being read.
const WATCH_MAX_DELAY: Duration = Duration::from_secs(10);
/// Time after which a failed watcher is started again.
const WATCH_RETRY: Duration = Duration::from_secs(600);
/// Delays after which a new directory is listed again: a file may have been created before the watch.
const RELIST_DELAYS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// Time without a change after which a shorter file counts as truncated. A program that rewrites a
/// file empties it first, and may then write the same bytes again.
const SETTLE_TIME: Duration = Duration::from_millis(250);
/// Time after which a shorter file counts as truncated even if it keeps changing.
const SETTLE_MAX_TIME: Duration = Duration::from_secs(5);

/// Time after which a deleted file is read again if its file system could not be reached.
const READ_RETRY: Duration = Duration::from_secs(1);

/// A file that became shorter: since when, and the time of the next check.
#[derive(Debug)]
struct SettlingFile {
    since: Duration,
    due: Duration,
}

/// A new directory, the time to list it again, and how often it was listed.
#[derive(Debug)]
struct NewDirectory {
    path: PathBuf,
    due: Duration,
    listed: usize,
}

/// Times at which checks are due. All times count from the start and never go back.
pub(super) struct CheckSchedule {
    clock: Arc<dyn Clock>,
    start: Duration,
    poll_interval: Duration,
    pub(super) is_watching: bool,
    pub(super) watch_again: Duration,
    pub(super) sweeps: u32,
    /// True if a sweep was completed since the last restart.
    pub(super) has_swept: bool,
    pub(super) sweep_cost: Duration,
    sweep_end: Duration,
    sweep_request: Option<SweepRequest>,
    hot_due: Duration,
    /// Duration of the last check of hot files.
    hot_took: Duration,
    close_due: Option<Duration>,
    new_directories: Vec<NewDirectory>,
    /// Files that changed recently, and until when they are checked often.
    hot: BTreeMap<FileKey, Duration>,
    /// Files with an incomplete last line.
    partial_lines: BTreeSet<FileKey>,
    settling: BTreeMap<FileKey, SettlingFile>,
    /// Roots that do not exist.
    pub(super) absent_roots: Vec<PathBuf>,
}

/// Urgency of a sweep before its regular time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SweepRequest {
    /// As soon as its cost allows.
    Soon,
    /// Immediately, because a decision about a file requires it.
    Now,
}

impl CheckSchedule {
    pub(super) fn new(poll_interval: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            start: clock.uptime(),
            clock,
            poll_interval,
            is_watching: false,
            watch_again: Duration::ZERO,
            sweeps: 0,
            has_swept: false,
            sweep_cost: Duration::ZERO,
            sweep_end: Duration::ZERO,
            sweep_request: None,
            hot_due: Duration::ZERO,
            hot_took: Duration::ZERO,
            close_due: None,
            new_directories: Vec::new(),
            hot: BTreeMap::new(),
            partial_lines: BTreeSet::new(),
            settling: BTreeMap::new(),
            absent_roots: Vec::new(),
        }
    }

    /// Counts the time from the start of `old`, so that its times stay valid.
    pub(super) fn continue_time_of(&mut self, old: &Self) {
        self.start = old.start;
    }

    /// Forgets all files and makes a sweep due.
    pub(super) fn restart(&mut self) {
        self.has_swept = false;
        self.new_directories.clear();
        self.hot.clear();
        self.partial_lines.clear();
        self.settling.clear();
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.clock.uptime().saturating_sub(self.start)
    }

    fn sweep_due(&self) -> Duration {
        if !self.has_swept || self.sweep_request == Some(SweepRequest::Now) {
            return Duration::ZERO;
        }
        let shortest = if self.is_watching { SWEEP_WATCHED } else { SWEEP_UNWATCHED };
        let rest = match self.sweep_request {
            Some(_) => self.sweep_cost * HINTED_COST_FACTOR,
            None => shortest.max(self.sweep_cost * SWEEP_COST_FACTOR),
        };
        self.sweep_end + rest.min(self.poll_interval)
    }

    /// Returns true if watching must start, because the first sweep ended long ago.
    pub(super) fn must_start_watching(&self) -> bool {
        !self.is_watching && self.has_swept && self.now() >= self.sweep_end + WATCH_MAX_DELAY
    }

    pub(super) fn is_sweep_due(&self) -> bool {
        self.now() >= self.sweep_due()
    }

    /// Returns true if a sweep is needed before the tail may report that everything was read.
    pub(super) fn needs_sweep_to_be_idle(&self) -> bool {
        !self.has_swept || self.sweep_request == Some(SweepRequest::Now)
    }

    /// Returns true if a decision about a file waits for another sweep.
    pub(super) fn is_sweep_required(&self) -> bool {
        self.sweep_request == Some(SweepRequest::Now)
    }

    /// Requests a sweep as soon as its cost allows.
    pub(super) fn request_sweep_soon(&mut self) {
        self.sweep_request = self.sweep_request.max(Some(SweepRequest::Soon));
    }

    /// Requests a sweep immediately, because a decision about a file requires it.
    pub(super) fn request_sweep_now(&mut self) {
        self.sweep_request = Some(SweepRequest::Now);
    }

    /// Starts a sweep and returns its number.
    pub(super) fn start_sweep(&mut self) -> u32 {
        self.sweep_request = None;
        self.sweeps += 1;
        self.sweeps
    }

    /// Records the end and the duration of a sweep.
    pub(super) fn end_sweep(&mut self, cost: Duration) {
        self.sweep_end = self.now();
        self.sweep_cost = cost;
        self.has_swept = true;
    }

    /// Checks the file often if `age`, the time since its last change, is short. If there are too
    /// many such files, the most recently changed ones are kept.
    pub(super) fn mark_hot(&mut self, key: FileKey, age: Duration) {
        let until = self.now() + HOT.saturating_sub(age);
        if age >= HOT {
            return;
        }
        self.hot.insert(key, until);
        if self.hot.len() >= 2 * HOT_FILES {
            let mut hot: Vec<_> = std::mem::take(&mut self.hot)
                .into_iter()
                .map(|(key, until)| (until, key))
                .collect();
            hot.select_nth_unstable_by(HOT_FILES, |one, other| other.cmp(one));
            hot.truncate(HOT_FILES);
            self.hot.extend(hot.into_iter().map(|(until, key)| (key, until)));
        }
    }

    /// Returns the hot files if their check is due.
    pub(super) fn due_hot_files(&mut self) -> Option<Vec<FileKey>> {
        let now = self.now();
        if now < self.hot_due {
            return None;
        }
        let hot = self.hot.keys().copied().collect();
        // Files whose time has passed are checked this once more, and then only by sweeps.
        self.hot.retain(|_, until| now <= *until);
        Some(hot)
    }

    /// Records the end of a check of the hot files that began at `started`.
    pub(super) fn end_hot_check(&mut self, started: Duration) {
        let shortest = if self.is_watching { HOT_WATCHED } else { HOT_UNWATCHED };
        let now = self.now();
        let took = now.saturating_sub(started);
        // One slow check may only have waited for a busy processor, and missing roots wait for the next.
        let cost = took.min(std::mem::replace(&mut self.hot_took, took));
        self.hot_due = now + shortest.max((cost * HOT_COST_FACTOR).min(HOT_MAX_INTERVAL));
    }

    /// Forgets a file.
    pub(super) fn forget(&mut self, key: FileKey) {
        self.hot.remove(&key);
        self.partial_lines.remove(&key);
        self.settling.remove(&key);
    }

    /// Records that the file has an incomplete last line.
    pub(super) fn add_partial_line(&mut self, key: FileKey) {
        self.partial_lines.insert(key);
    }

    /// Records that the file has no incomplete last line.
    pub(super) fn remove_partial_line(&mut self, key: FileKey) {
        self.partial_lines.remove(&key);
    }

    /// Returns the files with an incomplete last line.
    pub(super) fn partial_lines(&self) -> Vec<FileKey> {
        self.partial_lines.iter().copied().collect()
    }

    /// Returns true if a shorter file counts as truncated, given the time since its last change; if
    /// not, it is checked again. The longest time applies if the file system's clock is ahead and no
    /// change seems to be long ago.
    pub(super) fn has_settled(&mut self, key: FileKey, age: Duration) -> bool {
        let now = self.now();
        let settling = self.settling.entry(key).or_insert(SettlingFile { since: now, due: now });
        let has_settled =
            age >= SETTLE_TIME || now.saturating_sub(settling.since) >= SETTLE_MAX_TIME;
        if has_settled {
            self.settling.remove(&key);
        } else {
            settling.due = now + (SETTLE_TIME - age);
        }
        has_settled
    }

    /// Schedules another check of a file that could not be read and that no sweep finds.
    pub(super) fn retry_later(&mut self, key: FileKey) {
        let now = self.now();
        self.settling.insert(key, SettlingFile { since: now, due: now + READ_RETRY });
    }

    /// Records that the file has all its bytes again.
    pub(super) fn clear_settling(&mut self, key: FileKey) {
        self.settling.remove(&key);
    }

    /// Number of shorter files that do not count as truncated yet.
    pub(super) fn settling_count(&self) -> usize {
        self.settling.len()
    }

    /// Returns the shorter files whose check is due.
    pub(super) fn due_settling_files(&mut self) -> Vec<FileKey> {
        if self.settling.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let mut due = Vec::new();
        for (key, settling) in &mut self.settling {
            if settling.due <= now {
                due.push(*key);
                settling.due = now + SETTLE_TIME;
            }
        }
        due
    }

    /// Schedules a new directory to be listed again.
    pub(super) fn list_again(&mut self, path: PathBuf) {
        if self.new_directories.iter().all(|directory| directory.path != path) {
            let due = self.now() + RELIST_DELAYS[0];
            self.new_directories.push(NewDirectory { path, due, listed: 1 });
        }
    }

    /// Returns the new directories whose listing is due.
    pub(super) fn due_directories(&mut self) -> Vec<PathBuf> {
        if self.new_directories.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let mut due = Vec::new();
        self.new_directories.retain_mut(|directory| {
            if directory.due > now {
                return true;
            }
            due.push(directory.path.clone());
            let next = RELIST_DELAYS.get(directory.listed);
            directory.listed += 1;
            directory.due = now + next.copied().unwrap_or_default();
            next.is_some()
        });
        due
    }

    /// Sets the time at which the next open file may be closed.
    pub(super) fn set_close_due(&mut self, due: Option<Duration>) {
        self.close_due = due;
    }

    /// Records that watching has failed; it is tried again later.
    pub(super) fn watching_failed(&mut self) {
        self.is_watching = false;
        self.watch_again = self.now() + WATCH_RETRY;
    }

    /// Time until the next check is due.
    pub(super) fn until_next(&self) -> Duration {
        let mut next = self.sweep_due();
        if !self.hot.is_empty() || !self.absent_roots.is_empty() {
            next = next.min(self.hot_due);
        }
        if let Some(due) = self.close_due {
            next = next.min(due);
        }
        let directories = self.new_directories.iter().map(|directory| directory.due);
        let settling = self.settling.values().map(|settling| settling.due);
        next = directories.chain(settling).fold(next, Duration::min);
        next.saturating_sub(self.now()).max(Duration::from_millis(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tail::testing::ShiftedClock;

    /// Regression: one check on a busy machine delayed the discovery of a new root by half a minute.
    #[test]
    fn single_slow_check_does_not_delay_the_next() {
        let clock = ShiftedClock::shared();
        let mut schedule = CheckSchedule::new(Duration::from_secs(300), clock.clone());
        schedule.is_watching = true;
        let mut rest_after = |took: u64| {
            let started = schedule.now();
            clock.advance(Duration::from_secs(took));
            schedule.end_hot_check(started);
            schedule.hot_due.saturating_sub(schedule.now())
        };
        assert!(rest_after(1) <= HOT_WATCHED);
        assert!(rest_after(1) > HOT_WATCHED, "slow twice");
        rest_after(0);
        assert!(rest_after(1) <= HOT_WATCHED);
    }
}
