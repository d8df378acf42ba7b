//! Adds the releases of another folder, such as one that a build wrote.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use siem_protocol::{
    minisign::{MAX_SIGNATURE_BYTES, OrganisationKey},
    update::{
        ArtifactError, ArtifactName, CatalogArtifact, CatalogRelease, ReleaseCatalog, Rollout,
        UpdateRelease, Version,
    },
};

use super::{
    CatalogError, EditError, OpenedArtifact, ReleaseFolder, edit::lock_copies, edit_catalog,
};
use crate::{configs::share_as_directory, regular_file::read_regular_file, store::sync_directory};

/// A release that was added, or got more artifacts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedRelease {
    /// Its version.
    pub version: Version,
    /// Its roll-out.
    pub rollout: Rollout,
    /// Names of the artifacts that were not there before, not signed, or not as listed.
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
/// of the machines; one that is there keeps its roll-out, and a missing or damaged file of it is copied
/// again. Sizes and hashes are verified, and signatures if there are `keys`. An artifact without a signature gets that of the file `ARTIFACT.minisig`.
///
/// # Errors
/// [`EditError`]: the catalog is as before.
pub fn add_releases(
    releases: &ReleaseFolder,
    from: &Path,
    percent: u8,
    keys: &[OrganisationKey],
) -> Result<Vec<AddedRelease>, EditError<AddError>> {
    let folder = releases.path();
    let _lock = lock_copies(&folder)?;
    let releases = ReleaseFolder::new(&folder);
    let source = ReleaseFolder::new(from);
    let found = source.catalog()?;
    let found = found.ok_or_else(|| EditError::Refused(AddError::NoCatalog(from.to_owned())))?;
    // Copies take long: the catalog is locked only when they are there, so that a roll-out can be halted
    // meanwhile.
    let mut artifacts = Artifacts::new(&folder, &source, keys);
    let mut before = releases.catalog()?.unwrap_or_default();
    for release in found.releases.clone() {
        add(&mut before, &mut artifacts, release, percent).map_err(EditError::Refused)?;
    }
    artifacts.installs = true;
    edit_catalog(&releases, |_, catalog| {
        let add = |release| add(catalog, &mut artifacts, release, percent);
        found.releases.into_iter().map(add).collect()
    })
}

/// Artifacts of a folder to which others are added.
struct Artifacts<'a> {
    folder: &'a Path,
    source: &'a ReleaseFolder,
    keys: &'a [OrganisationKey],
    /// Copies under other names, which no server sees.
    copies: BTreeSet<ArtifactName>,
    /// Those that are there as listed.
    intact: BTreeSet<ArtifactName>,
    /// Gives the copies their names.
    installs: bool,
}

impl<'a> Artifacts<'a> {
    fn new(folder: &'a Path, source: &'a ReleaseFolder, keys: &'a [OrganisationKey]) -> Self {
        let (copies, intact) = (BTreeSet::new(), BTreeSet::new());
        Self { folder, source, keys, copies, intact, installs: false }
    }

    /// Reports whether the folder has the artifact of a release as it is listed: not after it was deleted or
    /// damaged, or with a backup of the manifest only.
    fn is_intact(&mut self, release: &UpdateRelease) -> bool {
        let name = &release.artifact;
        if self.copies.contains(name) || self.intact.contains(name) {
            return self.intact.contains(name);
        }
        let opened = ReleaseFolder::new(self.folder).open(name);
        let is_intact =
            matches!(opened, Ok(Some(found)) if release.verify_hash(&found.file).is_ok());
        if is_intact {
            self.intact.insert(name.clone());
        }
        is_intact
    }

    /// Verifies an artifact and copies it, so that a server never sees a part of it.
    fn copy(
        &mut self,
        artifact: &CatalogArtifact,
        release: &UpdateRelease,
    ) -> Result<(), AddError> {
        let name = artifact.artifact.clone();
        if !self.copies.contains(&name) {
            let OpenedArtifact { mut file, size, .. } =
                verify(self.source, artifact, release, self.keys)?;
            let copied = file
                .rewind()
                .and_then(|()| copy(self.folder, &self.copy_of(&name), file.take(size)));
            copied.map_err(|source| AddError::Copy { name: name.clone(), source })?;
            self.copies.insert(name.clone());
        }
        if self.installs {
            let renamed = fs::rename(self.copy_of(&name), self.folder.join(name.as_str()));
            let synced = renamed.and_then(|()| sync_directory(self.folder));
            synced.map_err(|source| AddError::Copy { name: name.clone(), source })?;
            self.copies.remove(&name);
        }
        Ok(())
    }

    fn copy_of(&self, name: &ArtifactName) -> PathBuf {
        self.folder.join(format!(".{name}.new"))
    }
}

