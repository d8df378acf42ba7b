//! Session state that sources share: a hook announces a session, its records confirm it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::platform::Timestamp;

/// Maximum number of directories learned from hooks: made-up paths must not fill the memory.
const MAX_LEARNED_ROOTS: usize = 32;
/// Maximum number of sessions that are expected at a time.
const MAX_EXPECTED: usize = 1000;
/// Number of session ids that are remembered although no hook has named them yet: a line may be read
/// before the report of the hook.
const MAX_RECENT: usize = 1000;
/// Maximum length of a session id in bytes; those of Claude Code have 36.
const LONGEST_ID: usize = 128;

/// Session that a hook has announced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SessionKey {
    /// Session id, which its lines contain.
    Id(String),
    /// File name of its transcript, where the hook gave no id.
    FileName(OsString),
}

impl SessionKey {
    /// Returns the key of a session. Its transcript may be another file than the hook named.
    #[must_use]
    pub fn new(session_id: Option<&str>, transcript: &Path) -> Self {
        match session_id.filter(|id| !id.is_empty() && id.len() <= LONGEST_ID) {
            Some(id) => Self::Id(id.to_owned()),
            None => Self::FileName(transcript.file_name().unwrap_or_default().to_owned()),
        }
    }
}

/// Session state shared by the sources of a process.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Roots of each running source that reads sessions, by registration.
    configured: BTreeMap<u64, Vec<PathBuf>>,
    next_registration: u64,
    learned: Vec<PathBuf>,
    /// Announced sessions; true if a record of the session was read.
    expected: BTreeMap<SessionKey, bool>,
    /// Session ids in lines that were read, and their order of arrival.
    recent: BTreeSet<String>,
    recent_order: VecDeque<String>,
    /// Time of the last read of records that had just been written.
    grown: Option<Timestamp>,
}

/// Roots of a running source. They are shared until this value is dropped.
#[derive(Debug)]
pub struct SharedRoots {
    sessions: Sessions,
    registration: u64,
}

impl Drop for SharedRoots {
    fn drop(&mut self) {
        self.sessions.state().configured.remove(&self.registration);
    }
}

impl Sessions {
    /// Shares the configured roots of a source that starts to read.
    #[must_use = "the roots are shared until the result is dropped"]
    pub fn share_roots(&self, roots: Vec<PathBuf>) -> SharedRoots {
        let mut state = self.state();
        let registration = state.next_registration;
        state.next_registration += 1;
        state.configured.insert(registration, roots);
        SharedRoots { sessions: self.clone(), registration }
    }

