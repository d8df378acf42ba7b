//! Paths that cannot be read at present: reported once, and listed until they can be read.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use siem_protocol::{AgentEvent, agent_event::UnreadableReason};
use tracing::{info, warn};

use super::links::LinkProblem;
use crate::{
    platform::{bounded::DoesNotAnswer, file},
    text::shortened_in_the_middle,
};

/// Largest number of paths that are listed; further ones are not distinguished.
const MAX_PATHS: usize = 1000;
/// Largest number of listed paths with an event of their own: a file system that fails makes every
/// file unreadable, and heartbeats count them all.
const MAX_EVENTS: usize = 100;
/// Longest path in a log or an event, in characters.
const MAX_PATH_CHARS: usize = 1024;

/// All paths that cannot be read at present.
#[derive(Debug, Default)]
pub(super) struct UnreadablePaths {
    by_path: BTreeMap<PathBuf, ReadFailure>,
    /// True if a path was not added because there are too many.
    is_full: bool,
    /// True if there may be events to report.
    has_due: bool,
}

#[derive(Debug)]
struct ReadFailure {
    reason: UnreadableReason,
    error: String,
    /// Number of the last sweep that met it.
    sweep: u32,
    report: Report,
    /// True if it is about a link that is not followed.
    is_link: bool,
}

/// State of the event about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    /// It has to be reported.
    Due,
    /// It is in the group with this number.
    InGroup(u64),
    Stored,
}

impl UnreadablePaths {
    /// Records that `path` could not be read during or after the given sweep. If its place does not
    /// answer, that counts and not the path.
    pub(super) fn add(&mut self, path: &Path, error: &io::Error, sweep: u32) {
        let reason = reason(error);
        let path = DoesNotAnswer::of(error).map_or(path, |silent| &silent.place);
        if let Some(failure) = self.by_path.get_mut(path)
            && failure.reason == reason
        {
            failure.sweep = sweep;
            return;
        }
        if self.by_path.len() >= MAX_PATHS && !self.by_path.contains_key(path) {
            if !std::mem::replace(&mut self.is_full, true) {
                warn!(code = "file_unreadable", "more than {MAX_PATHS} paths cannot be read");
            }
            return;
        }
        let text = shortened(path);
        warn!(code = "file_unreadable", path = text, %error, "cannot read, will retry");
        let report = if is_about_a_path(error) { Report::Due } else { Report::Stored };
        let is_link = LinkProblem::of(error).is_some();
        let failure = ReadFailure { reason, error: error.to_string(), sweep, report, is_link };
        self.by_path.insert(path.to_owned(), failure);
        self.has_due = true;
    }

    /// Records that all places answer but those for which `is_silent` is true.
    pub(super) fn remove_answering(&mut self, is_silent: impl Fn(&Path) -> bool) {
        self.by_path.retain(|path, failure| {
            failure.reason != UnreadableReason::DoesNotAnswer || is_silent(path)
        });
    }

    /// Returns true if every path can be read.
    pub(super) fn is_empty(&self) -> bool {
        self.by_path.is_empty()
    }

    /// Returns the events about paths that have not been reported, for the group with this number.
    pub(super) fn due_events(&mut self, group: u64) -> Vec<AgentEvent> {
        let mut events = Vec::new();
        if !std::mem::take(&mut self.has_due) {
            return events;
        }
        let reported =
            self.by_path.values().filter(|failure| failure.report != Report::Due).count();
        let due = self.by_path.iter_mut().filter(|(_, failure)| failure.report == Report::Due);
        for (path, failure) in due.take(MAX_EVENTS.saturating_sub(reported)) {
            failure.report = Report::InGroup(group);
            events.push(AgentEvent::PathUnreadable {
                path: shortened(path),
                reason: failure.reason,
                error: failure.error.clone(),
            });
        }
        events
    }

    /// Records that all groups before this one are stored.
    pub(super) fn stored_before(&mut self, group: u64) {
        for failure in self.by_path.values_mut() {
            if matches!(failure.report, Report::InGroup(reported) if reported < group) {
                failure.report = Report::Stored;
            }
        }
    }

