//! Flat fields: HEC refuses objects in `fields`, and LogScale drops them.

use siem_protocol::json;

use super::Dialect;
use crate::{
    event::Value,
    json::{Shape, elements, write_member, write_text},
};

/// Objects nested deeper than this are written as text.
const MAX_DEPTH: usize = 4;
/// Maximum number of fields named as left out.
const MAX_NAMED: usize = 20;

/// Writes members of the object `fields`, each with a comma after it.
pub(super) struct FieldWriter<'o> {
    out: &'o mut Vec<u8>,
    dialect: Dialect,
    /// Length of `out` that no further field may exceed.
    end: usize,
    left_out: Vec<String>,
}

impl<'o> FieldWriter<'o> {
    /// Creates a writer that appends at most `room` bytes.
    pub(super) fn new(out: &'o mut Vec<u8>, dialect: Dialect, room: usize) -> Self {
        let end = out.len() + room;
        Self { out, dialect, end, left_out: Vec::new() }
    }

    /// Adds a field. An object becomes a field for each of its members.
    pub(super) fn add(&mut self, name: &str, value: Value<'_>) {
        match value {
            Value::Json(text) => self.flatten(name, text, 0),
            Value::Bool(value) => {
                self.write(name, Value::Text(if value { "true" } else { "false" }))
            }
            value => self.write(name, value),
        }
    }

    /// Ends the fields. Those without room are named in a field, so that their absence is visible.
    pub(super) fn finish(self) {
        if self.left_out.is_empty() {
            return;
        }
        let mut names = self.left_out;
        let more = names.len().saturating_sub(MAX_NAMED);
        names.truncate(MAX_NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        write_member(self.out, "ai_agent.omitted_fields", Value::Text(&names.join(", ")));
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

    /// Adds a field with several values. LogScale names each by its index.
    fn list(&mut self, name: &str, values: &[&str]) {
        let values = values.iter().map(|value| match Shape::of(value) {
            Shape::Text(text) => unquoted(text),
            _ => (*value).to_owned(),
        });
        if self.dialect == Dialect::LogScale {
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

/// Returns the text of a JSON string; with its escapes if it is not valid Unicode.
fn unquoted(text: &str) -> String {
    json::string(text).map_or_else(|| text[1..text.len() - 1].to_owned(), |text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(dialect: Dialect, room: usize, values: &[(&str, Value<'_>)]) -> String {
        let mut out = Vec::new();
        let mut writer = FieldWriter::new(&mut out, dialect, room);
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
        let written = fields(Dialect::Splunk, 1000, &[("o", object), ("n", Value::Number(7))]);
        let expected = concat!(
            r#""o.a.b":"x","o.a.d":1.5,"o.e":["1","two","{\"f\":3}"],"o.h":"true","#,
            r#""o.i":"123456789012345678","n":7,"#
        );
        assert_eq!(written, expected);
        let written = fields(Dialect::LogScale, 1000, &[("o", Value::Json(r#"{"e":[1,"two"]}"#))]);
        assert_eq!(written, r#""o.e[0]":"1","o.e[1]":"two","#);
    }

    #[test]
    fn lone_surrogates_are_written_with_their_escapes() {
        let written = fields(Dialect::Splunk, 1000, &[("a", Value::Json(r#""\ud800""#))]);
        assert_eq!(written, r#""a":"\\ud800","#);
    }

    #[test]
    fn fields_without_room_are_named() {
        let long = "x".repeat(100);
        let values = [("a", Value::Text("1")), ("b", Value::Text(&long)), ("c", Value::Number(2))];
        let written = fields(Dialect::Splunk, 30, &values);
        assert_eq!(written, r#""a":"1","c":2,"ai_agent.omitted_fields":"b","#);
    }

    proptest::proptest! {
        #[test]
        fn fields_of_any_object_are_a_flat_object(
            text in "[{}\\[\\]\",:a1\\\\]{0,40}", name in "[a-z\"\\\\]{0,9}", room in 0_usize..200,
        ) {
            let text = if json::check(&text).is_some() { text } else { "{\"a\":[{}]}".to_owned() };
            for dialect in [Dialect::Splunk, Dialect::LogScale] {
                let written = fields(dialect, room, &[(&name, Value::Json(&text))]);
                let object = format!("{{{}}}", written.trim_end_matches(','));
                let object: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&object).unwrap();
                assert!(object.values().all(|value| !value.is_object()), "{object:?}");
            }
        }
    }
}
