//! Writes entries as lines.

use std::{io::Write as _, path::Path};

use data_encoding::BASE64;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use serde::Serialize;

use super::{Cut, Masked};
use crate::{
    Digest, json,
    nul_runs::{Folded, LineDigests, NulRun},
};

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
