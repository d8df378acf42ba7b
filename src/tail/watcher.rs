//! Hints from the system about what changed. They may come late, twice, or not at all.

use std::{
    collections::HashSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tracing::{debug, warn};

use super::walk::{Names, Root};
use crate::platform::watch::{DirectoryWatcher, WatchError, WatchEvent};

/// How many paths are kept; with more, everything is looked at.
const MAX_PATHS: usize = 4096;

/// What was hinted at since it was last asked.
#[derive(Debug, Default)]
pub(super) struct Hinted {
    /// Paths that may have changed.
    pub(super) paths: HashSet<PathBuf>,
    /// Whether hints were lost.
    pub(super) is_incomplete: bool,
    /// Whether not everything is watched.
    pub(super) is_blind: bool,
}

/// Where hints are put, from any thread.
pub(super) struct Hints {
    hinted: Mutex<Hinted>,
    any: AtomicBool,
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Hints {
    /// No hints; `wake` is called when the first one comes.
    pub(super) fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { hinted: Mutex::default(), any: AtomicBool::new(false), wake }
    }

    /// Hints at `path`.
    pub(super) fn add(&self, path: PathBuf) {
        self.change(|hinted| {
            if hinted.paths.len() < MAX_PATHS {
                hinted.paths.insert(path);
            } else {
                hinted.is_incomplete = true;
            }
        });
    }

    /// Says that hints were lost.
    pub(super) fn handle_deleted(&self) {
        self.change(|hinted| hinted.is_incomplete = true);
    }

    /// Says that not everything is watched any more.
    pub(super) fn fail(&self) {
        self.change(|hinted| {
            hinted.is_incomplete = true;
            hinted.is_blind = true;
        });
    }

    /// Takes the hints, if there are any.
    pub(super) fn take(&self) -> Option<Hinted> {
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

/// The system's watcher on the roots.
pub(super) struct Watcher(DirectoryWatcher);

impl Watcher {
    /// A watcher that watches nothing yet; `None` when the system has none.
    pub(super) fn new(hints: &Arc<Hints>, names: &Names) -> Option<Self> {
        let (sender, names) = (Arc::clone(hints), names.clone());
        let tell = move |told| match told {
            WatchEvent::Changed { path, is_metadata } => {
                pass_on(&sender, path, is_metadata, &names)
            }
            WatchEvent::Lost => {
                debug!("lost hints");
                sender.handle_deleted();
            }
            WatchEvent::Failed(error) => {
                report(&error);
                sender.fail();
            }
        };
        DirectoryWatcher::new(tell).map(Self).map_err(|error| report(&error)).ok()
    }

    /// Watches what lies below `roots`, as far as that can be done at once; says whether it can.
    /// Whoever calls it sweeps afterwards.
    pub(super) fn watch_roots(&mut self, roots: &[Root]) -> bool {
        let roots: Vec<_> = roots.iter().map(|root| root.canonical.as_path()).collect();
        self.0.watch_roots(&roots).map_err(|error| report(&error)).is_ok()
    }

    /// Watches what lies in `directory`, which is listed afterwards; says whether it can.
    pub(super) fn watch(&self, directory: &Path) -> bool {
        self.0.watch(directory).map_err(|error| report(&error)).is_ok()
    }
}

fn report(error: &WatchError) {
    match error {
        WatchError::Limit => warn!(code = "watch_limit_reached",
            %error,
            "could not watch every directory, changes are found by sweeps; raise \
             fs.inotify.max_user_watches to mend it"
        ),
        WatchError::Other(_) => {
            warn!(code = "watch_failed", %error, "could not watch for changes, they are found by sweeps");
        }
    }
}

/// Passes on what may concern a file or directory below a root.
fn pass_on(hints: &Hints, path: PathBuf, is_metadata: bool, names: &Names) {
    if names.are_of(&path) || (!is_metadata && may_be_directory(&path)) {
        hints.add(path);
    }
}

/// Whether a path that has none of the names is worth a inspect: most other files have an
/// extension.
pub(super) fn may_be_directory(path: &Path) -> bool {
    path.extension().is_none_or(OsStr::is_empty) || path.is_dir()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn wakes_once_until_the_hints_are_taken() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let hints = Hints::new(Arc::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(hints.take().is_none());
        hints.add("/a".into());
        hints.add("/b".into());
        assert_eq!(woken.load(Ordering::Relaxed), 1);
        assert_eq!(hints.take().unwrap().paths.len(), 2);
        hints.handle_deleted();
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert!(hints.take().unwrap().is_incomplete);
    }

    #[test]
    fn more_hints_than_are_kept_make_it_look_at_everything() {
        let hints = Hints::new(Arc::new(|| {}));
        for n in 0..=MAX_PATHS {
            hints.add(n.to_string().into());
        }
        let hinted = hints.take().unwrap();
        assert_eq!((hinted.paths.len(), hinted.is_incomplete), (MAX_PATHS, true));
    }
}
