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
        let max = max.max(size.of_byte());
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
    fn of_byte(self) -> usize {
        match self {
            Self::Utf8 => 4,
            Self::Json => 6,
        }
    }

    fn of(self, character: char) -> usize {
        match (self, character) {
            (Self::Utf8, _) => character.len_utf8(),
            (Self::Json, '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}') => 2,
            (Self::Json, '\0'..'\u{20}') => 6,
            (Self::Json, _) => character.len_utf8(),
        }
    }
}

fn cut_text(text: &str, max: usize, size: Size) -> Vec<&str> {
    // No escape is longer than 6 bytes: most lines need no further check.
    if text.len().saturating_mul(if size == Size::Utf8 { 1 } else { 6 }) <= max {
        return vec![text];
    }
    let (mut parts, mut start, mut used) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        let more = size.of(character);
        if used + more > max {
            parts.push(&text[start..at]);
            (start, used) = (at, 0);
        }
        used += more;
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json_size(text: &str) -> usize {
        serde_json::to_string(text).unwrap().len() - 2
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
