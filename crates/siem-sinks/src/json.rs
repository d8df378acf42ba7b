//! Writes JSON texts into a buffer.

use std::io::Write as _;

use data_encoding::BASE64;
use siem_protocol::json;

use crate::event::Value;

/// Number of bytes that are written at a time.
const ROOM: usize = 2048;
/// Number of bytes that one step writes at most: a word, whatever counts of it, and the longest escape.
const STEP: usize = size_of::<u64>() + 6;
/// Longest text that is likely to need no escape: names and values of fields.
const SHORT: usize = 128;

/// Appends a JSON string, with the escapes that `serde_json` writes.
///
/// Records are JSON and full of quotes: the text between two escapes is too short to be copied by a
/// call, so it is copied a word at a time.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if text.len() <= SHORT && !text.bytes().fold(false, |found, byte| found | is_escaped(byte)) {
        out.extend_from_slice(text.as_bytes());
    } else {
        let (mut room, mut rest) = ([0; ROOM], text.as_bytes());
        while !rest.is_empty() {
            let (read, written) = escape(rest, &mut room);
            out.extend_from_slice(&room[..written]);
            rest = &rest[read..];
        }
    }
    out.push(b'"');
}

/// Writes the start of `bytes` with escapes to `room`. Returns the number of bytes read and written.
fn escape(bytes: &[u8], room: &mut [u8; ROOM]) -> (usize, usize) {
    let (mut from, mut to) = (0, 0);
    while to <= ROOM - STEP
        && let Some(word) = bytes.get(from..).and_then(|rest| rest.first_chunk())
    {
        let word = u64::from_le_bytes(*word);
        room[to..to + 8].copy_from_slice(&word.to_le_bytes());
        let Some(plain) = plain_bytes(word) else {
            // A branch, so that the next word is read before the escapes of this one are known.
            (from, to) = (from + 8, to + 8);
            continue;
        };
        (from, to) = (from + plain, to + plain);
        to += write_byte(&mut room[to..], bytes[from]);
        from += 1;
    }
    while to <= ROOM - STEP && from < bytes.len() {
        to += write_byte(&mut room[to..], bytes[from]);
        from += 1;
    }
    (from, to)
}

/// Returns the number of bytes before the first one, in memory, that is escaped; `None` if none is.
fn plain_bytes(word: u64) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;

    // <https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord>: a high bit for each byte
    // that is less than `limit`. Bytes above the first such byte may have a wrong bit.
    let less = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let equal = |byte: u8| less(word ^ (ONES * u64::from(byte)), 1);
    let escaped = equal(b'"') | equal(b'\\') | less(word, 0x20);
    (escaped != 0).then(|| escaped.trailing_zeros() as usize / 8)
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Writes one byte, escaped if necessary, and returns the number of bytes.
fn write_byte(room: &mut [u8], byte: u8) -> usize {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        0..0x20 => {
            let digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
            room[..4].copy_from_slice(b"\\u00");
            room[4..6].copy_from_slice(&digits);
            return 6;
        }
        _ => {
            room[0] = byte;
            return 1;
        }
    };
    room[..2].copy_from_slice(&[b'\\', short]);
    2
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
