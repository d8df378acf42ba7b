//! Files that nobody else may read.

#[cfg(any(windows, test))]
mod access;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

/// The longest secret file that is read; a longer one is no secret but a mistake.
const LONGEST: u64 = 64 << 10;

/// Reads a file that holds a secret.
///
/// It must be a regular file that belongs to root or to the user, and that no other user may read:
/// mode 0600, or 0640 of root, for a group that the user is in. On Windows its access list says the
/// same, as in `access`.
///
/// # Errors
/// [`SecretFileError`]: the caller reports it and does without the secret.
pub fn read(path: &Path) -> Result<String, SecretFileError> {
    let failed = |source| SecretFileError::Read { path: path.to_owned(), source };
    let file = system::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretFileError::NoFile { path: path.to_owned() });
    }
    system::check(path, &file)?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(SecretFileError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Opens for writing; a file that is made is for its owner only. On Windows it is for those that its
/// directory is for: see [`create_dir`].
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    system::for_owner_only(&mut options);
    options
}

/// Creates a file that is not there yet, for its owner only, wherever it lies.
///
/// # Errors
/// What the system says.
pub fn create_new(path: &Path) -> io::Result<File> {
    system::create_new(path)
}

/// Creates `dir` and what is above it, for the owner only.
///
/// # Errors
/// What the system says; a directory that is there is none.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    system::create_dir(dir)
}

/// How a directory is open to other users, if it is; none where that can't be known.
#[must_use]
pub fn access_by_others(dir: &Path) -> Option<String> {
    system::access_by_others(dir).ok().flatten()
}

/// Whether a file belongs to root, to the administrators of Windows, or to the user.
///
/// # Errors
/// What the system says.
pub fn has_trusted_owner(file: &File) -> io::Result<bool> {
    system::is_ours(file)
}

/// Whether a directory belongs to the user.
#[must_use]
pub fn is_trusted_dir(dir: &Path) -> bool {
    dir.is_dir() && system::is_trusted_dir(dir).unwrap_or(false)
}

/// Writes a file for its owner only, in place of the one at `path`: whole or not at all, whenever
/// the power goes.
///
/// # Errors
/// What the system says; what was there is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    // It is closed: Windows grants no other name to a file that is kept from others.
    write_new(&beside, bytes)?.sync_all()?;
    commit_rename(&beside, path)
}

/// Writes a file for its owner only, in place of the one at `path`: whole for whoever reads it, but
/// a power cut may take it. That costs no sync, and suits what a start writes anew.
///
/// # Errors
/// What the system says; what was there is still there.
pub fn replace_without_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    write_new(&beside, bytes)?;
    std::fs::rename(beside, path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    // One that a crash left may have another mode.
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

/// Gives a file its name.
fn commit_rename(beside: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(beside, path)?;
    system::sync_dir(path.parent().unwrap_or(path))
}

/// Writes a file that others may read as they could before, in place of the one at `path`, which
/// may be a symlink to it: whole or not at all.
///
/// # Errors
/// What the system says; what was there is still there.
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
    // As others make theirs, where there was none.
    let mut file = File::create(beside)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(bytes)?;
    file.sync_all()
}

/// Whether every user of the machine may read `path`; false where that can't be known.
#[must_use]
pub fn is_readable_by_all(path: &Path) -> bool {
    system::is_readable_by_all(path).unwrap_or(false)
}

/// The command that keeps all others from reading `path`.
#[must_use]
pub fn restrict_command(path: &Path) -> String {
    system::restrict_command(path)
}

/// Whether `path` is a file that can be run.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && system::is_runnable(&metadata))
}

/// Why a file is not taken for a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It can't be read.
    #[error("cannot read the secret file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is a directory, a FIFO or a device.
    #[error("the secret file `{}` is no regular file", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// It is too long for a secret.
    #[error("the secret file `{}` is longer than 64 KiB", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It belongs to someone else.
    #[error(
        "the secret file `{path}` belongs to {owner}, who could change it: it must belong to \
         {allowed_owner}, remedy it with {remedy}",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner, as the system calls them.
        owner: String,
        /// To whom it may belong.
        allowed_owner: &'static str,
        /// The command that mends it.
        remedy: String,
    },
    /// Others may read or change it.
    #[error("the secret file `{path}` {open}: remedy it with {remedy}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// How it is open to others.
        open: String,
        /// The command that mends it.
        remedy: String,
    },
}

impl SecretFileError {
    /// Whether nothing lies there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        let Self::Read { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }
}
