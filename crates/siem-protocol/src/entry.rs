//! The lines of a batch: records, parts of records, and events.

use std::{borrow::Cow, io::Write as _, path::Path};

use data_encoding::BASE64;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::{Digest, json};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A line that a source read.
    Record,
    /// A piece of a line too large for one entry.
    RecordPart,
    /// What the agent itself reports.
    Event,
}

/// Content that a filter cut out of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// The filter.
    pub by: String,
    /// How many bytes it took out.
    pub bytes: u64,
}

/// Content that a filter masked in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masked {
    /// The filter.
    pub by: String,
    /// The pattern that matched.
    pub pattern: String,
    /// How often.
    pub count: u64,
}

/// An entry's line, as a receiver reads it. Members that the protocol does not name (enrichers'
/// objects, for one) are left in the line and not shown here.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry<'a> {
    /// Its number in the epoch.
    pub seq: u64,
    /// What it is.
    pub kind: Kind,
    /// Where it comes from.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// The file, absolute.
    #[serde(borrow, default)]
    pub path: Option<Cow<'a, str>>,
    /// Whether bytes of the path are percent-encoded.
    #[serde(default)]
    pub path_encoded: bool,
    /// The file's generation.
    #[serde(borrow, default)]
    pub generation: Option<Cow<'a, str>>,
    /// Where the line begins in the file.
    #[serde(default)]
    pub offset: Option<u64>,
    /// The line's length without its ending.
    #[serde(default)]
    pub length: Option<u64>,
    /// When it was read.
    #[serde(borrow, default)]
    pub read_at: Option<Cow<'a, str>>,
    /// The line, byte for byte. The literal `null` is a line too.
    #[serde(borrow, default, deserialize_with = "given")]
    pub record: Option<&'a RawValue>,
    /// The line as text, when it can't stand as `record`.
    #[serde(borrow, default)]
    pub raw: Option<Cow<'a, str>>,
    /// The line or part in base64, when it is no UTF-8.
    #[serde(borrow, default)]
    pub raw_base64: Option<Cow<'a, str>>,
    /// The lines of one event of the audit log.
    #[serde(borrow, default)]
    pub raw_lines: Vec<Cow<'a, str>>,
    /// What these lines tell.
    #[serde(borrow, default)]
    pub audit: Option<&'a RawValue>,
    /// What was cut out.
    #[serde(default)]
    pub cut: Vec<Cut>,
    /// What was masked.
    #[serde(default)]
    pub masked: Vec<Masked>,
    /// SHA-256 of the original line, after an edit or in parts.
    #[serde(default)]
    pub sha256: Option<Digest>,
    /// The part's number, from 1.
    #[serde(default)]
    pub part: Option<u32>,
    /// Whether it is the last part.
    #[serde(default)]
    pub last: bool,
    /// Whether the line never got its newline.
    #[serde(default)]
    pub incomplete: bool,
    /// An event's name.
    #[serde(borrow, default)]
    pub event: Option<Cow<'a, str>>,
    /// How much an event matters.
    #[serde(borrow, default)]
    pub severity: Option<Cow<'a, str>>,
    /// When an event happened.
    #[serde(borrow, default)]
    pub at: Option<Cow<'a, str>>,
    /// An event's facts.
    #[serde(borrow, default, deserialize_with = "given")]
    pub data: Option<&'a RawValue>,
}

/// Reads a member that is there; `Option` alone takes the value `null` for an absent member.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Why a line is no entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The line is no JSON object with an entry's members.
    #[error("the line is no entry")]
    Json(#[from] serde_json::Error),
    /// `raw_base64` is no base64.
    #[error("`raw_base64` of entry {seq} is no base64")]
    Base64 {
        /// The entry's number.
        seq: u64,
        /// What is wrong with it.
        #[source]
        source: data_encoding::DecodeError,
    },
}

impl<'a> Entry<'a> {
    /// Reads a line.
    ///
    /// # Errors
    /// [`EntryError::Json`] when the line is no entry.
    pub fn parse(line: &'a [u8]) -> Result<Self, EntryError> {
        Ok(serde_json::from_slice(line)?)
    }

