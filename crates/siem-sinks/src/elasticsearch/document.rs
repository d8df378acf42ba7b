//! Encodes entries as actions and documents.

use std::borrow::Cow;

use siem_protocol::{BatchHeader, Digest};

use super::{MAX_DOCUMENTS, Settings, Target};
use crate::{
    Batch,
    event::{Event, Names, PartOf, Value, names, rfc3339, sender_fields},
    json::{write_base64, write_member, write_text},
    part::{Part, Size},
    request::{Limits, Packer, Request},
};

/// Longest `_id` in bytes.
const MAX_ID: usize = 512;
/// Smallest room for content in an event, whatever its fields take.
const MIN_CONTENT: usize = 4 << 10;
/// Size of an event's action and document without id, fields and content.
const FRAME: usize = 192;
/// A part whose position takes as many digits as any.
const ANY_PART: PartOf = PartOf { index: 1_000_000, total: 1_000_000 };
const WHOLE: PartOf = PartOf { index: 1, total: 1 };

/// Encodes the entries of a batch for which `is_wanted` returns true.
///
/// # Errors
/// The reason if a line is not an entry.
pub(super) fn encode(
    settings: &Settings,
    limits: Limits,
    batch: Batch<'_>,
    is_wanted: impl Fn(usize) -> bool,
) -> Result<Vec<Request>, String> {
    let mut packer = Packer::new(limits.request, MAX_DOCUMENTS);
    // Escapes and fields need more than the entries themselves.
    packer.reserve(batch.lines.len() * 3 / 2);
    let mut encoder = Encoder::new(&settings.target, batch.header, limits.event);
    for (entry, line) in batch.entries().enumerate().filter(|(entry, _)| is_wanted(*entry)) {
        let event = Event::of(line, batch.header, settings.time)
            .map_err(|error| format!("cannot read entry {} of the batch: {error}", entry + 1))?;
        encoder.push(entry, &event, &mut packer);
    }
    Ok(packer.finish())
}

struct Encoder {
    /// Members that are the same in each document, each with a comma after it.
    common: Vec<u8>,
    /// Members of the current document.
    fields: Vec<u8>,
    max_event: usize,
}

impl Encoder {
    fn new(target: &Target, header: &BatchHeader, max_event: usize) -> Self {
        let mut common = Vec::new();
        let mut add = |name: &str, value: Value<'_>| write_member(&mut common, name, value);
        sender_fields(header, Names::Ecs, &mut add);
        if let Target::DataStream { parts: [kind, dataset, namespace], .. } = target {
            add("data_stream.type", Value::Text(kind));
            add("data_stream.dataset", Value::Text(dataset));
            add("data_stream.namespace", Value::Text(namespace));
        }
        Self { common, fields: Vec::new(), max_event }
    }

    /// Adds the documents of an event.
    fn push(&mut self, entry: usize, event: &Event<'_>, packer: &mut Packer) {
        let time = rfc3339(event.time);
        self.write_fields(event, WHOLE);
        let parts = event.content.parts(self.room(event), Size::Json);
        if let [content] = parts[..] {
            let id = document_id(Cow::Borrowed(&event.id), &event.hash);
            packer.push(entry, |body| self.write(body, &id, &time, content));
            return;
        }
        self.write_fields(event, ANY_PART);
        let parts = event.content.parts(self.room(event), Size::Json);
        for (at, content) in parts.iter().enumerate() {
            let part = PartOf { index: at + 1, total: parts.len() };
            self.write_fields(event, part);
            let id = document_id(event.part_id(part), &Digest::of(bytes(*content)));
            packer.push(entry, |body| self.write(body, &id, &time, *content));
        }
    }

    fn write_fields(&mut self, event: &Event<'_>, part: PartOf) {
        self.fields.clear();
        let fields = &mut self.fields;
        event.fields(Names::Ecs, part, &mut |name, value| write_member(fields, name, value));
    }

    /// Returns the room for content beside the current fields.
    fn room(&self, event: &Event<'_>) -> usize {
        // An id may have escapes.
        let taken = FRAME + self.common.len() + self.fields.len() + 2 * event.id.len();
        self.max_event.saturating_sub(taken).max(MIN_CONTENT)
    }

    fn write(&self, body: &mut Vec<u8>, id: &str, time: &str, content: Part<'_>) {
        body.extend_from_slice(br#"{"create":{"_id":"#);
        write_text(body, id);
        body.extend_from_slice(b"}}\n{\"@timestamp\":\"");
        body.extend_from_slice(time.as_bytes());
        body.extend_from_slice(b"\",");
        body.extend_from_slice(&self.common);
        body.extend_from_slice(&self.fields);
        if let Part::Bytes(_) = content {
            write_member(body, names::ENCODING_NAME, Value::Text("base64"));
        }
        body.extend_from_slice(br#""event.original":"#);
        match content {
            Part::Text(text) => write_text(body, text),
            Part::Bytes(bytes) => write_base64(body, bytes),
        }
        body.extend_from_slice(b"}\n");
    }
}

fn bytes(part: Part<'_>) -> &[u8] {
    match part {
        Part::Text(text) => text.as_bytes(),
        Part::Bytes(bytes) => bytes,
    }
}

/// Returns the `_id` of a document: the id of the event, or of its part, and the start of the hash of
/// the bytes in `event.original`. Two machines that are copies of each other have the same ids of
/// files, but a conflict must prove that the same bytes are stored.
fn document_id(id: Cow<'_, str>, content: &Digest) -> String {
    let hash = content.to_string();
    let id = format!("{id}-{}", &hash[..16]);
    if id.len() <= MAX_ID { id } else { Digest::of(id.as_bytes()).to_string() }
}
