//! When to inspect for changes: a full sweep rarely, single files often, as cheap as each is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::chunk::FileKey;
use crate::platform::Clock;

/// How long after its last change a file is looked at often.
const HOT: Duration = Duration::from_secs(600);
/// How often hot files are looked at with a watcher, and without.
const HOT_WATCHED: Duration = Duration::from_secs(5);
const HOT_UNWATCHED: Duration = Duration::from_secs(1);
/// How many files are looked at often: after catching up all of them may have changed recently.
const HOT_FILES: usize = 256;
/// So many times its cost passes between two looks at them, at most this long.
const HOT_REST: u32 = 1000;
const HOT_LONGEST: Duration = Duration::from_secs(30);
/// The shortest time between two sweeps with a watcher, and without.
const SWEEP_WATCHED: Duration = Duration::from_secs(30);
const SWEEP_UNWATCHED: Duration = Duration::from_secs(1);
/// So many times its cost passes between two sweeps, and two that hints ask for.
const SWEEP_REST: u32 = 2000;
const HINTED_REST: u32 = 20;
/// However much there is to read for the first time, new files are heard of after so long.
const WATCH_LATEST: Duration = Duration::from_secs(10);
/// How long until a failed watcher is tried again.
const WATCH_AGAIN: Duration = Duration::from_secs(600);
/// When a new directory is listed again: a file may have come before its watch was set.
const YOUNG: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// How long a file with fewer bytes than before must not have changed until it is believed.
/// Whoever writes a file anew empties it first: with the same bytes it goes on.
const SETTLE: Duration = Duration::from_millis(250);
/// The longest that it is given, however often it changes.
const SETTLE_LONGEST: Duration = Duration::from_secs(5);

/// A file with fewer bytes than before: since when, and when to inspect again.
#[derive(Debug)]
struct Settling {
    since: Duration,
    due: Duration,
}

/// A directory that has just come, when to list it, and how often that was done.
#[derive(Debug)]
struct Young {
    path: PathBuf,
    due: Duration,
    again: usize,
}

/// What is due when. All times count from the start and never go back.
pub(super) struct Schedule {
    clock: Arc<dyn Clock>,
    start: Duration,
    poll_interval: Duration,
    pub(super) is_watching: bool,
    pub(super) watch_again: Duration,
    pub(super) sweeps: u32,
    /// Whether a sweep was completed since the last restart.
    pub(super) has_swept: bool,
    pub(super) sweep_cost: Duration,
    sweep_end: Duration,
    sweep_asked: Option<Asked>,
    hot_due: Duration,
    quiet_due: Option<Duration>,
    young: Vec<Young>,
    /// FileTable that changed recently, and until when they are looked at often.
    hot: BTreeMap<FileKey, Duration>,
    /// FileTable with an incomplete last line.
    tails: BTreeSet<FileKey>,
    settling: BTreeMap<FileKey, Settling>,
    /// Roots that are not there.
    pub(super) absent_roots: Vec<PathBuf>,
}

/// How much a sweep is wanted before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    /// When it does not cost much.
    Soon,
    /// A file can't be judged without it.
    Now,
}

