//! Changes of the catalog by commands.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use siem_protocol::update::{ManifestError, ReleaseCatalog};

use super::{CatalogError, ReleaseFolder, folder::CATALOG};
use crate::configs::replace_public_file;

/// Name of the file that commands lock while they change the catalog.
const LOCK: &str = ".manifest.lock";
/// Name of the file that commands lock which copy artifacts.
const COPY_LOCK: &str = ".copy.lock";
/// Time to wait for another command.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two attempts to take the lock.
const PAUSE: Duration = Duration::from_millis(20);

/// Error of a change of the catalog, which is as before.
#[derive(Debug, thiserror::Error)]
pub enum EditError<E: std::error::Error + 'static> {
    /// The catalog cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Another command changes the folder, for longer than 10 s.
    #[error("another command changes `{0}`")]
    Locked(PathBuf),
    /// The change is refused.
    #[error(transparent)]
    Refused(E),
    /// The changed catalog would not be valid.
    #[error("the changed catalog would not be valid")]
    Invalid(#[source] ManifestError),
    /// A file cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

/// Changes the catalog of a folder by `edit`, which gets the folder. A server that reads it meanwhile, and a
/// restart after a crash, see the old or the new one. Without a catalog, the change begins with an empty one.
///
/// # Errors
/// [`EditError`].
pub fn edit_catalog<T, E: std::error::Error + 'static>(
    releases: &ReleaseFolder,
    edit: impl FnOnce(&Path, &mut ReleaseCatalog) -> Result<T, E>,
) -> Result<T, EditError<E>> {
    LockedCatalog::lock(releases)?.edit(edit)
}

/// The catalog of a folder, which no other command changes until this is dropped.
pub(super) struct LockedCatalog {
    folder: PathBuf,
    _lock: File,
}

impl LockedCatalog {
    /// Waits for other commands that change the catalog.
    pub(super) fn lock<E: std::error::Error + 'static>(
        releases: &ReleaseFolder,
    ) -> Result<Self, EditError<E>> {
        let folder = releases.path();
        let failed = |source| EditError::Write { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock = lock(&folder, LOCK)?;
        Ok(Self { folder, _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Changes the catalog; see [`edit_catalog`].
    pub(super) fn edit<T, E: std::error::Error + 'static>(
        &self,
        edit: impl FnOnce(&Path, &mut ReleaseCatalog) -> Result<T, E>,
    ) -> Result<T, EditError<E>> {
        let mut catalog = ReleaseFolder::new(&self.folder).catalog()?.unwrap_or_default();
        let edited = edit(&self.folder, &mut catalog).map_err(EditError::Refused)?;
        let text = catalog.to_json().map_err(EditError::Invalid)?;
        let path = self.folder.join(CATALOG);
        let written = replace_public_file(&path, &text);
        written.map_err(|source| EditError::Write { path, source })?;
        Ok(edited)
    }
}

/// Waits for other commands that copy artifacts into a folder, and keeps them out until the file is dropped.
pub(super) fn lock_copies<E: std::error::Error + 'static>(
    folder: &Path,
) -> Result<File, EditError<E>> {
    let failed = |source| EditError::Write { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    lock(folder, COPY_LOCK)
}

fn lock<E: std::error::Error + 'static>(folder: &Path, name: &str) -> Result<File, EditError<E>> {
    let path = folder.join(name);
    let failed = |source| EditError::Write { path: path.clone(), source };
    let file = File::create(&path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Err(TryLockError::WouldBlock) if begun.elapsed() > PATIENCE => {
                return Err(EditError::Locked(folder.to_owned()));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
        }
    }
}
