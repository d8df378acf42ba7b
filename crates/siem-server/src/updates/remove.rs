//! Removes a release.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use siem_protocol::update::{CatalogArtifact, CatalogRelease, Version};

use super::{EditError, ReleaseFolder, edit::LockedCatalog};

/// Reason why a release, or one of its artifacts, is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such release.
    #[error("there is no release {0} (run: siem-server update list)")]
    Unknown(Version),
    /// The release is removed from the catalog, but one of its artifacts is still there.
    #[error("the release is removed, but cannot delete `{path}`: delete it")]
    Delete {
        /// The artifact.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

/// Removes a release from the catalog, then its artifacts, and returns it. A download that has begun continues.
///
/// # Errors
/// [`EditError`]: the catalog is as before, except with [`RemoveError::Delete`]; then all other artifacts are
/// deleted.
pub fn remove_release(
    releases: &ReleaseFolder,
    version: &Version,
) -> Result<CatalogRelease, EditError<RemoveError>> {
    // Until the artifacts are deleted: another command may add the release again.
    let catalog = LockedCatalog::lock(releases)?;
    let removed = catalog.edit(|_, catalog| {
        let at = catalog.releases.iter().position(|release| release.version == *version);
        let at = at.ok_or_else(|| RemoveError::Unknown(version.clone()))?;
        Ok(catalog.releases.remove(at))
    })?;
    delete(catalog.folder(), &removed.artifacts).map_err(EditError::Refused)?;
    Ok(removed)
}

/// Deletes all artifacts that it can, and returns the first error.
fn delete(folder: &Path, artifacts: &[CatalogArtifact]) -> Result<(), RemoveError> {
    let paths = artifacts.iter().map(|it| folder.join(it.artifact.as_str()));
    let failed = paths.filter_map(|path| match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Some(RemoveError::Delete { path, source })
        }
        _ => None,
    });
    // Not only up to the first one.
    failed.collect::<Vec<_>>().into_iter().next().map_or(Ok(()), Err)
}
