//! Version of a data directory, in its file `format`.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use siem_protocol::statement::TrustLevel;

use super::{create_private, sync_directory};
use crate::regular_file::read_whole_file;

/// Version that this release writes.
const VERSION: u32 = 3;
/// Version with three files beside the lines of each epoch. A directory of version 1 is one, too.
const SEPARATE_FILES: u32 = 2;
const NAME: &str = "format";
/// File that is there while a backup is restored into the directory. A directory without a version would pass for
/// one of release 0.1.
const RESTORING: &str = "restoring";

/// Version of a data directory. Version 1 is that of release 0.1, which wrote no such file.
///
/// Version 2 adds to version 1: notes of batches name the device and hold its seal, and `trust` has
/// what the receiver knows about devices. A file of version 1 is a valid file of version 2.
/// Version 3 has one index in place of the notes, the chain and the starts of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFormat {
    /// The version.
    format: u32,
    /// Version from which the directory was migrated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    migrated_from: Option<u32>,
    /// Level of trust that the operator chose last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<TrustLevel>,
}

/// Reason why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A later release wrote it.
    #[error(
        "`{path}` says format {found}, this release reads up to {VERSION}: install the release that wrote it, or a later one"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The restoration of a backup did not end.
    #[error(
        "`{path}` has a part of a backup, since its restoration did not end: delete the directory, and run `siem-server restore` again"
    )]
    Restoring {
        /// The directory.
        path: PathBuf,
    },
    /// The file is not valid.
    #[error("cannot parse `{path}`, expected {{\"format\":{VERSION}}}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// The file cannot be read or written.
    #[error("cannot read or write `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Marks a directory into which a backup is restored, so that no receiver starts with it.
pub(crate) fn begin_restoration(directory: &Path) -> io::Result<()> {
    File::create_new(directory.join(RESTORING))?.sync_all()?;
    sync_directory(directory)
}

/// Removes the mark of [`begin_restoration`], once all files are there and synced.
pub(crate) fn end_restoration(directory: &Path) -> io::Result<()> {
    fs::remove_file(directory.join(RESTORING))?;
    sync_directory(directory)
}

impl DataFormat {
    /// Reads the version of `directory`. A missing directory is created; one of release 0.1 gets a
    /// version. [`FileStore::open`](super::FileStore::open) converts the files of earlier versions.
    ///
    /// # Errors
    /// [`FormatError`]; nothing is changed then.
    pub fn ensure(directory: &Path) -> Result<Self, FormatError> {
        if let Some(format) = Self::read(directory)? {
            return Ok(format);
        }
        let path = directory.join(NAME);
        let failed = |source| FormatError::Io { path: path.clone(), source };
        let is_old = directory.join("machines").try_exists().map_err(failed)?;
        let version = if is_old { SEPARATE_FILES } else { VERSION };
        let format = Self { format: version, migrated_from: is_old.then_some(1), level: None };
        format.write(directory, &path).map_err(failed)?;
        if is_old {
            tracing::warn!(code = "data_migrated", directory = %directory.display(),
                "took over the data directory of release 0.1; without another setting its level of trust is `shared`");
        }
        Ok(format)
    }

