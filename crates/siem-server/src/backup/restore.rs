//! Restoration of a backup.

use std::{
    io::Read as _,
    path::{Component, Path},
};

use super::{
    BackupError, BackupSummary, COMPARED,
    copy::copy_part,
    create_empty,
    manifest::{CopiedFile, Manifest},
};
use crate::{
    regular_file::open_regular_file,
    store::{begin_restoration, end_restoration},
};

/// Copies a backup into the data directory `target`, which must be empty or missing, and verifies
/// sizes and hashes. No receiver starts with a directory that is not complete.
///
/// # Errors
/// [`BackupError`].
pub fn restore(backup: &Path, target: &Path) -> Result<BackupSummary, BackupError> {
    let manifest = Manifest::read(backup)?;
    create_empty(target)?;
    begin_restoration(target).map_err(BackupError::io("write", target))?;
    // A backup of an earlier release has it: with that, lines of an erasure that went on would stay.
    for file in manifest.files.iter().filter(|file| file.path != COMPARED) {
        restore_file(backup, target, file)?;
    }
    end_restoration(target).map_err(BackupError::io("write", target))?;
    Ok(manifest.summary)
}

fn restore_file(backup: &Path, target: &Path, file: &CopiedFile) -> Result<(), BackupError> {
    let relative = Path::new(&file.path);
    let is_plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain {
        return Err(BackupError::Path(relative.to_owned()));
    }
    let path = backup.join(relative);
    let open = open_regular_file(&path).map_err(BackupError::io("open", &path))?;
    // A byte more shows that it has grown.
    let from = open.take(file.size + 1);
    let (size, sha256) = copy_part(&path, from, &target.join(relative), &mut || Ok(()))?;
    if (size, sha256) != (file.size, file.sha256) {
        return Err(BackupError::Damaged(file.path.clone()));
    }
    Ok(())
}
