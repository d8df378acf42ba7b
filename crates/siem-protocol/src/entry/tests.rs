use std::path::Path;

use serde::{
    de::{Visitor, value::Error},
    forward_to_deserialize_any,
};

use super::*;
use crate::{
    json,
    nul_runs::{Folded, LineDigests},
};

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

/// Names of the members that a type reads.
struct Members<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Members<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("only the names of members"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        members: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend(members);
        Err(serde::de::Error::custom("only the names of members"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[test]
fn list_of_members_is_complete() {
    let mut members = Vec::new();
    drop(Entry::deserialize(Members(&mut members)));
    members.sort_unstable();
    let mut listed = Entry::MEMBERS.to_vec();
    listed.sort_unstable();
    assert_eq!(listed, members);
}
