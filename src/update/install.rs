//! Installation of a verified release.

use std::{io, path::Path, time::Duration};

use siem_protocol::{agent_event::UpdateReason, update::UpdateRelease};

use super::{
    download_lock::DownloadLock,
    error::UpdateError,
    program_files::{ProgramFiles, UpdateLock},
    self_test::{remove_copies, self_test},
    steps, supervisor,
    swap::{self, NewProgram},
};
use crate::{
    platform::{Timestamp, own_program},
    version::version,
};

/// Longest time to wait for another process that changes the files of the program.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A verified release, and the program that it is to replace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Installation<'a> {
    /// File with the new program, in the directory of `downloads`.
    pub(crate) staged: &'a Path,
    /// Lock of the directory.
    pub(crate) downloads: &'a DownloadLock,
    pub(crate) release: &'a UpdateRelease,
    /// Program to replace.
    pub(crate) files: &'a ProgramFiles,
    /// File of `--config`, with which the new program is tested.
    pub(crate) config: Option<&'a Path>,
    pub(crate) at: Timestamp,
    /// True if a process is started that brings the previous program back if the new one does not even
    /// start.
    pub(crate) is_supervised: bool,
}

impl Installation<'_> {
    /// Tests the verified file with the configuration of this machine, and puts it into the place of the
    /// program. From the next start on it runs, and must prove that it makes progress. Blocks for up to a
    /// minute.
    ///
    /// # Errors
    /// [`UpdateError`]; the program is unchanged.
    pub(crate) fn run(&self) -> Result<(), UpdateError> {
        let Self { staged, release, files, .. } = *self;
        let to = &*release.version.to_string();
        own_program::make_executable(staged)
            .map_err(|error| UpdateError::file("cannot make the download executable", &error))?;
        let tested = self_test(staged, to, self.config);
        // One that hangs or crashes leaves its own.
        remove_copies(self.downloads.dir());
        tested?;
        let lock = lock(files)?;
        let supervise = || match self.is_supervised {
            true => supervisor::start(files),
            false => Ok(()),
        };
        let new = NewProgram { staged, sha256: release.sha256, from: version(), to, at: self.at };
        swap::install(&lock, &new, &supervise, &steps::reach)?;
        Ok(())
    }
}

/// Takes the lock of a program.
///
/// # Errors
/// [`UpdateError`]: another process holds it for long, or the program cannot be replaced.
pub(crate) fn lock(files: &ProgramFiles) -> Result<UpdateLock, UpdateError> {
    UpdateLock::take_within(files, LOCK_WAIT).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => {
            UpdateError::unavailable(UpdateReason::Busy, "another process installs an update")
        }
        _ => UpdateError::file("cannot lock the program", &error),
    })
}