impl Schedule {
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
            sweep_asked: None,
            hot_due: Duration::ZERO,
            quiet_due: None,
            young: Vec::new(),
            hot: BTreeMap::new(),
            tails: BTreeSet::new(),
            settling: BTreeMap::new(),
            absent_roots: Vec::new(),
        }
    }

    /// Forgets the files, and lets a sweep be due.
    pub(super) fn restart(&mut self) {
        self.has_swept = false;
        self.young.clear();
        self.hot.clear();
        self.tails.clear();
        self.settling.clear();
    }

    /// The time since the start.
    pub(super) fn now(&self) -> Duration {
        self.clock.uptime().saturating_sub(self.start)
    }

    fn sweep_due(&self) -> Duration {
        if !self.has_swept || self.sweep_asked == Some(Asked::Now) {
            return Duration::ZERO;
        }
        let shortest = if self.is_watching { SWEEP_WATCHED } else { SWEEP_UNWATCHED };
        let rest = match self.sweep_asked {
            Some(_) => self.sweep_cost * HINTED_REST,
            None => shortest.max(self.sweep_cost * SWEEP_REST),
        };
        self.sweep_end + rest.min(self.poll_interval)
    }

    /// Whether the first sweep was so long ago that a watcher must not wait any more.
    pub(super) fn is_late_to_watch(&self) -> bool {
        !self.is_watching && self.has_swept && self.now() >= self.sweep_end + WATCH_LATEST
    }

    pub(super) fn is_sweep_due(&self) -> bool {
        self.now() >= self.sweep_due()
    }

    /// Whether there is no saying that all is read before a sweep.
    pub(super) fn is_sweep_urgent(&self) -> bool {
        !self.has_swept || self.sweep_asked == Some(Asked::Now)
    }

    /// Whether a file can't be judged before another sweep.
    pub(super) fn is_sweep_asked_now(&self) -> bool {
        self.sweep_asked == Some(Asked::Now)
    }

    /// Asks for a sweep before its time, when it does not cost much.
    pub(super) fn sweep_soon(&mut self) {
        self.sweep_asked = self.sweep_asked.max(Some(Asked::Soon));
    }

    /// Asks for a sweep at once: a file can't be judged without it.
    pub(super) fn sweep_now(&mut self) {
        self.sweep_asked = Some(Asked::Now);
    }

    /// A sweep begins: its number.
    pub(super) fn begin_sweep(&mut self) -> u32 {
        self.sweep_asked = None;
        self.sweeps += 1;
        self.sweeps
    }

    /// The sweep is over, and took so long.
    pub(super) fn end_sweep(&mut self, cost: Duration) {
        self.sweep_end = self.now();
        self.sweep_cost = cost;
        self.has_swept = true;
    }

    /// Looks often at the file, which changed so long ago, until that is long ago. Of too many
    /// such files those that changed last are looked at.
    pub(super) fn heat(&mut self, key: FileKey, age: Duration) {
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

    /// The hot files, when it is time to inspect at them.
    pub(super) fn hot(&mut self) -> Option<Vec<FileKey>> {
        let now = self.now();
        if now < self.hot_due {
            return None;
        }
        let hot = self.hot.keys().copied().collect();
        // Once more each, and then they are looked at by sweeps alone.
        self.hot.retain(|_, until| now <= *until);
        Some(hot)
    }

    /// A inspect at the hot files that began at `begun` is over.
    pub(super) fn end_hot(&mut self, begun: Duration) {
        let shortest = if self.is_watching { HOT_WATCHED } else { HOT_UNWATCHED };
        let now = self.now();
        let cost = now.saturating_sub(begun);
        self.hot_due = now + shortest.max((cost * HOT_REST).min(HOT_LONGEST));
    }

    /// Forgets the file.
    pub(super) fn forget(&mut self, key: FileKey) {
        self.hot.remove(&key);
        self.tails.remove(&key);
        self.settling.remove(&key);
    }

    /// Remembers that the file has an incomplete last line.
    pub(super) fn watch_tail(&mut self, key: FileKey) {
        self.tails.insert(key);
    }

    /// The file has no incomplete last line any more.
    pub(super) fn drop_tail(&mut self, key: FileKey) {
        self.tails.remove(&key);
    }

    /// The files with an incomplete last line.
    pub(super) fn tails(&self) -> Vec<FileKey> {
        self.tails.iter().copied().collect()
    }

    /// Whether a file with fewer bytes than before, last changed so long ago, stays so; if not, it
    /// is looked at again. By a clock that runs a little behind nothing seems to be long ago, and
    /// the longest time tells.
    pub(super) fn has_settled(&mut self, key: FileKey, age: Duration) -> bool {
        let now = self.now();
        let settling = self.settling.entry(key).or_insert(Settling { since: now, due: now });
        let has_settled = age >= SETTLE || now.saturating_sub(settling.since) >= SETTLE_LONGEST;
        if has_settled {
            self.settling.remove(&key);
        } else {
            settling.due = now + (SETTLE - age);
        }
        has_settled
    }

    /// The file has all its bytes again.
    pub(super) fn drop_settling(&mut self, key: FileKey) {
        self.settling.remove(&key);
    }

    /// How many files have fewer bytes than before, and may be given others yet.
    pub(super) fn settling_count(&self) -> usize {
        self.settling.len()
    }

    /// The files with fewer bytes than before that are to be looked at again now.
    pub(super) fn settling(&mut self) -> Vec<FileKey> {
        if self.settling.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let mut due = Vec::new();
        for (key, settling) in &mut self.settling {
            if settling.due <= now {
                due.push(*key);
                settling.due = now + SETTLE;
            }
        }
        due
    }

    /// Lists a new directory again after a little while.
    pub(super) fn list_again(&mut self, path: PathBuf) {
        if self.young.iter().all(|young| young.path != path) {
            let due = self.now() + YOUNG[0];
            self.young.push(Young { path, due, again: 1 });
        }
    }

    /// The new directories that are to be listed again now.
    pub(super) fn young(&mut self) -> Vec<PathBuf> {
        if self.young.is_empty() {
            return Vec::new();
        }
        let now = self.now();
        let mut due = Vec::new();
        self.young.retain_mut(|young| {
            if young.due > now {
                return true;
            }
            due.push(young.path.clone());
            let next = YOUNG.get(young.again);
            young.again += 1;
            young.due = now + next.copied().unwrap_or_default();
            next.is_some()
        });
        due
    }

    /// Says when the next open file becomes quiet.
    pub(super) fn set_quiet(&mut self, due: Option<Duration>) {
        self.quiet_due = due;
    }

    /// A watcher that failed is tried again after a while.
    pub(super) fn blind(&mut self) {
        self.is_watching = false;
        self.watch_again = self.now() + WATCH_AGAIN;
    }

    /// How long until something is due.
    pub(super) fn until_next(&self) -> Duration {
        let mut next = self.sweep_due();
        if !self.hot.is_empty() || !self.absent_roots.is_empty() {
            next = next.min(self.hot_due);
        }
        if let Some(due) = self.quiet_due {
            next = next.min(due);
        }
        let young = self.young.iter().map(|young| young.due);
        let settling = self.settling.values().map(|settling| settling.due);
        next = young.chain(settling).fold(next, Duration::min);
        next.saturating_sub(self.now()).max(Duration::from_millis(1))
    }
}
