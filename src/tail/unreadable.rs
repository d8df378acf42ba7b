//! Paths that cannot be read at present: logged once, and listed until they can be read.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

/// Largest number of paths that are listed; further ones are only logged.
const MAX_PATHS: usize = 1000;

/// All paths that cannot be read at present.
#[derive(Debug, Default)]
pub(super) struct UnreadablePaths {
    by_path: BTreeMap<PathBuf, ReadFailure>,
}

#[derive(Debug)]
struct ReadFailure {
    kind: io::ErrorKind,
    error: String,
    /// Number of the last sweep that met it.
    sweep: u32,
}

impl UnreadablePaths {
    /// Records that `path` could not be read during or after the given sweep.
    pub(super) fn add(&mut self, path: &Path, error: &io::Error, sweep: u32) {
        if let Some(failure) = self.by_path.get_mut(path)
            && failure.kind == error.kind()
        {
            failure.sweep = sweep;
            return;
        }
        warn!(code = "file_unreadable", ?path, %error, "cannot read, will retry");
        if self.by_path.len() < MAX_PATHS {
            let failure = ReadFailure { kind: error.kind(), error: error.to_string(), sweep };
            self.by_path.insert(path.to_owned(), failure);
        }
    }

    /// Records that `path` was read.
    pub(super) fn remove(&mut self, path: &Path) {
        if !self.by_path.is_empty() && self.by_path.remove(path).is_some() {
            info!(code = "file_readable", ?path, "readable again");
        }
    }

    /// Removes paths that the given sweep did not meet, except known files: those are removed when
    /// they are read.
    pub(super) fn remove_before(&mut self, sweep: u32, is_known: impl Fn(&Path) -> bool) {
        self.by_path.retain(|path, failure| failure.sweep == sweep || is_known(path));
    }

    /// Returns all paths, each with the error.
    pub(super) fn list(&self) -> BTreeMap<PathBuf, String> {
        let paths = self.by_path.iter();
        paths.map(|(path, failure)| (path.clone(), failure.error.clone())).collect()
    }
}
