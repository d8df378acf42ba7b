//! The checkpoint row of a generation, as it is stored in the outbox.

use std::{io, path::PathBuf};

use data_encoding::{BASE64, BASE64_NOPAD};
use serde::{Deserialize, Serialize};

use siem_protocol::nul_runs::{NulRun, NulRunsError};

use super::{
    fingerprint::{
        Borders, EdgeSamples, FileMatch, Fingerprint, LongLinePosition, Sample, compare,
    },
    partial_line::PartialLine,
};
use crate::platform::file::{self, ReadAt, Stamp};

/// Error of a row that cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("invalid JSON in a checkpoint row")]
    Json(#[from] serde_json::Error),
    #[error("invalid base64 in a checkpoint row")]
    Base64(#[from] data_encoding::DecodeError),
    #[error("invalid runs of NUL in a checkpoint row")]
    Runs(#[from] NulRunsError),
    #[error("a checkpoint row has no path")]
    NoPath,
}

/// Returns the path in a checkpoint row; `None` if the row is invalid.
#[must_use]
pub fn row_path(row: &[u8]) -> Option<PathBuf> {
    CheckpointRow::summary(row).ok().map(|summary| summary.path)
}

/// Returns the row with which the generation of `row` started, before anything was read. With it a
/// file is read again under the same generation id if it starts with the same bytes.
///
/// `None` for a generation that continues a file where another ended, because the bytes before belong
/// to that one; for a generation from which nothing was read, because any file would match; and for
/// an invalid row.
#[must_use]
pub fn starting_row(row: &[u8]) -> Option<Vec<u8>> {
    if !has_starting_row(row) {
        return None;
    }
    let start: StoredStart = serde_json::from_slice(row).ok()?;
    let stamp = Stamp { id: start.stamp.id, ..Stamp::default() };
    let fingerprint = Fingerprint { head: start.first, ..Fingerprint::default() };
    let path = path(start.path, start.path_base64).ok()?;
    Some(CheckpointRow { stamp, fingerprint, ..CheckpointRow::new(path, 0) }.encode())
}

/// Returns true if [`starting_row`] returns a row for `row`.
#[must_use]
pub fn has_starting_row(row: &[u8]) -> bool {
    serde_json::from_slice(row)
        .is_ok_and(|StoredExtent { start, first }| start == 0 && first.len() > 0)
}

/// Read position of a generation, and the data by which its file is recognised.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CheckpointRow {
    /// Path of the file.
    pub(super) path: PathBuf,
    /// Offset at which the generation starts.
    pub(super) start: u64,
    /// End of the bytes that are in the outbox.
    pub(super) offset: u64,
    /// Stamp of the file when it was last read.
    pub(super) stamp: Stamp,
    /// True if it was read to its end then, so that nothing is unread while the stamp is the same.
    pub(super) is_drained: bool,
    /// Samples by which its bytes are recognised.
    pub(super) fingerprint: Fingerprint,
    /// Sample of the first bytes, regardless of the boundaries.
    pub(super) first: Sample,
    /// Boundaries of the last lines.
    pub(super) borders: Borders,
    /// Long line that contains the offset.
    pub(super) long: Option<LongLinePosition>,
    /// Hash of the bytes after the last whole block; `None` in rows of an older agent.
    pub(super) blocks: Option<u64>,
    /// Bytes after the offset: an incomplete last line that has not changed for a while.
    pub(super) saved_line: Option<PartialLine>,
}

/// Members of a row that are kept in memory for every file.
#[derive(Debug)]
pub(super) struct CheckpointSummary {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) stamp: Stamp,
    pub(super) is_drained: bool,
    pub(super) has_saved_line: bool,
}

/// Stored form of a row. Members may be added, but must not change their meaning.
#[derive(Deserialize, Serialize)]
struct StoredRow {
    /// The path, if it is valid UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The path in base64 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    #[serde(default)]
    start: u64,
    offset: u64,
    #[serde(default)]
    stamp: Stamp,
    #[serde(default)]
    drained: bool,
    #[serde(default)]
    head: Sample,
    #[serde(default)]
    tail: Sample,
    #[serde(default)]
    first: Sample,
    #[serde(default)]
    base: u64,
    #[serde(default)]
    borders: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    long: Option<LongLinePosition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
    /// Runs of NUL that are not in `kept`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    kept_runs: Vec<NulRun>,
}

