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
    let mut file = File::create(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}
