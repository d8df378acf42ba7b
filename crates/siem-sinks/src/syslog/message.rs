//! Messages of RFC 5424, framed by octet counting (RFC 6587, 3.4.1; RFC 5425, 4.3).

use std::{borrow::Cow, io::Write as _};

use data_encoding::{BASE64, HEXLOWER};
use siem_protocol::{BatchHeader, Digest};

use crate::{
    event::{Event, Names, PartOf, TimeOf, Value, names::OMITTED_NAME, rfc3339, sender_fields},
    part::{Content, Part, Size},
};

/// Name of the structured data element. 32473 is the enterprise number that RFC 5612 reserves for
/// examples: the project has none of its own.
pub(super) const SD_ID: &str = "ai-agent@32473";
/// Longest name of a parameter (RFC 5424, 6.3.3).
const MAX_NAME: usize = 32;
/// Maximum number of bytes of the fields that enrichers add to one message.
const MAX_ENRICHED: usize = 2048;
/// Number of omitted fields that are named.
const MAX_OMITTED: usize = 8;
/// Smallest room for content in a message, with any limit: below it a line would become thousands of
/// messages.
const MIN_CONTENT: usize = 256;
/// Smallest limit of messages, with room for the fields of every entry and some content. RFC 5425 asks
/// receivers to accept 8192 bytes, and requires 2048.
pub const MIN_EVENT_BYTES: usize = 4096;
/// Smallest limit of a value: the fields of every entry fit into [`MIN_EVENT_BYTES`] with it. A shortened
/// value has room for its hash.
const MIN_VALUE: usize = 96;

/// Properties of messages that do not depend on the entry.
#[derive(Debug)]
pub(super) struct Format {
    facility: u8,
    max_bytes: usize,
    time: TimeOf,
}

impl Format {
    pub(super) fn new(facility: u8, max_bytes: usize, time: TimeOf) -> Self {
        Self { facility, max_bytes: max_bytes.max(MIN_EVENT_BYTES), time }
    }

    pub(super) fn time(&self) -> TimeOf {
        self.time
    }

    /// Appends the messages of an event, each with its frame, to `out`.
    pub(super) fn write(&self, event: &Event<'_>, header: &BatchHeader, out: &mut Vec<u8>) {
        let head = Head { format: self, event, header, is_base64: true };
        let bytes = Content::Bytes(Cow::Borrowed(event.content.as_bytes()));
        // The fields are a little longer with base64, so that the same limit fits for text.
        let Limits { value, content } = head.limits();
        let as_text = match event.content {
            Content::Text(_) => Some(event.content.parts(content, Size::Utf8)),
            Content::Bytes(_) => None,
        };
        let as_text = as_text.filter(|parts| parts.iter().all(is_left_unchanged));
        let head = Head { is_base64: as_text.is_none(), ..head };
        let parts = as_text.unwrap_or_else(|| bytes.parts(content, Size::Json));
        for (at, part) in parts.iter().enumerate() {
            let of = PartOf { index: at + 1, total: parts.len() };
            let mut message = head.write(of, value);
            match part {
                Part::Text(text) => message.extend_from_slice(text.as_bytes()),
                Part::Bytes(bytes) => message.extend_from_slice(BASE64.encode(bytes).as_bytes()),
            }
            push(out, format_args!("{} ", message.len()));
            out.extend_from_slice(&message);
        }
    }
}

/// Limits of the messages of one entry.
struct Limits {
    /// Maximum size of the value of a field.
    value: usize,
    /// Maximum size of the content of a message.
    content: usize,
}

/// Everything in the messages of an entry before the content.
#[derive(Clone, Copy)]
struct Head<'a> {
    format: &'a Format,
    event: &'a Event<'a>,
    header: &'a BatchHeader,
    is_base64: bool,
}

