//! Encodes entries as objects of the event endpoint.

use std::{io::Write as _, time::Duration};

use siem_protocol::BatchHeader;

use super::{Dialect, Settings};
use crate::{
    Batch,
    event::{Event, PartOf, Value, names::ENCODING_NAME},
    fields::{EventFields, Nesting},
    http::causes,
    json::{write_base64, write_member, write_text},
    part::{Content, Part, Size},
    request::{Limits, Packer, Request},
};

/// Room for members of the envelope, and for the fields that only parts have.
const ENVELOPE: usize = 1024;

/// Keys of an envelope. HEC answers an object with another key with 200, and drops it and the
/// objects after it: each key that is written is one of these.
#[derive(Clone, Copy, Debug)]
enum Key {
    Time,
    Host,
    Source,
    SourceType,
    Index,
    Event,
    Fields,
}

impl Key {
    /// Returns the key with its quotes, and the colon after it.
    fn text(self) -> &'static [u8] {
        match self {
            Self::Time => br#""time":"#,
            Self::Host => br#""host":"#,
            Self::Source => br#""source":"#,
            Self::SourceType => br#""sourcetype":"#,
            Self::Index => br#""index":"#,
            Self::Event => br#""event":"#,
            Self::Fields => br#""fields":"#,
        }
    }
}

/// Encodes the entries of a batch from the one with index `from` on.
///
/// # Errors
/// A reason for people if an entry cannot be read.
pub(super) fn encode(
    settings: &Settings,
    limits: Limits,
    batch: Batch<'_>,
    from: usize,
) -> Result<Vec<Request>, String> {
    let mut packer = Packer::new(limits.request, usize::MAX);
    // Escapes and fields need more than the entries themselves.
    packer.reserve(batch.lines.len() * 3 / 2);
    let mut encoder = Encoder::new(settings, limits.event, batch.header);
    for (index, line) in batch.entries().enumerate().skip(from) {
        let event = Event::of(line, batch.header, settings.time).map_err(|error| {
            format!("an entry of the outbox cannot be read: {}", causes(&error))
        })?;
        encoder.add(&event, index, &mut packer);
    }
    Ok(packer.finish())
}

impl Dialect {
    /// Returns the form of fields: Splunk refuses objects among them, and LogScale drops objects and
    /// arrays.
    fn nesting(self) -> Nesting {
        match self {
            Self::Splunk => Nesting::Flat,
            Self::LogScale => Nesting::Indexed,
        }
    }
}

struct Encoder<'a> {
    settings: &'a Settings,
    max_bytes: usize,
    /// Members of the envelope that are the same for each event, each with a comma after it.
    envelope: Vec<u8>,
    fields: EventFields,
}

impl<'a> Encoder<'a> {
    fn new(settings: &'a Settings, max_bytes: usize, header: &BatchHeader) -> Self {
        let mut envelope = Vec::new();
        write_key_text(&mut envelope, Key::Host, &header.hostname);
        if let Some(index) = &settings.index {
            write_key_text(&mut envelope, Key::Index, index);
        }
        let fields = EventFields::new(header, settings.dialect.nesting(), max_bytes);
        Self { settings, max_bytes, envelope, fields }
    }

    /// Adds an entry, cut into parts if it is larger than the limit.
    fn add(&mut self, event: &Event<'_>, index: usize, packer: &mut Packer) {
        if !self.add_whole(event, index, packer) {
            self.add_parts(event, index, packer);
        }
    }

    /// Adds an entry that fits, as nearly all do, and reports whether it did. Counting its escapes
    /// beforehand would be a second pass.
    fn add_whole(&self, event: &Event<'_>, index: usize, packer: &mut Packer) -> bool {
        let Content::Text(text) = &event.content else { return false };
        let whole = PartOf { index: 1, total: 1 };
        text.len() < self.max_bytes
            && packer.push_within(index, self.max_bytes, |body| {
                self.write(event, Part::Text(text), body, |body| {
                    self.fields.write(event, whole, body);
                });
            })
    }

    fn add_parts(&mut self, event: &Event<'_>, index: usize, packer: &mut Packer) {
        let whole = PartOf { index: 1, total: 1 };
        self.fields.set(event, whole);
        // No escape is longer than 6 bytes.
        let source = 6 * source(event).len();
        let used = self.fields.get().len() + self.envelope.len() + source + ENVELOPE;
        let mut room = self.max_bytes.saturating_sub(used).max(self.max_bytes / 8);
        if matches!(&event.content, Content::Text(text) if is_blank(text)) {
            // The backslashes of its escapes are escaped.
            room /= 2;
        }
        let parts = event.content.parts(room, Size::Json);
        for (number, part) in parts.iter().enumerate() {
            let of = PartOf { index: number + 1, total: parts.len() };
            if of.total > 1 {
                self.fields.set(event, of);
            }
            packer.push(index, |body| {
                self.write(event, *part, body, |body| body.extend_from_slice(self.fields.get()));
            });
        }
    }

    fn write(
        &self,
        event: &Event<'_>,
        part: Part<'_>,
        body: &mut Vec<u8>,
        write_fields: impl FnOnce(&mut Vec<u8>),
    ) {
        body.push(b'{');
        self.write_time(event.time, body);
        body.extend_from_slice(&self.envelope);
        write_key_text(body, Key::Source, source(event));
        match &self.settings.sourcetype {
            Some(sourcetype) => write_key_text(body, Key::SourceType, sourcetype),
            None => write_key_text(body, Key::SourceType, &event.dataset().replace('.', ":")),
        }
        body.extend_from_slice(Key::Event.text());
        let encoding = write_content(part, body);
        body.push(b',');
        body.extend_from_slice(Key::Fields.text());
        body.push(b'{');
        write_fields(body);
        if let Some(encoding) = encoding {
            write_member(body, ENCODING_NAME, Value::Text(encoding));
        }
        body.pop();
        body.extend_from_slice(b"}}\n");
    }

    /// Writes the time in seconds, with a fraction: HEC reads a number of 13 digits as milliseconds.
    fn write_time(&self, time: Duration, body: &mut Vec<u8>) {
        if time.is_zero() {
            return;
        }
        body.extend_from_slice(Key::Time.text());
        let seconds = time.as_secs();
        drop(match self.settings.dialect {
            Dialect::Splunk => write!(body, "{seconds}.{:06},", time.subsec_micros()),
            Dialect::LogScale => write!(body, "{seconds}.{:03},", time.subsec_millis()),
        });
    }
}

fn source<'e>(event: &'e Event<'_>) -> &'e str {
    event.entry.path.as_ref().unwrap_or(&event.entry.source)
}

fn write_key_text(out: &mut Vec<u8>, key: Key, text: &str) {
    out.extend_from_slice(key.text());
    write_text(out, text);
    out.push(b',');
}

/// Writes the content as a string, and returns its encoding if it is not the text itself.
fn write_content(part: Part<'_>, body: &mut Vec<u8>) -> Option<&'static str> {
    match part {
        Part::Bytes(bytes) => {
            write_base64(body, bytes);
            Some("base64")
        }
        // HEC refuses an event that is empty or blank: its JSON string is neither.
        Part::Text(text) if is_blank(text) => {
            let mut quoted = Vec::new();
            write_text(&mut quoted, text);
            write_text(body, &String::from_utf8_lossy(&quoted));
            Some("json")
        }
        Part::Text(text) => {
            write_text(body, text);
            None
        }
    }
}

/// Reports whether a text has only white space and control characters.
fn is_blank(text: &str) -> bool {
    text.chars().all(|character| character.is_whitespace() || character.is_control())
}
