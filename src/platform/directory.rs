//! Lists directories, also those whose path is longer than the system accepts.

use std::{
    ffi::OsString,
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
};

use super::file::{self, FileInfo, FileKind};

/// An entry of a directory.
#[derive(Debug)]
pub struct Entry(Source);

#[derive(Debug)]
#[cfg_attr(
    target_os = "macos",
    expect(clippy::large_enum_variant, reason = "few entries exist at a time")
)]
enum Source {
    System(DirEntry),
    /// An entry of a directory with a long path, with its kind if the listing contains it.
    #[cfg(unix)]
    LongPath {
        path: PathBuf,
        kind: Option<FileKind>,
    },
}

/// Entries of a directory.
pub type Entries = Box<dyn Iterator<Item = io::Result<Entry>> + Send>;

/// Lists a directory.
///
/// # Errors
/// The error of the system, here or for an entry: the rest is then not listed.
pub fn list(directory: &Path) -> io::Result<Entries> {
    #[cfg(all(test, unix))]
    super::faults::check(super::faults::Call::Open, directory)?;
    #[cfg(all(test, unix))]
    if let Err(error) = super::faults::check(super::faults::Call::List, directory) {
        return Ok(Box::new(std::iter::once(Err(error))));
    }
    match fs::read_dir(directory) {
        Ok(entries) => Ok(Box::new(entries.map(|entry| entry.map(Source::System).map(Entry)))),
        #[cfg(unix)]
        Err(error) if super::long_path::is_too_long(&error, directory) => {
            let entries = super::long_path::list(directory)?;
            let entry = |(path, found)| Entry(Source::LongPath { path, kind: kind(found) });
            Ok(Box::new(entries.map(move |found| found.map(entry))))
        }
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn kind(kind: rustix::fs::FileType) -> Option<FileKind> {
    match kind {
        rustix::fs::FileType::RegularFile => Some(FileKind::File),
        rustix::fs::FileType::Directory => Some(FileKind::Directory),
        rustix::fs::FileType::Symlink => Some(FileKind::Link),
        rustix::fs::FileType::Unknown => None,
        _ => Some(FileKind::Other),
    }
}

impl Entry {
    /// Returns the path of the entry.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match &self.0 {
            Source::System(entry) => entry.path(),
            #[cfg(unix)]
            Source::LongPath { path, .. } => path.clone(),
        }
    }

    /// Returns the name of the entry.
    #[must_use]
    pub fn name(&self) -> OsString {
        match &self.0 {
            Source::System(entry) => entry.file_name(),
            #[cfg(unix)]
            Source::LongPath { path, .. } => path.file_name().unwrap_or_default().to_owned(),
        }
    }

    /// Returns the kind of the entry; a symlink is not followed.
    ///
    /// # Errors
    /// The error of the system.
    pub fn kind(&self) -> io::Result<FileKind> {
        match &self.0 {
            Source::System(entry) => entry.file_type().map(file::kind),
            #[cfg(unix)]
            Source::LongPath { kind: Some(kind), .. } => Ok(*kind),
            #[cfg(unix)]
            Source::LongPath { path, kind: None } => file::inspect(path).map(|info| info.kind),
        }
    }

    /// Returns kind and stamp of the entry; a symlink is not followed.
    ///
    /// # Errors
    /// The error of the system; `NotFound` for a deleted file that is listed only because it is open.
    pub fn inspect(&self) -> io::Result<FileInfo> {
        match &self.0 {
            Source::System(entry) => file::inspect_entry(entry),
            #[cfg(unix)]
            Source::LongPath { path, .. } => file::inspect(path),
        }
    }
}
