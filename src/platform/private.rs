//! Files that nobody else may read.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The longest secret file that is read; a longer one is no secret but a mistake.
const LONGEST: u64 = 64 << 10;

/// Reads a file that holds a secret.
///
/// It must be a regular file that belongs to root or to the user, and that no other user may read:
/// mode 0600, or 0640 of root, for a group that the user is in.
///
/// # Errors
/// [`PrivateError`]: the caller reports it and does without the secret.
pub fn read(path: &Path) -> Result<String, PrivateError> {
    let failed = |source| PrivateError::Read { path: path.to_owned(), source };
    let file = open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(PrivateError::NoFile { path: path.to_owned() });
    }
    check(path, &metadata)?;
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LONGEST {
        return Err(PrivateError::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// Opens for writing; a file that is made is for its owner only.
#[must_use]
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Creates `dir` and what is above it, for the owner only.
///
/// # Errors
/// What the system says; a directory that is there is none.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Whether a file belongs to root or to the user.
///
/// # Errors
/// What the system says.
pub fn belongs_to_us(file: &File) -> io::Result<bool> {
    file.metadata().map(|metadata| is_ours(&metadata))
}

/// Whether a directory belongs to the user.
#[must_use]
pub fn is_our_own(dir: &Path) -> bool {
    std::fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && is_ours(&metadata))
}

/// Writes a file for its owner only, in place of the one at `path`: whole or not at all, whenever
/// the power goes.
///
/// # Errors
/// What the system says; what was there is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    write_anew(&beside, bytes)?.sync_all()?;
    settle(&beside, path)
}

/// Writes a file for its owner only, in place of the one at `path`: whole for whoever reads it, but
/// a power cut may take it. That costs no sync, and suits what a start writes anew.
///
/// # Errors
/// What the system says; what was there is still there.
pub fn replace_for_now(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    write_anew(&beside, bytes)?;
    std::fs::rename(beside, path)
}

fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<File> {
    // One that a crash left may have another mode.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().create_new(true).open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    PathBuf::from(beside)
}

/// Gives a file its name.
fn settle(beside: &Path, path: &Path) -> io::Result<()> {
    std::fs::rename(beside, path)?;
    // The new name is as safe as its bytes; Windows syncs no directory.
    #[cfg(unix)]
    File::open(path.parent().unwrap_or(path))?.sync_all()?;
    Ok(())
}

/// Writes a file that others may read as they could before, in place of the one at `path`, which
/// may be a symlink to it: whole or not at all.
///
/// # Errors
/// What the system says; what was there is still there.
pub fn replace_alike(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (path, permissions) = match path.canonicalize() {
        Ok(path) => (path.clone(), Some(std::fs::metadata(path)?.permissions())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(error),
    };
    let beside = beside(&path);
    let written = write_beside(&beside, bytes, permissions).and_then(|()| settle(&beside, &path));
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
    std::fs::metadata(path).is_ok_and(|metadata| mode(&metadata) & 0o004 != 0)
}

/// Whether `path` is a file that can be run.
#[must_use]
pub fn is_executable(path: &Path) -> bool {
    let is_runnable = |metadata: &Metadata| cfg!(not(unix)) || mode(metadata) & 0o111 != 0;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && is_runnable(&metadata))
}

/// Opens without waiting for a writer, should the file be a FIFO.
#[cfg(unix)]
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(nonblocking).open(path)
}

#[cfg(not(unix))]
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).open(path)
}

#[cfg(unix)]
fn mode(metadata: &Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::mode(metadata)
}

/// Windows has no mode.
#[cfg(not(unix))]
fn mode(_: &Metadata) -> u32 {
    0
}

#[cfg(unix)]
fn check(path: &Path, metadata: &Metadata) -> Result<(), PrivateError> {
    use std::os::unix::fs::MetadataExt as _;

    judge(path, metadata.uid(), metadata.mode() & 0o7777, rustix::process::geteuid().as_raw())
}

/// A file below the user's profile is private by the inherited ACL. Whether an ACL lets others in
/// is not checked yet.
#[cfg(not(unix))]
fn check(_: &Path, _: &Metadata) -> Result<(), PrivateError> {
    Ok(())
}

/// Judges a file of `owner` with `mode`, for the user `me`.
#[cfg(unix)]
fn judge(path: &Path, owner: u32, mode: u32, me: u32) -> Result<(), PrivateError> {
    let path = || path.to_owned();
    if owner != 0 && owner != me {
        return Err(PrivateError::Owner { path: path(), owner });
    }
    let group_may_read = if owner == 0 { 0o040 } else { 0 };
    if mode & 0o077 & !group_may_read != 0 {
        return Err(PrivateError::Mode { path: path(), mode });
    }
    Ok(())
}

#[cfg(unix)]
fn is_ours(metadata: &Metadata) -> bool {
    let owner = std::os::unix::fs::MetadataExt::uid(metadata);
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

/// What lies below the user's profile is the user's, by the inherited ACL.
#[cfg(not(unix))]
fn is_ours(_: &Metadata) -> bool {
    true
}

/// Why a file is not taken for a secret.
#[derive(Debug, thiserror::Error)]
pub enum PrivateError {
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
        "the secret file `{path}` belongs to user {owner}, who could change it: it must belong to \
         root or to you, mend it with `chown \"$USER\" '{path}'`",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// The id of its owner.
        owner: u32,
    },
    /// Others may read or change it.
    #[error(
        "the secret file `{path}` has mode {mode:04o}, so others can read or change it: mend it \
         with `chmod 600 '{path}'`",
        path = path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl PrivateError {
    /// Whether nothing lies there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        let Self::Read { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const ROOT: u32 = 0;
    const ME: u32 = 1000;
    const OTHER: u32 = 1001;

    #[test]
    fn takes_private_files_of_root_and_oneself_only() {
        let judge = |owner, mode| judge(Path::new("/s"), owner, mode, ME).is_ok();
        for mode in [0o600, 0o400, 0o700] {
            assert!(judge(ME, mode), "{mode:o}");
        }
        for mode in [0o600, 0o640, 0o440] {
            assert!(judge(ROOT, mode), "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o644, 0o620, 0o602, 0o660, 0o666, 0o610] {
            assert!(!judge(ME, mode), "{mode:o}");
        }
        for mode in [0o644, 0o660, 0o604, 0o642] {
            assert!(!judge(ROOT, mode), "{mode:o}");
        }
        assert!(!judge(OTHER, 0o600));
    }

    #[test]
    fn says_how_to_mend() {
        let error = judge(Path::new("/s"), ME, 0o644, ME).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret file `/s` has mode 0644, so others can read or change it: mend it with \
             `chmod 600 '/s'`"
        );
        let error = judge(Path::new("/s"), OTHER, 0o600, ME).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret file `/s` belongs to user 1001, who could change it: it must belong to \
             root or to you, mend it with `chown \"$USER\" '/s'`"
        );
    }

    #[test]
    fn reads_a_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cr3t\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap(), "s3cr3t\n");
        assert!(!is_readable_by_all(&path));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(read(&path), Err(PrivateError::Mode { mode: 0o604, .. })));
        assert!(is_readable_by_all(&path));
    }

    #[test]
    fn refuses_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(PrivateError::NoFile { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(PrivateError::Read { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn does_not_wait_for_the_writer_of_a_fifo() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(matches!(read(&fifo), Err(PrivateError::NoFile { .. })));
    }

    #[test]
    fn refuses_a_file_too_long_for_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "x".repeat(70_000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read(&path), Err(PrivateError::TooLong { .. })));
    }
}
