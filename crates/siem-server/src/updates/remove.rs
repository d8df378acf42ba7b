//! Removes a release.

use std::{fs, io};

use siem_protocol::update::{CatalogRelease, Version};

use super::{EditError, ReleaseFolder, edit_catalog};

/// Reason why a release is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// There is no such release.
    #[error("there is no release {0} (run: siem-server update list)")]
    Unknown(Version),
}

/// Removes a release from the catalog, then its artifacts, and returns it. A download that has begun continues.
///
/// # Errors
/// [`EditError`]: [`EditError::Write`] for an artifact that is no longer listed, and still there; otherwise the
/// catalog is as before.
pub fn remove_release(
    releases: &ReleaseFolder,
    version: &Version,
) -> Result<CatalogRelease, EditError<RemoveError>> {
    let folder = releases.path();
    edit_catalog(releases, |_, catalog| {
        let at = catalog.releases.iter().position(|release| release.version == *version);
        let at = at.ok_or_else(|| RemoveError::Unknown(version.clone()))?;
        Ok(catalog.releases.remove(at))
    })
    .and_then(|removed| {
        for artifact in &removed.artifacts {
            let path = folder.join(artifact.artifact.as_str());
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(EditError::Write { path, source }),
                Ok(()) => {}
            }
        }
        Ok(removed)
    })
}
