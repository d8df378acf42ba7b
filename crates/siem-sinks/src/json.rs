//! Writes JSON texts into a buffer.

use std::io::Write as _;

use data_encoding::BASE64;
use siem_protocol::json;

use crate::event::Value;

/// Appends a JSON string.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing to a vector does not fail, and each string has a JSON text.
    drop(serde_json::to_writer(out, text));
}

/// Appends a JSON string with `bytes` in base64.
pub(crate) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + BASE64.encode_len(bytes.len()), 0);
    BASE64.encode_mut(bytes, &mut out[start..]);
    out.push(b'"');
}

/// Appends the value of a field.
pub(crate) fn write_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Text(text) => write_text(out, text),
        Value::Number(number) => drop(write!(out, "{number}")),
        Value::Bool(value) => drop(write!(out, "{value}")),
        Value::Json(text) => out.extend_from_slice(text.as_bytes()),
    }
}

/// Appends a member of an object with a comma after it.
pub(crate) fn write_member(out: &mut Vec<u8>, name: &str, value: Value<'_>) {
    write_text(out, name);
    out.push(b':');
    write_value(out, value);
    out.push(b',');
}

/// A JSON value, not parsed further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape<'a> {
    Null,
    /// A number, `true` or `false`, as written.
    Plain(&'a str),
    /// A string with its quotes.
    Text(&'a str),
    Object(&'a str),
    Array(&'a str),
}

impl<'a> Shape<'a> {
    /// Returns the shape of a valid JSON text.
    pub(crate) fn of(text: &'a str) -> Self {
        let text = text.trim_ascii();
        match text.as_bytes().first() {
            Some(b'"') => Self::Text(text),
            Some(b'{') => Self::Object(text),
            Some(b'[') => Self::Array(text),
            Some(b'n') | None => Self::Null,
            Some(_) => Self::Plain(text),
        }
    }
}

/// Returns the elements of a JSON array.
pub(crate) fn elements(array: &str) -> Vec<&str> {
    let mut elements = Vec::new();
    json::elements(array, |element| elements.push(element));
    elements
}