    /// Configured roots of all running sources, without duplicates.
    #[cfg(test)]
    pub(crate) fn configured(&self) -> Vec<PathBuf> {
        let mut roots = Vec::<PathBuf>::new();
        for root in self.state().configured.values().flatten() {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// Adds the root of a transcript that a hook named. Returns true if the root is new.
    pub fn learn(&self, root: &Path) -> bool {
        let mut state = self.state();
        let is_known = state.all_roots().any(|known| known == root);
        let is_new = !is_known && state.learned.len() < MAX_LEARNED_ROOTS;
        if is_new {
            state.learned.push(root.to_owned());
        }
        is_new
    }

    /// Configured and learned roots, without duplicates.
    #[must_use]
    pub fn roots(&self) -> Vec<PathBuf> {
        let mut roots = Vec::<PathBuf>::new();
        for root in self.state().all_roots() {
            if !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// Roots learned from hooks, in the order in which they were learned.
    #[must_use]
    pub fn learned(&self) -> Vec<PathBuf> {
        self.state().learned.clone()
    }

    /// Configuration directories of the client: the parents of all roots named `projects`.
    #[must_use]
    pub fn client_dirs(&self) -> Vec<PathBuf> {
        let state = self.state();
        let roots = state.all_roots().filter(|root| root.ends_with("projects"));
        let mut dirs = Vec::new();
        for dir in roots.filter_map(|root| root.parent()) {
            if !dirs.iter().any(|known| known == dir) {
                dirs.push(dir.to_owned());
            }
        }
        dirs
    }

    /// Expects records of a session. Returns false if too many sessions are expected already.
    pub fn expect(&self, session: &SessionKey) -> bool {
        let mut state = self.state();
        if state.expected.contains_key(session) {
            return true;
        }
        let has_room = state.expected.len() < MAX_EXPECTED;
        if has_room {
            let is_seen = matches!(session, SessionKey::Id(id) if state.recent.contains(id));
            state.expected.insert(session.clone(), is_seen);
        }
        has_room
    }

    /// Records that a line with a session id was read. Returns true if the session is expected and
    /// this is its first line.
    pub fn saw_line_of(&self, id: &str) -> bool {
        id.len() <= LONGEST_ID && self.state().saw_line_of(id)
    }

    /// Records that a file was read. Only its name counts: a moved session keeps it.
    pub fn saw_file(&self, transcript: &Path) {
        let mut state = self.state();
        if !state.expected.is_empty()
            && let Some(name) = transcript.file_name()
            && let Some(is_seen) = state.expected.get_mut(&SessionKey::FileName(name.to_owned()))
        {
            *is_seen = true;
        }
    }

    /// Returns true if a record of an expected session was read.
    #[must_use]
    pub fn is_seen(&self, session: &SessionKey) -> bool {
        self.state().expected.get(session).copied().unwrap_or(false)
    }

    /// Ids of the expected sessions of which lines were read.
    #[must_use]
    pub fn seen_ids(&self) -> Vec<String> {
        let state = self.state();
        let seen = state.expected.iter().filter(|(_, is_seen)| **is_seen);
        let id = |(session, _): (&SessionKey, &bool)| match session {
            SessionKey::Id(id) => Some(id.clone()),
            SessionKey::FileName(_) => None,
        };
        seen.filter_map(id).collect()
    }

    /// Expects a session no longer.
    pub fn forget(&self, session: &SessionKey) {
        self.state().expected.remove(session);
    }

    /// Records that records were read at `now` that had just been written.
    pub fn grew(&self, now: Timestamp) {
        self.state().grown = Some(now);
    }

    /// Time of the last read in this run of records that had just been written.
    #[must_use]
    pub fn grown(&self) -> Option<Timestamp> {
        self.state().grown
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn saw_line_of(&mut self, id: &str) -> bool {
        if !self.recent.contains(id) {
            if self.recent_order.len() >= MAX_RECENT
                && let Some(oldest) = self.recent_order.pop_front()
            {
                self.recent.remove(&oldest);
            }
            self.recent.insert(id.to_owned());
            self.recent_order.push_back(id.to_owned());
        }
        if self.expected.is_empty() {
            return false;
        }
        let expected = self.expected.get_mut(&SessionKey::Id(id.to_owned()));
        expected.is_some_and(|is_seen| !std::mem::replace(is_seen, true))
    }

    fn all_roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.configured.values().flatten().chain(&self.learned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> SessionKey {
        SessionKey::Id(id.to_owned())
    }

    #[test]
    fn line_read_before_its_hook_report_counts() {
        let sessions = Sessions::default();
        assert!(!sessions.saw_line_of("early"));
        assert!(sessions.expect(&id("early")) && sessions.is_seen(&id("early")));
        assert!(sessions.expect(&id("late")) && !sessions.is_seen(&id("late")));
        assert!(sessions.saw_line_of("late"), "the first line of an expected session");
        assert!(!sessions.saw_line_of("late"));
        assert_eq!(sessions.seen_ids(), ["early", "late"]);
        sessions.forget(&id("late"));
        assert_eq!(sessions.seen_ids(), ["early"]);
    }

    /// Lines may contain any ids, and hooks may announce any sessions.
    #[test]
    fn ids_are_limited_in_number_and_length() {
        let sessions = Sessions::default();
        sessions.expect(&id("mine"));
        for number in 0..10 * MAX_RECENT {
            sessions.saw_line_of(&format!("made-up {number}"));
        }
        sessions.saw_line_of(&"x".repeat(10_000));
        let state = sessions.state();
        assert_eq!((state.recent.len(), state.recent_order.len()), (MAX_RECENT, MAX_RECENT));
        drop(state);
        assert!(sessions.saw_line_of("mine"), "an expected session is not displaced");
        let expected =
            (0..2 * MAX_EXPECTED).filter(|number| sessions.expect(&id(&number.to_string())));
        assert_eq!(expected.count(), MAX_EXPECTED - 1);
        let long = SessionKey::new(Some(&"x".repeat(10_000)), Path::new("/p/s.jsonl"));
        assert_eq!(long, SessionKey::FileName("s.jsonl".into()));
    }
}
