//! Removal of downloads.

use std::{fs, path::Path};

use super::{download_lock::DownloadLock, self_test::remove_copies};

/// Removes all downloads, and what their tests have left, unless another process uses them.
pub(crate) fn remove_downloads(dir: &Path) {
    // No lock is made where no download was.
    if dir.is_dir()
        && let Ok(lock) = DownloadLock::take(dir)
    {
        remove_all_downloads(lock.dir());
    }
}

/// Same as [`remove_downloads`], even while another process uses them.
pub(super) fn remove_all_downloads(dir: &Path) {
    remove_others(dir, Path::new(""));
    remove_copies(dir);
}

/// Removes all downloads but the one at `path`. The caller holds the lock.
pub(super) fn remove_others(dir: &Path, path: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        // Other files are not downloads.
        let is_download = name.to_str().is_some_and(|name| name.starts_with("ai-agent-"));
        if is_download && entry.path() != path {
            drop(fs::remove_file(entry.path()));
        }
    }
}
