//! Atomic replacement of files that other users may read.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use crate::store::sync_directory;

/// Replaces a file so that a reader, and a restart after a crash, sees its old or its new content.
///
/// # Errors
/// Errors of the file system; the file is unchanged.
pub fn replace_public_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = File::create(temporary)?;
    file.write_all(content)?;
    share_as_directory(&file, parent)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_directory(parent)
}

/// Lets those read a file who may read its directory, whatever the umask of the process is: a receiver that
/// runs as another user must be able to read what a command wrote.
#[cfg(unix)]
pub(crate) fn share_as_directory(file: &File, directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};

    let (found, directory) = (file.metadata()?, fs::metadata(directory)?);
    if found.gid() != directory.gid() {
        // Only members of the group may do that.
        drop(fchown(file, None, Some(directory.gid())));
    }
    file.set_permissions(fs::Permissions::from_mode(0o600 | (directory.mode() & 0o044)))
}

/// Windows gives a file the access that its directory passes on.
#[cfg(not(unix))]
pub(crate) fn share_as_directory(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn file_is_readable_for_those_who_read_its_directory() {
        let root = tempfile::tempdir().unwrap();
        for (of_directory, expected) in [(0o700, 0o600), (0o750, 0o640), (0o2775, 0o644)] {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(of_directory)).unwrap();
            let path = root.path().join("file");
            replace_public_file(&path, b"text").unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, expected, "{of_directory:o}");
            // As with a umask of 077.
            let file = File::create(root.path().join("other")).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            share_as_directory(&file, root.path()).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o7777, expected);
        }
    }
}
