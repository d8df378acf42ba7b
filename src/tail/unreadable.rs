//! What can't be read at present: reported once, kept until it can.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use tracing::{info, warn};

use super::chunk::Unreadable;

/// How many are kept; more are counted by the log alone.
const MAX_KEPT: usize = 1000;

/// All that can't be read at present.
#[derive(Debug, Default)]
pub(super) struct UnreadablePaths {
    by_path: BTreeMap<PathBuf, (io::ErrorKind, String, u32)>,
}

impl UnreadablePaths {
    /// Notes that `path` could not be read, in or after the given sweep.
    pub(super) fn note(&mut self, path: &Path, error: &io::Error, sweep: u32) {
        if let Some((kind, _, seen)) = self.by_path.get_mut(path)
            && *kind == error.kind()
        {
            *seen = sweep;
            return;
        }
        warn!(code = "file_unreadable", ?path, %error, "could not read, it is tried again");
        if self.by_path.len() < MAX_KEPT {
            self.by_path.insert(path.to_owned(), (error.kind(), error.to_string(), sweep));
        }
    }

    /// Notes that `path` was read.
    pub(super) fn clear(&mut self, path: &Path) {
        if !self.by_path.is_empty() && self.by_path.remove(path).is_some() {
            info!(code = "file_readable", ?path, "could be read again");
        }
    }

    /// Forgets what the given sweep did not add_new_file, but for what `is_known` as a file: that is cleared
    /// when it is read.
    pub(super) fn forget_before(&mut self, sweep: u32, is_known: impl Fn(&Path) -> bool) {
        self.by_path.retain(|path, (.., seen)| *seen == sweep || is_known(path));
    }

    /// All of them, by path.
    pub(super) fn list(&self) -> Vec<Unreadable> {
        let unreadable = |(path, (_, error, _)): (&PathBuf, &(io::ErrorKind, String, u32))| {
            Unreadable::new(path, error.as_str())
        };
        self.by_path.iter().map(unreadable).collect()
    }
}
