//! Change notifications of the operating system, used as hints: they may be late, repeated or lost.

use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use tracing::{debug, warn};

use super::directory_walk::{Names, RootDirectory};
use crate::platform::{
    bounded::{BoundedCalls, CurrentPlace},
    watch::{ChangeKind, DirectoryWatcher, WatchError, WatchEvent},
};

/// Largest number of paths that are kept; beyond it everything is swept.
const MAX_PATHS: usize = 4096;

/// Hints since they were last drained.
#[derive(Debug, Default)]
pub(super) struct Hinted {
    /// Paths that may have changed, each with what may have.
    pub(super) paths: HashMap<PathBuf, Hint>,
    /// True if hints were lost.
    pub(super) is_incomplete: bool,
    /// True if some directories are not watched.
    pub(super) has_failed: bool,
}

/// Change that a path may have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// Bytes of the file changed, and it is still the same file.
    Data,
    /// Any change.
    Any,
}

/// Collects hints from any thread.
pub(super) struct Hints {
    hinted: Mutex<Hinted>,
    any: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Hints {
    /// Creates an empty collection; `wake` is called for the first hint.
    pub(super) fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { hinted: Mutex::default(), any: AtomicBool::new(false), wake }
    }

    /// Adds a path that may have changed.
    pub(super) fn add(&self, path: PathBuf, hint: Hint) {
        self.change(|hinted| {
            if hinted.paths.len() < MAX_PATHS {
                let known = hinted.paths.entry(path).or_insert(hint);
                if hint == Hint::Any {
                    *known = hint;
                }
            } else {
                hinted.is_incomplete = true;
            }
        });
    }

    /// Records that hints were lost.
    pub(super) fn add_loss(&self) {
        self.change(|hinted| hinted.is_incomplete = true);
    }

    /// Records that some directories are no longer watched.
    pub(super) fn add_failure(&self) {
        self.change(|hinted| {
            hinted.is_incomplete = true;
            hinted.has_failed = true;
        });
    }

    /// Returns the hints and removes them, if there are any.
    pub(super) fn drain(&self) -> Option<Hinted> {
        if !self.any.swap(false, Ordering::AcqRel) {
            return None;
        }
        let mut hinted = self.hinted.lock().unwrap_or_else(PoisonError::into_inner);
        Some(std::mem::take(&mut hinted))
    }

    fn change(&self, change: impl FnOnce(&mut Hinted)) {
        change(&mut self.hinted.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.any.swap(true, Ordering::AcqRel) {
            (self.wake)();
        }
    }
}

/// Watcher of the operating system on the roots.
pub(super) struct Watcher(DirectoryWatcher);

impl Watcher {
    /// Creates a watcher without directories; `None` if the system supports none.
    pub(super) fn new(
        hints: &Arc<Hints>,
        names: &Names,
        calls: &BoundedCalls,
    ) -> Option<Arc<Self>> {
        let (sender, names, calls) = (Arc::clone(hints), names.clone(), calls.clone());
        let notify = move |event| match event {
            WatchEvent::Changed { path, kind } => {
                let hint = if kind == ChangeKind::Data { Hint::Data } else { Hint::Any };
                if names.matches(&path)
                    || (kind != ChangeKind::Metadata && may_be_directory(&path, &calls))
                {
                    sender.add(path, hint);
                }
            }
            WatchEvent::Lost => {
                debug!("file change notifications were lost");
                sender.add_loss();
            }
            WatchEvent::Failed(error) => {
                report(&error);
                sender.add_failure();
            }
        };
        let watcher = DirectoryWatcher::new(notify).map_err(|error| report(&error)).ok()?;
        Some(Arc::new(Self(watcher)))
    }

    /// Watches the directories below `roots` as far as the system does so recursively; returns
    /// whether that succeeded. The caller must sweep afterwards.
    pub(super) fn watch_roots(&self, roots: &[RootDirectory], current: &CurrentPlace) -> bool {
        let paths: Vec<_> = roots.iter().map(|root| root.canonical.as_path()).collect();
        let set_current = |index: usize| current.set(&roots[index].configured);
        self.0.watch_roots(&paths, set_current).map_err(|error| report(&error)).is_ok()
    }

