//! A record: one line as it was read, with its top-level fields.

use std::{borrow::Cow, cell::OnceCell, path::Path, sync::OnceLock};

use siem_protocol::{
    Content,
    json::{self, Shape},
};

use crate::{FileKey, GenerationId, Origin};

/// One line as it was read, bytes untouched, with access to its top-level fields.
///
/// The fields are scanned once, on first access, by borrowing. Keys and strings are compared
/// unescaped. If a member occurs twice, the last one counts. A field of another JSON type is absent.
/// A line that is not a JSON object has no fields.
pub struct Record<'a> {
    origin: &'a Origin,
    offset: u64,
    line: &'a [u8],
    partial: bool,
    fields: OnceCell<Fields<'a>>,
}

/// The top-level fields that filters use: each value as written in the line.
#[derive(Clone, Copy, Default)]
struct Fields<'a> {
    text: Option<&'a str>,
    shape: Option<Shape>,
    kind: Option<&'a str>,
    uuid: Option<&'a str>,
    is_sidechain: Option<&'a str>,
    is_meta: Option<&'a str>,
    is_compact_summary: Option<&'a str>,
    cwd: Option<&'a str>,
    message: Option<&'a str>,
}

impl<'a> Record<'a> {
    /// Creates the record of a line of `origin` at `offset`, without its ending.
    #[must_use]
    #[inline]
    pub fn new(origin: &'a Origin, offset: u64, line: &'a [u8]) -> Self {
        Self { origin, offset, line, partial: false, fields: OnceCell::new() }
    }

    /// Creates a record for the tests of a stage, from a made-up session of the project `-work`.
    ///
    /// ```
    /// use ai_agent_stage::Record;
    /// let record = Record::from_line(br#"{"type":"user","isMeta":true}"#);
    /// assert_eq!(record.kind().as_deref(), Some("user"));
    /// assert!(record.is_meta());
    /// ```
    #[must_use]
    pub fn from_line(line: &'a [u8]) -> Self {
        static NOWHERE: OnceLock<Origin> = OnceLock::new();
        let origin = NOWHERE.get_or_init(|| {
            let path = Path::new("/home/user/.claude/projects/-work/session.jsonl");
            Origin::new(FileKey(0), path, GenerationId("00".repeat(16)))
        });
        Self::new(origin, 0, line)
    }

    /// Creates the record of the first part of a line that is too large to be held in memory. It has
    /// the fields that end within that part.
    #[must_use]
    pub fn first_part(origin: &'a Origin, offset: u64, part: &'a [u8]) -> Self {
        Self { partial: true, ..Self::new(origin, offset, part) }
    }

    /// Returns true if this is only the first part of the line.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// The record behind byte order marks at the start of the line, with the number of bytes before
    /// it; `None` if there are none. A mark is at the start of a file that some editors wrote, and in
    /// the middle of files that were joined. JSON forbids it, so that a line with one has no fields.
    #[must_use]
    pub fn behind_marks(&self) -> Option<(usize, Self)> {
        const MARK: &[u8] = "\u{feff}".as_bytes();
        let (mut rest, mut has_mark) = (self.line, false);
        loop {
            if let Some(behind) = rest.strip_prefix(MARK) {
                (rest, has_mark) = (behind, true);
            } else if let [b' ' | b'\t' | b'\r', behind @ ..] = rest {
                rest = behind;
            } else {
                break;
            }
        }
        let (origin, offset, partial) = (self.origin, self.offset, self.partial);
        let record = || Self { origin, offset, line: rest, partial, fields: OnceCell::new() };
        has_mark.then(|| (self.line.len() - rest.len(), record()))
    }

    /// Bytes of the line, without its ending.
    #[must_use]
    #[inline]
    pub fn line(&self) -> &'a [u8] {
        self.line
    }

    /// File that the line comes from.
    #[must_use]
    #[inline]
    pub fn origin(&self) -> &'a Origin {
        self.origin
    }

    /// Offset of the line in its file.
    #[must_use]
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns true if the line is a JSON object.
    #[must_use]
    pub fn is_object(&self) -> bool {
        self.fields().shape.is_some_and(|shape| shape.object)
    }

    /// The field `type`.
    #[must_use]
    pub fn kind(&self) -> Option<Cow<'a, str>> {
        self.fields().kind.and_then(json::string)
    }

    /// The field `uuid`.
    #[must_use]
    pub fn uuid(&self) -> Option<Cow<'a, str>> {
        self.fields().uuid.and_then(json::string)
    }

    /// The field `cwd`: the working directory of the client.
    #[must_use]
    pub fn cwd(&self) -> Option<Cow<'a, str>> {
        self.fields().cwd.and_then(json::string)
    }

    /// Returns true if `isSidechain` is the literal `true`: the record of a sub-agent.
    #[must_use]
    pub fn is_sidechain(&self) -> bool {
        self.fields().is_sidechain == Some("true")
    }

    /// Returns true if `isMeta` is the literal `true`.
    #[must_use]
    pub fn is_meta(&self) -> bool {
        self.fields().is_meta == Some("true")
    }

    /// Returns true if `isCompactSummary` is the literal `true`.
    #[must_use]
    pub fn is_compact_summary(&self) -> bool {
        self.fields().is_compact_summary == Some("true")
    }

    /// The value of `message` as written in the line, of any JSON type.
    #[must_use]
    pub fn message(&self) -> Option<&'a str> {
        self.fields().message
    }

    /// The line in the form in which an entry contains it.
    #[must_use]
    pub fn content(&self) -> Content<'a> {
        let fields = self.fields();
        match fields.text {
            Some(text) => Content::of_text(text, fields.shape),
            None => Content::Bytes(self.line),
        }
    }

    fn fields(&self) -> &Fields<'a> {
        self.fields.get_or_init(|| {
            if self.partial { Fields::scan_part(self.line) } else { Fields::scan(self.line) }
        })
    }
}