/// Members of a summary; the others are skipped without being decoded.
#[derive(Deserialize)]
struct StoredSummary {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    path_base64: Option<String>,
    offset: u64,
    #[serde(default)]
    stamp: Stamp,
    #[serde(default)]
    drained: bool,
    #[serde(default)]
    kept: Option<serde::de::IgnoredAny>,
}

/// Members that describe how a generation started.
#[derive(Deserialize)]
struct StoredStart {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    path_base64: Option<String>,
    #[serde(default)]
    stamp: Stamp,
    #[serde(default)]
    first: Sample,
}

/// Members that tell whether a generation starts its file and was read.
#[derive(Deserialize)]
struct StoredExtent {
    #[serde(default)]
    start: u64,
    #[serde(default)]
    first: Sample,
}

impl CheckpointRow {
    /// Compares `file`, which has `size` bytes, with the bytes that were read from it, and leaves its
    /// first and last bytes in `edges`.
    ///
    /// # Errors
    /// Errors of reading the file.
    pub(super) fn compare(
        &self,
        file: &dyn ReadAt,
        size: u64,
        edges: &mut EdgeSamples,
    ) -> io::Result<FileMatch> {
        let Self { offset, fingerprint, borders, long, .. } = self;
        compare(file, size, *offset, fingerprint, borders, long.as_ref(), edges)
    }

    /// Creates the row of a generation that starts at `start`, before anything is read.
    pub(super) fn new(path: PathBuf, start: u64) -> Self {
        Self {
            path,
            start,
            offset: start,
            stamp: Stamp::default(),
            is_drained: false,
            fingerprint: Fingerprint::default(),
            first: Sample::default(),
            borders: Borders::starting_at(start),
            long: None,
            blocks: None,
            saved_line: None,
        }
    }

    /// Serializes the row.
    pub(super) fn encode(&self) -> Vec<u8> {
        let path = self.path.to_str().map(str::to_owned);
        let path_base64 = path.is_none().then(|| BASE64.encode(&file::path_to_bytes(&self.path)));
        let stored = StoredRow {
            path,
            path_base64,
            start: self.start,
            offset: self.offset,
            stamp: self.stamp,
            drained: self.is_drained,
            head: self.fingerprint.head,
            tail: self.fingerprint.tail,
            first: self.first,
            base: self.borders.base(),
            borders: BASE64.encode(&self.borders.pack()),
            long: self.long,
            hash: self.blocks.map(|hash| BASE64_NOPAD.encode(&hash.to_le_bytes())),
            kept: self.saved_line.as_ref().map(|line| BASE64.encode(line.data())),
            kept_runs: self.saved_line.as_ref().map_or_else(Vec::new, |line| line.runs().to_vec()),
        };
        // Most rows fit, so that the buffer does not grow step by step.
        let mut row = Vec::with_capacity(2048);
        serde_json::to_writer(&mut row, &stored).expect("a row has only strings as keys");
        row
    }

    /// Deserializes a row.
    ///
    /// # Errors
    /// [`RowError`] if the row is invalid.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let stored: StoredRow = serde_json::from_slice(bytes)?;
        let borders = BASE64.decode(stored.borders.as_bytes())?;
        let mut borders = Borders::unpack(stored.base, &borders);
        // Boundaries that do not end at the current line cannot be used.
        let line_start = stored.long.map_or(stored.offset, |long| long.start);
        if borders.end() != line_start {
            borders.restart(line_start);
        }
        let saved_line = match stored.kept {
            Some(line) => {
                let data = BASE64.decode(line.as_bytes())?;
                Some(PartialLine::new(data, stored.kept_runs)?)
            }
            None => None,
        };
        Ok(Self {
            path: path(stored.path, stored.path_base64)?,
            start: stored.start,
            offset: stored.offset,
            stamp: stored.stamp,
            is_drained: stored.drained,
            fingerprint: Fingerprint { head: stored.head, tail: stored.tail },
            first: stored.first,
            borders,
            long: stored.long,
            blocks: stored.hash.as_deref().and_then(block_hash),
            saved_line,
        })
    }

    /// Deserializes the summary of a row.
    ///
    /// # Errors
    /// As [`CheckpointRow::decode`].
    pub(super) fn summary(bytes: &[u8]) -> Result<CheckpointSummary, RowError> {
        let stored: StoredSummary = serde_json::from_slice(bytes)?;
        Ok(CheckpointSummary {
            path: path(stored.path, stored.path_base64)?,
            offset: stored.offset,
            stamp: stored.stamp,
            is_drained: stored.drained,
            has_saved_line: stored.kept.is_some(),
        })
    }
}

