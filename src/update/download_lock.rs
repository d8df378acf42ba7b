//! Lock of the directory of downloads.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use siem_protocol::agent_event::UpdateReason;

use super::{error::UpdateError, program_files::lock};
use crate::platform::secure_file;

/// Name of the lock's file.
pub(super) const FILE: &str = "download.lock";

/// Lock of a directory of downloads, held while a release is downloaded and tested. The program has
/// [another one](super::program_files::UpdateLock), so that a rollback does not wait for a download. Released
/// when dropped, and by the system when the process dies.
#[derive(Debug)]
pub(crate) struct DownloadLock {
    dir: PathBuf,
    /// Locked as long as it is open.
    _file: File,
}

impl DownloadLock {
    /// Takes the lock of `dir`, which is created.
    ///
    /// # Errors
    /// [`UpdateError`]: another process holds it, or the directory cannot be used.
    pub(crate) fn take(dir: &Path) -> Result<Self, UpdateError> {
        Self::try_take(dir).map_err(|error| match error.kind() {
            // The next check finds the result.
            io::ErrorKind::WouldBlock => {
                UpdateError::unavailable(UpdateReason::Busy, "another process downloads a release")
            }
            _ => UpdateError::file("cannot use the directory of downloads", &error),
        })
    }

    fn try_take(dir: &Path) -> io::Result<Self> {
        secure_file::create_dir(dir)?;
        // Files in the target of a symlink are not the agent's.
        secure_file::check_own_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), _file: lock(&dir.join(FILE))? })
    }

    /// The directory that the lock protects.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}