    /// Reads the version of `directory`; `None` if no server of this release has used it.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn read(directory: &Path) -> Result<Option<Self>, FormatError> {
        let mark = directory.join(RESTORING);
        match mark.try_exists() {
            Ok(false) => {}
            Ok(true) => return Err(FormatError::Restoring { path: directory.to_owned() }),
            Err(source) => return Err(FormatError::Io { path: mark, source }),
        }
        let path = directory.join(NAME);
        match read_whole_file(&path) {
            Ok(text) => Self::parse(&text, &path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FormatError::Io { path, source }),
        }
    }

    /// Reports whether the files of the epochs are those of this version.
    pub(crate) fn is_current(self) -> bool {
        self.format == VERSION
    }

    /// Stores that the files of the epochs are those of this version.
    pub(super) fn set_current(self, directory: &Path) -> Result<Self, FormatError> {
        let path = directory.join(NAME);
        let current = Self { format: VERSION, ..self };
        current.write(directory, &path).map_err(|source| FormatError::Io { path, source })?;
        Ok(current)
    }

    /// Reports whether release 0.1 made the directory, so that machines without a device key are
    /// expected.
    #[must_use]
    pub fn is_migrated(&self) -> bool {
        self.migrated_from.is_some()
    }

    /// Level of trust that the operator chose last.
    #[must_use]
    pub fn level(&self) -> Option<TrustLevel> {
        self.level
    }

    /// Stores the operator's choice of a level, so that a start without it does not lower the level.
    ///
    /// # Errors
    /// [`FormatError::Io`]; the earlier choice is kept then.
    pub fn remember_level(self, directory: &Path, level: TrustLevel) -> Result<Self, FormatError> {
        if self.level == Some(level) {
            return Ok(self);
        }
        if let Some(earlier) = self.level.filter(|earlier| level < *earlier) {
            tracing::warn!(
                code = "trust_level_lowered",
                earlier = earlier.as_str(),
                level = level.as_str(),
                "the level of trust is lower than before"
            );
        }
        // A server may have converted the directory since.
        let current = Self::read(directory)?.unwrap_or(self);
        let chosen = Self { level: Some(level), ..current };
        let path = directory.join(NAME);
        chosen.write(directory, &path).map_err(|source| FormatError::Io { path, source })?;
        Ok(chosen)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, FormatError> {
        // The version comes first: a later one may have other members.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = |source| FormatError::Damaged { path: path.to_owned(), source };
        let Version { format: found } = serde_json::from_slice(text).map_err(damaged)?;
        if found > VERSION {
            return Err(FormatError::Newer { path: path.to_owned(), found });
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    fn write(self, directory: &Path, path: &Path) -> io::Result<()> {
        create_private(directory)?;
        let aside = path.with_extension("new");
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec(&self)?)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_directory(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(directory: &Path) -> String {
        fs::read_to_string(directory.join(NAME)).unwrap()
    }

    #[test]
    fn new_directory_gets_the_version_of_this_release() {
        let root = tempfile::tempdir().unwrap();
        let data = root.path().join("new");
        assert_eq!(DataFormat::read(&data).unwrap(), None);
        let format = DataFormat::ensure(&data).unwrap();
        assert!(!format.is_migrated());
        assert_eq!(content(&data), r#"{"format":3}"#);
        assert_eq!(DataFormat::ensure(&data).unwrap(), format);
        assert_eq!(DataFormat::read(&data).unwrap(), Some(format));
    }

    #[test]
    fn directory_of_release_0_1_is_migrated_and_remembers_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("machines")).unwrap();
        assert!(DataFormat::ensure(root.path()).unwrap().is_migrated());
        assert_eq!(content(root.path()), r#"{"format":2,"migrated_from":1}"#);
        let format = DataFormat::ensure(root.path()).unwrap();
        assert!(format.is_migrated() && !format.is_current());
        assert!(format.set_current(root.path()).unwrap().is_current());
        assert!(format.remember_level(root.path(), TrustLevel::Shared).unwrap().is_current());
        assert_eq!(content(root.path()), r#"{"format":3,"migrated_from":1,"level":"shared"}"#);
    }

    #[test]
    fn chosen_level_is_remembered() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("machines")).unwrap();
        let format = DataFormat::ensure(root.path()).unwrap();
        assert_eq!(format.level(), None);
        format.remember_level(root.path(), TrustLevel::Enrolled).unwrap();
        let format = DataFormat::ensure(root.path()).unwrap();
        assert_eq!(format.level(), Some(TrustLevel::Enrolled));
        assert!(format.is_migrated());
        format.remember_level(root.path(), TrustLevel::Shared).unwrap();
        let format = DataFormat::ensure(root.path()).unwrap();
        assert_eq!(format.level(), Some(TrustLevel::Shared));
    }

    #[test]
    fn later_or_damaged_version_is_refused_and_kept() {
        let root = tempfile::tempdir().unwrap();
        for (text, newer) in [(r#"{"format":4,"x":[]}"#, true), ("{", false), ("", false)] {
            fs::write(root.path().join(NAME), text).unwrap();
            let refused = DataFormat::ensure(root.path()).unwrap_err();
            assert_eq!(matches!(refused, FormatError::Newer { found: 4, .. }), newer);
            assert_eq!(content(root.path()), text);
        }
    }
}
