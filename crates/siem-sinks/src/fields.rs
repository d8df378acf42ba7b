//! Writes fields as members of a JSON object, within a limit of bytes.

use std::mem;

use siem_protocol::{BatchHeader, json};

use crate::{
    event::{Event, Names, PartOf, Value, names::OMITTED_NAME, sender_fields},
    json::{Shape, elements, write_member, write_text},
};

/// Form of values that are JSON objects or arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nesting {
    /// As they are.
    Nested,
    /// A member of an object is a field, with a dot in its name; an array has its elements as strings.
    Flat,
    /// A member of an object is a field, and so is an element of an array, such as `name[0]`.
    Indexed,
}

/// Objects nested deeper than this are written as text.
const MAX_DEPTH: usize = 4;
/// Maximum number of fields named as left out.
const MAX_NAMED: usize = 20;

/// Fields of the events of a batch, as members of a JSON object with a comma after each.
pub(crate) struct EventFields {
    nesting: Nesting,
    /// Maximum number of bytes of the sender's fields, and of the event's own.
    room: usize,
    /// Fields that are the same for each event.
    sender: Vec<u8>,
    /// Fields of the current event, with those of the sender.
    fields: Vec<u8>,
}

impl EventFields {
    /// Encodes the fields of the sender of a batch, for events of at most `max_bytes`.
    pub(crate) fn new(header: &BatchHeader, nesting: Nesting, max_bytes: usize) -> Self {
        let (mut sender, room) = (Vec::new(), max_bytes / 4);
        let mut writer = FieldWriter::new(&mut sender, nesting, room);
        sender_fields(header, Names::Ecs, &mut |name, value| writer.add(name, value));
        writer.finish();
        Self { nesting, room, sender, fields: Vec::new() }
    }

    /// Encodes the fields of an event, or of one of its parts.
    pub(crate) fn set(&mut self, event: &Event<'_>, part: PartOf) {
        let mut fields = mem::take(&mut self.fields);
        fields.clear();
        self.write(event, part, &mut fields);
        self.fields = fields;
    }

    /// Appends the fields of an event, or of one of its parts, to `out`.
    pub(crate) fn write(&self, event: &Event<'_>, part: PartOf, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.sender);
        let mut writer = FieldWriter::new(out, self.nesting, self.room);
        event.fields(Names::Ecs, part, &mut |name, value| writer.add(name, value));
        writer.finish();
    }

    /// Returns the fields that were encoded last.
    pub(crate) fn get(&self) -> &[u8] {
        &self.fields
    }
}

/// Writes members of an object, each with a comma after it.
pub(crate) struct FieldWriter<'o> {
    out: &'o mut Vec<u8>,
    nesting: Nesting,
    /// Length of `out` that no further field may exceed.
    end: usize,
    left_out: Vec<String>,
}

impl<'o> FieldWriter<'o> {
    /// Creates a writer that appends at most `room` bytes.
    pub(crate) fn new(out: &'o mut Vec<u8>, nesting: Nesting, room: usize) -> Self {
        let end = out.len() + room;
        Self { out, nesting, end, left_out: Vec::new() }
    }

    /// Adds a field.
    pub(crate) fn add(&mut self, name: &str, value: Value<'_>) {
        match value {
            Value::Json(text) if self.nesting == Nesting::Nested => match Shape::of(text) {
                Shape::Null => {}
                _ if is_portable(text) => self.write(name, value),
                _ => self.write(name, Value::Text(text)),
            },
            Value::Json(text) => self.flatten(name, text, 0),
            Value::Bool(value) if self.nesting != Nesting::Nested => {
                self.write(name, Value::Text(if value { "true" } else { "false" }));
            }
            value => self.write(name, value),
        }
    }

    /// Ends the fields. Those without room are named in a field, so that their absence is visible.
    pub(crate) fn finish(self) {
        if self.left_out.is_empty() {
            return;
        }
        let mut names = self.left_out;
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        write_member(self.out, OMITTED_NAME, Value::Text(&names.join(", ")));
    }

    fn write(&mut self, name: &str, value: Value<'_>) {
        let start = self.out.len();
        write_member(self.out, name, value);
        self.keep(name, start);
    }

    /// Removes what was written since `start` if there is no room for it.
    fn keep(&mut self, name: &str, start: usize) {
        if self.out.len() > self.end {
            self.out.truncate(start);
            // A name can be as long as a value.
            self.left_out.push(name.chars().take(100).collect());
        }
    }

    fn flatten(&mut self, name: &str, text: &str, depth: usize) {
        match Shape::of(text) {
            Shape::Null => {}
            Shape::Text(text) => self.write(name, Value::Text(&unquoted(text))),
            // A number may have more digits than the receiver's type.
            Shape::Plain(text) if text.len() <= 15 && !matches!(text, "true" | "false") => {
                self.write(name, Value::Json(text));
            }
            Shape::Plain(text) => self.write(name, Value::Text(text)),
            Shape::Object(text) if depth < MAX_DEPTH => {
                json::members(text, |member| {
                    let key = json::unescape(member.key);
                    let name = format!("{name}.{}", key.as_deref().unwrap_or(member.key));
                    self.flatten(&name, member.value, depth + 1);
                });
            }
            Shape::Object(text) => self.write(name, Value::Text(text)),
            Shape::Array(text) => self.list(name, &elements(text)),
        }
    }

