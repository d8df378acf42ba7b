//! The entries of one directory. The calls may block for as long as a file system likes:
//! [`FileAccess`](super::access::FileAccess) runs them with a limited time.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::directory_walk::Names;
use crate::platform::{
    directory::{self, Entries, Entry},
    file::{FileId, FileKind, Stamp},
    links,
};

/// Number of entries that are read in one call: a bound on its time and on the memory.
const BATCH: usize = 1024;

/// A directory that is being listed.
pub(super) struct Listing {
    directory: PathBuf,
    names: Names,
    /// True if a link leads to the directory or to one above it.
    is_linked: bool,
    entries: Entries,
}

/// An entry, as far as it matters.
pub(super) enum FoundEntry {
    /// A directory to visit.
    Directory {
        path: PathBuf,
        /// Its identity, if a link leads there.
        visited: Option<VisitedDirectory>,
    },
    /// A regular file with a followed name.
    File { path: PathBuf, stamp: Stamp },
    /// A symlink that may have to be followed.
    Link { path: PathBuf },
    /// An entry, or the rest of the directory, that cannot be read.
    Failed { path: PathBuf, error: io::Error },
    /// Another entry.
    Ignored,
}

/// A directory, however many paths lead to it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum VisitedDirectory {
    /// Its file id.
    Id(FileId),
    /// Path without symlinks, in a file system without file ids.
    Canonical(PathBuf),
}

impl VisitedDirectory {
    /// Returns the identity of the directory at `path`, which has the file id `id`.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn new(id: Option<FileId>, path: &Path) -> io::Result<Self> {
        Ok(match id {
            Some(id) => Self::Id(id),
            None => Self::Canonical(links::canonical(path)?),
        })
    }
}

impl Listing {
    /// Opens a directory after calling `watch` with it.
    ///
    /// # Errors
    /// The error of the system.
    pub(super) fn start(
        directory: PathBuf,
        names: Names,
        is_linked: bool,
        watch: impl FnOnce(&Path),
    ) -> io::Result<Self> {
        watch(&directory);
        let entries = directory::list(&directory)?;
        Ok(Self { directory, names, is_linked, entries })
    }

    /// Reads further entries; also returns the listing if there may be more.
    pub(super) fn next_batch(mut self) -> (Vec<FoundEntry>, Option<Self>) {
        let mut found = Vec::new();
        while found.len() < BATCH {
            match self.entries.next() {
                Some(Ok(entry)) => found.push(self.classify(&entry)),
                Some(Err(error)) => {
                    found.push(FoundEntry::Failed { path: self.directory, error });
                    return (found, None);
                }
                None => return (found, None),
            }
        }
        (found, Some(self))
    }

    fn classify(&self, entry: &Entry) -> FoundEntry {
        match self.try_classify(entry) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => FoundEntry::Ignored,
            Err(error) => FoundEntry::Failed { path: entry.path(), error },
        }
    }

    fn try_classify(&self, entry: &Entry) -> io::Result<FoundEntry> {
        let is_named = || self.names.matches(Path::new(&entry.name()));
        Ok(match entry.kind()? {
            FileKind::Directory if self.names.is_recursive() => {
                let path = entry.path();
                let visited = match self.is_linked {
                    true => Some(VisitedDirectory::new(entry.inspect()?.stamp.id, &path)?),
                    false => None,
                };
                FoundEntry::Directory { path, visited }
            }
            FileKind::File if is_named() => {
                let info = entry.inspect()?;
                match info.kind {
                    FileKind::File => FoundEntry::File { path: entry.path(), stamp: info.stamp },
                    _ => FoundEntry::Ignored,
                }
            }
            FileKind::Link if self.names.is_recursive() || is_named() => {
                FoundEntry::Link { path: entry.path() }
            }
            _ => FoundEntry::Ignored,
        })
    }
}
