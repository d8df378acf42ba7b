//! Shortens the strings of a response while it is read.

/// Number of bytes of a string that are kept: more than the text of an error that is shown.
const MAX_STRING: usize = 1 << 10;
/// Number of bytes of a response that are read: several times the size of a request, since a reason may
/// quote a document.
const MAX_READ: usize = 64 << 20;

/// Copies JSON without the ends of long strings. The copy is valid JSON if the original is.
#[derive(Debug)]
pub(super) struct Excerpt {
    /// Maximum number of bytes that are kept.
    limit: usize,
    read: usize,
    position: Position,
    /// Number of bytes of the current string that are kept, with the quotation mark before it.
    length: usize,
    /// True in the end of a string, which is not kept.
    is_dropping: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// Outside of strings.
    Structure,
    /// In a string.
    Text,
    /// After a backslash in a string.
    Backslash,
    /// Before this many digits of an escape.
    Digits(u8),
}

impl Excerpt {
    /// Creates an excerpt of about `limit` bytes at most.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, read: 0, position: Position::Structure, length: 0, is_dropping: false }
    }

    /// Appends what is kept of the next piece of a response to `kept`. Returns false if the response or
    /// the excerpt is too long.
    pub(super) fn add(&mut self, piece: &[u8], kept: &mut Vec<u8>) -> bool {
        self.read += piece.len();
        if self.read > MAX_READ {
            return false;
        }
        for byte in piece {
            self.step(*byte, kept);
        }
        kept.len() <= self.limit
    }

    fn step(&mut self, byte: u8, kept: &mut Vec<u8>) {
        use Position::{Backslash, Digits, Structure, Text};

        self.is_dropping = match (self.position, byte) {
            (Structure, _) | (Text, b'"') => false,
            (Text, _) => self.is_dropping || self.may_end(byte, kept),
            _ => self.is_dropping,
        };
        self.position = match (self.position, byte) {
            (Structure, b'"') => {
                self.length = 0;
                Text
            }
            (Structure, _) | (Text, b'"') => Structure,
            (Text, b'\\') => Backslash,
            (Backslash, b'u') => Digits(4),
            (Digits(left @ 2..), _) => Digits(left - 1),
            _ => Text,
        };
        if !self.is_dropping {
            kept.push(byte);
            self.length += 1;
        }
    }

    /// Returns true if the string is long, and may end before `byte`: neither between the bytes of a
    /// character nor between the escapes of a surrogate pair.
    fn may_end(&self, byte: u8, kept: &[u8]) -> bool {
        let is_in_character = byte & 0xc0 == 0x80;
        let is_in_pair = || {
            matches!(
                kept,
                [.., b'\\', b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', _, _]
            )
        };
        self.length > MAX_STRING && !is_in_character && !is_in_pair()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Returns the excerpt of a response that arrives in pieces of `size` bytes.
    fn excerpt(response: &[u8], size: usize) -> Option<Vec<u8>> {
        let (mut excerpt, mut kept) = (Excerpt::new(usize::MAX), Vec::new());
        let is_whole = response.chunks(size).all(|piece| excerpt.add(piece, &mut kept));
        is_whole.then_some(kept)
    }

    #[test]
    fn strings_end_between_characters_and_escapes() {
        for unit in ["x", "ä", "\u{20ac}", "\u{1f600}", r"\\", r#"\""#, r"\u0001", r"\ud83d\ude00"]
        {
            for before in 0..14 {
                let text = format!("\"{}{}\"", "-".repeat(before), unit.repeat(3000));
                let kept = excerpt(text.as_bytes(), 7).unwrap();
                let kept: String = serde_json::from_slice(&kept).unwrap();
                let whole: String = serde_json::from_str(&text).unwrap();
                assert!(whole.starts_with(&kept) && kept.len() < whole.len(), "{unit} {before}");
                assert!(kept.len() >= MAX_STRING / 6, "{unit} {before}: {}", kept.len());
            }
        }
    }

    #[test]
    fn string_up_to_the_limit_is_kept_whole() {
        let kept =
            |length| excerpt(format!("\"{}\"", "x".repeat(length)).as_bytes(), 9).unwrap().len();
        assert_eq!((kept(MAX_STRING), kept(MAX_STRING + 1)), (MAX_STRING + 2, MAX_STRING + 2));
    }

    #[test]
    fn reading_ends_at_the_limits() {
        let (mut excerpt, mut kept) = (Excerpt::new(10), Vec::new());
        assert!(excerpt.add(b"0123456789", &mut kept) && !excerpt.add(b"0", &mut kept));
        let (mut excerpt, piece) = (Excerpt::new(1 << 20), vec![b'x'; 1 << 20]);
        let mut kept = Vec::new();
        assert!(excerpt.add(b"\"", &mut kept));
        assert_eq!((0..1000).position(|_| !excerpt.add(&piece, &mut kept)), Some(63));
        assert!(kept.len() < 2 * MAX_STRING);
    }

    proptest! {
        #[test]
        fn only_long_strings_change(
            texts in prop::collection::vec("\\PC{0,4}|[\\\\\"\u{0}-\u{1f}]{0,9}|.{400,900}", 0..9), size in 1_usize..99,
        ) {
            let response = json!({ "items": texts, "n": [1.5, null, {}] });
            let kept = excerpt(response.to_string().as_bytes(), size).unwrap();
            let kept: Value = serde_json::from_slice(&kept).unwrap();
            prop_assert_eq!(&kept["n"], &response["n"]);
            let found = kept["items"].as_array().unwrap();
            prop_assert_eq!(found.len(), texts.len());
            for (found, text) in found.iter().zip(&texts) {
                let found = found.as_str().unwrap();
                prop_assert!(text.starts_with(found));
                let encoded = json!(text).to_string().len() - 2;
                prop_assert!(encoded > MAX_STRING || found == text);
            }
        }
    }
}
