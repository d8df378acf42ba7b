//! Adds the releases of another folder, such as one that a build wrote.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use siem_protocol::{
    minisign::OrganisationKey,
    update::{
        ArtifactError, ArtifactName, CatalogArtifact, CatalogRelease, ReleaseCatalog, Rollout,
        UpdateRelease, Version,
    },
};

use super::{CatalogError, EditError, OpenedArtifact, ReleaseFolder, edit_catalog};
use crate::store::sync_directory;

/// A release that was added, or got more artifacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedRelease {
    /// Its version.
    pub version: Version,
    /// Its roll-out.
    pub rollout: Rollout,
    /// Names of the artifacts that were not there before.
    pub artifacts: Vec<ArtifactName>,
    /// True if an artifact has no signature, so that agents refuse it.
    pub is_unsigned: bool,
}

/// Reason why releases are not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The catalog of the other folder cannot be used.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The other folder has no catalog.
    #[error("`{0}` has no manifest.json")]
    NoCatalog(PathBuf),
    /// An artifact is not what the catalog says.
    #[error("`{name}` must not be served")]
    Artifact {
        /// The artifact.
        name: ArtifactName,
        /// What is wrong.
        #[source]
        source: ArtifactError,
    },
    /// A version has another artifact for a platform already.
    #[error(
        "`{0}` is there with another content: a version never changes, give the new one another"
    )]
    Changed(ArtifactName),
    /// A file cannot be copied.
    #[error("cannot copy `{name}`")]
    Copy {
        /// The artifact.
        name: ArtifactName,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
}

/// Copies the artifacts of `from` and adds its releases to the catalog. A new release goes to `percent`
/// of the machines; one that is there keeps its roll-out. Sizes and hashes are verified, and signatures if
/// there are `keys`.
///
/// # Errors
/// [`EditError`]: the catalog is as before.
pub fn add_releases(
    releases: &ReleaseFolder,
    from: &Path,
    percent: u8,
    keys: &[OrganisationKey],
) -> Result<Vec<AddedRelease>, EditError<AddError>> {
    let source = ReleaseFolder::new(from);
    edit_catalog(releases, |folder, catalog| {
        let found = source.catalog()?.ok_or_else(|| AddError::NoCatalog(from.to_owned()))?;
        let add = |release| add(folder, catalog, &source, release, percent, keys);
        found.releases.into_iter().map(add).collect()
    })
}

fn add(
    folder: &Path,
    catalog: &mut ReleaseCatalog,
    source: &ReleaseFolder,
    release: CatalogRelease,
    percent: u8,
    keys: &[OrganisationKey],
) -> Result<AddedRelease, AddError> {
    let CatalogRelease { version, artifacts, .. } = release;
    let known = catalog.releases.iter_mut().find(|known| known.version == version);
    let mut added = match &known {
        Some(known) => CatalogRelease { artifacts: Vec::new(), ..(**known).clone() },
        None => CatalogRelease {
            version,
            published_at: release.published_at,
            rollout: Rollout { percent, ..release.rollout },
            artifacts: Vec::new(),
        },
    };
    let before: &[CatalogArtifact] = known.as_ref().map_or(&[], |known| &known.artifacts);
    for artifact in artifacts {
        let is_same = |it: &&CatalogArtifact| {
            it.artifact == artifact.artifact || it.platform() == artifact.platform()
        };
        match before.iter().find(is_same) {
            Some(same) if same.artifact == artifact.artifact && same.sha256 == artifact.sha256 => {}
            Some(_) => return Err(AddError::Changed(artifact.artifact)),
            None => {
                let release = added.with(&artifact);
                verify_and_copy(folder, source, &artifact, &release, keys)?;
                added.artifacts.push(artifact);
            }
        }
    }
    let summary = AddedRelease {
        version: added.version.clone(),
        rollout: added.rollout.clone(),
        artifacts: added.artifacts.iter().map(|it| it.artifact.clone()).collect(),
        is_unsigned: added.artifacts.iter().any(|it| it.minisig.is_none()),
    };
    match known {
        Some(known) => known.artifacts.append(&mut added.artifacts),
        None => catalog.releases.push(added),
    }
    Ok(summary)
}

/// Verifies an artifact, and copies it so that a server never sees a part of it.
fn verify_and_copy(
    folder: &Path,
    source: &ReleaseFolder,
    artifact: &CatalogArtifact,
    release: &UpdateRelease,
    keys: &[OrganisationKey],
) -> Result<(), AddError> {
    let name = artifact.artifact.clone();
    let Some(OpenedArtifact { mut file, size, .. }) = source.open(&name)? else {
        return Ok(());
    };
    let verified = match keys {
        [] => release.verify_hash(&file),
        keys => release.verify(&artifact.platform(), keys, &file),
    };
    verified.map_err(|source| AddError::Artifact { name: name.clone(), source })?;
    let copied = file.rewind().and_then(|()| copy(folder, &name, file.take(size)));
    copied.map_err(|source| AddError::Copy { name, source })
}

fn copy(folder: &Path, name: &ArtifactName, mut content: impl io::Read) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.new"));
    let mut to = File::create(&temporary)?;
    io::copy(&mut content, &mut to)?;
    to.flush()?;
    to.sync_all()?;
    fs::rename(&temporary, folder.join(name.as_str()))?;
    sync_directory(folder)
}
