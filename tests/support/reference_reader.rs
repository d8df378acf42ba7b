//! An independent reader of session files: simple, slow, and without any code of the agent.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use siem_protocol::{Cut, Digest};

use super::{
    entries::{Carrier, Line},
    files_below,
};

/// Settings of the filters that a configuration can change.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) ignore_types: Vec<String>,
    pub(crate) sidechain: bool,
    pub(crate) meta: bool,
    pub(crate) tool_call: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ignore_types: vec!["file-history-snapshot".into(), "progress".into()],
            sidechain: false,
            meta: false,
            tool_call: false,
        }
    }
}

/// A line that must arrive.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    /// The line as in the file, without its ending.
    pub(crate) line: Vec<u8>,
    /// The JSON after a cut; `None` without one.
    pub(crate) cut: Option<Value>,
}

/// Returns every line that must arrive from the `*.jsonl` files below a directory.
pub(crate) fn read_tree(root: &Path, rules: &Rules) -> Vec<Expected> {
    let files = files_below(root);
    let sessions = files.iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
    sessions.flat_map(|path| read(path, &fs::read(path).unwrap(), rules)).collect()
}

/// Returns every line that must arrive from a file with these bytes.
pub(crate) fn read(path: &Path, bytes: &[u8], rules: &Rules) -> Vec<Expected> {
    let mut expected = Vec::new();
    let mut seen = HashSet::new();
    let mut offset = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let at = offset;
        offset += line.len() as u64;
        let Some(line) = line.strip_suffix(b"\n") else { break };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(cut) = judge(line, rules, &mut seen) {
            let (path, line) = (path.to_owned(), line.to_vec());
            expected.push(Expected { path, offset: at, line, cut });
        }
    }
    expected
}

/// Returns `None` for a line that must not arrive, else the JSON that remains after a cut.
fn judge(line: &[u8], rules: &Rules, seen: &mut HashSet<String>) -> Option<Option<Value>> {
    if line.iter().all(|byte| b" \t\r".contains(byte)) {
        return None;
    }
    let Ok(Value::Object(mut record)) = serde_json::from_slice(line) else { return Some(None) };
    let is_true = |name| record.get(name) == Some(&Value::Bool(true));
    if is_true("isCompactSummary") {
        return None;
    }
    if let Some(uuid) = record.get("uuid").and_then(Value::as_str)
        && !seen.insert(uuid.to_owned())
    {
        return None;
    }
    if let Some(kind) = record.get("type").and_then(Value::as_str)
        && rules.ignore_types.iter().any(|ignored| ignored == kind)
    {
        return None;
    }
    if (rules.sidechain && is_true("isSidechain")) || (rules.meta && is_true("isMeta")) {
        return None;
    }
    if rules.tool_call {
        let content = record.get_mut("message").and_then(|message| message.get_mut("content"));
        if let Some(Value::Array(blocks)) = content {
            let before = blocks.len();
            blocks.retain(|block| block.get("type").and_then(Value::as_str) != Some("tool_use"));
            if blocks.len() < before {
                return (!blocks.is_empty()).then_some(Some(Value::Object(record)));
            }
        }
    }
    Some(None)
}

/// Fails unless `lines` are exactly the expected ones: each once, byte for byte, and each file's in
/// order.
#[track_caller]
pub(crate) fn assert_same(expected: &[Expected], lines: &[Line]) {
    let mut arrived: BTreeMap<(&Path, u64), &Line> = BTreeMap::new();
    let mut last: BTreeMap<&Path, (u64, u64)> = BTreeMap::new();
    for line in lines {
        let before = arrived.insert((&line.path, line.offset), line);
        assert!(before.is_none(), "arrived twice: {before:?} and {line:?}");
        if let Some((seq, offset)) = last.insert(&line.path, (line.seq, line.offset)) {
            assert!(seq < line.seq && offset < line.offset, "out of order: {line:?}");
        }
    }
    let mut missing = Vec::new();
    for expected in expected {
        match arrived.remove(&(&*expected.path, expected.offset)) {
            Some(line) => compare(expected, line),
            None => missing.push(expected),
        }
    }
    let show = |line: &[u8]| String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned();
    assert!(
        missing.is_empty() && arrived.is_empty(),
        "{} of {} lines are missing, the first {:?}; {} came that must not, the first {:?}",
        missing.len(),
        expected.len(),
        missing.first().map(|first| (&first.path, first.offset, show(&first.line))),
        arrived.len(),
        arrived.values().next().map(|first| (&first.path, first.offset, show(&first.bytes))),
    );
}

#[track_caller]
fn compare(expected: &Expected, line: &Line) {
    let place = format!("{} at {}", expected.path.display(), expected.offset);
    assert_eq!(line.length, expected.line.len() as u64, "length of {place}");
    let Some(value) = &expected.cut else {
        assert!(line.bytes == expected.line, "other bytes of {place}");
        assert!(line.cut.is_empty() && line.sha256.is_none(), "an edit of {place}");
        return;
    };
    let arrived: Value = serde_json::from_slice(&line.bytes).unwrap();
    assert_eq!(arrived, *value, "after the cut of {place}");
    assert_eq!(line.sha256, Some(Digest::of(&expected.line)), "sha256 of {place}");
    let bytes = (expected.line.len() - line.bytes.len()) as u64;
    assert_eq!(line.cut, [Cut { by: "tool-call".into(), bytes }], "cut of {place}");
    assert_eq!(line.carrier, Carrier::Record, "{place}");
    assert!(is_subsequence(&line.bytes, &expected.line), "bytes changed in {place}");
}

/// Reports whether `short` is `long` with bytes removed.
fn is_subsequence(short: &[u8], long: &[u8]) -> bool {
    let mut rest = long.iter();
    short.iter().all(|byte| rest.any(|other| other == byte))
}
