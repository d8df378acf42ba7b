//! List of the files of a backup, `backup.ndjson`.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::{BackupError, BackupSummary};
use crate::{regular_file::read_whole_file, trust::replace_file};

/// Name of the file. It is written last: a backup without it is incomplete.
pub(super) const MANIFEST: &str = "backup.ndjson";

/// A file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CopiedFile {
    /// Path below the data directory, with `/`.
    pub(super) path: String,
    /// Size in bytes.
    pub(super) size: u64,
    /// SHA-256 of the content.
    pub(super) sha256: Digest,
}

/// First line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u64,
    created_at: String,
    with_keys: bool,
    files: u64,
}

pub(super) struct Manifest {
    pub(super) summary: BackupSummary,
    pub(super) files: Vec<CopiedFile>,
}

impl Manifest {
    pub(super) fn write(&self, target: &Path) -> Result<(), BackupError> {
        let BackupSummary { created_at, with_keys, files, .. } = self.summary.clone();
        let mut text = serde_json::to_vec(&Head { version: 1, created_at, with_keys, files })
            .map_err(BackupError::Manifest)?;
        for file in &self.files {
            text.push(b'\n');
            serde_json::to_writer(&mut text, file).map_err(BackupError::Manifest)?;
        }
        text.push(b'\n');
        Ok(replace_file(&target.join(MANIFEST), &text)?)
    }

    pub(super) fn read(backup: &Path) -> Result<Self, BackupError> {
        let path = backup.join(MANIFEST);
        let text = match read_whole_file(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BackupError::Incomplete(backup.to_owned()));
            }
            Err(error) => return Err(BackupError::io("read", &path)(error)),
        };
        let mut lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let head = lines.next().unwrap_or_default();
        let head: Head = serde_json::from_slice(head).map_err(BackupError::Manifest)?;
        let files: Result<Vec<CopiedFile>, _> = lines.map(serde_json::from_slice).collect();
        let files = files.map_err(BackupError::Manifest)?;
        if head.version != 1 || files.len() as u64 != head.files {
            return Err(BackupError::Damaged(MANIFEST.to_owned()));
        }
        let summary = BackupSummary {
            created_at: head.created_at,
            files: head.files,
            bytes: files.iter().map(|file| file.size).sum(),
            with_keys: head.with_keys,
        };
        Ok(Self { summary, files })
    }
}