impl Drop for Artifacts<'_> {
    fn drop(&mut self) {
        // On a full disk, the records of the receiver need the space.
        for name in &self.copies {
            drop(fs::remove_file(self.copy_of(name)));
        }
    }
}

fn add(
    catalog: &mut ReleaseCatalog,
    files: &mut Artifacts<'_>,
    release: CatalogRelease,
    percent: u8,
) -> Result<AddedRelease, AddError> {
    let CatalogRelease { version, published_at, rollout, artifacts, unknown } = release;
    let known = catalog.releases.iter().position(|known| known.version == version);
    let at = known.unwrap_or_else(|| {
        let rollout = Rollout { percent, ..rollout };
        let artifacts = Vec::new();
        catalog.releases.push(CatalogRelease {
            version,
            published_at,
            rollout,
            artifacts,
            unknown,
        });
        catalog.releases.len() - 1
    });
    let mut added = Vec::new();
    for mut artifact in artifacts {
        let name = artifact.artifact.clone();
        if artifact.minisig.is_none() {
            artifact.minisig = signature_beside(files.source, &name)?;
        }
        let offered = catalog.releases[at].with(&artifact);
        match find(catalog, at, &artifact)? {
            None => {
                files.copy(&artifact, &offered)?;
                catalog.releases[at].artifacts.push(artifact);
                added.push(name);
            }
            Some(same) => {
                let is_better = is_better_signed(same, &artifact, files.keys);
                match (files.is_intact(&offered), is_better) {
                    (true, false) => continue,
                    (true, true) => {
                        verify(files.source, &artifact, &offered, files.keys)?;
                    }
                    (false, _) => files.copy(&artifact, &offered)?,
                }
                if is_better {
                    same.minisig = artifact.minisig;
                }
                added.push(name);
            }
        }
    }
    let CatalogRelease { version, rollout, artifacts, .. } = &catalog.releases[at];
    let (version, rollout) = (version.clone(), rollout.clone());
    let is_unsigned = artifacts.iter().any(|it| it.minisig.is_none());
    Ok(AddedRelease { version, rollout, artifacts: added, is_unsigned })
}

/// Finds the same artifact of a release. Fails if another one has its name or its platform, before a file
/// that is served is replaced.
fn find<'a>(
    catalog: &'a mut ReleaseCatalog,
    at: usize,
    wanted: &CatalogArtifact,
) -> Result<Option<&'a mut CatalogArtifact>, AddError> {
    for (index, release) in catalog.releases.iter_mut().enumerate() {
        for known in &mut release.artifacts {
            let has_name = known.artifact == wanted.artifact;
            let has_platform = index == at && known.platform() == wanted.platform();
            if has_name && has_platform && known.sha256 == wanted.sha256 {
                return Ok(Some(known));
            }
            if has_name || has_platform {
                return Err(AddError::Changed(wanted.artifact.clone()));
            }
        }
    }
    Ok(None)
}

/// Reports whether an artifact brings a signature in place of none, or another one that will be verified.
fn is_better_signed(
    known: &CatalogArtifact,
    artifact: &CatalogArtifact,
    keys: &[OrganisationKey],
) -> bool {
    artifact.minisig.is_some()
        && artifact.minisig != known.minisig
        && (known.minisig.is_none() || !keys.is_empty())
}

/// Reads the file with the signature of an artifact, which was made after its manifest.
fn signature_beside(
    source: &ReleaseFolder,
    name: &ArtifactName,
) -> Result<Option<String>, AddError> {
    let path = source.path().join(format!("{name}.minisig"));
    let failed = |source| AddError::Copy { name: name.clone(), source };
    match read_regular_file(&path, MAX_SIGNATURE_BYTES as u64) {
        Ok(text) => {
            Ok(Some(String::from_utf8(text).map_err(|error| failed(io::Error::other(error)))?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Verifies an artifact, and returns its file and size.
fn verify(
    source: &ReleaseFolder,
    artifact: &CatalogArtifact,
    release: &UpdateRelease,
    keys: &[OrganisationKey],
) -> Result<OpenedArtifact, AddError> {
    let name = &artifact.artifact;
    let opened = source.open(name)?;
    let opened = opened.ok_or_else(|| AddError::NoCatalog(source.path()))?;
    let verified = match keys {
        [] => release.verify_hash(&opened.file),
        keys => release.verify(&artifact.platform(), keys, &opened.file),
    };
    verified.map_err(|source| AddError::Artifact { name: name.clone(), source })?;
    Ok(opened)
}

fn copy(folder: &Path, path: &Path, mut content: impl io::Read) -> io::Result<()> {
    let mut write = || {
        let mut to = File::create(path)?;
        share_as_directory(&to, folder)?;
        io::copy(&mut content, &mut to)?;
        to.sync_all()
    };
    let written = write();
    if written.is_err() {
        // On a full disk, the records of the receiver need the space.
        drop(fs::remove_file(path));
    }
    written
}
