//! The object that the enricher adds: flat, and valid JSON whatever the record contains.

use siem_protocol::json;

/// Maximum number of values of a field.
pub(super) const MAX_VALUES: usize = 16;
/// Part of a command line that is cut of which the end is kept, in bytes. What a long command does
/// often stands at its end.
const TAIL: usize = 2048;
/// Placed where text was cut.
const MARK: char = '…';
/// Replaces what cannot be written: half of a surrogate pair, or an escape that is not valid.
const REPLACEMENT: &str = "\\ufffd";

/// A field with text from the record, and the number of bytes that it may have.
#[derive(Clone, Copy)]
pub(super) struct Field {
    name: &'static str,
    max: usize,
    keeps_end: bool,
}

impl Field {
    /// A field of at most `max` bytes.
    pub(super) const fn new(name: &'static str, max: usize) -> Self {
        Self { name, max, keeps_end: false }
    }

    /// A field of at most `max` bytes that is cut in the middle.
    pub(super) const fn command(name: &'static str, max: usize) -> Self {
        Self { name, max, keeps_end: true }
    }
}

/// The object being written. Its memory is used again for each record.
#[derive(Default)]
pub(super) struct Output {
    json: String,
    cut: Vec<&'static str>,
}

impl Output {
    /// Starts an object.
    pub(super) fn start(&mut self) {
        self.json.clear();
        self.cut.clear();
    }

    /// Adds a word of this program.
    pub(super) fn word(&mut self, name: &'static str, word: &'static str) {
        self.key(name);
        self.json.push('"');
        self.json.push_str(word);
        self.json.push('"');
    }

    /// Adds an integer.
    pub(super) fn integer(&mut self, name: &'static str, value: u64) {
        self.key(name);
        self.json.push_str(itoa(value, &mut [0; 20]));
    }

    /// Adds a boolean.
    pub(super) fn flag(&mut self, name: &'static str, value: bool) {
        self.key(name);
        self.json.push_str(if value { "true" } else { "false" });
    }

    /// Adds text of the record, given as the inside of a JSON string, unless it is empty.
    pub(super) fn text(&mut self, field: Field, raw: Option<&str>) {
        if let Some(raw) = raw.filter(|raw| !raw.is_empty()) {
            self.key(field.name);
            self.quoted(field, raw);
        }
    }

    /// Adds the texts that are not empty: nothing, one value, or an array.
    pub(super) fn texts<'t>(&mut self, field: Field, texts: impl Iterator<Item = &'t str>) {
        let mut texts = texts.filter(|text| !text.is_empty()).peekable();
        let Some(first) = texts.next() else { return };
        self.key(field.name);
        if texts.peek().is_none() {
            return self.quoted(field, first);
        }
        self.json.push('[');
        self.quoted(field, first);
        for (number, text) in texts.enumerate() {
            if number + 1 == MAX_VALUES {
                self.mark(field.name);
                break;
            }
            self.json.push(',');
            self.quoted(field, text);
        }
        self.json.push(']');
    }

    /// Notes that a field does not have all that the record says.
    pub(super) fn mark(&mut self, name: &'static str) {
        if !self.cut.contains(&name) {
            self.cut.push(name);
        }
    }

    /// Returns the object, which is valid JSON.
    pub(super) fn finish(&mut self) -> Option<&str> {
        const TRUNCATED: Field = Field::new("ai_agent.truncated", 64);
        if self.json.is_empty() {
            return None;
        }
        let cut = std::mem::take(&mut self.cut);
        self.texts(TRUNCATED, cut.iter().copied());
        self.json.push('}');
        Some(&self.json)
    }

    fn key(&mut self, name: &'static str) {
        self.json.push(if self.json.is_empty() { '{' } else { ',' });
        self.json.push('"');
        self.json.push_str(name);
        self.json.push_str("\":");
    }

    fn quoted(&mut self, field: Field, raw: &str) {
        self.json.push('"');
        if raw.len() <= field.max {
            copy(&mut self.json, raw, usize::MAX);
        } else {
            let tail = if field.keeps_end { TAIL } else { 0 };
            copy(&mut self.json, raw, field.max - tail);
            self.json.push(MARK);
            copy(&mut self.json, end_of(raw, tail), usize::MAX);
            self.mark(field.name);
        }
        self.json.push('"');
    }
}

/// Appends the inside of a JSON string, up to `max` bytes. What is not valid is replaced: the first
/// part of a long line was not checked.
fn copy(json: &mut String, raw: &str, max: usize) {
    json.reserve(raw.len().min(max));
    let has_control = raw.bytes().fold(false, |found, byte| found | (byte < 0x20));
    let (mut rest, mut left) = (raw, max);
    loop {
        // Commands have a line feed every few dozen bytes: what is between two escapes is copied at once.
        let run = if has_control {
            rest.bytes().position(|byte| byte < 0x20 || byte == b'\\')
        } else {
            memchr::memchr(b'\\', rest.as_bytes())
        };
        let run = run.unwrap_or(rest.len());
        if run > left {
            let end = (0..=left).rev().find(|end| rest.is_char_boundary(*end));
            return json.push_str(&rest[..end.unwrap_or_default()]);
        }
        json.push_str(&rest[..run]);
        (rest, left) = (&rest[run..], left - run);
        let (unit, length) = match rest.as_bytes().first() {
            None => return,
            Some(b'\\') => escape(rest),
            Some(_) => (REPLACEMENT, 1),
        };
        if unit.len() > left {
            return;
        }
        json.push_str(unit);
        (rest, left) = (&rest[length..], left - unit.len());
    }
}

/// Returns the escape at the start of `raw`, or its replacement, and the number of bytes to pass.
fn escape(raw: &str) -> (&str, usize) {
    match raw.as_bytes().get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (&raw[..2], 2),
        _ => unicode_escape(raw),
    }
}

