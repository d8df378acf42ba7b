//! Owner and mode of files on Unix.

use std::{
    fs::{DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::error::SecretFileError;

pub(super) fn for_owner_only(options: &mut OpenOptions) {
    options.mode(0o600);
}

/// Makes `options` follow no symlink, and not block on a FIFO.
pub(super) fn without_traps(options: &mut OpenOptions) {
    use rustix::fs::OFlags;

    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
}

pub(super) fn is_symlink(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP)
}

/// Returns whether an error means that a path is a FIFO without a reader, or a socket.
pub(super) fn is_fifo_or_socket(error: &io::Error) -> bool {
    use rustix::io::Errno;

    matches!(Errno::from_io_error(error), Some(Errno::NXIO | Errno::OPNOTSUPP))
}

pub(super) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

pub(super) fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Opens a file without blocking if it is a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(nonblocking).open(path)
}

/// Same as [`open`], and follows no symlink.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;

    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Syncs a directory after a rename.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn check(path: &Path, file: &File) -> Result<(), SecretFileError> {
    let metadata = file
        .metadata()
        .map_err(|source| SecretFileError::Read { path: path.to_owned(), source })?;
    check_secret(
        path,
        metadata.uid(),
        metadata.mode() & 0o7777,
        rustix::process::geteuid().as_raw(),
    )
}

/// Checks owner and mode of a file, for the user `me`.
fn check_secret(path: &Path, owner: u32, mode: u32, me: u32) -> Result<(), SecretFileError> {
    let shown = path.display();
    if owner != 0 && owner != me {
        return Err(SecretFileError::Owner {
            path: path.to_owned(),
            owner: format!("user {owner}"),
            allowed_owner: "root or to you",
            remedy: format!("`chown \"$USER\" '{shown}'`"),
        });
    }
    let group_may_read = if owner == 0 { 0o040 } else { 0 };
    if mode & 0o077 & !group_may_read != 0 {
        return Err(SecretFileError::Open {
            path: path.to_owned(),
            open: format!("has mode {mode:04o}, so others can read or change it"),
            remedy: format!("`chmod 600 '{shown}'`"),
        });
    }
    Ok(())
}

pub(super) fn is_ours(file: &File) -> io::Result<bool> {
    file.metadata().map(|metadata| is_of_us(&metadata))
}

pub(super) fn is_trusted_dir(dir: &Path) -> io::Result<bool> {
    std::fs::metadata(dir).map(|metadata| is_of_us(&metadata))
}

fn is_of_us(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == rustix::process::geteuid().as_raw()
}

pub(super) fn access_by_others(dir: &Path) -> io::Result<Option<String>> {
    let mode = std::fs::metadata(dir)?.mode() & 0o7777;
    Ok((mode & 0o077 != 0).then(|| format!("has mode {mode:04o}")))
}

pub(super) fn is_readable_by_all(path: &Path) -> io::Result<bool> {
    std::fs::metadata(path).map(|metadata| metadata.mode() & 0o004 != 0)
}

pub(super) fn is_runnable(metadata: &Metadata) -> bool {
    metadata.mode() & 0o111 != 0
}

pub(super) fn restrict_command(_: &Path) -> String {
    "`chmod o-r`".to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::{
        super::{is_readable_by_all, read},
        *,
    };

    const ROOT: u32 = 0;
    const ME: u32 = 1000;
    const OTHER: u32 = 1001;

    #[test]
    fn secret_must_be_private_to_root_or_the_user() {
        let check_secret = |owner, mode| check_secret(Path::new("/s"), owner, mode, ME).is_ok();
        for mode in [0o600, 0o400, 0o700] {
            assert!(check_secret(ME, mode), "{mode:o}");
        }
        for mode in [0o600, 0o640, 0o440] {
            assert!(check_secret(ROOT, mode), "{mode:o}");
        }
        for mode in [0o640, 0o604, 0o644, 0o620, 0o602, 0o660, 0o666, 0o610] {
            assert!(!check_secret(ME, mode), "{mode:o}");
        }
        for mode in [0o644, 0o660, 0o604, 0o642] {
            assert!(!check_secret(ROOT, mode), "{mode:o}");
        }
        assert!(!check_secret(OTHER, 0o600));
    }

    #[test]
    fn error_contains_the_command_that_fixes_it() {
        let error = check_secret(Path::new("/s"), ME, 0o644, ME).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret file `/s` has mode 0644, so others can read or change it: fix it with \
             `chmod 600 '/s'`"
        );
        let error = check_secret(Path::new("/s"), OTHER, 0o600, ME).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the secret file `/s` belongs to user 1001, who could change it: it must belong to \
             root or to you, fix it with `chown \"$USER\" '/s'`"
        );
    }

    #[test]
    fn private_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cr3t\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read(&path).unwrap(), "s3cr3t\n");
        assert!(!is_readable_by_all(&path));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(matches!(read(&path), Err(SecretFileError::Open { .. })));
        assert!(is_readable_by_all(&path));
    }

    #[test]
    fn directory_and_missing_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(SecretFileError::NoFile { .. })));
        assert!(matches!(read(&dir.path().join("none")), Err(SecretFileError::Read { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn fifo_is_refused_without_blocking() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(matches!(read(&fifo), Err(SecretFileError::NoFile { .. })));
    }

    /// The hook of Claude Code waited for ever for a reader, until its prompt was let through.
    #[cfg(target_os = "linux")]
    #[test]
    fn own_file_that_is_a_fifo_is_refused_without_blocking() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};

        use super::super::{NotRegularFile, open, options};

        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let is_refused = || {
            let error = open(options().append(true), &fifo).unwrap_err();
            error.get_ref().is_some_and(|inner| inner.is::<NotRegularFile>())
        };
        assert!(is_refused(), "without a reader");
        let _reader = super::open(&fifo).unwrap();
        assert!(is_refused(), "with a reader");
    }

    #[test]
    fn own_file_or_directory_that_is_a_symlink_is_refused() {
        use super::super::{check_own_dir, open, options, read_own};

        let dir = tempfile::tempdir().unwrap();
        let (file, target) = (dir.path().join("agent.lock"), dir.path().join("precious"));
        fs::write(&target, "precious").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&target, &file).unwrap();
        let error = open(options().truncate(true), &file).unwrap_err().to_string();
        assert!(error.contains("agent.lock` is a symbolic link"), "{error}");
        assert!(matches!(read_own(&file), Err(SecretFileError::NoFile { .. })));
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink(dir.path().join("none"), &dangling).unwrap();
        assert!(open(options().append(true), &dangling).is_err());
        assert!(!dir.path().join("none").try_exists().unwrap(), "nothing is created behind it");

        let (spool, elsewhere) = (dir.path().join("spool"), dir.path().join("elsewhere"));
        create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &spool).unwrap();
        assert!(check_own_dir(&elsewhere).is_ok());
        assert!(check_own_dir(&spool).unwrap_err().to_string().contains("symbolic link"));
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o722)).unwrap();
        let error = check_own_dir(&elsewhere).unwrap_err();
        assert!(error.to_string().contains("chmod 700"), "{error}");
    }

    #[test]
    fn oversized_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "x".repeat(70_000)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(read(&path), Err(SecretFileError::TooLong { .. })));
    }
}
