//! Tells what changes below directories, as far as the system does.
//!
//! Where the system watches all below a directory at once, each root is watched. inotify watches
//! one directory at a time: there each is, as it is listed, since looking for them a second time
//! costs more than all else about them.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use notify::{
    Config, ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::ModifyKind,
};
use tracing::warn;

use super::file::{self, FileId};

/// Whether each directory is watched by itself.
const ONE_BY_ONE: bool = cfg!(target_os = "linux");

/// What the system says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
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

/// How many directories all programs of this user may watch together, where the system has a limit.
#[must_use]
pub fn limit() -> Option<u64> {
    // Elsewhere there is no such file.
    let text = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok()?;
    text.trim().parse().ok()
}

/// Watches directories until it is dropped.
pub struct DirectoryWatcher {
    inner: Mutex<RecommendedWatcher>,
    roots: HashMap<PathBuf, Option<FileId>>,
}

impl DirectoryWatcher {
    /// Watches nothing yet. `notify_change` is called from a thread of its own.
    ///
    /// # Errors
    /// [`WatchError`] when the system has no watcher.
    pub fn new(
        mut notify_change: impl FnMut(WatchEvent) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let handler = move |event: notify::Result<notify::Event>| match event {
            Ok(event) => pass_on(event, &mut notify_change),
            Err(error) => match failure(&error) {
                WatchError::Limit => notify_change(WatchEvent::Failed(WatchError::Limit)),
                WatchError::Other(error) => {
                    warn!(code = "watch_failed", error, "could not watch for a change");
                    notify_change(WatchEvent::Lost);
                }
            },
        };
        let config = Config::default().with_follow_symlinks(false);
        let inner = RecommendedWatcher::new(handler, config).map_err(|error| failure(&error))?;
        Ok(Self { inner: Mutex::new(inner), roots: HashMap::new() })
    }

    /// Watches all below `roots`, where the system can do so, and nothing else any more; those
    /// again that are no longer the same directory.
    ///
    /// # Errors
    /// [`WatchError`]: what changes in one of them is not told.
    pub fn watch_roots(&mut self, roots: &[&Path]) -> Result<(), WatchError> {
        if ONE_BY_ONE {
            return Ok(());
        }
        self.roots.retain(|known, _| roots.contains(&known.as_path()));
        let mut result = Ok(());
        for root in roots {
            let id = file::inspect(root).ok().and_then(|sight| sight.stamp.id);
            if self.roots.get(*root) == Some(&id) {
                continue;
            }
            match self.add(root, RecursiveMode::Recursive) {
                Ok(()) => {
                    self.roots.insert(root.to_path_buf(), id);
                }
                Err(error) => result = Err(failure(&error)),
            }
        }
        result
    }

    /// Watches what lies in `directory` itself, unless its root is enough; again does no harm. To
    /// be called before it is listed: what comes later is told.
    ///
    /// # Errors
    /// [`WatchError`]: what changes there is not told. A directory that can't be listed is none.
    pub fn watch(&self, directory: &Path) -> Result<(), WatchError> {
        if !ONE_BY_ONE {
            return Ok(());
        }
        match self.add(directory, RecursiveMode::NonRecursive) {
            Ok(()) => Ok(()),
            // It is gone, or not for us to read: then it can't be listed either.
            Err(error) if is_out_of_reach(&error) => Ok(()),
            Err(error) => Err(failure(&error)),
        }
    }

    fn add(&self, directory: &Path, mode: RecursiveMode) -> notify::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).watch(directory, mode)
    }
}

fn pass_on(event: notify::Event, notify_change: &mut impl FnMut(WatchEvent)) {
    if event.need_rescan() {
        notify_change(WatchEvent::Lost);
    }
    let is_metadata = match event.kind {
        // Our own looks among them.
        EventKind::Access(_) => return,
        EventKind::Modify(ModifyKind::Metadata(_)) => true,
        _ => false,
    };
    for path in event.paths {
        notify_change(WatchEvent::Changed { path, is_metadata });
    }
}

fn failure(error: &notify::Error) -> WatchError {
    match error.kind {
        ErrorKind::MaxFilesWatch => WatchError::Limit,
        _ => WatchError::Other(error.to_string()),
    }
}

fn is_out_of_reach(error: &notify::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => {
            matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
        }
        _ => false,
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

    fn watch(root: &Path) -> (DirectoryWatcher, Receiver<WatchEvent>) {
        let (sender, told) = mpsc::channel();
        let notify_change = move |told| sender.send(told).unwrap_or_default();
        let mut watcher = DirectoryWatcher::new(notify_change).unwrap();
        watcher.watch_roots(&[root]).unwrap();
        watcher.watch(root).unwrap();
        (watcher, told)
    }

    #[track_caller]
    fn wait_for(told: &Receiver<WatchEvent>, expected: &Path) {
        while let WatchEvent::Changed { path, .. } =
            told.recv_timeout(Duration::from_secs(20)).unwrap()
        {
            if path == expected {
                return;
            }
        }
        panic!("it failed");
    }

    #[test_requires::requires(not_wine)]
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
        assert!(
            told.iter().all(|told| matches!(told, WatchEvent::Changed { .. })),
            "the thread ends"
        );
    }

    #[test]
    fn a_directory_that_is_gone_is_no_failure_of_the_watcher() {
        let directory = tempfile::tempdir().unwrap();
        let (watcher, _told) = watch(directory.path());
        assert_eq!(watcher.watch(&directory.path().join("absent")), Ok(()));
    }
}
