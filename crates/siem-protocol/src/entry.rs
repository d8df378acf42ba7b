//! Lines of a batch: records, parts of records, and events.

use std::{borrow::Cow, io::Write as _, path::Path};

use data_encoding::BASE64;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{
    Digest, json,
    nul_runs::{Folded, LineDigests, NulRun},
};

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

/// Member of the entry that carries a line's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Unchanged, in `record`.
    Json(&'a str),
    /// As a JSON string, in `raw`.
    Text(&'a str),
    /// In base64, in `raw_base64`.
    Bytes(&'a [u8]),
    /// Several lines as JSON strings in `raw_lines`, with the facts read from them in `audit`. If
    /// one of them is not UTF-8, all are sent in `raw_base64`.
    Lines {
        /// The lines, joined by newlines.
        lines: &'a [u8],
        /// A JSON object.
        audit: &'a str,
    },
}

impl<'a> Content<'a> {
    /// Chooses the member for `line`, after checking its grammar.
    #[must_use]
    pub fn of(line: &'a [u8]) -> Self {
        match std::str::from_utf8(line) {
            Ok(text) => Self::of_text(text, json::check(text)),
            Err(_) => Self::Bytes(line),
        }
    }

    /// Chooses the member for a `text` whose grammar was already checked.
    #[must_use]
    pub fn of_text(text: &'a str, shape: Option<json::Shape>) -> Self {
        match shape {
            Some(shape) if shape.embeddable() => Self::Json(text),
            _ => Self::Text(text),
        }
    }

    fn write(self, line: &mut Vec<u8>) {
        match self {
            Self::Json(text) => {
                line.extend_from_slice(br#","record":"#);
                line.extend_from_slice(text.as_bytes());
            }
            Self::Text(text) => {
                line.extend_from_slice(br#","raw":"#);
                write_string(line, text);
            }
            Self::Bytes(bytes) => {
                line.extend_from_slice(br#","raw_base64":""#);
                write_base64(line, bytes);
                line.push(b'"');
            }
            Self::Lines { lines, audit } => {
                match std::str::from_utf8(lines) {
                    Ok(text) => {
                        line.extend_from_slice(br#","raw_lines":"#);
                        write_json(line, &text.split('\n').collect::<Vec<_>>());
                    }
                    Err(_) => Self::Bytes(lines).write(line),
                }
                line.extend_from_slice(br#","audit":"#);
                line.extend_from_slice(audit.as_bytes());
            }
        }
    }
}

/// A path in the form used in entries, prepared once for all lines of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathText(String);

/// Bytes to percent-encode if a path is not UTF-8: control characters and the percent sign.
const PERCENT: &AsciiSet = &CONTROLS.add(b'%');

impl PathText {
    /// Prepares `path`. If it is not UTF-8, the invalid bytes and `%` are percent-encoded.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let mut json = Vec::from(br#""path":"#);
        if let Some(text) = path.to_str() {
            write_string(&mut json, text);
        } else {
            let text: String = path
                .as_os_str()
                .as_encoded_bytes()
                .utf8_chunks()
                .flat_map(|chunk| {
                    let valid = chunk.valid().replace('%', "%25");
                    [valid, percent_encode(chunk.invalid(), PERCENT).to_string()]
                })
                .collect();
            write_string(&mut json, &text);
            json.extend_from_slice(br#","path_encoded":true"#);
        }
        Self(String::from_utf8(json).expect("JSON strings are written as UTF-8"))
    }
}

/// Member of a record or part that was sent before, and is sent again because bytes in or near it
/// were altered: the start of its `enriched`.
pub const ALTERED: &str = r#","altered":true"#;

/// A record to write.
#[derive(Clone, Copy, Debug)]
pub struct RecordLine<'a> {
    /// Source of the record.
    pub source: &'a str,
    /// Path of the file.
    pub path: &'a PathText,
    /// Generation of the file.
    pub generation: &'a str,
    /// Offset of the line in the file.
    pub offset: u64,
    /// Length of the line without its ending, before any edit.
    pub length: u64,
    /// Time at which it was read, RFC 3339.
    pub read_at: &'a str,
    /// [`ALTERED`], and members added by enrichers, each with a comma in front.
    pub enriched: &'a str,
    /// Removed content.
    pub cut: &'a [Cut],
    /// Masked content.
    pub masked: &'a [Masked],
    /// Hash of the original line, after an edit.
    pub sha256: Option<Digest>,
    /// Runs of NUL of the original line; `content` is [`Content::Bytes`] without them.
    pub folded: Option<Folded<'a>>,
    /// True if the line never got its newline.
    pub incomplete: bool,
    /// The line.
    pub content: Content<'a>,
}

impl RecordLine<'_> {
    /// Appends the entry's line, without a newline, to `line`.
    pub fn write(&self, seq: u64, line: &mut Vec<u8>) {
        write_origin(line, seq, "record", self.source, self.path, self.generation, self.offset);
        push(line, format_args!(",\"length\":{},\"read_at\":\"{}\"", self.length, self.read_at));
        line.extend_from_slice(self.enriched.as_bytes());
        if !self.cut.is_empty() {
            line.extend_from_slice(br#","cut":"#);
            write_json(line, self.cut);
        }
        if !self.masked.is_empty() {
            line.extend_from_slice(br#","masked":"#);
            write_json(line, self.masked);
        }
        match &self.folded {
            Some(folded) => write_digests(line, &folded.digests),
            None => write_digest(line, "sha256", self.sha256),
        }
        if self.incomplete {
            line.extend_from_slice(br#","incomplete":true"#);
        }
        write_nul_runs(line, self.folded.map_or(&[], |folded| folded.runs));
        self.content.write(line);
        line.push(b'}');
    }
}

/// A part of a large line to write.
#[derive(Clone, Copy, Debug)]
pub struct PartLine<'a> {
    /// Source of the record.
    pub source: &'a str,
    /// Path of the file.
    pub path: &'a PathText,
    /// Generation of the file.
    pub generation: &'a str,
    /// Offset of the whole line in the file.
    pub offset: u64,
    /// Number of the part, from 1.
    pub part: u32,
    /// Time at which it was read, RFC 3339.
    pub read_at: &'a str,
    /// [`ALTERED`], and members added by enrichers, each with a comma in front.
    pub enriched: &'a str,
    /// In the last part: length and hashes of the whole line.
    pub whole: Option<LineDigests>,
    /// True if the line never got its newline; only in the last part.
    pub incomplete: bool,
    /// Runs of NUL in the part.
    pub nul_runs: &'a [NulRun],
    /// Bytes of the part without these runs.
    pub bytes: &'a [u8],
}

impl PartLine<'_> {
    /// Appends the entry's line, without a newline, to `line`.
    pub fn write(&self, seq: u64, line: &mut Vec<u8>) {
        write_origin(
            line,
            seq,
            "record_part",
            self.source,
            self.path,
            self.generation,
            self.offset,
        );
        push(line, format_args!(",\"part\":{},\"read_at\":\"{}\"", self.part, self.read_at));
        line.extend_from_slice(self.enriched.as_bytes());
        if let Some(whole) = &self.whole {
            push(line, format_args!(",\"last\":true,\"length\":{}", whole.length));
            write_digests(line, whole);
        }
        if self.incomplete {
            line.extend_from_slice(br#","incomplete":true"#);
        }
        write_nul_runs(line, self.nul_runs);
        Content::Bytes(self.bytes).write(line);
        line.push(b'}');
    }
}

/// An event to write.
#[derive(Clone, Copy, Debug)]
pub struct EventLine<'a> {
    /// Source of the event.
    pub source: &'a str,
    /// Name of the event.
    pub event: &'a str,
    /// Severity of the event.
    pub severity: &'a str,
    /// Time of the event, RFC 3339.
    pub at: &'a str,
    /// Members added by enrichers, each with a comma in front.
    pub enriched: &'a str,
    /// Data of the event: a JSON object.
    pub data: &'a str,
}

impl EventLine<'_> {
    /// Appends the entry's line, without a newline, to `line`.
    pub fn write(&self, seq: u64, line: &mut Vec<u8>) {
        push(
            line,
            format_args!(
                r#"{{"seq":{seq},"kind":"event","source":"{}","event":"{}","severity":"{}","at":"{}"{},"data":{}}}"#,
                self.source, self.event, self.severity, self.at, self.enriched, self.data
            ),
        );
    }
}

fn write_origin(
    line: &mut Vec<u8>,
    seq: u64,
    kind: &str,
    source: &str,
    path: &PathText,
    generation: &str,
    offset: u64,
) {
    push(
        line,
        format_args!(
            r#"{{"seq":{seq},"kind":"{kind}","source":"{source}",{},"generation":"{generation}","offset":{offset}"#,
            path.0
        ),
    );
}

fn write_digests(line: &mut Vec<u8>, digests: &LineDigests) {
    write_digest(line, "sha256", digests.sha256);
    write_digest(line, "folded_sha256", digests.folded_sha256);
}

fn write_digest(line: &mut Vec<u8>, member: &str, digest: Option<Digest>) {
    if let Some(digest) = digest {
        push(line, format_args!(",\"{member}\":\"{digest}\""));
    }
}

fn write_nul_runs(line: &mut Vec<u8>, runs: &[NulRun]) {
    if !runs.is_empty() {
        line.extend_from_slice(br#","nul_runs":"#);
        write_json(line, runs);
    }
}

fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("a vector takes every write");
}

fn write_string(line: &mut Vec<u8>, text: &str) {
    write_json(line, text);
}

fn write_json<T: Serialize + ?Sized>(line: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(line, value).expect("strings and numbers can be written as JSON");
}

/// Appends base64 in place, so that a large line is not copied twice.
fn write_base64(line: &mut Vec<u8>, bytes: &[u8]) {
    let start = line.len();
    line.resize(start + BASE64.encode_len(bytes.len()), 0);
    BASE64.encode_mut(bytes, &mut line[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record<'a>(path: &'a PathText, content: Content<'a>) -> RecordLine<'a> {
        RecordLine {
            source: "claude-sessions",
            path,
            generation: "9c41",
            offset: 0,
            length: 11,
            read_at: "2026-11-21T20:00:01.000Z",
            enriched: "",
            cut: &[],
            masked: &[],
            sha256: None,
            folded: None,
            incomplete: false,
            content,
        }
    }

    fn written(record: &RecordLine<'_>) -> Vec<u8> {
        let mut line = Vec::new();
        record.write(7, &mut line);
        line
    }

    #[test]
    fn content_of_any_kind_reads_back() {
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let lines: [(&[u8], &str); 9] = [
            (b"null", "record"),
            (br#"{"a" : 1}"#, "record"),
            (br#"{"a":"\ud800"}"#, "record"),
            (br#" {"a":1}"#, "raw"),
            (b"{\"torn\": tr", "raw"),
            (b"\0\0{}", "raw"),
            ("\u{feff}{}".as_bytes(), "raw"),
            (b"\xff{}", "raw_base64"),
            (b"{\"a\":1}\r", "raw"),
        ];
        for (original, member) in lines {
            let line = written(&record(&path, Content::of(original)));
            let entry = Entry::parse(&line).unwrap();
            assert_eq!(entry.seq, 7);
            assert_eq!(entry.content().unwrap().unwrap(), original);
            let text = std::str::from_utf8(&line).unwrap();
            assert!(text.contains(&format!(r#""{member}":"#)), "{text}");
            assert!(json::check(text).is_some(), "{text}");
        }
    }

    #[test]
    fn lines_of_one_record_read_back() {
        let path = PathText::new(Path::new("/var/log/audit/audit.log"));
        let lines: [(&[u8], usize); 3] =
            [(b"one", 1), (b"a=\"b\"\x1dC=d\nsecond", 2), (b"one\n\xff", 0)];
        for (lines, count) in lines {
            let content = Content::Lines { lines, audit: r#"{"pid":7}"# };
            let line = written(&record(&path, content));
            let entry = Entry::parse(&line).unwrap();
            assert_eq!(entry.raw_lines.len(), count);
            assert_eq!(entry.content().unwrap().unwrap(), lines);
            assert_eq!(entry.audit.unwrap().get(), r#"{"pid":7}"#);
        }
    }

    #[test]
    fn edit_is_part_of_the_entry() {
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let cut = [Cut { by: "tool-call".into(), bytes: 5 }];
        let masked = [Masked { by: "mask".into(), pattern: "jwt".into(), count: 2 }];
        let record = RecordLine {
            cut: &cut,
            masked: &masked,
            sha256: Some(Digest::of(b"x")),
            incomplete: true,
            ..record(&path, Content::Json("{}"))
        };
        let line = written(&record);
        let entry = Entry::parse(&line).unwrap();
        assert_eq!(entry.cut, cut);
        assert_eq!(entry.masked, masked);
        assert_eq!(entry.sha256, Some(Digest::of(b"x")));
        assert!(entry.incomplete);
    }

    #[test]
    fn part_reads_back() {
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let part = PartLine {
            source: "claude-sessions",
            path: &path,
            generation: "9c41",
            offset: 9,
            part: 2,
            read_at: "2026-11-21T20:00:01.000Z",
            enriched: &[ALTERED, r#","labels":{"a":"b"}"#].concat(),
            whole: Some(LineDigests {
                length: 12,
                sha256: Some(Digest::of(b"whole")),
                folded_sha256: None,
            }),
            incomplete: false,
            nul_runs: &[],
            bytes: b"\x00\xff",
        };
        let mut line = Vec::new();
        part.write(3, &mut line);
        let entry = Entry::parse(&line).unwrap();
        assert_eq!((entry.length, entry.sha256), (Some(12), Some(Digest::of(b"whole"))));
        assert_eq!((entry.folded_sha256, entry.nul_runs.len()), (None, 0));
        assert_eq!((entry.kind, entry.part, entry.last), (Kind::RecordPart, Some(2), true));
        assert!(entry.altered);
        assert_eq!(entry.content().unwrap().unwrap(), b"\x00\xff".as_slice());
    }

    #[test]
    fn folded_line_reads_back() {
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let runs = [NulRun { offset: 1, length: 4096 }, NulRun { offset: 4099, length: 1 << 62 }];
        let digests = LineDigests::of(b"a{}", &runs).unwrap();
        let record = RecordLine {
            length: digests.length,
            folded: Some(Folded { runs: &runs, digests }),
            ..record(&path, Content::Bytes(b"a{}"))
        };
        let line = written(&record);
        let text = std::str::from_utf8(&line).unwrap();
        let member =
            format!("\"nul_runs\":[[1,4096],[4099,{}]],\"raw_base64\":\"YXt9\"}}", 1_u64 << 62);
        assert!(text.ends_with(&member), "{text}");
        let entry = Entry::parse(&line).unwrap();
        assert_eq!((&entry.nul_runs[..], entry.length), (&runs[..], Some(digests.length)));
        assert_eq!((entry.sha256, entry.folded_sha256), (None, digests.folded_sha256));
        assert!(entry.folded_sha256.is_some());
    }

    #[cfg(unix)]
    #[test]
    fn path_that_is_not_utf8_is_percent_encoded() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/p/\xffo%\"b.jsonl"));
        let path = PathText::new(path);
        let line = written(&record(&path, Content::Json("{}")));
        let entry = Entry::parse(&line).unwrap();
        assert_eq!(entry.path.as_deref(), Some("/p/%FFo%25\"b.jsonl"));
        assert!(entry.path_encoded);
    }
}