    /// Adds a field with several values.
    fn list(&mut self, name: &str, values: &[&str]) {
        let values = values.iter().map(|value| match Shape::of(value) {
            Shape::Text(text) => unquoted(text),
            _ => (*value).to_owned(),
        });
        if self.nesting == Nesting::Indexed {
            for (index, value) in values.enumerate() {
                self.write(&format!("{name}[{index}]"), Value::Text(&value));
            }
            return;
        }
        let start = self.out.len();
        write_text(self.out, name);
        self.out.extend_from_slice(b":[");
        let mut is_empty = true;
        for value in values {
            write_text(self.out, &value);
            self.out.push(b',');
            is_empty = false;
        }
        if is_empty {
            self.out.truncate(start);
            return;
        }
        self.out.pop();
        self.out.extend_from_slice(b"],");
        self.keep(name, start);
    }
}

/// Reports whether every parser reads a valid JSON text: some refuse lone surrogates, and numbers that
/// are too large for their type.
fn is_portable(text: &str) -> bool {
    let is_simple = !text.contains("\\u") && text.len() <= 15;
    is_simple || serde_json::from_str::<serde_json::Value>(text).is_ok()
}

/// Returns the text of a JSON string; with its escapes if it is not valid Unicode.
fn unquoted(text: &str) -> String {
    json::string(text).map_or_else(|| text[1..text.len() - 1].to_owned(), |text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(nesting: Nesting, room: usize, values: &[(&str, Value<'_>)]) -> String {
        let mut out = Vec::new();
        let mut writer = FieldWriter::new(&mut out, nesting, room);
        for (name, value) in values {
            writer.add(name, *value);
        }
        writer.finish();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn objects_become_flat_fields() {
        let object = Value::Json(
            r#"{"a":{"b":"x","c":null,"d":1.5},"e":[1,"two",{"f":3}],"g":[],"h":true,"i":123456789012345678}"#,
        );
        let written = fields(Nesting::Flat, 1000, &[("o", object), ("n", Value::Number(7))]);
        let expected = concat!(
            r#""o.a.b":"x","o.a.d":1.5,"o.e":["1","two","{\"f\":3}"],"o.h":"true","#,
            r#""o.i":"123456789012345678","n":7,"#
        );
        assert_eq!(written, expected);
        let written = fields(Nesting::Indexed, 1000, &[("o", Value::Json(r#"{"e":[1,"two"]}"#))]);
        assert_eq!(written, r#""o.e[0]":"1","o.e[1]":"two","#);
    }

    #[test]
    fn lone_surrogates_are_written_with_their_escapes() {
        let written = fields(Nesting::Flat, 1000, &[("a", Value::Json(r#""\ud800""#))]);
        assert_eq!(written, r#""a":"\\ud800","#);
    }

    #[test]
    fn nested_values_keep_their_types() {
        let values = [
            ("a", Value::Json(r#"{"b":[1,{"c":true}]}"#)),
            ("d", Value::Bool(true)),
            ("e", Value::Json("null")),
            ("f", Value::Json(r#"["\ud800"]"#)),
            ("g", Value::Json("1e999999999999999")),
        ];
        let written = fields(Nesting::Nested, 1000, &values);
        let expected = concat!(
            r#""a":{"b":[1,{"c":true}]},"d":true,"f":"[\"\\ud800\"]","#,
            r#""g":"1e999999999999999","#
        );
        assert_eq!(written, expected);
    }

    #[test]
    fn fields_without_room_are_named() {
        let long = "x".repeat(100);
        let values = [("a", Value::Text("1")), ("b", Value::Text(&long)), ("c", Value::Number(2))];
        let written = fields(Nesting::Flat, 30, &values);
        assert_eq!(written, r#""a":"1","c":2,"ai_agent.omitted_fields":"b","#);
    }

    proptest::proptest! {
        #[test]
        fn fields_of_any_object_are_a_flat_object(
            text in "[{}\\[\\]\",:a1\\\\]{0,40}", name in "[a-z\"\\\\]{0,9}", room in 0_usize..200,
        ) {
            let text = if json::check(&text).is_some() { text } else { "{\"a\":[{}]}".to_owned() };
            for nesting in [Nesting::Flat, Nesting::Indexed] {
                let written = fields(nesting, room, &[(&name, Value::Json(&text))]);
                let object = format!("{{{}}}", written.trim_end_matches(','));
                let object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&object).unwrap();
                assert!(object.values().all(|value| !value.is_object()), "{object:?}");
            }
        }
    }
}
