//! Releases of the agent in a backup: the manifest, and the artifacts that it lists.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use siem_protocol::update::{MAX_CATALOG_BYTES, ReleaseCatalog};

use super::{ATTEMPTS, BackupError, copy::Writer};
use crate::{regular_file::open_regular_file, updates::CATALOG};

/// Open files of the releases: one that is replaced or deleted can still be read.
#[derive(Default)]
pub(super) struct Releases {
    files: Vec<(PathBuf, File)>,
}

impl Releases {
    /// Opens the manifest and the artifacts that it lists. An unusable manifest is a file like others.
    pub(super) fn pin(data: &Path) -> Result<Self, BackupError> {
        let folder = data.join("dist");
        let path = folder.join(CATALOG);
        for _ in 0..ATTEMPTS {
            let Some(mut manifest) = open(&path)? else { return Ok(Self::default()) };
            let read = |file: &mut File| {
                let mut text = Vec::new();
                let limit = MAX_CATALOG_BYTES as u64 + 1;
                let read = file.take(limit).read_to_end(&mut text).and_then(|_| file.rewind());
                read.map(|()| text).map_err(BackupError::io("read", &path))
            };
            let text = read(&mut manifest)?;
            let Ok(catalog) = ReleaseCatalog::parse(&text) else { return Ok(Self::default()) };
            let mut files = vec![(path.clone(), manifest)];
            for artifact in catalog.releases.iter().flat_map(|release| &release.artifacts) {
                let path = folder.join(artifact.artifact.as_str());
                files.extend(open(&path)?.map(|file| (path, file)));
            }
            // None was removed after the manifest was read.
            if let Some(mut again) = open(&path)?
                && read(&mut again)? == text
            {
                return Ok(Self { files });
            }
        }
        Err(BackupError::ReleasesChanged)
    }

    pub(super) fn paths(&self) -> BTreeSet<PathBuf> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }

    pub(super) fn copy_to(
        self,
        writer: &mut Writer<'_>,
        between: &mut dyn FnMut() -> Result<(), BackupError>,
    ) -> Result<(), BackupError> {
        self.files.into_iter().try_for_each(|(path, file)| writer.copy_open(&path, file, between))
    }
}

fn open(path: &Path) -> Result<Option<File>, BackupError> {
    match fs::metadata(path)
        .and_then(|found| found.is_file().then(|| open_regular_file(path)).transpose())
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map_err(BackupError::io("open", path)),
    }
}
