//! Messages of RFC 5424, framed by octet counting (RFC 6587, 3.4.1; RFC 5425, 4.3).

use std::{borrow::Cow, io::Write as _};

use data_encoding::BASE64;
use siem_protocol::BatchHeader;

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

/// Properties of messages that do not depend on the entry.
#[derive(Debug)]
pub(super) struct Format {
    facility: u8,
    max_bytes: usize,
    time: TimeOf,
}

impl Format {
    pub(super) fn new(facility: u8, max_bytes: usize, time: TimeOf) -> Self {
        Self { facility, max_bytes, time }
    }

    pub(super) fn time(&self) -> TimeOf {
        self.time
    }

    /// Appends the messages of an event, each with its frame, to `out`.
    pub(super) fn write(&self, event: &Event<'_>, header: &BatchHeader, out: &mut Vec<u8>) {
        let room = |is_base64| {
            let longest = PartOf { index: 999_999, total: 999_999 };
            let head = self.head(event, header, longest, is_base64);
            self.max_bytes.saturating_sub(head.len()).max(MIN_CONTENT)
        };
        let as_text = match event.content {
            Content::Text(_) => Some(event.content.parts(room(false), Size::Utf8)),
            Content::Bytes(_) => None,
        };
        let as_text = as_text.filter(|parts| parts.iter().all(is_left_unchanged));
        let is_base64 = as_text.is_none();
        let bytes = Content::Bytes(Cow::Borrowed(event.content.as_bytes()));
        let parts = as_text.unwrap_or_else(|| bytes.parts(room(true), Size::Json));
        for (at, part) in parts.iter().enumerate() {
            let of = PartOf { index: at + 1, total: parts.len() };
            let mut message = self.head(event, header, of, is_base64);
            match part {
                Part::Text(text) => message.extend_from_slice(text.as_bytes()),
                Part::Bytes(bytes) => message.extend_from_slice(BASE64.encode(bytes).as_bytes()),
            }
            push(out, format_args!("{} ", message.len()));
            out.extend_from_slice(&message);
        }
    }

    /// Returns everything before the content.
    fn head(
        &self,
        event: &Event<'_>,
        header: &BatchHeader,
        part: PartOf,
        is_base64: bool,
    ) -> Vec<u8> {
        let mut head = Vec::with_capacity(1024);
        let priority = u16::from(self.facility) * 8 + severity(event);
        let time = rfc3339(event.time);
        let host = token(&header.hostname, 255);
        let kind = token(event.dataset(), 32);
        push(&mut head, format_args!("<{priority}>1 {time} {host} ai-agent - {kind} [{SD_ID}"));
        let mut add = |name: &str, value: Value<'_>| parameter(&mut head, name, value);
        sender_fields(header, Names::Ecs, &mut add);
        if is_base64 {
            add("ai_agent.encoding", Value::Text("base64"));
        }
        event.own_fields(Names::Ecs, part, &mut add);
        let (start, mut omitted) = (head.len(), Vec::new());
        event.enriched_fields(Names::Ecs, &mut |name, value| {
            let before = head.len();
            parameter(&mut head, name, value);
            if head.len() - start > MAX_ENRICHED.min(self.max_bytes / 4) {
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
            parameter(&mut head, OMITTED_NAME, Value::Text(&omitted.join(", ")));
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

fn parameter(head: &mut Vec<u8>, name: &str, value: Value<'_>) {
    push(head, format_args!(" {}=\"", parameter_name(name)));
    match value {
        Value::Text(text) => escaped(head, text),
        Value::Number(number) => push(head, format_args!("{number}")),
        Value::Bool(flag) => push(head, format_args!("{flag}")),
        Value::Json(json) => match siem_protocol::json::string(json) {
            Some(text) => escaped(head, &text),
            None => escaped(head, json),
        },
    }
    head.push(b'"');
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
        let path = PathText::new(Path::new("/p/a.jsonl"));
        let record = RecordLine {
            source: "claude-sessions",
            path: &path,
            generation: "9c41",
            offset: 0,
            length: text.len() as u64,
            read_at: "2026-11-21T20:00:01.000Z",
            enriched: "",
            cut: &[],
            masked: &[],
            sha256: None,
            incomplete: false,
            content: Line::of(text.as_bytes()),
        };
        let mut line = Vec::new();
        record.write(1, &mut line);
        let (header, mut out) = (header(), Vec::new());
        let event = Event::of(&line, &header, TimeOf::Read).unwrap();
        Format::new(13, max_bytes, TimeOf::Read).write(&event, &header, &mut out);
        String::from_utf8(out).unwrap()
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
            let mut rest = &*messages("a\"b ".repeat(length).trim_end(), 4096);
            while let Some((size, message)) = rest.split_once(' ') {
                let size: usize = size.parse().unwrap();
                assert!(size <= 4096, "{size}");
                rest = &message[size..];
            }
            assert_eq!(rest, "");
        }
    }
}