impl Head<'_> {
    /// Returns limits with which a message has at most the maximum size, a quarter of it for content unless
    /// that would leave too little of the values. Values may be of any size, such as a long path.
    fn limits(&self) -> Limits {
        let longest = PartOf { index: 999_999, total: 999_999 };
        let max_bytes = self.format.max_bytes;
        let mut value = max_bytes / 4;
        loop {
            let content = max_bytes.saturating_sub(self.write(longest, value).len());
            if content >= max_bytes / 4 || value <= MIN_VALUE {
                return Limits { value, content: content.max(MIN_CONTENT) };
            }
            value = (value / 2).max(MIN_VALUE);
        }
    }

    /// Returns the text for a part, with values of at most `max_value` bytes.
    fn write(&self, part: PartOf, max_value: usize) -> Vec<u8> {
        let Self { format, event, header, is_base64 } = *self;
        let mut head = Vec::with_capacity(1024);
        let priority = u16::from(format.facility) * 8 + severity(event);
        let time = rfc3339(event.time);
        let host = token(&header.hostname, 255);
        let kind = token(event.dataset(), 32);
        push(&mut head, format_args!("<{priority}>1 {time} {host} ai-agent - {kind} [{SD_ID}"));
        let mut add = |name: &str, value: Value<'_>| parameter(&mut head, name, value, max_value);
        sender_fields(header, Names::Ecs, &mut add);
        if is_base64 {
            add("ai_agent.encoding", Value::Text("base64"));
        }
        event.own_fields(Names::Ecs, part, &mut add);
        let max_enriched = MAX_ENRICHED.min(format.max_bytes / 4).min(max_value * 4);
        let (start, mut omitted) = (head.len(), Vec::new());
        event.enriched_fields(Names::Ecs, &mut |name, value| {
            let before = head.len();
            parameter(&mut head, name, value, usize::MAX);
            if head.len() - start > max_enriched {
                head.truncate(before);
                omitted.push(name.to_owned());
            }
        });
        if !omitted.is_empty() {
            let more = omitted.len().saturating_sub(MAX_OMITTED);
            omitted.truncate(MAX_OMITTED);
            if more > 0 {
                omitted.push(format!("{more} more"));
            }
            let names = omitted.join(", ");
            parameter(&mut head, OMITTED_NAME, Value::Text(&names), max_value);
        }
        head.extend_from_slice(b"] ");
        head
    }
}

/// Returns true if receivers leave the content of a message as it is: they replace control characters, and
/// trim white space.
fn is_left_unchanged(part: &Part<'_>) -> bool {
    let Part::Text(text) = part else { return false };
    !text.is_empty()
        && !text.chars().any(char::is_control)
        && !text.starts_with([' ', '\u{feff}'])
        && !text.ends_with(' ')
}

/// Severity of RFC 5424.
fn severity(event: &Event<'_>) -> u16 {
    match event.entry.severity.as_deref() {
        Some("critical") => 2,
        Some("error") => 3,
        Some("warning") => 4,
        _ => 6,
    }
}

/// Returns printable ASCII of at most `max` bytes, or `-`.
fn token(text: &str, max: usize) -> String {
    let printable = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' });
    let token: String = printable.take(max).collect();
    if token.is_empty() { "-".to_owned() } else { token }
}

/// Writes a parameter. A value of more than `max` bytes is shortened.
fn parameter(head: &mut Vec<u8>, name: &str, value: Value<'_>, max: usize) {
    push(head, format_args!(" {}=\"", parameter_name(name)));
    match value {
        Value::Text(text) => shortened(head, text, max),
        Value::Number(number) => push(head, format_args!("{number}")),
        Value::Bool(flag) => push(head, format_args!("{flag}")),
        Value::Json(json) => match siem_protocol::json::string(json) {
            Some(text) => shortened(head, &text, max),
            None => shortened(head, json, max),
        },
    }
    head.push(b'"');
}

/// Writes `text` escaped if that has at most `max` bytes; else its start and end, with the SHA-256 of the
/// whole text between them.
fn shortened(head: &mut Vec<u8>, text: &str, max: usize) {
    let is_short =
        text.len() <= max / MAX_ESCAPED || text.chars().map(escaped_len).sum::<usize>() <= max;
    if is_short {
        return escaped(head, text);
    }
    let marker =
        format!("...(sha256:{})...", HEXLOWER.encode(Digest::of(text.as_bytes()).as_bytes()));
    // The end of a path tells more than its start.
    let room = max.saturating_sub(marker.len());
    let start = prefix_len(text.chars(), room / 4);
    let end = text.len() - prefix_len(text.chars().rev(), room - room / 4);
    escaped(head, &text[..start]);
    escaped(head, &marker);
    escaped(head, &text[end..]);
}

