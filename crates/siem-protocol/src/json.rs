//! JSON grammar check without parsing into a tree, for records whose bytes must not change.
//!
//! One pass checks the grammar of RFC 8259, measures the nesting depth, detects white space around
//! the text, and passes the members of a top-level object to a callback. It builds no tree,
//! unescapes nothing, and does not use the stack for nesting. Lone surrogate escapes and numbers of
//! any size are valid, as in the RFC.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use crate::MAX_RECORD_DEPTH;

/// Properties of a text with valid grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// True if the outermost value is an object.
    pub object: bool,
    /// Nesting depth: 0 for a scalar, 1 for `{}`.
    pub depth: usize,
    /// True if white space precedes or follows the value.
    pub padded: bool,
}

impl Shape {
    /// Reports whether the text can be sent as `record`, unchanged inside another JSON text.
    #[must_use]
    pub fn embeddable(self) -> bool {
        !self.padded && self.depth <= MAX_RECORD_DEPTH
    }
}

/// A member of an object: key (without quotes) and value as written in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Text between the quotes of the key, with escapes.
    pub key: &'a str,
    /// The value, without surrounding white space.
    pub value: &'a str,
}

impl Member<'_> {
    /// Reports whether the unescaped key equals `name`, which is plain ASCII.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.key == name
            || (self.key.contains('\\') && unescape(self.key).is_some_and(|key| key == name))
    }
}

/// Checks the grammar of `text`; returns `None` if it is not valid JSON.
///
/// ```
/// use siem_protocol::json;
/// assert!(json::check(r#"{"a":[1]}"#).unwrap().embeddable());
/// assert!(!json::check(r#" {"a":[1]}"#).unwrap().embeddable());
/// assert_eq!(json::check(r#"{"a":[1]"#), None);
/// ```
#[must_use]
pub fn check(text: &str) -> Option<Shape> {
    members(text, |_| ())
}

/// Checks the grammar of `text` and passes each member of the outermost object to a callback. If
/// the text turns out to be invalid, the callback has already seen some members.
pub fn members<'a>(text: &'a str, mut show: impl FnMut(Member<'a>)) -> Option<Shape> {
    scan(text, |item| {
        if let Some(key) = item.key {
            show(Member { key, value: item.value });
        }
    })
}

/// Passes the members of the outermost object before the first one with the key `name`, which is
/// plain ASCII, to a callback, and returns the text from the value of that one. Returns `None` if
/// there is no such member, or if the grammar of the text before it is invalid; the text after it is
/// not checked.
///
/// ```
/// use siem_protocol::json;
/// let mut keys = Vec::new();
/// let rest = json::members_before(r#"{"a":{"b":0},"b":[1]}"#, "b", |it| keys.push(it.key));
/// assert_eq!((keys, rest), (vec!["a"], Some("[1]}")));
/// ```
pub fn members_before<'a>(
    text: &'a str,
    name: &str,
    mut show: impl FnMut(Member<'a>),
) -> Option<&'a str> {
    let mut scanner = Scanner::new(text);
    scanner.until = Some(name);
    scanner.document(|item| {
        if let Some(key) = item.key {
            show(Member { key, value: item.value });
        }
    });
    scanner.found.map(|at| &text[at..])
}

/// Checks the grammar of `text` and passes each element of the outermost array to a callback.
pub fn elements<'a>(text: &'a str, mut show: impl FnMut(&'a str)) -> Option<Shape> {
    scan(text, |item| {
        if item.key.is_none() {
            show(item.value);
        }
    })
}

/// Returns the text of the JSON string `value`, given with its quotes; `None` if the value has
/// another type or is not valid Unicode (a lone surrogate).
#[must_use]
pub fn string(value: &str) -> Option<Cow<'_, str>> {
    unescape(value.strip_prefix('"')?.strip_suffix('"')?)
}

/// Unescapes `inner`, the inside of a JSON string with valid grammar; `None` for a lone surrogate,
/// which is not valid Unicode.
#[must_use]
pub fn unescape(inner: &str) -> Option<Cow<'_, str>> {
    let backslash = |text: &str| memchr(b'\\', text.as_bytes());
    let Some(first) = backslash(inner) else { return Some(Cow::Borrowed(inner)) };
    let mut text = String::with_capacity(inner.len());
    let mut rest = inner;
    let mut next = Some(first);
    while let Some(at) = next {
        text.push_str(&rest[..at]);
        let (character, length) = escape(&rest[at..])?;
        text.push(character);
        rest = &rest[at + length..];
        next = backslash(rest);
    }
    text.push_str(rest);
    Some(Cow::Owned(text))
}

