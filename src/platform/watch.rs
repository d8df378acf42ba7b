//! Notifications of changes below directories, as far as the system provides them.
//!
//! Where the system can watch a directory recursively, each root is watched. inotify watches single
//! directories: each is added when it is listed, since finding them in a second walk would cost
//! more than everything else.

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

/// True if each directory is watched separately.
const ONE_BY_ONE: bool = cfg!(target_os = "linux");

/// Notification of the watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A path changed.
    Changed {
        /// Path below a root, as given or with resolved symlinks.
        path: PathBuf,
        /// Kind of the change.
        kind: ChangeKind,
    },
    /// Notifications were lost.
    Lost,
    /// Notifications are incomplete from now on: a new watcher is required.
    Failed(WatchError),
}

/// Kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only metadata changed.
    Metadata,
    /// Bytes of the file changed. Another file at the path is reported as [`Other`](Self::Other).
    Data,
    /// Any change.
    Other,
}

/// Reason why a directory cannot be watched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The system's limit is reached.
    #[error("limit of watched directories reached")]
    Limit,
    /// Another error of the system.
    #[error("{0}")]
    Other(String),
}

/// Returns how many directories all programs of this user may watch together, if the system has a
/// limit.
#[must_use]
pub fn limit() -> Option<u64> {
    // The file exists on Linux only.
    let text = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok()?;
    text.trim().parse().ok()
}

/// Watches directories until it is dropped.
pub struct DirectoryWatcher {
    inner: Mutex<RecommendedWatcher>,
    roots: Mutex<HashMap<PathBuf, Option<FileId>>>,
}

impl DirectoryWatcher {
    /// Creates a watcher without directories. `notify_change` is called from another thread.
    ///
    /// # Errors
    /// [`WatchError`] if the system has no watcher.
    pub fn new(
        mut notify_change: impl FnMut(WatchEvent) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let handler = move |event: notify::Result<notify::Event>| match event {
            Ok(event) => forward(event, &mut notify_change),
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
        Ok(Self { inner: Mutex::new(inner), roots: Mutex::default() })
    }

    /// Watches `roots` recursively where the system can, and stops watching others. A root that was
    /// replaced by another directory is watched again. `before` is called with the index of each root
    /// before its file system is.
    ///
    /// # Errors
    /// [`WatchError`]: changes in one of the roots are not reported.
    pub fn watch_roots(
        &self,
        roots: &[&Path],
        mut before: impl FnMut(usize),
    ) -> Result<(), WatchError> {
        if ONE_BY_ONE {
            return Ok(());
        }
        let mut known_roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        known_roots.retain(|known, _| roots.contains(&known.as_path()));
        let mut result = Ok(());
        for (index, root) in roots.iter().enumerate() {
            before(index);
            let id = file::inspect(root).ok().and_then(|info| info.stamp.id);
            if known_roots.get(*root) == Some(&id) {
                continue;
            }
            match self.add(root, RecursiveMode::Recursive) {
                Ok(()) => {
                    known_roots.insert(root.to_path_buf(), id);
                }
                Err(error) => result = Err(failure(&error)),
            }
        }
        result
    }

    /// Watches a single directory where roots are not watched recursively; repeated calls do no
    /// harm. Must be called before the directory is listed, so that later changes are reported.
    ///
    /// # Errors
    /// [`WatchError`]: changes in the directory are not reported. A directory that cannot be listed
    /// is not an error.
    pub fn watch(&self, directory: &Path) -> Result<(), WatchError> {
        if !ONE_BY_ONE {
            return Ok(());
        }
        match self.add(directory, RecursiveMode::NonRecursive) {
            Ok(()) => Ok(()),
            // Such a directory cannot be listed either.
            Err(error) if is_out_of_reach(&error) => Ok(()),
            Err(error) => Err(failure(&error)),
        }
    }

    fn add(&self, directory: &Path, mode: RecursiveMode) -> notify::Result<()> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).watch(directory, mode)
    }
}

fn forward(event: notify::Event, notify_change: &mut impl FnMut(WatchEvent)) {
    if event.need_rescan() {
        notify_change(WatchEvent::Lost);
    }
    let kind = match event.kind {
        // Reads, including our own.
        EventKind::Access(_) => return,
        EventKind::Modify(ModifyKind::Metadata(_)) => ChangeKind::Metadata,
        EventKind::Modify(ModifyKind::Data(_)) => ChangeKind::Data,
        _ => ChangeKind::Other,
    };
    for path in event.paths {
        notify_change(WatchEvent::Changed { path, kind });
    }
}

fn failure(error: &notify::Error) -> WatchError {
    match error.kind {
        ErrorKind::MaxFilesWatch => WatchError::Limit,
        _ => WatchError::Other(error.to_string()),
    }
}

fn is_out_of_reach(error: &notify::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound, PermissionDenied};
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => {
            let kind = error.kind();
            matches!(kind, InvalidFilename | NotFound | NotADirectory | PermissionDenied)
                || file::is_unavailable(error)
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
        let (sender, events) = mpsc::channel();
        let notify_change = move |events| sender.send(events).unwrap_or_default();
        let watcher = DirectoryWatcher::new(notify_change).unwrap();
        watcher.watch_roots(&[root], |_| ()).unwrap();
        watcher.watch(root).unwrap();
        (watcher, events)
    }

    #[track_caller]
    fn wait_for(events: &Receiver<WatchEvent>, expected: &Path) {
        while let WatchEvent::Changed { path, .. } =
            events.recv_timeout(Duration::from_secs(20)).unwrap()
        {
            if path == expected {
                return;
            }
        }
        panic!("the watcher failed");
    }

    #[test_requires::requires(not_wine)]
    #[test]
    fn watcher_reports_create_write_rename_and_delete() {
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let (watcher, events) = watch(&root);
        fs::write(root.join("a"), "one").unwrap();
        wait_for(&events, &root.join("a"));
        fs::create_dir(root.join("d")).unwrap();
        wait_for(&events, &root.join("d"));
        watcher.watch(&root.join("d")).unwrap();
        fs::rename(root.join("a"), root.join("d/b")).unwrap();
        wait_for(&events, &root.join("d/b"));
        // Under its new name once that is watched.
        fs::rename(root.join("d"), root.join("e")).unwrap();
        wait_for(&events, &root.join("e"));
        watcher.watch(&root.join("e")).unwrap();
        fs::write(root.join("e/b"), "two").unwrap();
        wait_for(&events, &root.join("e/b"));
        fs::remove_file(root.join("e/b")).unwrap();
        wait_for(&events, &root.join("e/b"));
        drop(watcher);
        assert!(
            events.iter().all(|events| matches!(events, WatchEvent::Changed { .. })),
            "the thread ends"
        );
    }

    #[test]
    fn missing_directory_is_not_a_watch_error() {
        let directory = tempfile::tempdir().unwrap();
        let (watcher, _told) = watch(directory.path());
        assert_eq!(watcher.watch(&directory.path().join("absent")), Ok(()));
    }
}