fn unicode_escape(raw: &str) -> (&str, usize) {
    match json::escape(raw) {
        Some((_, length)) if raw.is_char_boundary(length) && has_digits(&raw[..length]) => {
            (&raw[..length], length)
        }
        // A lone surrogate has valid grammar.
        None if raw.get(..6).is_some_and(|text| text.starts_with("\\u") && has_digits(text)) => {
            (REPLACEMENT, 6)
        }
        _ => (REPLACEMENT, 1),
    }
}

/// Reports whether an escape has its hexadecimal digits, which a number parser would also find after
/// a plus sign.
fn has_digits(escape: &str) -> bool {
    escape.len() == 2
        || escape.as_bytes().chunks(6).all(|unit| unit[2..].iter().all(u8::is_ascii_hexdigit))
}

/// Returns the last `length` bytes of the inside of a JSON string, fewer if they would start within a
/// character or an escape.
fn end_of(raw: &str, length: usize) -> &str {
    let target = raw.len().saturating_sub(length);
    let mut start = 0;
    while let Some(found) = memchr::memchr(b'\\', &raw.as_bytes()[start..]) {
        if start + found >= target {
            break;
        }
        start += found + escape(&raw[start + found..]).1;
    }
    let mut start = start.max(target);
    while !raw.is_char_boundary(start) {
        start += 1;
    }
    &raw[start..]
}

/// Returns the number of Unicode characters of a string, given its inside. Half of a surrogate pair
/// counts as one.
pub(super) fn characters(raw: &str) -> u64 {
    // An escape is ASCII, so that its bytes are characters of the text as written.
    let mut count = raw.chars().count();
    let mut rest = raw;
    while let Some(found) = memchr::memchr(b'\\', rest.as_bytes()) {
        let length = escape(&rest[found..]).1;
        count -= length - 1;
        rest = &rest[found + length..];
    }
    count as u64
}

/// Formats an integer without the machinery of `format!`, which costs more than all the rest of a
/// field.
fn itoa(mut value: u64, digits: &mut [u8; 20]) -> &str {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or_default();
        value /= 10;
        if value == 0 {
            break;
        }
    }
    std::str::from_utf8(&digits[at..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn text(field: Field, raw: &str) -> Value {
        let mut output = Output::default();
        output.start();
        output.text(field, Some(raw));
        serde_json::from_str(output.finish().unwrap()).unwrap()
    }

    #[test]
    fn text_keeps_its_escapes() {
        let field = Field::new("a", 64);
        assert_eq!(text(field, r#"x\"\\\n\u00e9\ud83d\ude00ü"#)["a"], "x\"\\\né😀ü");
    }

    #[test]
    fn invalid_escapes_are_replaced() {
        let field = Field::new("a", 64);
        for (raw, expected) in [
            (r"\ud800x", "\u{fffd}x"),
            (r"\ud800\u0041", "\u{fffd}A"),
            (r"\q", "\u{fffd}q"),
            (r"\u+123", "\u{fffd}u+123"),
            (r"\u12", "\u{fffd}u12"),
            ("a\u{1}b", "a\u{fffd}b"),
            ("\\", "\u{fffd}"),
            ("\\ü", "\u{fffd}ü"),
        ] {
            assert_eq!(text(field, raw)["a"], expected, "{raw}");
        }
    }

    #[test]
    fn cut_text_has_a_mark_and_the_name_of_its_field() {
        let cut = text(Field::new("a", 8), r"1234567\n89");
        assert_eq!(cut["a"], "1234567…");
        assert_eq!(cut["ai_agent.truncated"], "a");
        assert!(text(Field::new("a", 8), "12345678").get("ai_agent.truncated").is_none());
    }

    #[test]
    fn cut_command_keeps_its_end() {
        let raw = format!("start {}{} end", "ü".repeat(5000), r"\n".repeat(2000));
        let cut = text(Field::command("c", 8192), &raw);
        let value = cut["c"].as_str().unwrap();
        assert!(value.starts_with("start ü") && value.ends_with("\n end"), "{value}");
        assert!(value.contains('…') && value.len() <= 8192 + '…'.len_utf8());
    }

    #[test]
    fn several_values_are_an_array_up_to_a_limit() {
        let mut output = Output::default();
        output.start();
        output.texts(Field::new("a", 8), ["x"; MAX_VALUES + 1].into_iter());
        let value: Value = serde_json::from_str(output.finish().unwrap()).unwrap();
        assert_eq!(value["a"].as_array().unwrap().len(), MAX_VALUES);
        assert_eq!(value["ai_agent.truncated"], "a");
    }

    #[test]
    fn integers_are_written_in_full() {
        for value in [0, 7, 10, u64::MAX] {
            assert_eq!(itoa(value, &mut [0; 20]), value.to_string());
        }
    }

    #[test]
    fn characters_are_counted_without_escapes() {
        assert_eq!(characters(r#"a\"\\\u00e9\ud83d\ude00ü\ud800"#), 7);
        assert_eq!(characters(""), 0);
    }

    proptest! {
        #[test]
        fn any_text_becomes_valid_json(raw in "([a\\\\\"u0dD8cü\n+]|\\\\ud83d|\\\\ude00){0,60}", max in 2060..2100_usize, is_command: bool) {
            let raw = format!("x{}", raw.repeat(80));
            let field = Field { name: "a", max, keeps_end: is_command };
            // A quote cannot be within a string that the cursor returned, except after a backslash.
            let raw = raw.replace('"', "");
            let value = text(field, &raw);
            // A replacement takes three bytes for one.
            prop_assert!(value["a"].as_str().unwrap().len() <= 3 * max + MARK.len_utf8());
        }
    }
}