/// Reads one escape at the start of `text`: its character and its length in bytes; `None` for a
/// lone surrogate, which is 6 bytes long.
#[must_use]
pub fn escape(text: &str) -> Option<(char, usize)> {
    let character = match text.as_bytes().get(1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => {
            let high = code_unit(text)?;
            if !(0xd800..0xdc00).contains(&high) {
                return Some((char::from_u32(high)?, 6));
            }
            let low = code_unit(text.get(6..)?)?;
            if !(0xdc00..0xe000).contains(&low) {
                return None;
            }
            let character = 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
            return Some((char::from_u32(character)?, 12));
        }
        _ => return None,
    };
    Some((character, 2))
}

fn code_unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    u32::from_str_radix(digits, 16).ok()
}

/// A member or an element directly inside the outermost value.
struct Item<'a> {
    key: Option<&'a str>,
    value: &'a str,
}

fn scan<'a>(text: &'a str, show: impl FnMut(Item<'a>)) -> Option<Shape> {
    Scanner::new(text).document(show)
}

struct Scanner<'a, 'n> {
    text: &'a str,
    at: usize,
    nesting: Nesting,
    /// True if there is a control character anywhere: only then are strings searched for one.
    control: bool,
    /// Key of an outermost member at whose value the scan stops.
    until: Option<&'n str>,
    /// Start of that value.
    found: Option<usize>,
}

impl<'a> Scanner<'a, '_> {
    fn new(text: &'a str) -> Self {
        let control = text.bytes().fold(false, |found, byte| found | (byte < 0x20));
        Self { text, at: 0, nesting: Nesting::default(), control, until: None, found: None }
    }

    fn document(&mut self, mut show: impl FnMut(Item<'a>)) -> Option<Shape> {
        self.white();
        let start = self.at;
        let object = self.peek() == Some(b'{');
        let mut key = None;
        let mut item = start;
        // Each iteration starts before a value; `key` and `item` belong to the current member or
        // element of the outermost value.
        'value: loop {
            if self.nesting.depth() == 1 {
                item = self.at;
            }
            match self.peek()? {
                b'{' => {
                    self.at += 1;
                    self.nesting.push(true);
                    self.white();
                    if self.peek()? != b'}' {
                        let name = self.key()?;
                        if self.nesting.depth() == 1 {
                            self.stop_at(name)?;
                            key = Some(name);
                        }
                        continue 'value;
                    }
                }
                b'[' => {
                    self.at += 1;
                    self.nesting.push(false);
                    self.white();
                    if self.peek()? != b']' {
                        continue 'value;
                    }
                }
                b'"' => self.string()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => self.number()?,
            }
            // After a value, or before the end of an empty container.
            loop {
                let end = self.at;
                self.white();
                let Some(inside_object) = self.nesting.top() else {
                    let padded = start != 0 || end != self.text.len();
                    let whole = self.at == self.text.len();
                    return whole.then_some(Shape { object, depth: self.nesting.deepest, padded });
                };
                let byte = self.peek()?;
                let direct = self.nesting.depth() == 1;
                if direct && end > item && item > start {
                    show(Item { key: key.take(), value: &self.text[item..end] });
                    item = end;
                }
                self.at += 1;
                match (byte, inside_object) {
                    (b',', true) => {
                        self.white();
                        let name = self.key()?;
                        if direct {
                            self.stop_at(name)?;
                            key = Some(name);
                        }
                        continue 'value;
                    }
                    (b',', false) => {
                        self.white();
                        continue 'value;
                    }
                    (b'}', true) | (b']', false) => self.nesting.pop(),
                    _ => return None,
                }
            }
        }
    }

    /// Ends the scan if `key` is the one that it searches for.
    fn stop_at(&mut self, key: &str) -> Option<()> {
        if self.until.is_some_and(|name| Member { key, value: "" }.is(name)) {
            self.found = Some(self.at);
            return None;
        }
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn white(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Skips a key and its colon, up to the value.
    fn key(&mut self) -> Option<&'a str> {
        let start = self.at;
        if self.peek()? != b'"' {
            return None;
        }
        self.string()?;
        let key = &self.text[start + 1..self.at - 1];
        self.white();
        if self.peek()? != b':' {
            return None;
        }
        self.at += 1;
        self.white();
        Some(key)
    }

    fn string(&mut self) -> Option<()> {
        let bytes = self.text.as_bytes();
        let start = self.at + 1;
        let mut at = start;
        loop {
            at += quote_or_escape(bytes.get(at..)?)?;
            if bytes[at] == b'"' {
                break;
            }
            at += match bytes.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => 6,
                _ => return None,
            };
        }
        if self.control && bytes[start..at].iter().any(|byte| *byte < 0x20) {
            return None;
        }
        self.at = at + 1;
        Some(())
    }

    fn literal(&mut self, word: &[u8]) -> Option<()> {
        self.text.as_bytes()[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek()? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits()?,
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }
}

