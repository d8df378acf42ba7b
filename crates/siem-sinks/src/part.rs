//! Cuts the content of an entry into parts that a SIEM accepts without truncating them.

use std::borrow::Cow;

/// Content of an event, or of a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// UTF-8.
    Text(Cow<'a, str>),
    /// Bytes that are not UTF-8; a protocol without bytes sends them in base64.
    Bytes(Cow<'a, [u8]>),
}

impl<'a> Content<'a> {
    /// Creates the content of `bytes`.
    #[must_use]
    pub fn of(bytes: Cow<'a, [u8]>) -> Self {
        match bytes {
            Cow::Borrowed(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(Cow::Borrowed(text)),
                Err(_) => Self::Bytes(Cow::Borrowed(bytes)),
            },
            Cow::Owned(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Self::Text(Cow::Owned(text)),
                Err(error) => Self::Bytes(Cow::Owned(error.into_bytes())),
            },
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Cuts the content into parts of at most `max` bytes as measured by `size`, at least one. Text
    /// is cut between characters, so that each part is text. A limit below the largest size of one
    /// character (6 bytes) is raised to it.
    #[must_use]
    pub fn parts(&self, max: usize, size: Size) -> Vec<Part<'_>> {
        let max = max.max(size.of_largest_character());
        match self {
            Self::Text(text) => cut_text(text, max, size).into_iter().map(Part::Text).collect(),
            Self::Bytes(bytes) if bytes.is_empty() => vec![Part::Bytes(bytes)],
            Self::Bytes(bytes) => {
                // 3 bytes are 4 in base64.
                let most = if size == Size::Utf8 { max } else { (max / 4 * 3).max(1) };
                bytes.chunks(most).map(Part::Bytes).collect()
            }
        }
    }
}

/// A part of a content; the only one if it was not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// UTF-8.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
}

/// Number of bytes that are measured at a time.
const BLOCK: usize = 1024;

/// Measure of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Bytes of UTF-8.
    Utf8,
    /// Bytes inside a JSON string, with escapes; bytes that are not UTF-8 in base64.
    Json,
}

impl Size {
    /// Returns the largest size of one character.
    fn of_largest_character(self) -> usize {
        match self {
            Self::Utf8 => 4,
            Self::Json => 6,
        }
    }

    fn of_character(self, character: char) -> usize {
        match (self, u8::try_from(character)) {
            (Self::Json, Ok(byte)) if byte.is_ascii() => 1 + escape_bytes(byte),
            _ => character.len_utf8(),
        }
    }

    fn of_text(self, text: &str) -> usize {
        match self {
            Self::Utf8 => text.len(),
            Self::Json => text.len() + text.bytes().map(escape_bytes).sum::<usize>(),
        }
    }
}

/// Returns how many bytes the escape of a byte of UTF-8 in a JSON string is longer than the byte.
/// Sums instead of branches, so that many bytes are counted at a time.
fn escape_bytes(byte: u8) -> usize {
    let is_short = matches!(byte, b'\n' | b'\r' | b'\t' | 0x08 | 0x0c);
    let one = byte == b'"' || byte == b'\\' || is_short;
    usize::from(one) + 5 * usize::from(byte < 0x20 && !is_short)
}

fn cut_text(text: &str, max: usize, size: Size) -> Vec<&str> {
    // Most lines are so short that their escapes need not be counted.
    if text.len().saturating_mul(size.of_largest_character()) <= max {
        return vec![text];
    }
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let (part, more) = rest.split_at(fitting(rest, max, size));
        parts.push(part);
        if more.is_empty() {
            return parts;
        }
        rest = more;
    }
}

/// Returns the length of the longest start of `text` that has at most `max` bytes as measured by `size`.
fn fitting(text: &str, max: usize, size: Size) -> usize {
    let (mut end, mut used) = (0, 0);
    // Many bytes are measured at a time, and only the last of them by character.
    while end < text.len() {
        let mut next = (end + BLOCK).min(text.len());
        while !text.is_char_boundary(next) {
            next -= 1;
        }
        let more = size.of_text(&text[end..next]);
        if used + more > max {
            break;
        }
        (end, used) = (next, used + more);
    }
    for character in text[end..].chars() {
        used += size.of_character(character);
        if used > max {
            break;
        }
        end += character.len_utf8();
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json_size(text: &str) -> usize {
        serde_json::to_string(text).unwrap().len() - 2
    }

    #[test]
    fn text_that_fits_exactly_is_one_part() {
        let text = "\0\"\u{e4}x".repeat(1000);
        let content = Content::of(Cow::Borrowed(text.as_bytes()));
        for size in [Size::Json, Size::Utf8] {
            let max = if size == Size::Json { json_size(&text) } else { text.len() };
            assert_eq!(content.parts(max, size), [Part::Text(&text)]);
            assert_eq!(content.parts(max - 1, size).len(), 2);
        }
    }

    #[test]
    fn empty_content_is_one_part() {
        let content = Content::of(Cow::Borrowed(b""));
        assert_eq!(content.parts(10, Size::Json), [Part::Text("")]);
        let content = Content::Bytes(Cow::Borrowed(b""));
        assert_eq!(content.parts(10, Size::Json), [Part::Bytes(b"")]);
    }

    proptest! {
        #[test]
        fn parts_of_text_join_to_the_text(text in ".{0,200}|[\"\\\\\\x00-\\x1f]{0,50}", max in 0_usize..64) {
            let content = Content::of(Cow::Borrowed(text.as_bytes()));
            for size in [Size::Json, Size::Utf8] {
                let parts = content.parts(max, size);
                let mut joined = String::new();
                for part in &parts {
                    let Part::Text(part) = part else { panic!() };
                    let bytes = if size == Size::Json { json_size(part) } else { part.len() };
                    prop_assert!(bytes <= max.max(6), "{part:?}");
                    joined.push_str(part);
                }
                prop_assert_eq!(&joined, &text);
            }
        }

        #[test]
        fn parts_of_bytes_join_to_the_bytes(mut bytes: Vec<u8>, max in 0_usize..64) {
            bytes.push(0xff);
            let content = Content::of(Cow::Borrowed(&bytes));
            for size in [Size::Json, Size::Utf8] {
                let parts = content.parts(max, size);
                let joined: Vec<u8> = parts.iter().flat_map(|part| match part {
                    Part::Bytes(bytes) => bytes.to_vec(),
                    Part::Text(_) => panic!(),
                }).collect();
                prop_assert_eq!(&joined, &bytes);
            }
        }
    }
}
