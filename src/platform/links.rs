//! Targets of symlinks, and of junctions on Windows.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::file::{self, FileInfo};

/// The file or directory that a symlink leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    /// Path without symlinks.
    pub path: PathBuf,
    /// Kind and stamp.
    pub info: FileInfo,
}

/// Returns the path without symlinks.
///
/// # Errors
/// The error of the system.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    #[cfg(all(test, unix))]
    super::faults::check(super::faults::Call::Stat, path)?;
    fs::canonicalize(path)
}

/// Follows the symlink at `link`, and further ones, to the end.
///
/// # Errors
/// The error of the system; `NotFound` if a link leads to nothing.
pub fn resolve(link: &Path) -> io::Result<LinkTarget> {
    let path = canonical(link)?;
    let info = file::inspect(&path)?;
    Ok(LinkTarget { path, info })
}

/// Returns whether `target` belongs to the user of the agent or to the owner of `root`. For an agent
/// that runs as root only the latter counts: any user can create a link to a file of root.
///
/// On Windows the administrators count as the user, since files that they create are theirs.
///
/// # Errors
/// The error of the system.
pub fn belongs_to_user(target: &Path, root: &Path) -> io::Result<bool> {
    system::belongs_to_user(target, root)
}

#[cfg(unix)]
mod system {
    use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

    pub(super) fn belongs_to_user(target: &Path, root: &Path) -> io::Result<bool> {
        let (owner, user) = (fs::metadata(target)?.uid(), rustix::process::geteuid());
        let is_user = !user.is_root() && owner == user.as_raw();
        Ok(is_user || owner == fs::metadata(root)?.uid())
    }
}

#[cfg(windows)]
mod system {
    use std::{fs::OpenOptions, io, os::windows::fs::OpenOptionsExt as _, path::Path};

    use crate::platform::secure_file;

    /// `READ_CONTROL`: allowed with any sharing mode of other processes.
    const READ_CONTROL: u32 = 0x0002_0000;
    /// `FILE_FLAG_BACKUP_SEMANTICS`: opens directories too.
    const BACKUP_SEMANTICS: u32 = 0x0200_0000;

    pub(super) fn belongs_to_user(target: &Path, _: &Path) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        options.access_mode(READ_CONTROL).custom_flags(BACKUP_SEMANTICS);
        secure_file::has_trusted_owner(&options.open(target)?)
    }
}
