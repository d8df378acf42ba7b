//! Targets of symlinks, and of junctions on Windows.

use std::{
    fs::{self, File},
    io,
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

/// Same as [`belongs_to_user`] for an open file: its path may lead to another file by now.
///
/// # Errors
/// The error of the system.
pub fn file_belongs_to_user(file: &File, root: &Path) -> io::Result<bool> {
    system::file_belongs_to_user(file, root)
}

/// Returns whether the path `below` in the directory `root` leads to the open `file` and contains no
/// symlink.
///
/// On Unix each directory is opened relative to the one above, so that a directory that is replaced
/// by a symlink during the call does not count.
///
/// # Errors
/// The error of the system.
pub fn is_reached_without_links(file: &File, root: &Path, below: &Path) -> io::Result<bool> {
    match system::is_reached_without_links(file, root, below) {
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        result => result,
    }
}

#[cfg(unix)]
mod system {
    use std::{
        fs::{self, File, Metadata},
        io,
        os::unix::fs::MetadataExt as _,
        path::Path,
    };

    use rustix::{
        fs::{AtFlags, Mode, OFlags, fstat, open, openat, statat},
        io::Errno,
    };

    #[cfg(target_os = "linux")]
    const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    #[cfg(not(target_os = "linux"))]
    const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

    pub(super) fn belongs_to_user(target: &Path, root: &Path) -> io::Result<bool> {
        is_of_user(&fs::metadata(target)?, root)
    }

    pub(super) fn file_belongs_to_user(file: &File, root: &Path) -> io::Result<bool> {
        is_of_user(&file.metadata()?, root)
    }

    fn is_of_user(metadata: &Metadata, root: &Path) -> io::Result<bool> {
        let (owner, user) = (metadata.uid(), rustix::process::geteuid());
        let is_user = !user.is_root() && owner == user.as_raw();
        Ok(is_user || owner == fs::metadata(root)?.uid())
    }

    pub(super) fn is_reached_without_links(
        file: &File,
        root: &Path,
        below: &Path,
    ) -> io::Result<bool> {
        let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else {
            return Ok(false);
        };
        let mut directory = open(root, DIRECTORY, Mode::empty())?;
        for component in parent.components() {
            let flags = DIRECTORY | OFlags::NOFOLLOW;
            directory = match openat(&directory, component.as_os_str(), flags, Mode::empty()) {
                Ok(directory) => directory,
                Err(Errno::LOOP) => return Ok(false),
                Err(error) => return Err(error.into()),
            };
        }
        let (found, opened) = (statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?, fstat(file)?);
        Ok((found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino))
    }
}

#[cfg(windows)]
mod system {
    use std::{
        fs::{File, OpenOptions},
        io,
        os::windows::fs::OpenOptionsExt as _,
        path::Path,
    };

    use crate::platform::{
        file::{self, FileKind, Stamp},
        secure_file,
    };

    /// `READ_CONTROL`: allowed with any sharing mode of other processes.
    const READ_CONTROL: u32 = 0x0002_0000;
    /// `FILE_FLAG_BACKUP_SEMANTICS`: opens directories too.
    const BACKUP_SEMANTICS: u32 = 0x0200_0000;

    pub(super) fn belongs_to_user(target: &Path, _: &Path) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        options.access_mode(READ_CONTROL).custom_flags(BACKUP_SEMANTICS);
        secure_file::has_trusted_owner(&options.open(target)?)
    }

    pub(super) fn file_belongs_to_user(file: &File, _: &Path) -> io::Result<bool> {
        secure_file::has_trusted_owner(file)
    }

    pub(super) fn is_reached_without_links(
        file: &File,
        root: &Path,
        below: &Path,
    ) -> io::Result<bool> {
        let mut path = root.to_owned();
        let mut last = None;
        for component in below.components() {
            if last.is_some_and(|kind| kind != FileKind::Directory) {
                return Ok(false);
            }
            path.push(component);
            last = Some(file::inspect(&path)?.kind);
        }
        Ok(last == Some(FileKind::File) && file::inspect(&path)?.stamp.id == Stamp::of(file)?.id)
    }
}
