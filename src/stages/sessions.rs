//! Session state that sources share: a hook announces a session, its records confirm it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::platform::Timestamp;

/// Maximum number of directories learned from hooks: made-up paths must not fill the memory.
const MAX_LEARNED_ROOTS: usize = 32;
/// Maximum number of transcripts that are expected at a time.
const MAX_EXPECTED: usize = 1000;

/// Session state shared by the sources of a process.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Roots of each running source that reads sessions, by registration.
    configured: BTreeMap<u64, Vec<PathBuf>>,
    next_registration: u64,
    learned: Vec<PathBuf>,
    /// File names of transcripts that have not been read at all.
    expected: BTreeSet<OsString>,
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

    /// Expects records of a transcript. Returns false if too many are expected already.
    pub fn expect(&self, transcript: &Path) -> bool {
        let mut state = self.state();
        let has_room = state.expected.len() < MAX_EXPECTED;
        if let Some(name) = transcript.file_name().filter(|_| has_room) {
            state.expected.insert(name.to_owned());
        }
        has_room
    }

    /// Records that a transcript was read. Only its file name counts: a moved session keeps it.
    pub fn arrived(&self, transcript: &Path) {
        let mut state = self.state();
        if !state.expected.is_empty()
            && let Some(name) = transcript.file_name()
        {
            state.expected.remove(name);
        }
    }

    /// Returns true if no record of an expected transcript has been read yet.
    #[must_use]
    pub fn is_expected(&self, transcript: &Path) -> bool {
        transcript.file_name().is_some_and(|name: &OsStr| self.state().expected.contains(name))
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
    fn all_roots(&self) -> impl Iterator<Item = &PathBuf> {
        self.configured.values().flatten().chain(&self.learned)
    }
}
