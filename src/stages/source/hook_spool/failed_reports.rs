//! Reports that could not be read or deleted: they are skipped, and tried again later.

use std::{collections::BTreeSet, io, time::Duration};

/// Shortest and longest time until failed reports are tried again.
const RETRY: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(600)];

/// Remembers failed reports until their files are deleted, or the next attempt is due.
#[derive(Default)]
pub(super) struct FailedReports {
    unreadable: BTreeSet<String>,
    undeletable: BTreeSet<String>,
    /// Error about the first unreadable report, in order of time.
    first_error: Option<(String, String)>,
    /// Uptime of the next attempt, and the pause before it.
    retry: Option<(Duration, Duration)>,
}

impl FailedReports {
    /// Forgets reports that are not present, and all of them if the next attempt is due.
    pub(super) fn update(&mut self, is_present: impl Fn(&str) -> bool, now: Duration) {
        if self.retry.is_some_and(|(due, _)| now >= due) {
            let pause = self.retry.map(|(_, pause)| (pause * 2).min(RETRY[1]));
            *self = Self { retry: pause.map(|pause| (Duration::MAX, pause)), ..Self::default() };
        }
        self.unreadable.retain(|name| is_present(name));
        self.undeletable.retain(|name| is_present(name));
        self.first_error.take_if(|(name, _)| !is_present(name));
    }

    /// Schedules the next attempt; called after all reports were tried.
    pub(super) fn schedule(&mut self, now: Duration) {
        if self.unreadable.is_empty() && self.undeletable.is_empty() {
            self.retry = None;
        } else if self.retry.is_none_or(|(due, _)| due == Duration::MAX) {
            let pause = self.retry.map_or(RETRY[0], |(_, pause)| pause);
            self.retry = Some((now + pause, pause));
        }
    }

    pub(super) fn add_unreadable(&mut self, name: &str, error: &io::Error) {
        if self.first_error.as_ref().is_none_or(|(first, _)| **first > *name) {
            self.first_error = Some((name.to_owned(), error.to_string()));
        }
        self.unreadable.insert(name.to_owned());
    }

    pub(super) fn add_undeletable(&mut self, name: &str) {
        self.undeletable.insert(name.to_owned());
    }

    pub(super) fn is_unreadable(&self, name: &str) -> bool {
        self.unreadable.contains(name)
    }

    pub(super) fn is_undeletable(&self, name: &str) -> bool {
        self.undeletable.contains(name)
    }

    /// Returns the number of unreadable reports, and the error about one of them.
    pub(super) fn unreadable(&self) -> (u64, &str) {
        let error = self.first_error.as_ref().map_or("", |(_, error)| error);
        (self.unreadable.len() as u64, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_report_is_tried_at_growing_intervals() {
        let mut failed = FailedReports::default();
        let mut now = Duration::ZERO;
        for pause in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            failed.add_unreadable("a", &io::ErrorKind::PermissionDenied.into());
            failed.schedule(now);
            now += Duration::from_secs(pause);
            failed.update(|_| true, now.saturating_sub(Duration::from_millis(1)));
            assert!(failed.is_unreadable("a"), "{pause}");
            failed.update(|_| true, now);
            assert!(!failed.is_unreadable("a"), "{pause}");
        }
    }
}