    /// Makes events due again that are in no stored group.
    pub(super) fn groups_lost(&mut self) {
        for failure in self.by_path.values_mut() {
            if matches!(failure.report, Report::InGroup(_)) {
                failure.report = Report::Due;
                self.has_due = true;
            }
        }
    }

    /// Records that `path` was read.
    pub(super) fn remove(&mut self, path: &Path) {
        if !self.by_path.is_empty() && self.by_path.remove(path).is_some() {
            info!(code = "file_readable", path = shortened(path), "readable again");
            self.is_full = false;
        }
    }

    /// Records that the deleted file of `path` was read through its handle: a link that is at the
    /// path now is still not followed.
    pub(super) fn remove_unless_link(&mut self, path: &Path) {
        if self.by_path.get(path).is_some_and(|failure| !failure.is_link) {
            self.remove(path);
        }
    }

    /// Removes paths that the given sweep did not meet, except known files: those are removed when
    /// they are read.
    pub(super) fn remove_before(&mut self, sweep: u32, is_known: impl Fn(&Path) -> bool) {
        let before = self.by_path.len();
        self.by_path.retain(|path, failure| failure.sweep == sweep || is_known(path));
        self.is_full &= self.by_path.len() == before;
    }

    /// Returns all paths, each with the error.
    pub(super) fn list(&self) -> BTreeMap<PathBuf, String> {
        let paths = self.by_path.iter();
        paths.map(|(path, failure)| (shortened(path).into(), failure.error.clone())).collect()
    }
}

fn shortened(path: &Path) -> String {
    shortened_in_the_middle(&path.to_string_lossy(), MAX_PATH_CHARS)
}

/// Returns false if the cause is the store, the limit of open files, or a place that does not answer,
/// which have reports of their own.
fn is_about_a_path(error: &io::Error) -> bool {
    let is_of_system = error.raw_os_error().is_some() && !file::is_out_of_files(error);
    is_of_system || LinkProblem::of(error).is_some()
}

fn reason(error: &io::Error) -> UnreadableReason {
    if let Some(problem) = LinkProblem::of(error) {
        return problem.reason();
    }
    if DoesNotAnswer::of(error).is_some() {
        return UnreadableReason::DoesNotAnswer;
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => UnreadableReason::PermissionDenied,
        io::ErrorKind::InvalidFilename => UnreadableReason::PathTooLong,
        _ if file::is_unavailable(error) => UnreadableReason::FileSystem,
        _ => UnreadableReason::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(paths: &mut UnreadablePaths, count: usize) {
        let error = io::Error::from_raw_os_error(5);
        for n in 0..count {
            paths.add(Path::new(&format!("/p/{n}.jsonl")), &error, 1);
        }
    }

    #[test]
    fn path_is_reported_once_unless_its_group_is_lost() {
        let mut paths = UnreadablePaths::default();
        add(&mut paths, 1);
        assert_eq!(paths.due_events(1).len(), 1);
        add(&mut paths, 1);
        assert_eq!(paths.due_events(1).len(), 0);
        paths.groups_lost();
        assert_eq!(paths.due_events(2).len(), 1);
        paths.stored_before(3);
        paths.groups_lost();
        assert_eq!(paths.due_events(4).len(), 0);
        paths.remove(Path::new("/p/0.jsonl"));
        add(&mut paths, 1);
        assert_eq!(paths.due_events(5).len(), 1, "after it was read");
    }

    /// A share that is not connected makes all of its files unreadable at once.
    #[test]
    fn events_and_listed_paths_are_limited() {
        let mut paths = UnreadablePaths::default();
        add(&mut paths, 3 * MAX_PATHS);
        assert_eq!(paths.list().len(), MAX_PATHS);
        assert_eq!((paths.due_events(1).len(), paths.due_events(1).len()), (MAX_EVENTS, 0));
    }
}
