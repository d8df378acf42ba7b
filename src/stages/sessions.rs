//! What sources tell each other of sessions: a hook says that one runs, and its records say so too.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::platform::Timestamp;

/// So many directories are learnt from hooks: whoever makes up others must not fill the memory.
const MOST_ROOTS: usize = 32;
/// So many transcripts are waited for.
const MOST_AWAITED: usize = 1000;

/// What is known of sessions, shared by the sources of a process.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// Directories that are read anyway.
    configured: Vec<PathBuf>,
    roots: Vec<PathBuf>,
    /// Names of transcripts that no byte was seen of.
    awaited: BTreeSet<OsString>,
    /// When records were read last that had just been written.
    grown: Option<Timestamp>,
}

impl Sessions {
    /// These directories are read anyway.
    pub fn configure(&self, roots: &[PathBuf]) {
        self.known().configured = roots.to_vec();
    }

    /// The directories that are read anyway.
    #[must_use]
    pub fn configured(&self) -> Vec<PathBuf> {
        self.known().configured.clone()
    }

    /// A hook named a transcript below `root`; whether that is new.
    pub fn learn(&self, root: &Path) -> bool {
        let mut known = self.known();
        let mut all = known.configured.iter().chain(&known.roots);
        let is_new = !all.any(|it| it == root) && known.roots.len() < MOST_ROOTS;
        if is_new {
            known.roots.push(root.to_owned());
        }
        is_new
    }

    /// The directories that hooks named, in the order that they did.
    #[must_use]
    pub fn roots(&self) -> Vec<PathBuf> {
        self.known().roots.clone()
    }

    /// The client's own directories, as far as directories of sessions lie in them.
    #[must_use]
    pub fn client_dirs(&self) -> Vec<PathBuf> {
        let known = self.known();
        let roots = known.configured.iter().chain(&known.roots);
        let roots = roots.filter(|root| root.ends_with("projects"));
        roots.filter_map(|root| root.parent()).map(Path::to_owned).collect()
    }

    /// Waits for a transcript; whether there is room to.
    pub fn expect(&self, transcript: &Path) -> bool {
        let mut known = self.known();
        let has_room = known.awaited.len() < MOST_AWAITED;
        if let Some(name) = transcript.file_name().filter(|_| has_room) {
            known.awaited.insert(name.to_owned());
        }
        has_room
    }

    /// Records of a transcript were read. It may lie elsewhere by now: a session keeps its name.
    pub fn arrived(&self, transcript: &Path) {
        let mut known = self.known();
        if !known.awaited.is_empty()
            && let Some(name) = transcript.file_name()
        {
            known.awaited.remove(name);
        }
    }

    /// Whether a transcript is still waited for.
    #[must_use]
    pub fn is_expected(&self, transcript: &Path) -> bool {
        transcript.file_name().is_some_and(|name: &OsStr| self.known().awaited.contains(name))
    }

    /// Records of a session were read at `now` that had just been written.
    pub fn grew(&self, now: Timestamp) {
        self.known().grown = Some(now);
    }

    /// When records were read last that had just been written; none in this run.
    #[must_use]
    pub fn grown(&self) -> Option<Timestamp> {
        self.known().grown
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
