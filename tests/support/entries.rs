//! Entries as a receiver stored them, and the lines of files that they carry.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;
use siem_protocol::{Cut, Digest, Entry, Kind};

/// An entry with the members that tests use.
#[derive(Clone, Debug)]
pub(crate) struct StoredEntry {
    pub(crate) seq: u64,
    pub(crate) kind: Kind,
    pub(crate) source: String,
    pub(crate) path: PathBuf,
    pub(crate) path_text: String,
    pub(crate) path_encoded: bool,
    pub(crate) generation: String,
    pub(crate) offset: u64,
    pub(crate) length: Option<u64>,
    pub(crate) carrier: Carrier,
    pub(crate) bytes: Vec<u8>,
    pub(crate) cut: Vec<Cut>,
    pub(crate) sha256: Option<Digest>,
    pub(crate) part: Option<u32>,
    pub(crate) last: bool,
    pub(crate) event: Option<String>,
    pub(crate) data: Value,
    /// The whole entry, including the members of enrichers.
    pub(crate) whole: Value,
}

/// The member that carries a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Record,
    Raw,
    Base64,
    /// None: the entry has no line.
    Absent,
}

/// Parses NDJSON.
#[track_caller]
pub(crate) fn parse(ndjson: &[u8]) -> Vec<StoredEntry> {
    let lines = ndjson.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(parse_line).collect()
}

#[track_caller]
fn parse_line(line: &[u8]) -> StoredEntry {
    let entry = Entry::parse(line)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(line)));
    let carrier = match (&entry.record, &entry.raw, &entry.raw_base64) {
        (Some(_), None, None) => Carrier::Record,
        (None, Some(_), None) => Carrier::Raw,
        (None, None, Some(_)) => Carrier::Base64,
        (None, None, None) => Carrier::Absent,
        _ => panic!("a line is carried twice: {}", String::from_utf8_lossy(line)),
    };
    let path_text = entry.path.as_deref().unwrap_or_default().to_owned();
    StoredEntry {
        seq: entry.seq,
        kind: entry.kind,
        source: entry.source.clone().into_owned(),
        path: path(&path_text, entry.path_encoded),
        path_text,
        path_encoded: entry.path_encoded,
        generation: entry.generation.as_deref().unwrap_or_default().to_owned(),
        offset: entry.offset.unwrap_or_default(),
        length: entry.length,
        carrier,
        bytes: entry.content().unwrap().unwrap_or_default().into_owned(),
        cut: entry.cut.clone(),
        sha256: entry.sha256,
        part: entry.part,
        last: entry.last,
        event: entry.event.as_deref().map(str::to_owned),
        data: entry.data.map_or(Value::Null, |data| serde_json::from_str(data.get()).unwrap()),
        // A record may contain numbers that `Value` cannot represent.
        whole: serde_json::from_slice(line).unwrap_or_default(),
    }
}

#[cfg(unix)]
fn path(text: &str, encoded: bool) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;

    if !encoded {
        return text.into();
    }
    let bytes = percent_encoding::percent_decode_str(text).collect();
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(not(unix))]
fn path(text: &str, _encoded: bool) -> PathBuf {
    text.into()
}

/// A line of a file, assembled from its parts.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Sequence number of its entry, or of its last part.
    pub(crate) seq: u64,
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) carrier: Carrier,
    pub(crate) cut: Vec<Cut>,
    pub(crate) sha256: Option<Digest>,
    /// Number of parts; 0 for a line in one entry.
    pub(crate) parts: u32,
}

/// Returns the lines that `entries` carry, in order.
#[track_caller]
pub(crate) fn lines(entries: &[StoredEntry]) -> Vec<Line> {
    let mut open: BTreeMap<(String, u64), Vec<u8>> = BTreeMap::new();
    let mut expected: BTreeMap<(String, u64), u32> = BTreeMap::new();
    let mut lines = Vec::new();
    for entry in entries {
        let key = (entry.generation.clone(), entry.offset);
        let (bytes, parts) = match entry.kind {
            Kind::Event => continue,
            Kind::Record => {
                assert_ne!(entry.carrier, Carrier::Absent, "a record without a line: {entry:?}");
                (entry.bytes.clone(), 0)
            }
            Kind::RecordPart => {
                let number = expected.entry(key.clone()).or_insert(1);
                assert_eq!(entry.part, Some(*number), "parts of {key:?} are out of order");
                assert_eq!(entry.carrier, Carrier::Base64);
                *number += 1;
                let bytes = open.entry(key.clone()).or_default();
                bytes.extend_from_slice(&entry.bytes);
                if !entry.last {
                    continue;
                }
                let bytes = open.remove(&key).unwrap();
                assert_eq!(entry.sha256, Some(Digest::of(&bytes)), "of the parts of {key:?}");
                (bytes, expected.remove(&key).unwrap() - 1)
            }
        };
        lines.push(Line {
            seq: entry.seq,
            path: entry.path.clone(),
            offset: entry.offset,
            length: entry.length.unwrap(),
            bytes,
            carrier: entry.carrier,
            cut: entry.cut.clone(),
            sha256: if parts == 0 { entry.sha256 } else { None },
            parts,
        });
    }
    assert!(open.is_empty(), "lines whose last part is missing: {:?}", open.keys());
    lines
}

/// Returns the events with this name.
pub(crate) fn events<'a>(entries: &'a [StoredEntry], name: &str) -> Vec<&'a StoredEntry> {
    entries.iter().filter(|entry| entry.event.as_deref() == Some(name)).collect()
}
