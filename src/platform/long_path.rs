//! Files whose path is longer than a system call accepts: `PATH_MAX` is 4,096 bytes on Linux and
//! 1,024 on macOS. Their directories are opened one after the other, each relative to the one before.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, openat},
    io::Errno,
};

/// Largest number of bytes of a path that is passed to a system call, a last component included.
const STEP: usize = 700;
/// Largest length of a path that is opened, in bytes: a bound on the number of steps.
const MAX_LENGTH: usize = 1 << 20;

/// Entry of a directory: its path, and its kind if the listing contains it.
pub(super) type LongEntry = (PathBuf, FileType);

/// Returns true if the length of the whole path, and not of a component, is the reason of an error.
pub(super) fn is_too_long(error: &io::Error, path: &Path) -> bool {
    let len = path.as_os_str().len();
    Errno::from_io_error(error) == Some(Errno::NAMETOOLONG) && (STEP..MAX_LENGTH).contains(&len)
}

/// Opens the file at `path`, which must be absolute; a symlink as the last component is not
/// followed.
pub(super) fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let (directory, name) = open_parent(path)?;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}

/// Opens the file at `path` to read its metadata only.
pub(super) fn open_for_metadata(path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    const FLAGS: OFlags = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    const FLAGS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY);
    open(path, FLAGS)
}

/// Lists the directory at `path`.
pub(super) fn list(path: &Path) -> io::Result<impl Iterator<Item = io::Result<LongEntry>> + use<>> {
    let (parent, name) = open_parent(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = Dir::new(openat(parent, name, flags, Mode::empty())?)?;
    let above = path.to_owned();
    let entries = directory.filter(|entry| {
        let is_itself = |name: &[u8]| matches!(name, b"." | b"..");
        !entry.as_ref().is_ok_and(|entry| is_itself(entry.file_name().to_bytes()))
    });
    Ok(entries.map(move |entry| {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        Ok((above.join(name), entry.file_type()))
    }))
}

/// Opens the directory that contains `path`; returns it with the last component.
fn open_parent(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    #[cfg(target_os = "linux")]
    const FLAGS: OFlags = OFlags::PATH;
    #[cfg(not(target_os = "linux"))]
    const FLAGS: OFlags = OFlags::RDONLY;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let flags = FLAGS | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut opened: Option<OwnedFd> = None;
    let mut step = PathBuf::new();
    for component in parent.components() {
        if step.as_os_str().len() + component.as_os_str().len() >= STEP {
            opened = Some(open_step(opened.as_ref(), &step, flags)?);
            step.clear();
        }
        step.push(component);
    }
    Ok((open_step(opened.as_ref(), &step, flags)?, name.to_owned()))
}

fn open_step(opened: Option<&OwnedFd>, step: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(match opened {
        Some(above) => openat(above, step, flags, Mode::empty())?,
        None => openat(CWD, step, flags, Mode::empty())?,
    })
}