impl<'a> Fields<'a> {
    fn scan(line: &'a [u8]) -> Self {
        let Ok(text) = std::str::from_utf8(line) else { return Self::default() };
        let (fields, shape) = Self::members(text);
        match shape {
            Some(_) => Self { text: Some(text), shape, ..fields },
            None => Self { text: Some(text), ..Self::default() },
        }
    }

    /// Scans the members that end within the part. It is unknown whether the whole line is JSON.
    fn scan_part(part: &'a [u8]) -> Self {
        let Some(chunk) = part.utf8_chunks().next() else { return Self::default() };
        Self::members(chunk.valid()).0
    }

    fn members(text: &'a str) -> (Self, Option<Shape>) {
        let mut fields = Self::default();
        let shape = json::members(text, |member| {
            if member.key.contains('\\') {
                if let Some(key) = json::unescape(member.key) {
                    fields.set(&key, member.value);
                }
            } else {
                fields.set(member.key, member.value);
            }
        });
        (fields, shape)
    }

    fn set(&mut self, key: &str, value: &'a str) {
        let field = match key {
            "type" => &mut self.kind,
            "uuid" => &mut self.uuid,
            "isSidechain" => &mut self.is_sidechain,
            "isMeta" => &mut self.is_meta,
            "isCompactSummary" => &mut self.is_compact_summary,
            "cwd" => &mut self.cwd,
            "message" => &mut self.message,
            _ => return,
        };
        *field = Some(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> Option<String> {
        Record::from_line(line.as_bytes()).kind().map(Cow::into_owned)
    }

    #[test]
    fn last_of_two_equal_members_counts() {
        assert_eq!(kind(r#"{"type":"progress","type":"user"}"#).as_deref(), Some("user"));
        assert_eq!(kind(r#"{"type":"progress","type":5}"#), None);
        assert_eq!(kind(r#"{"type":5,"ty\u0070e":"user"}"#).as_deref(), Some("user"));
    }

    #[test]
    fn strings_are_unescaped() {
        assert_eq!(kind(r#"{"type":"pro\u0067ress"}"#).as_deref(), Some("progress"));
        assert_eq!(kind(r#"{"type":"\ud800"}"#), None);
    }

    #[test]
    fn only_literal_true_is_true() {
        for (value, expected) in
            [("true", true), ("false", false), ("\"true\"", false), ("1", false), ("null", false)]
        {
            let line = format!(r#"{{"isMeta":{value}}}"#);
            assert_eq!(Record::from_line(line.as_bytes()).is_meta(), expected, "{value}");
        }
    }

    #[test]
    fn nested_members_are_not_fields() {
        assert_eq!(kind(r#"{"message":{"type":"progress"},"a":[{"type":"progress"}]}"#), None);
    }

    #[test]
    fn line_that_is_not_an_object_has_no_fields() {
        let lines: [&[u8]; 6] = [
            br#"{"type":"progress""#,
            br#"[{"type":"progress"}]"#,
            br#"{"type":"progress"}{"type":"progress"}"#,
            b"{\"type\":\"progress\",\"x\":\"\xff\"}",
            b"\0{\"type\":\"progress\"}",
            "\u{feff}{\"type\":\"progress\"}".as_bytes(),
        ];
        for line in lines {
            let record = Record::from_line(line);
            assert_eq!(record.kind(), None, "{}", String::from_utf8_lossy(line));
            assert!(!record.is_object());
        }
    }

    #[test]
    fn white_space_around_object_is_ignored() {
        assert_eq!(kind(" {\"type\" : \"progress\" } \r").as_deref(), Some("progress"));
        let record = Record::from_line(b" {}");
        assert_eq!(record.content(), Content::Text(" {}"));
    }

    #[test]
    fn record_behind_byte_order_marks_has_the_fields() {
        let line = "\u{feff} \u{feff}{\"type\":\"user\"}";
        let record = Record::from_line(line.as_bytes());
        assert_eq!(record.kind(), None);
        let (before, behind) = record.behind_marks().unwrap();
        assert_eq!((before, behind.kind().as_deref()), (7, Some("user")));
        for line in ["", " {}", "{\"a\":\"\u{feff}\"}"] {
            assert!(Record::from_line(line.as_bytes()).behind_marks().is_none(), "{line:?}");
        }
    }
}
