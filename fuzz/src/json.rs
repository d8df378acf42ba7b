//! The grammar check of the protocol, held against serde_json, and the way of a line through an
//! entry.
//!
//! What serde_json passes over unread (`IgnoredAny`, `RawValue`) is what ours accepts, and the
//! reverse. Its `Value` and `String` accept less: they refuse lone surrogate escapes, numbers
//! beyond `f64`, and nesting deeper than 128. Where they accept, they must have read the same.

use ai_agent::{
    protocol::{
        Content, Entry,
        entry::{PathText, RecordLine},
        json,
    },
    stages::Record,
};
use serde::de::IgnoredAny;
use serde_json::{Value, value::RawValue};

/// Fails when ours and serde_json differ, or when a line is not the same behind an entry.
pub fn run(line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else {
        assert_eq!(Content::of(line), Content::Bytes(line));
        return travels(line);
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
        shows_the_same(text, &value);
        finds_the_same(line, &value);
    }
    travels(line);
}

/// How deep a JSON text nests.
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

/// The members or elements of the outermost value are those that serde_json reads.
fn shows_the_same(text: &str, value: &Value) {
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

/// The fields that filters ask for are those that serde_json reads.
fn finds_the_same(line: &[u8], value: &Value) {
    let record = Record::from_line(line);
    assert_eq!(record.is_object(), value.is_object());
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    assert_eq!(record.kind().as_deref(), text("type"));
    assert_eq!(record.uuid().as_deref(), text("uuid"));
    assert_eq!(record.session_id().as_deref(), text("sessionId"));
    assert_eq!(record.timestamp().as_deref(), text("timestamp"));
    let is_true = |name: &str| value.get(name) == Some(&Value::Bool(true));
    assert_eq!(record.is_meta(), is_true("isMeta"));
    assert_eq!(record.is_sidechain(), is_true("isSidechain"));
    assert_eq!(record.is_compact_summary(), is_true("isCompactSummary"));
    let message = record.message().map(|text| serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(message.as_ref(), value.get("message"));
}

/// A line written into an entry and read out of it has the same bytes, and the entry is one line.
fn travels(line: &[u8]) {
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
        incomplete: false,
        content,
    };
    record.write(7, &mut entry);
    assert!(!entry.contains(&b'\n'));
    let back = Entry::parse(&entry).unwrap();
    assert_eq!((back.seq, back.length), (7, Some(line.len() as u64)));
    assert_eq!(back.content().unwrap().as_deref(), Some(line));
}
