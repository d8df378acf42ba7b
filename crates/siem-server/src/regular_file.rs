//! Reads regular files only: a FIFO would block its reader, and a device may never end.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    path::Path,
};

/// Reads a regular file, or one that a link leads to.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if `path` is anything else, or larger than `limit` bytes; errors of
/// the file system.
pub(crate) fn read_regular_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular_file(path)?;
    let mut bytes = Vec::new();
    // Files of /proc have no size, and a file may grow while it is read.
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text = format!("larger than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(bytes)
}

/// Reads a regular file of any size, or one that a link leads to.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if `path` is anything else; errors of the file system.
pub(crate) fn read_whole_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular_file(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file for reading, or one that a link leads to.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if `path` is anything else; errors of the file system.
pub(crate) fn open_regular_file(path: &Path) -> io::Result<File> {
    check_regular(open_with(path, true)?)
}

/// Returns an open file if it is a regular one.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if it is anything else.
pub(crate) fn check_regular(file: File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Opens a file without waiting for a writer of a FIFO, unless `path` is a symbolic link.
///
/// # Errors
/// Errors of the file system.
pub(crate) fn open_without_link(path: &Path) -> io::Result<File> {
    if cfg!(not(unix)) && std::fs::symlink_metadata(path)?.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link"));
    }
    open_with(path, false)
}

fn open_with(path: &Path, follows_links: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;

        use rustix::fs::OFlags;

        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = if follows_links { flags } else { flags | OFlags::NOFOLLOW };
        options.custom_flags(flags.bits().cast_signed());
    }
    #[cfg(not(unix))]
    let _ = follows_links;
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"four").unwrap();
        assert_eq!(read_regular_file(&path, 4).unwrap(), b"four");
        let kind = |path: &Path, limit| read_regular_file(path, limit).unwrap_err().kind();
        assert_eq!(kind(&path, 3), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&folder.path().join("absent"), 4), io::ErrorKind::NotFound);
        assert!(read_regular_file(folder.path(), 4).is_err());
        #[cfg(unix)]
        {
            let fifo = folder.path().join("fifo");
            let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
            assert!(made.success());
            assert_eq!(kind(&fifo, 4), io::ErrorKind::InvalidInput);
            assert_eq!(read_whole_file(&fifo).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(kind(Path::new("/dev/zero"), 4), io::ErrorKind::InvalidInput);
        }
    }
}
