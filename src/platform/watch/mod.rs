//! Tells what changes below directories, as far as the system does.

#[cfg(target_os = "linux")]
#[path = "inotify.rs"]
mod system;
#[cfg(not(target_os = "linux"))]
#[path = "recursive.rs"]
mod system;

use std::{
    io,
    path::{Path, PathBuf},
};

/// What the system says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Something at this path changed.
    Changed {
        /// The path, below a directory as it was given or with its symlinks resolved.
        path: PathBuf,
        /// Whether its bytes are as they were.
        is_metadata: bool,
    },
    /// What changed was not told.
    Lost,
    /// From now on not everything is told: somebody has to watch anew.
    Failed(WatchError),
}

/// Why a directory can't be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// So many are watched that no more may be.
    #[error("the limit of watched directories is reached")]
    Limit,
    /// What else the system says.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for WatchError {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Watches directories until it is dropped.
///
/// Where the system watches one directory at a time, each has to be named to
/// [`DirectoryWatcher::watch`], before it is listed: what comes later is told. Elsewhere a root is
/// enough.
pub struct DirectoryWatcher(system::Watcher);

impl DirectoryWatcher {
    /// Watches nothing yet. `tell` is called from a thread of its own.
    ///
    /// # Errors
    /// [`WatchError`] when the system has no watcher.
    pub fn new(tell: impl FnMut(Told) + Send + 'static) -> Result<Self, WatchError> {
        Ok(Self(system::Watcher::new(tell)?))
    }

    /// Watches all below `roots`, where the system can do so, and nothing else any more.
    ///
    /// # Errors
    /// [`WatchError`]: what changes in one of them is not told.
    pub fn watch_roots(&mut self, roots: &[&Path]) -> Result<(), WatchError> {
        self.0.watch_roots(roots)
    }

    /// Watches what lies in `directory` itself, unless its root is enough; again does no harm.
    ///
    /// # Errors
    /// [`WatchError`]: what changes there is not told. A directory that can't be listed is none.
    pub fn watch(&self, directory: &Path) -> Result<(), WatchError> {
        self.0.watch(directory)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::mpsc::{self, Receiver},
        time::Duration,
    };

    use super::*;

    fn watch(root: &Path) -> (DirectoryWatcher, Receiver<Told>) {
        let (sender, told) = mpsc::channel();
        let tell = move |told| sender.send(told).unwrap_or_default();
        let mut watcher = DirectoryWatcher::new(tell).unwrap();
        watcher.watch_roots(&[root]).unwrap();
        watcher.watch(root).unwrap();
        (watcher, told)
    }

    #[track_caller]
    fn wait_for(told: &Receiver<Told>, expected: &Path) {
        while let Told::Changed { path, .. } = told.recv_timeout(Duration::from_secs(20)).unwrap() {
            if path == expected {
                return;
            }
        }
        panic!("it failed");
    }

    #[test]
    fn tells_what_is_made_written_moved_and_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let (watcher, told) = watch(&root);
        fs::write(root.join("a"), "one").unwrap();
        wait_for(&told, &root.join("a"));
        fs::create_dir(root.join("d")).unwrap();
        wait_for(&told, &root.join("d"));
        watcher.watch(&root.join("d")).unwrap();
        fs::rename(root.join("a"), root.join("d/b")).unwrap();
        wait_for(&told, &root.join("d/b"));
        // Under its new name as soon as that is watched.
        fs::rename(root.join("d"), root.join("e")).unwrap();
        wait_for(&told, &root.join("e"));
        watcher.watch(&root.join("e")).unwrap();
        fs::write(root.join("e/b"), "two").unwrap();
        wait_for(&told, &root.join("e/b"));
        fs::remove_file(root.join("e/b")).unwrap();
        wait_for(&told, &root.join("e/b"));
        drop(watcher);
        assert!(told.iter().all(|told| matches!(told, Told::Changed { .. })), "the thread ends");
    }

    #[test]
    fn a_directory_that_is_gone_is_no_failure_of_the_watcher() {
        let directory = tempfile::tempdir().unwrap();
        let (watcher, _told) = watch(directory.path());
        assert_eq!(watcher.watch(&directory.path().join("absent")), Ok(()));
    }
}
