//! Hints of the watcher: checks of single files and directories.

use std::path::{Path, PathBuf};

use ai_agent_stage::FileKey;

use super::{
    Tail,
    directory_walk::{RootDirectory, Walk},
    sweep::FoundBy,
    watcher::{Hint, Hinted, may_be_directory},
};
use crate::platform::{
    bounded::DoesNotAnswer,
    file::{FileInfo, FileKind, Stamp},
};

impl Tail {
    pub(super) fn apply_hints(&mut self, hinted: Hinted) {
        if hinted.has_failed {
            self.schedule.watching_failed();
        }
        if hinted.is_incomplete {
            self.schedule.request_sweep_soon();
        }
        if hinted.paths.is_empty() || !self.schedule.has_swept {
            return;
        }
        let roots = std::mem::take(&mut self.roots);
        for (path, hint) in hinted.paths {
            self.apply_hint(&roots, &path, hint);
        }
        self.roots = roots;
    }

    fn apply_hint(&mut self, roots: &[RootDirectory], hinted: &Path, hint: Hint) {
        // The innermost link comes first.
        let links = self.followed.iter().rev();
        let translated =
            |root: &RootDirectory| Some((root.configured.clone(), root.configured_path(hinted)?));
        let Some((root, path)) = links.chain(roots).find_map(translated) else { return };
        if hint == Hint::Data
            && let Some((key, stamp)) = self.stamp_of_open(&path)
        {
            return self.check_known(key, stamp, FoundBy::Check);
        }
        let is_file = self.options.names.matches(&path);
        let may_be_directory = |path: &Path| may_be_directory(path, self.access.calls());
        let FileInfo { kind, stamp } = match self.access.inspect_below(&root, &path) {
            Ok(Some(info)) => info,
            Ok(None) => return,
            Err(error) if DoesNotAnswer::of(&error).is_some() => return,
            Err(_) => {
                // Deleted or moved, a file or a directory: a sweep finds out.
                if self.files.at(&path).is_some() || may_be_directory(&path) {
                    self.schedule.request_sweep_soon();
                }
                return;
            }
        };
        if kind == FileKind::Link {
            if is_file || may_be_directory(&path) {
                self.schedule.request_sweep_soon();
            }
        } else if kind == FileKind::Directory {
            if path == root {
                self.schedule.request_sweep_soon();
            } else if self.options.names.is_recursive() {
                self.list(path.clone());
                self.schedule.list_again(path);
            }
        } else if kind == FileKind::File && is_file {
            self.check_path(&path, stamp);
        }
    }

    /// Returns the stamp of the known file at a path if it can be read from an open handle without a
    /// helper thread, which costs as much as reading a line.
    fn stamp_of_open(&self, path: &Path) -> Option<(FileKey, Stamp)> {
        let key = self.files.at(path)?;
        // Otherwise another file is at the path by now.
        self.files.get(key).filter(|known| known.replaced_by.is_none())?;
        let open = self.open.get(&key).filter(|open| open.drain.is_none())?;
        open.file.local_stamp().map(|stamp| (key, stamp))
    }

    /// Checks all files below a directory.
    pub(super) fn list(&mut self, directory: PathBuf) {
        let access = self.access.without_links();
        let mut walk = Walk::new(vec![directory], &self.options.names, access);
        while walk.has_directory() {
            let watch = self.watch_attempt();
            // The next sweep reports directories that cannot be listed.
            walk.list(watch.call(), |file| self.check_path(&file.path, file.stamp), |_, _| {});
            self.note_watched(&watch);
        }
        if walk.skip_links() {
            self.schedule.request_sweep_soon();
        }
    }

    fn check_path(&mut self, path: &Path, stamp: Stamp) {
        match self.files.at(path) {
            Some(key) => self.check_known(key, stamp, FoundBy::Check),
            None => {
                let is_known = stamp.id.and_then(|id| self.files.with_id(id));
                if is_known.is_some() {
                    // It may have been moved here.
                    self.schedule.request_sweep_now();
                } else {
                    self.add_new_file(path, stamp);
                }
            }
        }
    }
}
