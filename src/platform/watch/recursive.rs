//! Systems that watch all below a directory at once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use notify::{
    Config, ErrorKind, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::ModifyKind,
};

use tracing::warn;

use super::{Told, WatchError};
use crate::platform::file::{self, FileId};

pub(super) struct Watcher {
    inner: RecommendedWatcher,
    roots: HashMap<PathBuf, Option<FileId>>,
}

impl Watcher {
    pub(super) fn new(mut tell: impl FnMut(Told) + Send + 'static) -> Result<Self, WatchError> {
        let handler = move |event: notify::Result<notify::Event>| match event {
            Ok(event) => pass_on(event, &mut tell),
            Err(error) => match failure(&error) {
                WatchError::Limit => tell(Told::Failed(WatchError::Limit)),
                WatchError::Other(error) => {
                    warn!(error, "could not watch for a change");
                    tell(Told::Lost);
                }
            },
        };
        let config = Config::default().with_follow_symlinks(false);
        let inner = RecommendedWatcher::new(handler, config).map_err(|error| failure(&error))?;
        Ok(Self { inner, roots: HashMap::new() })
    }

    /// Watches `roots`, and those again that are no longer the same directory.
    pub(super) fn watch_roots(&mut self, roots: &[&Path]) -> Result<(), WatchError> {
        self.roots.retain(|known, _| roots.contains(&known.as_path()));
        let mut result = Ok(());
        for root in roots {
            let id = file::look(root).ok().and_then(|sight| sight.stamp.id);
            if self.roots.get(*root) == Some(&id) {
                continue;
            }
            match self.inner.watch(root, RecursiveMode::Recursive) {
                Ok(()) => {
                    self.roots.insert(root.to_path_buf(), id);
                }
                Err(error) => result = Err(failure(&error)),
            }
        }
        result
    }

    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "Linux does this")]
    pub(super) fn watch(&self, _directory: &Path) -> Result<(), WatchError> {
        Ok(())
    }
}

fn pass_on(event: notify::Event, tell: &mut impl FnMut(Told)) {
    if event.need_rescan() {
        tell(Told::Lost);
    }
    let is_metadata = match event.kind {
        EventKind::Access(_) => return,
        EventKind::Modify(ModifyKind::Metadata(_)) => true,
        _ => false,
    };
    for path in event.paths {
        tell(Told::Changed { path, is_metadata });
    }
}

fn failure(error: &notify::Error) -> WatchError {
    match error.kind {
        ErrorKind::MaxFilesWatch => WatchError::Limit,
        _ => WatchError::Other(error.to_string()),
    }
}
