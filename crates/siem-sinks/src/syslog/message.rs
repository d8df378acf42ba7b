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
        let sendable = sendable(&event.content);
        let is_base64 = matches!(sendable, Content::Bytes(_));
        let overhead =
            self.head(event, header, PartOf { index: 999_999, total: 999_999 }, is_base64);
        let room = self.max_bytes.saturating_sub(overhead.len()).max(MIN_CONTENT);
        let size = if is_base64 { Size::Json } else { Size::Utf8 };
        let parts = sendable.parts(room, size);
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

/// Returns the content as it can be sent without being changed on the way: receivers replace control
/// characters, and trim white space.
fn sendable<'a>(content: &'a Content<'_>) -> Content<'a> {
    match content {
        Content::Text(text) => {
            let is_safe = !text.chars().any(char::is_control)
                && !text.starts_with([' ', '\u{feff}'])
                && !text.ends_with(' ')
                && !text.is_empty();
            match is_safe {
                true => Content::Text(Cow::Borrowed(text)),
                false => Content::Bytes(Cow::Borrowed(text.as_bytes())),
            }
        }
        Content::Bytes(bytes) => Content::Bytes(Cow::Borrowed(bytes)),
    }
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
