//! Lines of a batch: records, parts of records, and events.

mod write;

use std::borrow::Cow;

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

pub use self::write::{ALTERED, Content, EventLine, PartLine, PathText, RecordLine};
use crate::{Digest, nul_runs::NulRun};

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line read by a source.
    Record,
    /// A part of a line that is too large for one entry.
    RecordPart,
    /// A report of the agent.
    Event,
}

/// Content that a filter removed from a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The filter.
    pub by: String,
    /// Number of bytes removed.
    pub bytes: u64,
}

/// Content that a filter masked in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masked {
    /// The filter.
    pub by: String,
    /// The pattern that matched.
    pub pattern: String,
    /// Number of matches.
    pub count: u64,
}

/// An entry's line, as a receiver reads it. Members that the protocol does not define, such as the
/// objects of enrichers, are ignored here and stay in the line.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// Number in the epoch.
    pub seq: u64,
    /// Kind of the entry.
    pub kind: Kind,
    /// Source of the entry.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// Absolute path of the file.
    #[serde(borrow, default)]
    pub path: Option<Cow<'a, str>>,
    /// True if bytes of the path are percent-encoded.
    #[serde(default)]
    pub path_encoded: bool,
    /// Generation of the file.
    #[serde(borrow, default)]
    pub generation: Option<Cow<'a, str>>,
    /// Offset of the line in the file.
    #[serde(default)]
    pub offset: Option<u64>,
    /// Length of the line without its ending.
    #[serde(default)]
    pub length: Option<u64>,
    /// Time at which the line was read.
    #[serde(borrow, default)]
    pub read_at: Option<Cow<'a, str>>,
    /// The line, byte for byte. The literal `null` is a valid line.
    #[serde(borrow, default, deserialize_with = "present")]
    pub record: Option<&'a RawValue>,
    /// The line as text, if it cannot be sent as `record`.
    #[serde(borrow, default)]
    pub raw: Option<Cow<'a, str>>,
    /// The line or part in base64, if it is not UTF-8.
    #[serde(borrow, default)]
    pub raw_base64: Option<Cow<'a, str>>,
    /// Runs of NUL that were removed from the line or part: `raw_base64` is the data without them.
    #[serde(default)]
    pub nul_runs: Vec<NulRun>,
    /// Lines of one event of the audit log.
    #[serde(borrow, default)]
    pub raw_lines: Vec<Cow<'a, str>>,
    /// Facts read from these lines.
    #[serde(borrow, default)]
    pub audit: Option<&'a RawValue>,
    /// Removed content.
    #[serde(default)]
    pub cut: Vec<Cut>,
    /// Masked content.
    #[serde(default)]
    pub masked: Vec<Masked>,
    /// SHA-256 of the original line, if it was edited, sent in parts or has runs of NUL.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// Hash over data and runs of the original line, if it has runs of NUL: see
    /// [`nul_runs`](crate::nul_runs).
    #[serde(default)]
    pub folded_sha256: Option<Digest>,
    /// Number of the part, from 1.
    #[serde(default)]
    pub part: Option<u32>,
    /// True for the last part.
    #[serde(default)]
    pub last: bool,
    /// True if the line never got its newline.
    #[serde(default)]
    pub incomplete: bool,
    /// True if the line was sent before, and again because bytes in or near it were altered.
    #[serde(default)]
    pub altered: bool,
    /// Name of the event.
    #[serde(borrow, default)]
    pub event: Option<Cow<'a, str>>,
    /// Severity of the event.
    #[serde(borrow, default)]
    pub severity: Option<Cow<'a, str>>,
    /// Time of the event.
    #[serde(borrow, default)]
    pub at: Option<Cow<'a, str>>,
    /// Data of the event.
    #[serde(borrow, default, deserialize_with = "present")]
    pub data: Option<&'a RawValue>,
}

/// Deserializes a member that is present; `Option` alone reads the value `null` as absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reason why a line is not an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The line is not a JSON object with the members of an entry.
    #[error("the line is not an entry")]
    Json(#[from] serde_json::Error),
    /// `raw_base64` is not valid base64.
    #[error("`raw_base64` of entry {seq} is not valid base64")]
    Base64 {
        /// Number of the entry.
        seq: u64,
        /// Error of the decoder.
        #[source]
        source: data_encoding::DecodeError,
    },
}

impl<'a> Entry<'a> {
    /// Names of the members that the protocol defines.
    pub const MEMBERS: [&'static str; 27] = [
        "seq",
        "kind",
        "source",
        "path",
        "path_encoded",
        "generation",
        "offset",
        "length",
        "read_at",
        "record",
        "raw",
        "raw_base64",
        "nul_runs",
        "raw_lines",
        "audit",
        "cut",
        "masked",
        "sha256",
        "folded_sha256",
        "part",
        "last",
        "incomplete",
        "altered",
        "event",
        "severity",
        "at",
        "data",
    ];

    /// Parses a line.
    ///
    /// # Errors
    /// [`EntryError::Json`] if the line is not an entry.
    pub fn parse(line: &'a [u8]) -> Result<Self, EntryError> {
        Ok(serde_json::from_slice(line)?)
    }

    /// Returns the bytes of the record or part, with newlines between several lines and without its
    /// [runs of NUL](crate::nul_runs); `None` for an event.
    ///
    /// # Errors
    /// [`EntryError::Base64`] if `raw_base64` is not valid base64.
    pub fn content(&self) -> Result<Option<Cow<'_, [u8]>>, EntryError> {
        if let Some(record) = self.record {
            return Ok(Some(Cow::Borrowed(record.get().as_bytes())));
        }
        if let Some(raw) = &self.raw {
            return Ok(Some(Cow::Borrowed(raw.as_bytes())));
        }
        if !self.raw_lines.is_empty() {
            return Ok(Some(Cow::Owned(self.raw_lines.join("\n").into_bytes())));
        }
        let Some(base64) = &self.raw_base64 else { return Ok(None) };
        match BASE64.decode(base64.as_bytes()) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(source) => Err(EntryError::Base64 { seq: self.seq, source }),
        }
    }
}

#[cfg(test)]
mod tests;