/// Returns the position of the next quote or backslash. Most strings are short: a vector search is
/// used only for long ones.
fn quote_or_escape(bytes: &[u8]) -> Option<usize> {
    const SHORT: usize = 32;
    let (words, rest) = bytes[..bytes.len().min(SHORT)].as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = first_equal(word, b'"') | first_equal(word, b'\\');
        if found != 0 {
            return Some(number * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    if let Some(at) = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')) {
        return Some(words.len() * 8 + at);
    }
    memchr2(b'"', b'\\', bytes.get(SHORT..)?).map(|at| at + SHORT)
}

/// Returns a mask whose lowest bit is in the first of eight bytes that equals `byte`; 0 if none
/// does.
fn first_equal(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let differences = word ^ (ONES * u64::from(byte));
    differences.wrapping_sub(ONES) & !differences & (ONES << 7)
}

/// Open containers, one bit each: set for an object.
#[derive(Default)]
struct Nesting {
    top: u64,
    spilled: Vec<u64>,
    depth: usize,
    deepest: usize,
}

impl Nesting {
    fn depth(&self) -> usize {
        self.depth
    }

    fn push(&mut self, object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.spilled.push(self.top);
        }
        self.top = self.top << 1 | u64::from(object);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    fn pop(&mut self) {
        self.top >>= 1;
        self.depth -= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.top = self.spilled.pop().unwrap_or_default();
        }
    }

    fn top(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.top & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(text: &str) -> (Vec<(&str, &str)>, Option<Shape>) {
        let mut all = Vec::new();
        let shape = members(text, |member| all.push((member.key, member.value)));
        (all, shape)
    }

    #[test]
    fn only_outermost_members_are_passed() {
        let (all, shape) = shown(r#"{"a":{"b":1} , "c" : [ 2,{}],"d":"x","e":{},"f":[]}"#);
        let expected =
            [("a", r#"{"b":1}"#), ("c", "[ 2,{}]"), ("d", r#""x""#), ("e", "{}"), ("f", "[]")];
        assert_eq!(all, expected);
        assert_eq!(shape, Some(Shape { object: true, depth: 3, padded: false }));
    }

    #[test]
    fn scan_stops_at_the_first_outermost_member_of_a_name() {
        let before = |text| {
            let mut keys = Vec::new();
            let rest = members_before(text, "record", |member| keys.push(member.key));
            (keys, rest)
        };
        let nested = r#"{"a":{"record":1},"b":"\",\"record\":","rec\u006frd":[2]} x"#;
        assert_eq!(before(nested), (vec!["a", "b"], Some("[2]} x")));
        assert_eq!(before(r#"{"record" : 1}"#), (vec![], Some("1}")));
        assert_eq!(before(r#"{"a":1,,"record":1}"#).1, None);
        assert_eq!(before(r#"{"a":tru,"record":1}"#).1, None);
        assert_eq!(before(r#"["record",1]"#).1, None);
        assert_eq!(before(r#"{"a":1}"#).1, None);
    }

    #[test]
    fn elements_of_an_array_are_passed() {
        let mut all = Vec::new();
        let shape = elements(r#"[ {"a":[1]} ,2, [] ,"x"]"#, |element| all.push(element));
        assert_eq!(all, [r#"{"a":[1]}"#, "2", "[]", r#""x""#]);
        assert_eq!(shape.unwrap().depth, 3);
    }

    #[test]
    fn scalars_and_empty_containers_pass_nothing() {
        for text in ["{}", "[]", "1", "\"x\"", "{ }", " [ ] "] {
            assert_eq!(shown(text).0, [], "{text}");
            assert!(shown(text).1.is_some(), "{text}");
        }
    }

    #[test]
    fn nesting_has_no_limit() {
        for depth in [63, 64, 65, 100, 101, 128, 129, 200, 100_000] {
            let text = "[".repeat(depth) + &"]".repeat(depth);
            assert_eq!(check(&text).map(|shape| shape.depth), Some(depth));
            assert_eq!(check(&text).unwrap().embeddable(), depth <= 100);
            let mixed = r#"{"a":["#.repeat(depth) + &"]}".repeat(depth);
            assert_eq!(check(&mixed).map(|shape| shape.depth), Some(2 * depth));
            assert_eq!(check(&mixed.replacen("]}", "}]", 1)), None);
        }
    }

    #[test]
    fn invalid_grammar_is_rejected() {
        let wrong = [
            "",
            " ",
            "{",
            "}",
            "[1,]",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1 2]",
            "01",
            "1.",
            ".5",
            "-",
            "+1",
            "1e",
            "tru",
            "nul",
            "'a'",
            "{a:1}",
            "\"a",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"\u{1}\"",
            "\"\t\"",
            "{}{}",
            "{}x",
            "\u{feff}{}",
            "\0{}",
            "[}",
            "{]",
            "\"\\",
            "\"\\u12",
            "NaN",
            "1,",
            "[",
            "[1",
            "{\"a\":1",
        ];
        for text in wrong {
            assert_eq!(check(text), None, "{text:?}");
        }
    }

    #[test]
    fn valid_grammar_is_accepted() {
        let right = [
            r#""\ud800""#,
            "1e999",
            "-0",
            "-0.0e-7",
            "\t{}\r\n",
            r#"{"a":1,"a":2}"#,
            "\"\u{7f}\u{2028}\"",
            r#""\u0000""#,
            "123456789012345678901234567890",
        ];
        for text in right {
            assert!(check(text).is_some(), "{text:?}");
        }
    }

    #[test]
    fn keys_are_compared_unescaped() {
        let member = Member { key: r"pro\u0067ress", value: "1" };
        assert!(member.is("progress"));
        assert!(!member.is("progres"));
        assert!(!Member { key: r"\ud800", value: "1" }.is("\u{fffd}"));
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(unescape(r#"a\n\u00e9\ud83d\ude00\/\\\""#).unwrap(), "a\né😀/\\\"");
        for lone in [r"\ud800", r"\ude00", r"\ud800\ud800", r"\ud800x"] {
            assert_eq!(unescape(lone), None, "{lone}");
        }
        assert_eq!(string("5"), None);
        assert_eq!(string(r#""x""#).unwrap(), "x");
    }

    fn arbitrary_json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<i32>().prop_map(|number| serde_json::json!(f64::from(number) / 8.0)),
            ".*".prop_map(Into::into),
        ];
        leaf.prop_recursive(6, 64, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn valid_texts_give_the_same_result_as_a_library(value in arbitrary_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let (all, shape) = shown(&text);
            prop_assert!(shape.is_some());
            if let serde_json::Value::Object(map) = &value {
                prop_assert_eq!(all.len(), map.len());
                for (key, inner) in all {
                    let key: String = serde_json::from_str(&format!("\"{key}\"")).unwrap();
                    prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(inner).unwrap(), &map[&key]);
                }
            }
        }

        /// Valid texts with one byte changed, inserted or removed are accepted exactly if
        /// serde_json's borrowing check accepts them.
        #[test]
        fn broken_texts_give_the_same_result_as_a_library(
            value in arbitrary_json(), at: prop::sample::Index, how in 0..3, with in "[\\[\\]{}\",:\\\\ 0-9a-eu\t\u{1}.+-]"
        ) {
            let mut text = serde_json::to_string(&value).unwrap();
            let at = at.index(text.len());
            prop_assume!(text.is_char_boundary(at));
            match how {
                0 => text.insert_str(at, &with),
                1 => { text.remove(at); }
                _ => { text.remove(at); text.insert_str(at, &with); }
            }
            let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(check(&text).is_some(), theirs, "{}", text);
        }

        #[test]
        fn unescapes_like_a_library(text in ".*") {
            let quoted = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(string(&quoted).unwrap(), text);
        }
    }
}
