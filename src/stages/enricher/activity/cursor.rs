//! A position in JSON text that reads the wanted members and skips all others, without a tree and
//! without copying.
//!
//! The grammar is not checked again: a line that is valid JSON was checked when its record was made.
//! The first part of a longer line ends anywhere; a value that is not complete ends the reading.

use std::borrow::Cow;

use siem_protocol::json;

/// A position in a text.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts before the first value of `text`.
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Enters an object and passes each key, unescaped, to `read`, which must read or skip the value.
    /// A value of another type is skipped.
    pub(super) fn object(&mut self, mut read: impl FnMut(&mut Self, &str)) {
        if !self.enter(b'{') {
            return;
        }
        while self.first_byte() == Some(b'"') {
            let Some(key) = self.raw_string() else { return };
            if self.first_byte() != Some(b':') {
                return self.stop();
            }
            self.at += 1;
            self.first_byte();
            let before = self.at;
            read(self, &plain(key));
            if self.at == before {
                self.skip();
            }
            if !self.comma(b'}') {
                return;
            }
        }
        self.leave(b'}');
    }

    /// Enters an array and calls `read` before each element, which must read or skip it. A value of
    /// another type is skipped.
    pub(super) fn array(&mut self, mut read: impl FnMut(&mut Self)) {
        if !self.enter(b'[') {
            return;
        }
        while !matches!(self.first_byte(), None | Some(b']')) {
            let before = self.at;
            read(self);
            if self.at == before {
                self.skip();
            }
            if self.at == before {
                return self.stop();
            }
            if !self.comma(b']') {
                return;
            }
        }
        self.leave(b']');
    }

    /// Reads a string: the text between its quotes, with escapes. A value of another type is skipped.
    pub(super) fn string(&mut self) -> Option<&'a str> {
        if self.first_byte() == Some(b'"') {
            return self.raw_string();
        }
        self.skip();
        None
    }

    /// Reads an integer that is not negative; the fraction of a number is cut off. A value of another
    /// type, or a number that is too large, is skipped.
    pub(super) fn integer(&mut self) -> Option<u64> {
        let value = self.scalar()?;
        let digits = value.bytes().take_while(u8::is_ascii_digit).count();
        let rest = &value[digits..];
        (rest.is_empty() || rest.starts_with('.') && !rest.contains(['e', 'E']))
            .then(|| value[..digits].parse().ok())?
    }

    /// Reads whether the value is the literal `true`.
    pub(super) fn is_true(&mut self) -> bool {
        self.scalar() == Some("true")
    }

    /// Reads whether the value is the literal `null`.
    pub(super) fn is_null(&mut self) -> bool {
        self.scalar() == Some("null")
    }

    /// First byte of the next value.
    pub(super) fn first_byte(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    /// Skips the next value.
    pub(super) fn skip(&mut self) {
        match self.first_byte() {
            Some(b'"') => {
                self.raw_string();
            }
            Some(b'{' | b'[') => self.skip_container(),
            Some(_) => {
                self.scalar();
            }
            None => {}
        }
    }

    /// Reads a number or a literal. A value of another type is skipped.
    fn scalar(&mut self) -> Option<&'a str> {
        if matches!(self.first_byte()?, b'"' | b'{' | b'[') {
            self.skip();
            return None;
        }
        let rest = &self.text.as_bytes()[self.at..];
        let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
        let length = rest.iter().position(is_end).unwrap_or(rest.len());
        let value = self.text.get(self.at..self.at + length);
        self.at += length;
        value
    }

    fn skip_container(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    if self.raw_string().is_none() {
                        return;
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => {
                    depth -= 1;
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Reads a string whose opening quote is next. `None` if the text ends before its end.
    fn raw_string(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut from = start;
        // Tool output has many escaped line feeds and few quotes: only a quote is searched, and the
        // backslashes before it are counted.
        while let Some(found) = memchr::memchr(b'"', bytes.get(from..)?) {
            let quote = from + found;
            let backslashes =
                bytes[start..quote].iter().rev().take_while(|byte| **byte == b'\\').count();
            if backslashes.is_multiple_of(2) {
                self.at = quote + 1;
                return self.text.get(start..quote);
            }
            from = quote + 1;
        }
        self.stop();
        None
    }

    fn enter(&mut self, opening: u8) -> bool {
        if self.first_byte() == Some(opening) {
            self.at += 1;
            return true;
        }
        self.skip();
        false
    }

    /// Passes a comma. Returns false after the end of the container, and where neither is next.
    fn comma(&mut self, closing: u8) -> bool {
        match self.first_byte() {
            Some(b',') => {
                self.at += 1;
                true
            }
            Some(byte) if byte == closing => {
                self.at += 1;
                false
            }
            _ => {
                self.stop();
                false
            }
        }
    }

    /// Passes the end of an empty container.
    fn leave(&mut self, closing: u8) {
        match self.first_byte() {
            Some(byte) if byte == closing => self.at += 1,
            _ => self.stop(),
        }
    }

    /// Ends the reading: the text is not complete.
    fn stop(&mut self) {
        self.at = self.text.len();
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// Unescapes a key or another short text. Text with a lone surrogate stays escaped.
pub(super) fn plain(raw: &str) -> Cow<'_, str> {
    json::unescape(raw).unwrap_or(Cow::Borrowed(raw))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(text: &str) -> Vec<(String, Option<&str>)> {
        let mut all = Vec::new();
        Cursor::new(text).object(|cursor, key| all.push((key.to_owned(), cursor.string())));
        all
    }

    #[test]
    fn strings_are_read_and_other_values_skipped() {
        let text = r#" { "a" : "x\"y\\" , "b":[1,{"c":"]}"}],"d":{},"e":-1.5e3,"\u0066":"z"} "#;
        let expected = [("a", Some(r#"x\"y\\"#)), ("b", None), ("d", None), ("e", None)];
        let mut expected: Vec<_> = expected.map(|(key, value)| (key.to_owned(), value)).to_vec();
        expected.push(("f".to_owned(), Some("z")));
        assert_eq!(members(text), expected);
    }

    #[test]
    fn members_that_are_not_read_are_skipped() {
        let mut keys = Vec::new();
        Cursor::new(r#"{"a":{"b":1},"c":[],"d":null}"#).object(|_, key| keys.push(key.to_owned()));
        assert_eq!(keys, ["a", "c", "d"]);
    }

    #[test]
    fn integers_have_no_sign_and_no_exponent() {
        let integer = |text| Cursor::new(text).integer();
        for (text, expected) in [
            ("0", Some(0)),
            ("12", Some(12)),
            ("601.9", Some(601)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("-1", None),
            ("1e3", None),
            ("1.5e3", None),
            ("\"1\"", None),
            ("null", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    #[test]
    fn cut_text_ends_the_reading() {
        let text = r#"{"a":"x","b":{"c":["y\\"]},"d":"#;
        for end in 0..text.len() {
            let all = members(&text[..end]);
            assert!(all.len() <= 3, "{all:?}");
        }
        assert_eq!(members(r#"{"a":"x","b":"y"#)[0], ("a".to_owned(), Some("x")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_an_end(text in "[\\[\\]{}\":, \\\\\\na1]{0,40}") {
            members(&text);
            let mut cursor = Cursor::new(&text);
            cursor.array(|cursor| { cursor.integer(); });
            cursor.object(|cursor, _| cursor.array(|cursor| cursor.object(|_, _| ())));
        }
    }
}
