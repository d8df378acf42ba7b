//! Writes JSON texts into a buffer.

use std::io::Write as _;

use data_encoding::BASE64;
use siem_protocol::json;

use crate::event::Value;

/// Number of bytes that are escaped at a time.
const BLOCK: usize = 1024;

/// Longest block that is likely to need no escape: names and values of fields.
const SHORT: usize = 128;

/// Appends a JSON string, with the escapes that `serde_json` writes.
///
/// Records are JSON and full of quotes. `serde_json` copies the text between two escapes, which takes
/// twice as long with so many: here each byte is written with a second one that counts only if the
/// byte is escaped, so that there is no branch to mispredict.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for block in text.as_bytes().chunks(BLOCK) {
        let has = |is_found: fn(u8) -> bool| {
            block.iter().fold(false, |found, byte| found | is_found(*byte))
        };
        if block.len() <= SHORT && !has(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
            out.extend_from_slice(block);
        } else if has(|byte| byte < 0x20) {
            block.iter().for_each(|byte| write_escaped(out, *byte));
        } else {
            write_printable(out, block);
        }
    }
    out.push(b'"');
}

/// Appends bytes without control characters.
fn write_printable(out: &mut Vec<u8>, block: &[u8]) {
    let start = out.len();
    out.resize(start + 2 * block.len(), 0);
    let room = &mut out[start..];
    let mut at = 0;
    for byte in block {
        let is_escaped = *byte == b'"' || *byte == b'\\';
        let pair = if is_escaped { [b'\\', *byte] } else { [*byte, 0] };
        room[at..at + 2].copy_from_slice(&pair);
        at += 1 + usize::from(is_escaped);
    }
    out.truncate(start + at);
}

fn write_escaped(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        0..0x20 => return drop(write!(out, "\\u{byte:04x}")),
        _ => return out.push(byte),
    };
    out.extend_from_slice(&[b'\\', short]);
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

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn text_is_written_as_by_serde(text in "(.|[\"\\\\\\x00-\\x1f]){0,300}", long in 0_usize..3000) {
            let text = text + &"ä\"x".repeat(long);
            let mut written = Vec::new();
            write_text(&mut written, &text);
            assert_eq!(written, serde_json::to_vec(&text).unwrap());
        }
    }
}
