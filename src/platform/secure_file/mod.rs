//! Files that other users cannot read.

#[cfg(any(windows, test))]
mod access;
mod error;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

pub use error::SecretFileError;
#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;
use zeroize::Zeroizing;

use super::{
    call_scope::in_scope,
    file,
    state_dir::{self, DirUse},
};

/// Maximum size of a secret file; a longer one is a mistake.
const LONGEST: u64 = 64 << 10;

/// Reads a file that contains a secret.
///
/// It must be a regular file of root or the user that no other user may read: mode 0600, or 0640 if
/// it belongs to root, for a group of the user. On Windows the access list must state the same, see
/// `access`. In a [scope](super::bounded::BoundedCalls::scope) the time is limited.
///
/// # Errors
/// [`SecretFileError`]: the caller reports it and continues without the secret.
pub fn read(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let of_call = path.to_owned();
    in_scope(path, move || Ok(read_at_once(&of_call)))
        .unwrap_or_else(|source| Err(SecretFileError::Read { path: path.to_owned(), source }))
}

fn read_at_once(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let opened = system::open(path);
    read_opened(
        path,
        opened.map_err(|source| SecretFileError::Read { path: path.to_owned(), source })?,
    )
}

fn read_opened(path: &Path, file: File) -> Result<Zeroizing<String>, SecretFileError> {
    let failed = |source| SecretFileError::Read { path: path.to_owned(), source };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretFileError::NoFile { path: path.to_owned() });
    }
    system::check(path, &file)?;
    // With enough capacity, so that no copy is left behind when it grows.
    let capacity = metadata.len().min(LONGEST) + 1;
    let mut text = Zeroizing::new(String::with_capacity(usize::try_from(capacity).unwrap_or(0)));
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(SecretFileError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Reads a file of the agent's own that contains a secret, as [`read`] does, and follows no symlink.
///
/// # Errors
/// [`SecretFileError`].
pub fn read_own(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    match system::open_own(path) {
        Ok(file) => read_opened(path, file),
        Err(error) if system::is_symlink(&error) => {
            Err(SecretFileError::NoFile { path: path.to_owned() })
        }
        Err(source) => Err(SecretFileError::Read { path: path.to_owned(), source }),
    }
}

/// Returns options to write a file of the agent's own, to be opened with [`open`]; a new file is
/// accessible to its owner only. On Windows it inherits the access rules of its directory: see
/// [`create_dir`].
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    system::for_owner_only(&mut options);
    options
}

/// Opens a file of the agent's own. On Unix a symlink is not followed: another program could direct
/// the agent to any file of the user. Never blocks on a FIFO.
///
/// # Errors
/// The error of the system; as its inner error [`SymlinkRefused`] for a symlink, [`NotRegularFile`] for
/// a FIFO, a socket or a device.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    system::without_traps(options);
    let not_regular = || io::Error::other(NotRegularFile { path: path.to_owned() });
    match options.open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(not_regular()),
        Err(error) if system::is_symlink(&error) => {
            Err(io::Error::other(SymlinkRefused { path: path.to_owned() }))
        }
        Err(error) if system::is_fifo_or_socket(&error) => Err(not_regular()),
        Err(error) => Err(error),
    }
}

/// Reads a file of the agent's own of at most `most` bytes, as [`open`] opens it.
///
/// # Errors
/// As [`open`], the error of the system, or that the file is larger.
pub fn read_bytes(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = open(OpenOptions::new().read(true), path)?;
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(file::too_large(most));
    }
    Ok(bytes)
}

/// A FIFO, a socket or a device is in the place of a file of the agent's own.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a regular file: remove it", path.display())]
pub struct NotRegularFile {
    path: PathBuf,
}

/// A symlink is in the place of a file or directory of the agent's own.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is a symbolic link, which the agent does not follow: remove it (to keep the state on another \
     disk, set `state_dir` under `[agent]`)",
    path.display()
)]
pub struct SymlinkRefused {
    path: PathBuf,
}

