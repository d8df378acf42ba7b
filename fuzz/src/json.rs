//! The grammar check of the protocol, compared with serde_json, and the round trip of a line through
//! an entry.
//!
//! Our check accepts exactly what serde_json skips without reading (`IgnoredAny`, `RawValue`). Its
//! `Value` and `String` accept less: they refuse lone surrogate escapes, numbers beyond `f64`, and
//! nesting deeper than 128. What they accept must be read equally.

use ai_agent::internals::{
    protocol::{
        Content, Entry,
        entry::{PathText, RecordLine},
        json,
    },
    stages::Record,
};
use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};

/// Fails if our check and serde_json differ, or if a line changes in the round trip.
pub fn run(line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else {
        assert_eq!(Content::of(line), Content::Bytes(line));
        return check_round_trip(line);
    };
    let shape = json::check(text);
    assert_eq!(shape.is_some(), serde_json::from_str::<IgnoredAny>(text).is_ok(), "grammar");
    assert_eq!(shape.is_some(), serde_json::from_str::<&RawValue>(text).is_ok(), "grammar");
    if let Some(shape) = shape {
        let bare = text.trim_matches([' ', '\t', '\r', '\n']);
        assert_eq!(shape.padded, bare != text);
        assert_eq!(shape.object, bare.starts_with('{'));
        assert_eq!(shape.depth, depth(text));
        let string = serde_json::from_str::<String>(bare).ok();
        assert_eq!(json::string(bare).map(String::from), string);
    }
    if let Ok(value) = serde_json::from_str(text) {
        check_members(text, &value);
        check_record(line, &value);
    }
    check_round_trip(line);
}

/// Returns the nesting depth of a JSON text.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut quoted, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'{' | b'[' if !quoted => depth += 1,
            b'}' | b']' if !quoted => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Checks that the members or elements of the outermost value are those that serde_json reads.
fn check_members(text: &str, value: &Value) {
    let read = |text| serde_json::from_str::<Value>(text).unwrap();
    let mut members = serde_json::Map::new();
    let mut elements = Vec::new();
    json::members(text, |member| {
        let key = json::unescape(member.key).unwrap();
        assert!(member.is(&key));
        members.insert(key.into_owned(), read(member.value));
    });
    json::elements(text, |element| elements.push(read(element)));
    match value {
        Value::Object(object) => assert_eq!((&members, elements.len()), (object, 0)),
        Value::Array(array) => assert_eq!((members.len(), &elements), (0, array)),
        _ => assert_eq!((members.len(), elements.len()), (0, 0)),
    }
}

/// Checks that the fields for filters are those that serde_json reads.
fn check_record(line: &[u8], value: &Value) {
    let record = Record::from_line(line);
    assert_eq!(record.is_object(), value.is_object());
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    assert_eq!(record.kind().as_deref(), text("type"));
    assert_eq!(record.uuid().as_deref(), text("uuid"));
    assert_eq!(record.cwd().as_deref(), text("cwd"));
    let is_true = |name: &str| value.get(name) == Some(&Value::Bool(true));
    assert_eq!(record.is_meta(), is_true("isMeta"));
    assert_eq!(record.is_sidechain(), is_true("isSidechain"));
    assert_eq!(record.is_compact_summary(), is_true("isCompactSummary"));
    let message = record.message().map(|text| serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(message.as_ref(), value.get("message"));
}

/// Checks that a line written to an entry is read back with the same bytes, and that the entry is one line.
fn check_round_trip(line: &[u8]) {
    if line.contains(&b'\n') {
        return;
    }
    let content = Record::from_line(line).content();
    assert_eq!(content, Content::of(line));
    let mut entry = Vec::new();
    let record = RecordLine {
        source: "claude-sessions",
        path: &PathText::new(std::path::Path::new("/p")),
        generation: "g",
        offset: 3,
        length: line.len() as u64,
        read_at: "",
        enriched: "",
        cut: &[],
        masked: &[],
        sha256: None,
        folded: None,
        incomplete: false,
        content,
    };
    record.write(7, &mut entry);
    assert!(!entry.contains(&b'\n'));
    let back = Entry::parse(&entry).unwrap();
    assert_eq!((back.seq, back.length), (7, Some(line.len() as u64)));
    assert_eq!(back.content().unwrap().as_deref(), Some(line));
}
