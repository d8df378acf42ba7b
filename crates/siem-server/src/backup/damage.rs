//! Damage of a data directory that the receiver does not repair.

use std::path::{Path, PathBuf};

use crate::{
    error_text::causes,
    life,
    store::{self, DataFormat, ReadError, ReadOnlyStore},
    trust::{self, EpochOwner},
};

/// A damaged file of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// Path below the data directory.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// Returns the damaged files of a copy of a data directory, and changes nothing. The store need not have been
/// opened since it was copied. The lines of entries are not read, and nothing of the epochs if an earlier
/// release wrote them. After the store was opened, [`verify`](super::verify) finds more.
#[must_use]
pub fn damage(data: &Path) -> Vec<DamagedFile> {
    damage_with(data, &mut |owners| {
        *owners = ReadOnlyStore::open(data)?.epoch_owners();
        store::damage(data)
    })
}

/// Files, each with what is wrong.
pub(super) type Damage = Vec<(PathBuf, String)>;

/// Returns the damaged files, with those of the store that `of_store` returns; it adds the devices that sent
/// the entries.
pub(super) fn damage_with(
    data: &Path,
    of_store: &mut dyn FnMut(&mut Vec<EpochOwner>) -> Result<Damage, ReadError>,
) -> Vec<DamagedFile> {
    let mut found = Vec::new();
    let is_current = match DataFormat::read(data) {
        Ok(format) => format.is_some_and(|format| format.is_current()),
        Err(error) => {
            found.push((data.join("format"), causes(&error)));
            false
        }
    };
    let mut owners = Vec::new();
    if is_current {
        match of_store(&mut owners) {
            Ok(damaged) => found.extend(damaged),
            Err(error) => found.push((error.path.clone(), causes(&error))),
        }
    }
    found.extend(trust::damage(&data.join("trust"), &owners));
    found.extend(life::damage(data, is_current));
    let relative = |path: PathBuf| path.strip_prefix(data).map(Path::to_owned).unwrap_or(path);
    let damaged = |(path, problem)| DamagedFile { path: relative(path), problem };
    found.into_iter().map(damaged).collect()
}