/// Checks that a directory of the agent's own is no symlink, belongs to the user of the process, and
/// that no other user can write to it.
///
/// # Errors
/// The error of the system, `NotFound` if it does not exist; [`SymlinkRefused`] as its inner error for
/// a symlink, `PermissionDenied` with the reason and the remedy otherwise.
pub fn check_own_dir(dir: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(dir)?;
    if found.is_symlink() {
        return Err(io::Error::other(SymlinkRefused { path: dir.to_owned() }));
    }
    state_dir::check(dir, DirUse::Write)
        .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))
}

/// Creates a new file, accessible to its owner only, in any directory.
///
/// # Errors
/// The error of the system.
pub fn create_new(path: &Path) -> io::Result<File> {
    system::create_new(path)
}

/// Creates `dir` and its parents, accessible to the owner only.
///
/// # Errors
/// The error of the system; an existing directory is not an error.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    system::create_dir(dir)
}

/// Describes the access that other users have to a directory; `None` if there is none, or if it is
/// unknown.
#[must_use]
pub fn access_by_others(dir: &Path) -> Option<String> {
    system::access_by_others(dir).ok().flatten()
}

/// Returns whether a file belongs to root, to the administrators of Windows, or to the user.
///
/// # Errors
/// The error of the system.
pub fn has_trusted_owner(file: &File) -> io::Result<bool> {
    system::is_ours(file)
}

/// Returns whether a directory belongs to root, to the administrators of Windows, or to the user.
#[must_use]
pub fn is_trusted_dir(dir: &Path) -> bool {
    dir.is_dir() && system::is_trusted_dir(dir).unwrap_or(false)
}

/// Replaces the file at `path` atomically, even in a power cut; it is accessible to its owner only.
///
/// # Errors
/// The error of the system; the previous file is unchanged.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    // The file is closed first: Windows does not rename a file that is opened without sharing.
    write_new(&beside, bytes)?.sync_all()?;
    commit_rename(&beside, path)
}

/// Replaces the file at `path` atomically for readers; a power cut may lose it. That needs no sync,
/// and suits files that are written again at each start.
///
/// # Errors
/// The error of the system; the previous file is unchanged.
pub fn replace_without_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    write_new(&beside, bytes)?;
    std::fs::rename(beside, path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    // A leftover of a crash may have another mode.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create_new(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    PathBuf::from(beside)
}

/// Syncs a directory, so that a power cut does not undo a rename in it.
///
/// # Errors
/// The error of the system.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    system::sync_dir(dir)
}

/// Renames a file and syncs its directory.
fn commit_rename(beside: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(beside, path)?;
    system::sync_dir(path.parent().unwrap_or(path))
}

/// Replaces the file at `path`, or the target of a symlink there, atomically and with the same
/// permissions.
///
/// # Errors
/// The error of the system; the previous file is unchanged.
pub fn replace_preserving_mode(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (path, permissions) = match path.canonicalize() {
        Ok(path) => (path.clone(), Some(std::fs::metadata(path)?.permissions())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let beside = beside(&path);
    let written =
        write_beside(&beside, bytes, permissions).and_then(|()| commit_rename(&beside, &path));
    written.inspect_err(|_| drop(std::fs::remove_file(&beside)))
}

fn write_beside(
    beside: &Path,
    bytes: &[u8],
    permissions: Option<std::fs::Permissions>,
) -> io::Result<()> {
    // A new file gets the default permissions.
    let mut file = File::create(beside)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Returns whether every user of the machine may read `path`; false if unknown.
#[must_use]
pub fn is_readable_by_all(path: &Path) -> bool {
    let of_call = path.to_owned();
    in_scope(path, move || system::is_readable_by_all(&of_call)).unwrap_or(false)
}

/// Returns the command that removes read access for other users.
#[must_use]
pub fn restrict_command(path: &Path) -> String {
    system::restrict_command(path)
}

/// Returns whether `path` is an executable file.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && system::is_runnable(&metadata))
}
