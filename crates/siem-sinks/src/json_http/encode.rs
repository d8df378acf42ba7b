//! Encodes entries as JSON objects.

use siem_protocol::BatchHeader;

use super::{Format, Settings};
use crate::{
    Batch,
    event::{Event, PartOf, Value, names::ENCODING_NAME, rfc3339},
    fields::{EventFields, Nesting},
    http::causes,
    json::{write_base64, write_member, write_text},
    part::{Part, Size},
    request::{Limits, Packer, Request},
};

/// Room for time and content without the text, and for the fields that only parts have.
const ENVELOPE: usize = 1024;

/// Encodes the entries of a batch from the one with index `from` on. Each event ends with a newline.
///
/// # Errors
/// A reason for people if an entry cannot be read.
pub(super) fn encode(
    settings: &Settings,
    limits: Limits,
    batch: Batch<'_>,
    from: usize,
) -> Result<Vec<Request>, String> {
    let mut packer = Packer::new(limits.request, settings.max_events);
    // Escapes and fields need more than the entries themselves.
    packer.reserve(batch.lines.len() * 3 / 2);
    let mut encoder = Encoder::new(settings.format, limits.event, batch.header);
    for (index, line) in batch.entries().enumerate().skip(from) {
        let event = Event::of(line, batch.header, settings.time).map_err(|error| {
            format!("an entry of the outbox cannot be read: {}", causes(&error))
        })?;
        encoder.add(&event, index, &mut packer);
    }
    Ok(packer.finish())
}

/// Returns the body of a request in the format of an array, whose events start with a comma.
pub(super) fn array(request: &Request) -> Vec<u8> {
    let mut body = Vec::with_capacity(request.body.len() + 1);
    body.push(b'[');
    body.extend_from_slice(request.body.get(1..).unwrap_or_default());
    body.push(b']');
    body
}

struct Encoder {
    format: Format,
    max_bytes: usize,
    fields: EventFields,
}

impl Encoder {
    fn new(format: Format, max_bytes: usize, header: &BatchHeader) -> Self {
        let fields = EventFields::new(header, Nesting::Nested, max_bytes);
        Self { format, max_bytes, fields }
    }

    /// Adds an entry, cut into parts if it is larger than the limit.
    fn add(&mut self, event: &Event<'_>, index: usize, packer: &mut Packer) {
        self.fields.set(event, PartOf { index: 1, total: 1 });
        let room = self.max_bytes.saturating_sub(self.fields.get().len() + ENVELOPE);
        let parts = event.content.parts(room.max(self.max_bytes / 8), Size::Json);
        for (number, part) in parts.iter().enumerate() {
            let of = PartOf { index: number + 1, total: parts.len() };
            if of.total > 1 {
                self.fields.set(event, of);
            }
            packer.push(index, |body| self.write(event, *part, body));
        }
    }

    fn write(&self, event: &Event<'_>, part: Part<'_>, body: &mut Vec<u8>) {
        if self.format == Format::Array {
            body.push(b',');
        }
        body.push(b'{');
        write_member(body, "@timestamp", Value::Text(&rfc3339(event.time)));
        body.extend_from_slice(self.fields.get());
        if let Part::Bytes(_) = part {
            write_member(body, ENCODING_NAME, Value::Text("base64"));
        }
        body.extend_from_slice(br#""event.original":"#);
        match part {
            Part::Text(text) => write_text(body, text),
            Part::Bytes(bytes) => write_base64(body, bytes),
        }
        body.extend_from_slice(b"}\n");
    }
}
