//! The row of a generation: what the outbox keeps about a file, beside its lines.

use std::{io, path::PathBuf};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::fingerprint::{Borders, EdgeSamples, FileMatch, Fingerprint, Sample, compare};
use crate::platform::file::{self, ReadAt, Stamp};

/// Why bytes are no row.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("the row is no JSON object of a row")]
    Json(#[from] serde_json::Error),
    #[error("the row's path is no base64")]
    Base64(#[from] data_encoding::DecodeError),
    #[error("the row has no path")]
    NoPath,
}

/// The path of the file that `row` is about; `None` when it is no row.
#[must_use]
pub fn row_path(row: &[u8]) -> Option<PathBuf> {
    CheckpointRow::summary(row).ok().map(|summary| summary.path)
}

/// The row with which the generation of `row` began, nothing read yet: with it everything is read
/// again under the same id, if the file begins as it did. `None` for one that goes on in a file
/// where another ended, since what lies before belongs to that one, for one of which nothing was
/// read, since any file would be taken for it, and for what is no row.
#[must_use]
pub fn beginning(row: &[u8]) -> Option<Vec<u8>> {
    let begun = begun(row)?;
    let stamp = Stamp { id: begun.stamp.id, ..Stamp::default() };
    let fingerprint = Fingerprint { head: begun.first, ..Fingerprint::default() };
    let path = path(begun.path, begun.path_base64).ok()?;
    Some(CheckpointRow { stamp, fingerprint, ..CheckpointRow::new(path, 0) }.encode())
}

/// Whether [`beginning`] has something to say of `row`.
#[must_use]
pub fn has_beginning(row: &[u8]) -> bool {
    begun(row).is_some()
}

fn begun(row: &[u8]) -> Option<StoredStart> {
    let begun: StoredStart = serde_json::from_slice(row).ok()?;
    (begun.start == 0 && begun.first.len() > 0).then_some(begun)
}

/// How far a generation was read, and how to know it again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CheckpointRow {
    /// Where the file lay.
    pub(super) path: PathBuf,
    /// Where the generation begins in the file.
    pub(super) start: u64,
    /// Up to where its bytes are in the outbox.
    pub(super) offset: u64,
    /// How the file looked when it was last read.
    pub(super) stamp: Stamp,
    /// Whether it was read to its end then: with the same stamp nothing is unread.
    pub(super) is_drained: bool,
    /// What its bytes are known by.
    pub(super) fingerprint: Fingerprint,
    /// The first bytes that were read, whatever the borders vouch for.
    pub(super) first: Sample,
    /// The last lines.
    pub(super) borders: Borders,
    /// The large line that the offset lies in.
    pub(super) long: Option<LongLinePosition>,
    /// The start of an incomplete line that did not change for long, from the offset on.
    pub(super) kept: Option<Vec<u8>>,
}

/// How far a line was handed over in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LongLinePosition {
    /// Where the line begins.
    pub(super) start: u64,
    /// How many parts were handed over.
    pub(super) parts: u32,
    /// Its first bytes, in the first part.
    #[serde(default)]
    pub(super) head: Sample,
}

/// What of a row is held in memory for every file.
#[derive(Debug)]
pub(super) struct CheckpointSummary {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) stamp: Stamp,
    pub(super) is_drained: bool,
    pub(super) has_kept: bool,
}

/// The row as it is stored. Members may come; none may change its meaning.
#[derive(Deserialize, Serialize)]
struct StoredRow {
    /// The path, when it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The path in base64, when it is not.
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
    kept: Option<String>,
}

/// The members that a summary takes, so that the others are skipped quickly.
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

/// The members that say how a generation began.
#[derive(Deserialize)]
struct StoredStart {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    path_base64: Option<String>,
    #[serde(default)]
    start: u64,
    #[serde(default)]
    stamp: Stamp,
    #[serde(default)]
    first: Sample,
}

impl CheckpointRow {
    /// Compares `file`, of `size` bytes, with what was read of it, and leaves both ends in `ends`.
    ///
    /// # Errors
    /// What reading the file says.
    pub(super) fn compare(
        &self,
        file: &dyn ReadAt,
        size: u64,
        ends: &mut EdgeSamples,
    ) -> io::Result<FileMatch> {
        let Self { offset, fingerprint, borders, long, .. } = self;
        compare(file, size, *offset, fingerprint, borders, long.as_ref(), ends)
    }

    /// The row of a generation that begins at `start`, with nothing read yet.
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
            kept: None,
        }
    }

    /// The row as bytes.
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
            kept: self.kept.as_deref().map(|kept| BASE64.encode(kept)),
        };
        serde_json::to_vec(&stored).expect("a row has only strings as keys")
    }

    /// The row that `bytes` are.
    ///
    /// # Errors
    /// When they are none: the file is then as good as unknown.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let stored: StoredRow = serde_json::from_slice(bytes)?;
        let borders = BASE64.decode(stored.borders.as_bytes())?;
        let mut borders = Borders::unpack(stored.base, &borders);
        // Borders that do not lead up to the current line are of no use.
        let line_start = stored.long.map_or(stored.offset, |long| long.start);
        if borders.end() != line_start {
            borders.restart(line_start);
        }
        let kept = stored.kept.map(|kept| BASE64.decode(kept.as_bytes())).transpose()?;
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
            kept,
        })
    }

    /// What is held in memory of the row that `bytes` are.
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
            has_kept: stored.kept.is_some(),
        })
    }
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
        row
    }

    #[test]
    fn a_row_is_read_back_and_small() {
        let row = row(Path::new("/home/u/.claude/projects/-home-u-a/5f3c1a0e.jsonl"));
        let bytes = row.encode();
        assert_eq!(CheckpointRow::decode(&bytes).unwrap(), row);
        assert!(bytes.len() < 1024, "{}", bytes.len());
        let summary = CheckpointRow::summary(&bytes).unwrap();
        assert_eq!((summary.offset, summary.stamp), (row.offset, row.stamp));
    }

    #[test]
    fn a_row_says_how_its_generation_began_unless_another_lies_before_it() {
        let path = Path::new("/home/u/.claude/projects/-p/a.jsonl");
        let row = row(path);
        let begun = CheckpointRow::decode(&beginning(&row.encode()).unwrap()).unwrap();
        let stamp = Stamp { id: row.stamp.id, ..Stamp::default() };
        let fingerprint = Fingerprint { head: row.first, ..Fingerprint::default() };
        assert_eq!(
            begun,
            CheckpointRow { stamp, fingerprint, ..CheckpointRow::new(path.to_owned(), 0) }
        );
        assert_eq!(
            beginning(&CheckpointRow::new(path.to_owned(), 0).encode()),
            None,
            "nothing was read"
        );
        assert_eq!(beginning(&CheckpointRow { start: 7, ..row }.encode()), None);
        assert_eq!(beginning(b"12"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_is_read_back() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/p/\xff\"o.jsonl"));
        let bytes = row(path).encode();
        assert_eq!(CheckpointRow::decode(&bytes).unwrap().path, path);
        assert_eq!(CheckpointRow::summary(&bytes).unwrap().path, path);
    }

    #[test]
    fn a_row_of_another_version_is_read_with_what_it_has() {
        let row =
            CheckpointRow::decode(br#"{"path":"/p/a.jsonl","offset":7,"later":[{}]}"#).unwrap();
        assert_eq!((row.path, row.offset, row.start), (PathBuf::from("/p/a.jsonl"), 7, 0));
        assert!(CheckpointRow::decode(b"{}").is_err());
        assert!(CheckpointRow::decode(b"").is_err());
    }
}
