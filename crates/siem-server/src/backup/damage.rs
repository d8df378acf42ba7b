//! Damage of a data directory that the receiver does not repair.

use std::path::{Path, PathBuf};

use crate::{
    error_text::causes,
    life,
    store::{self, DataFormat, ReadOnlyStore},
    trust,
};

/// A damaged file of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    /// Path below the data directory.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// Returns the damaged files of the data directory `data`, and changes nothing. `is_recovered` is true if the
/// store was opened since it was copied: a copy of a running receiver ends anywhere. Not read are the lines of
/// entries and the journals, and nothing of the epochs if an earlier release wrote them.
#[must_use]
pub fn damage(data: &Path, is_recovered: bool) -> Vec<DamagedFile> {
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
        let read = ReadOnlyStore::open(data).and_then(|read| {
            owners = read.epoch_owners();
            store::damage(data, is_recovered)
        });
        match read {
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
