//! The folder with releases.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use siem_protocol::{
    Digest,
    update::{ArtifactName, MAX_CATALOG_BYTES, ManifestError, ReleaseCatalog},
};

use crate::regular_file::{open_without_link, read_regular_file};

/// Name of the catalog in the folder.
pub(crate) const CATALOG: &str = "manifest.json";

/// Places of the releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseFolder {
    /// The places, of which the first with a catalog counts.
    places: Vec<PathBuf>,
}

/// Error of a catalog that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Its content is not valid.
    #[error("`{path}` is not valid")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
}

/// An artifact that can be read.
#[derive(Debug)]
pub struct OpenedArtifact {
    /// The file, at its start.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256 in the catalog.
    pub sha256: Digest,
}

impl ReleaseFolder {
    /// Uses this folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { places: vec![folder.into()] }
    }

    /// Uses the folder `dist` in a data directory, or if that has none, the one beside it.
    #[must_use]
    pub fn of_data(data: &Path) -> Self {
        let beside = data.parent().map(|parent| parent.join("dist"));
        Self { places: [data.join("dist")].into_iter().chain(beside).collect() }
    }

    /// Returns the folder that is in use, or the one to create if none has a catalog.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.existing().unwrap_or_else(|| self.places[0].clone())
    }

    fn existing(&self) -> Option<PathBuf> {
        let has_catalog = |folder: &&PathBuf| fs::symlink_metadata(folder.join(CATALOG)).is_ok();
        self.places.iter().find(has_catalog).cloned()
    }

    /// Reads the catalog; `None` if there is none. Blocks for the file system.
    ///
    /// # Errors
    /// [`CatalogError`] if it is there and cannot be used.
    pub fn catalog(&self) -> Result<Option<ReleaseCatalog>, CatalogError> {
        Ok(self.read()?.map(|(_, catalog)| catalog))
    }

    fn read(&self) -> Result<Option<(PathBuf, ReleaseCatalog)>, CatalogError> {
        let Some(folder) = self.existing() else { return Ok(None) };
        let path = folder.join(CATALOG);
        let text = match read_regular_file(&path, MAX_CATALOG_BYTES as u64) {
            Ok(text) => text,
            // It was removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CatalogError::Read { path, source }),
        };
        match ReleaseCatalog::parse(&text) {
            Ok(catalog) => Ok(Some((folder, catalog))),
            Err(source) => Err(CatalogError::Invalid { path, source }),
        }
    }

    /// Opens an artifact that the catalog lists, if it is a regular file of the folder with the size that
    /// is listed; returns `None` if it is not listed. Blocks for the file system.
    ///
    /// # Errors
    /// [`CatalogError`] if the catalog cannot be used, or the artifact is listed and cannot be served.
    pub fn open(&self, name: &ArtifactName) -> Result<Option<OpenedArtifact>, CatalogError> {
        let Some((folder, catalog)) = self.read()? else { return Ok(None) };
        let Some(listed) = catalog.artifact(name) else { return Ok(None) };
        let path = folder.join(name.as_str());
        let opened = open_listed(&path, listed.size);
        let file = opened.map_err(|source| CatalogError::Read { path, source })?;
        Ok(Some(OpenedArtifact { file, size: listed.size, sha256: listed.sha256 }))
    }
}

fn open_listed(path: &Path, size: u64) -> io::Result<File> {
    let file = open_without_link(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if found.len() != size {
        let text = format!("has {} bytes, {size} are listed", found.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(file)
}