/// Returns the number of bytes of the first characters that have at most `max` bytes when escaped.
fn prefix_len(characters: impl Iterator<Item = char>, max: usize) -> usize {
    let mut room = max;
    let fitting = characters.take_while(|character| {
        let remaining = room.checked_sub(escaped_len(*character));
        room = remaining.unwrap_or_default();
        remaining.is_some()
    });
    fitting.map(char::len_utf8).sum()
}

/// Returns the end of the name, from a dot on, that is short enough, with characters that a name may
/// contain.
fn parameter_name(name: &str) -> String {
    let mut name = name;
    while name.len() > MAX_NAME {
        match name.split_once('.') {
            Some((_, rest)) => name = rest,
            None => break,
        }
    }
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '=' | ']' | '"');
    name.chars().map(|c| if allowed(c) { c } else { '_' }).take(MAX_NAME).collect()
}

/// Largest size of an escaped character.
const MAX_ESCAPED: usize = 7;

/// Escapes a value of a parameter (RFC 5424, 6.3.3). Control characters, which receivers replace, are
/// written as in JSON.
fn escaped(head: &mut Vec<u8>, text: &str) {
    for character in text.chars() {
        match character {
            '"' | '\\' | ']' => push(head, format_args!("\\{character}")),
            character if character.is_control() => {
                push(head, format_args!("\\\\u{:04x}", u32::from(character)));
            }
            character => push(head, format_args!("{character}")),
        }
    }
}