fn block_hash(base64: &str) -> Option<u64> {
    let bytes = BASE64_NOPAD.decode(base64.as_bytes()).ok()?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn path(text: Option<String>, base64: Option<String>) -> Result<PathBuf, RowError> {
    match (text, base64) {
        (Some(text), _) => Ok(PathBuf::from(text)),
        (None, Some(base64)) => {
            Ok(PathBuf::from(file::path_from_bytes(BASE64.decode(base64.as_bytes())?)))
        }
        (None, None) => Err(RowError::NoPath),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::platform::file::FileId;

    fn row(path: &Path) -> CheckpointRow {
        let mut row = CheckpointRow::new(path.to_owned(), 0);
        for line in 0..100_u64 {
            row.borders.push(&line.to_le_bytes(), 1000 + line);
        }
        row.offset = 104_990;
        let id = Some(FileId { volume: u64::MAX, file: u64::MAX });
        row.stamp = Stamp { size: 104_999, modified: i64::MAX, changed: i64::MIN, id };
        let sample = Sample::of(b"0123");
        row.fingerprint = Fingerprint { head: sample, tail: sample };
        row.first = Sample::of(b"first");
        row.long = Some(LongLinePosition { start: 104_950, parts: 3, head: sample });
        row.blocks = Some(u64::MAX);
        row
    }

    #[test]
    fn row_is_decoded_unchanged_and_small() {
        let row = row(Path::new("/home/u/.claude/projects/-home-u-a/5f3c1a0e.jsonl"));
        let bytes = row.encode();
        assert_eq!(CheckpointRow::decode(&bytes).unwrap(), row);
        assert!(bytes.len() < 1024, "{}", bytes.len());
        let summary = CheckpointRow::summary(&bytes).unwrap();
        assert_eq!((summary.offset, summary.stamp), (row.offset, row.stamp));
    }

    #[test]
    fn saved_line_with_a_run_of_nul_is_decoded_unchanged() {
        let line = PartialLine::fold(&[b"ab", &vec![0; 1 << 20][..]].concat());
        let row = CheckpointRow { saved_line: Some(line), ..row(Path::new("/p/a.jsonl")) };
        let bytes = row.encode();
        assert_eq!(CheckpointRow::decode(&bytes).unwrap(), row);
        assert!(bytes.len() < 1200, "{}", bytes.len());
        let text = String::from_utf8(bytes).unwrap().replace("[2,1048576]", "[3,1048576]");
        CheckpointRow::decode(text.as_bytes()).unwrap_err();
    }

    #[test]
    fn starting_row_exists_unless_another_generation_precedes() {
        let path = Path::new("/home/u/.claude/projects/-p/a.jsonl");
        let row = row(path);
        let start = CheckpointRow::decode(&starting_row(&row.encode()).unwrap()).unwrap();
        let stamp = Stamp { id: row.stamp.id, ..Stamp::default() };
        let fingerprint = Fingerprint { head: row.first, ..Fingerprint::default() };
        assert_eq!(
            start,
            CheckpointRow { stamp, fingerprint, ..CheckpointRow::new(path.to_owned(), 0) }
        );
        assert_eq!(
            starting_row(&CheckpointRow::new(path.to_owned(), 0).encode()),
            None,
            "nothing was read"
        );
        assert_eq!(starting_row(&CheckpointRow { start: 7, ..row }.encode()), None);
        assert_eq!(starting_row(b"12"), None);
    }

    #[cfg(unix)]
    #[test]
    fn path_that_is_not_utf8_is_decoded_unchanged() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/p/\xff\"o.jsonl"));
        let bytes = row(path).encode();
        assert_eq!(CheckpointRow::decode(&bytes).unwrap().path, path);
        assert_eq!(CheckpointRow::summary(&bytes).unwrap().path, path);
    }

    #[test]
    fn row_of_another_version_is_decoded() {
        let row =
            CheckpointRow::decode(br#"{"path":"/p/a.jsonl","offset":7,"later":[{}]}"#).unwrap();
        assert_eq!((row.path, row.offset, row.start), (PathBuf::from("/p/a.jsonl"), 7, 0));
        assert!(CheckpointRow::decode(b"{}").is_err());
        assert!(CheckpointRow::decode(b"").is_err());
    }
}