    /// The bytes of the record or part, several lines with newlines between them; `None` for an
    /// event.
    ///
    /// # Errors
    /// [`EntryError::Base64`] when `raw_base64` is no base64.
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

/// How a line's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// As they are, in `record`.
    Json(&'a str),
    /// As a JSON string, in `raw`.
    Text(&'a str),
    /// In base64, in `raw_base64`.
    Bytes(&'a [u8]),
    /// Several lines as JSON strings, in `raw_lines`, with what they tell beside them, in `audit`.
    /// When one of them is no UTF-8, all travel in `raw_base64`.
    Lines {
        /// The lines, with a newline between each two.
        lines: &'a [u8],
        /// A JSON object.
        audit: &'a str,
    },
}

impl<'a> Content<'a> {
    /// Chooses for `line`, checking its grammar.
    #[must_use]
    pub fn of(line: &'a [u8]) -> Self {
        match std::str::from_utf8(line) {
            Ok(text) => Self::of_text(text, json::check(text)),
            Err(_) => Self::Bytes(line),
        }
    }

    /// Chooses for a `text` whose grammar was checked before.
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

/// A path as it stands in an entry: prepared once for all lines of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathText(String);

/// What is percent-encoded where a path must be: what is no UTF-8, and the sign itself.
const PERCENT: &AsciiSet = &CONTROLS.add(b'%');

impl PathText {
    /// Prepares `path`. Bytes that are no UTF-8 are percent-encoded (and so, then, is `%`).
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

/// A record to write.
#[derive(Clone, Copy, Debug)]
pub struct RecordLine<'a> {
    /// Where it comes from.
    pub source: &'a str,
    /// The file.
    pub path: &'a PathText,
    /// The file's generation.
    pub generation: &'a str,
    /// Where the line begins in the file.
    pub offset: u64,
    /// The line's length without its ending, before any edit.
    pub length: u64,
    /// When it was read, RFC 3339.
    pub read_at: &'a str,
    /// What enrichers added: members, each with a comma before it.
    pub enriched: &'a str,
    /// What was cut out.
    pub cut: &'a [Cut],
    /// What was masked.
    pub masked: &'a [Masked],
    /// Hash of the original line, after an edit.
    pub sha256: Option<Digest>,
    /// Whether the line never got its newline.
    pub incomplete: bool,
    /// The line itself.
    pub content: Content<'a>,
}

impl RecordLine<'_> {
    /// Appends the line, without a newline, to `line`.
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
        if let Some(digest) = self.sha256 {
            push(line, format_args!(",\"sha256\":\"{digest}\""));
        }
        if self.incomplete {
            line.extend_from_slice(br#","incomplete":true"#);
        }
        self.content.write(line);
        line.push(b'}');
    }
}

/// A part of a large line to write.
#[derive(Clone, Copy, Debug)]
pub struct PartLine<'a> {
    /// Where it comes from.
    pub source: &'a str,
    /// The file.
    pub path: &'a PathText,
    /// The file's generation.
    pub generation: &'a str,
    /// Where the LINE begins in the file.
    pub offset: u64,
    /// The part's number, from 1.
    pub part: u32,
    /// When it was read, RFC 3339.
    pub read_at: &'a str,
    /// What enrichers added: members, each with a comma before it.
    pub enriched: &'a str,
    /// Of the last part: length and hash of the whole line.
    pub whole: Option<(u64, Digest)>,
    /// Whether the line never got its newline; said by its last part.
    pub incomplete: bool,
    /// The part's bytes.
    pub bytes: &'a [u8],
}

impl PartLine<'_> {
    /// Appends the line, without a newline, to `line`.
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
        if let Some((length, digest)) = self.whole {
            push(line, format_args!(",\"last\":true,\"length\":{length},\"sha256\":\"{digest}\""));
        }
        if self.incomplete {
            line.extend_from_slice(br#","incomplete":true"#);
        }
        Content::Bytes(self.bytes).write(line);
        line.push(b'}');
    }
}

/// An event to write.
#[derive(Clone, Copy, Debug)]
pub struct EventLine<'a> {
    /// Where it comes from.
    pub source: &'a str,
    /// Its name.
    pub event: &'a str,
    /// How much it matters.
    pub severity: &'a str,
    /// When it happened, RFC 3339.
    pub at: &'a str,
    /// Its facts: a JSON object.
    pub data: &'a str,
}

impl EventLine<'_> {
    /// Appends the line, without a newline, to `line`.
    pub fn write(&self, seq: u64, line: &mut Vec<u8>) {
        push(
            line,
            format_args!(
                r#"{{"seq":{seq},"kind":"event","source":"{}","event":"{}","severity":"{}","at":"{}","data":{}}}"#,
                self.source, self.event, self.severity, self.at, self.data
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

fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("a vector takes every write");
}

fn write_string(line: &mut Vec<u8>, text: &str) {
    write_json(line, text);
}

fn write_json<T: Serialize + ?Sized>(line: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(line, value).expect("strings and numbers can be written as JSON");
}

/// Appends base64 a piece at a time, so that no second copy of a large line is made.
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
    fn content_survives_the_way_whatever_it_is() {
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
    fn lines_that_belong_together_travel_as_they_are() {
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
    fn an_edit_is_said() {
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
    fn a_part_is_read_back() {
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let part = PartLine {
            source: "claude-sessions",
            path: &path,
            generation: "9c41",
            offset: 9,
            part: 2,
            read_at: "2026-11-21T20:00:01.000Z",
            enriched: r#","labels":{"a":"b"}"#,
            whole: Some((12, Digest::of(b"whole"))),
            incomplete: false,
            bytes: b"\x00\xff",
        };
        let mut line = Vec::new();
        part.write(3, &mut line);
        let entry = Entry::parse(&line).unwrap();
        assert_eq!((entry.kind, entry.part, entry.last), (Kind::RecordPart, Some(2), true));
        assert_eq!(entry.content().unwrap().unwrap(), b"\x00\xff".as_slice());
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_text_is_percent_encoded() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/p/\xffo%\"b.jsonl"));
        let path = PathText::new(path);
        let line = written(&record(&path, Content::Json("{}")));
        let entry = Entry::parse(&line).unwrap();
        assert_eq!(entry.path.as_deref(), Some("/p/%FFo%25\"b.jsonl"));
        assert!(entry.path_encoded);
    }
}