/// Returns the size of an escaped character.
fn escaped_len(character: char) -> usize {
    match character {
        '"' | '\\' | ']' => 2,
        character if character.is_control() => MAX_ESCAPED,
        character => character.len_utf8(),
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector accepts every write");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use siem_protocol::{
        Digest, Identity,
        entry::{Content as Line, PathText, RecordLine},
    };

    use super::*;

    fn header() -> BatchHeader {
        let text = || "x".to_owned();
        let identity = Identity {
            machine_id: text(),
            hostname: text(),
            user: text(),
            os: text(),
            arch: text(),
            agent_version: text(),
        };
        BatchHeader::new(&identity, text(), Digest::ZERO, text())
    }

    fn messages(text: &str, max_bytes: usize) -> String {
        messages_of(text, "/p/a.jsonl", "", &header(), max_bytes)
    }

    fn messages_of(
        text: &str,
        path: &str,
        enriched: &str,
        header: &BatchHeader,
        max_bytes: usize,
    ) -> String {
        let path = PathText::new(Path::new(path));
        let record = RecordLine {
            source: "claude-sessions",
            path: &path,
            generation: "9c41",
            offset: 0,
            length: text.len() as u64,
            read_at: "2026-11-21T20:00:01.000Z",
            enriched,
            cut: &[],
            masked: &[],
            sha256: None,
            folded: None,
            incomplete: false,
            content: Line::of(text.as_bytes()),
        };
        let (mut line, mut out) = (Vec::new(), Vec::new());
        record.write(1, &mut line);
        let event = Event::of(&line, header, TimeOf::Read).unwrap();
        Format::new(13, max_bytes, TimeOf::Read).write(&event, header, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Removes the frames.
    fn unframed(mut text: &str) -> Vec<&str> {
        let mut messages = Vec::new();
        while let Some((size, rest)) = text.split_once(' ') {
            let (message, rest) = rest.split_at(size.parse().unwrap());
            messages.push(message);
            text = rest;
        }
        assert_eq!(text, "");
        messages
    }

    /// Returns the value of a parameter as it is written.
    fn value<'m>(message: &'m str, name: &str) -> &'m str {
        let (_, rest) = message.split_once(&format!(" {name}=\"")).unwrap();
        let is_end = |at: &usize| !rest[..*at].ends_with('\\');
        let end = rest.match_indices('"').map(|(at, _)| at).find(is_end).unwrap();
        &rest[..end]
    }

    #[test]
    fn text_that_would_be_cut_beside_a_space_is_base64() {
        let plain = messages(&"x".repeat(5000), 4096);
        assert!(!plain.contains("ai_agent.encoding"), "{plain}");
        let spaces = messages(&format!("x{}x", " ".repeat(5000)), 4096);
        assert!(spaces.contains(r#"ai_agent.encoding="base64""#), "{spaces}");
        assert!(!spaces.contains("  "), "{spaces}");
    }

    #[test]
    fn messages_have_at_most_the_maximum_size() {
        for length in [1, 3000, 50_000] {
            let text = messages("a\"b ".repeat(length).trim_end(), 4096);
            assert!(unframed(&text).iter().all(|message| message.len() <= 4096));
        }
    }

    /// A path or an audit object made messages larger than the limit, and servers truncated them.
    #[test]
    fn large_values_are_shortened_in_the_middle() {
        let path = format!("/home/ada/{}/session-7.jsonl", "d/".repeat(32 << 10));
        let audit = format!(r#"{{"comm":"docker","args":"{}"}}"#, "a]\\u0001".repeat(20_000));
        let enriched = format!(r#","audit":{audit},"team":"core""#);
        for max_bytes in [4096, 8000, 60_000] {
            for content in ["{}".to_owned(), "x".repeat(100_000), "\t".repeat(100_000)] {
                let text = messages_of(&content, &path, &enriched, &header(), max_bytes);
                let messages = unframed(&text);
                for message in &messages {
                    assert!(message.len() <= max_bytes, "{}", message.len());
                    let hash = |text: &str| HEXLOWER.encode(Digest::of(text.as_bytes()).as_bytes());
                    let short_path = value(message, "log.file.path");
                    let marker = format!("...(sha256:{})...", hash(&path));
                    let (start, end) = short_path.split_once(&marker).unwrap();
                    assert!(path.starts_with(start) && start.starts_with("/home/ada/"), "{start}");
                    assert!(path.ends_with(end) && end.ends_with("/session-7.jsonl"), "{end}");
                    assert!(message.contains(&hash(&audit)), "{message}");
                    assert!(message.contains(r#" ai_agent.enriched.team="core""#), "{message}");
                }
                let least = if content.len() < 10 { 1 } else { 100_000 / max_bytes };
                assert!((least..=8 * least.max(1)).contains(&messages.len()), "{}", messages.len());
            }
        }
    }

    #[test]
    fn values_that_fit_are_not_shortened() {
        let path = format!("/{}", "p".repeat(1_900));
        let audit = format!(r#"{{"args":"{}"}}"#, "a".repeat(1_900));
        let text = messages_of("{}", &path, &format!(r#","audit":{audit}"#), &header(), 8000);
        assert_eq!(value(&text, "log.file.path"), path);
        assert!(text.contains(&"a".repeat(1_900)) && !text.contains("...("), "{text}");
    }

    #[test]
    fn all_values_at_their_largest_fit_the_smallest_limit() {
        let long = || "\u{1}\"".repeat(5_000);
        let identity = Identity {
            machine_id: long(),
            hostname: long(),
            user: long(),
            os: long(),
            arch: long(),
            agent_version: long(),
        };
        let header = BatchHeader::new(&identity, long(), Digest::ZERO, long());
        let line = serde_json::json!({
            "kind": "record", "seq": u64::MAX, "source": long(), "path": long(),
            "generation": long(), "offset": u64::MAX, "length": u64::MAX, "part": u32::MAX,
            "last": true, "sha256": Digest::ZERO, "incomplete": true, "event": long(),
            "severity": long(), "read_at": "2026-11-21T20:00:01.000Z",
            "cut": [{ "by": long(), "bytes": 1 }],
            "masked": [{ "by": long(), "pattern": long(), "count": 1 }],
            "audit": { "args": long() }, (long()): 1, "labels": { "a": long() }, "team": "x".repeat(400),
            "raw": "x".repeat(5_000),
        });
        let line = line.to_string();
        let event = Event::of(line.as_bytes(), &header, TimeOf::Read).unwrap();
        let mut out = Vec::new();
        Format::new(23, 0, TimeOf::Read).write(&event, &header, &mut out);
        let text = String::from_utf8(out).unwrap();
        let messages = unframed(&text);
        assert!(messages.len() > 1 && messages.len() < 20, "{}", messages.len());
        for message in messages {
            assert!(message.len() <= MIN_EVENT_BYTES, "{}: {message}", message.len());
        }
    }
}