    /// Watches `directory`; returns whether that succeeded. The caller must list it afterwards.
    pub(super) fn watch(&self, directory: &Path) -> bool {
        self.0.watch(directory).map_err(|error| report(&error)).is_ok()
    }
}

/// The watching of one directory, which a call does before it lists it.
pub(super) struct WatchAttempt {
    watcher: Option<Arc<Watcher>>,
    progress: Arc<AtomicU8>,
}

/// Result of watching a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatchOutcome {
    /// It is watched, or need not be.
    Fine,
    /// It cannot be watched.
    Failed,
    /// The watcher does not answer: it must not be used any more.
    Hangs,
}

impl WatchAttempt {
    const NOT_BEGUN: u8 = 0;
    const IN_PROGRESS: u8 = 1;
    const DONE: u8 = 2;
    const FAILED: u8 = 3;

    /// Prepares to watch a directory with `watcher`; without one, nothing is watched.
    pub(super) fn new(watcher: Option<&Arc<Watcher>>) -> Self {
        let progress = Arc::new(AtomicU8::new(Self::NOT_BEGUN));
        Self { watcher: watcher.cloned(), progress }
    }

    /// Returns the function that watches.
    pub(super) fn call(&self) -> impl FnOnce(&Path) + Send + use<> {
        let (watcher, progress) = (self.watcher.clone(), Arc::clone(&self.progress));
        move |directory| {
            let Some(watcher) = watcher else { return };
            progress.store(Self::IN_PROGRESS, Ordering::Relaxed);
            let is_watched = watcher.watch(directory);
            let outcome = if is_watched { Self::DONE } else { Self::FAILED };
            progress.store(outcome, Ordering::Relaxed);
        }
    }

    /// Returns the result once the call has returned, or did not return in time.
    pub(super) fn outcome(&self) -> WatchOutcome {
        match self.progress.load(Ordering::Relaxed) {
            Self::IN_PROGRESS => WatchOutcome::Hangs,
            Self::FAILED => WatchOutcome::Failed,
            _ => WatchOutcome::Fine,
        }
    }
}

fn report(error: &WatchError) {
    match error {
        WatchError::Limit => warn!(code = "watch_limit_reached",
            %error,
            "cannot watch every directory, so sweeps find changes: raise fs.inotify.max_user_watches"
        ),
        WatchError::Other(_) => {
            warn!(code = "watch_failed", %error, "cannot watch for changes, so sweeps find them");
        }
    }
}

/// Returns true if a path with another name may be a directory: most other files have an extension.
pub(super) fn may_be_directory(path: &Path, calls: &BoundedCalls) -> bool {
    path.extension().is_none_or(OsStr::is_empty) || is_directory(path, calls)
}

/// Returns true if a directory, or a link to one, is at `path` and answers.
fn is_directory(path: &Path, calls: &BoundedCalls) -> bool {
    let (place, path) = (path.parent().unwrap_or(path).to_owned(), path.to_owned());
    calls.run(&place, move || Ok(path.is_dir())).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn hints_wake_once_until_they_are_drained() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let hints = Hints::new(Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(hints.drain().is_none());
        hints.add("/a".into(), Hint::Data);
        hints.add("/b".into(), Hint::Any);
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert_eq!(hints.drain().unwrap().paths.len(), 2);
        hints.add_loss();
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert!(hints.drain().unwrap().is_incomplete);
    }

    #[test]
    fn any_change_outweighs_a_change_of_bytes() {
        let hints = Hints::new(Arc::new(|| {}));
        for (path, hint) in [("/a", Hint::Data), ("/a", Hint::Any), ("/b", Hint::Data)] {
            hints.add(path.into(), hint);
        }
        hints.add("/a".into(), Hint::Data);
        let paths = hints.drain().unwrap().paths;
        assert_eq!(paths[Path::new("/a")], Hint::Any);
        assert_eq!(paths[Path::new("/b")], Hint::Data);
    }

    #[test]
    fn too_many_hints_are_marked_incomplete() {
        let hints = Hints::new(Arc::new(|| {}));
        for n in 0..=MAX_PATHS {
            hints.add(n.to_string().into(), Hint::Any);
        }
        let hinted = hints.drain().unwrap();
        assert_eq!((hinted.paths.len(), hinted.is_incomplete), (MAX_PATHS, true));
    }
}
