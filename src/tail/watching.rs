//! Watching the directories that sweeps list.

use super::{
    Tail,
    check_schedule::CheckSchedule,
    directory_walk::RootDirectory,
    watcher::{WatchAttempt, WatchOutcome, Watcher},
};
use crate::platform::bounded::DoesNotAnswer;

impl Tail {
    /// Requests a sweep that starts watching. The first sweep does not: while all files are read for
    /// the first time, a watcher would report each one that is opened, which costs more than a
    /// second sweep.
    pub(super) fn start_watching(&mut self) {
        if self.may_watch() && !self.schedule.is_watching {
            self.schedule.request_sweep_now();
        }
    }

    fn may_watch(&self) -> bool {
        let CheckSchedule { has_swept, watch_again, .. } = self.schedule;
        self.options.watch && has_swept && self.schedule.now() >= watch_again
    }

    pub(super) fn watch_roots(&mut self, roots: &[RootDirectory]) {
        if !self.may_watch() {
            return;
        }
        if !self.schedule.is_watching {
            self.watcher = Watcher::new(&self.hints, &self.options.names, self.access.calls());
        }
        let Some(watcher) = self.watcher.clone() else {
            self.schedule.watching_failed();
            return;
        };
        // Targets of links are outside of the roots.
        let answers = |root: &&RootDirectory| !self.access.is_silent(&root.configured);
        let watched: Vec<_> = roots.iter().chain(&self.followed).filter(answers).cloned().collect();
        let Some(first) = watched.first().map(|root| root.configured.clone()) else { return };
        let calls = self.access.calls();
        match calls.run_with(&first, move |current| Ok(watcher.watch_roots(&watched, current))) {
            Ok(true) => self.schedule.is_watching = true,
            Err(error) if DoesNotAnswer::of(&error).is_some() => self.replace_watcher(),
            Ok(false) | Err(_) => self.schedule.watching_failed(),
        }
    }

    /// Gives up a watcher that does not answer. The next one is not used for the place where it was.
    fn replace_watcher(&mut self) {
        self.watcher = None;
        self.schedule.is_watching = false;
    }

    /// Prepares to watch a directory, which happens before it is listed.
    pub(super) fn watch_attempt(&self) -> WatchAttempt {
        WatchAttempt::new(self.watcher.as_ref().filter(|_| self.schedule.is_watching))
    }

    pub(super) fn note_watched(&mut self, watch: &WatchAttempt) {
        match watch.outcome() {
            WatchOutcome::Fine => {}
            WatchOutcome::Failed => self.schedule.watching_failed(),
            WatchOutcome::Hangs => self.replace_watcher(),
        }
    }
}
