//! Cuts tool calls out of the message of a record.
//!
//! The blocks of type `tool_use` in `message.content` are removed, together with one comma each;
//! every other byte stays. A record without remaining blocks is dropped. Results of tools are in
//! other records and stay.

use std::ops::Range;

use ai_agent_stage::{
    BuildError, Change, Fallback, Filter, FilterOptions, Plugin, Record, Verdict,
};
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::json;

inventory::submit! {
    Plugin::filter::<ToolCall>(
        "tool-call",
        "Cuts `tool_use` blocks out of `message.content`; drops a record that has no block left.",
        r#"
## Action for a record that is too large to be held in memory: "keep" or "drop".
on_oversize = "keep"
"#,
    )
}

/// Cuts blocks of type `tool_use` out of `message.content`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ToolCall {
    /// Action for a record that is too large to be held in memory: "keep" or "drop".
    #[serde(default)]
    on_oversize: Fallback,
}

impl FilterOptions for ToolCall {
    type Filter = Self;

    fn build(self) -> Result<Self, BuildError> {
        Ok(self)
    }
}

impl Filter for ToolCall {
    fn check(&mut self, record: &Record<'_>) -> Verdict {
        if record.is_partial() {
            return self.on_oversize.verdict("oversized");
        }
        // A call contains `tool_use` or an escape, so that most records need no scan.
        if !may_contain_call(record.line()) {
            return Verdict::Keep;
        }
        let Some(blocks) = record.message().and_then(content_blocks) else { return Verdict::Keep };
        let calls: Vec<bool> = blocks.iter().map(|block| is_call(block)).collect();
        if !calls.contains(&true) {
            return Verdict::Keep;
        }
        if !calls.contains(&false) {
            return Verdict::Drop("only_tool_calls");
        }
        let ranges: Vec<_> = blocks.iter().map(|block| range(record.line(), block)).collect();
        Verdict::Edit(cuts(&ranges, &calls), "tool_calls")
    }
}

fn may_contain_call(line: &[u8]) -> bool {
    memchr::memmem::find(line, b"tool_use").is_some()
        || memchr::memmem::find(line, b"\\u").is_some()
}

/// Returns the blocks of `message.content` if it is an array.
fn content_blocks(message: &str) -> Option<Vec<&str>> {
    let content = last_member(message, "content").filter(|value| value.starts_with('['))?;
    let mut blocks = Vec::new();
    json::elements(content, |block| blocks.push(block));
    Some(blocks)
}

fn is_call(block: &str) -> bool {
    last_member(block, "type").and_then(json::string).is_some_and(|kind| kind == "tool_use")
}

/// Returns the value of a member; the last one if it occurs twice.
fn last_member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    json::members(object, |member| {
        if member.is(name) {
            found = Some(member.value);
        }
    });
    found
}

/// Returns the range of `block`, a slice of `line`.
fn range(line: &[u8], block: &str) -> Range<usize> {
    let start = block.as_ptr().addr() - line.as_ptr().addr();
    start..start + block.len()
}

/// Returns the ranges of the calls, each with one comma: after a kept block the comma before the call,
/// before the first kept block the comma after it.
fn cuts(ranges: &[Range<usize>], calls: &[bool]) -> Vec<Change> {
    let first_kept = calls.iter().position(|call| !call).unwrap_or(calls.len());
    (0..ranges.len())
        .filter(|index| calls[*index])
        .map(|index| {
            let range = if index < first_kept {
                ranges[index].start..ranges[index + 1].start
            } else {
                ranges[index - 1].end..ranges[index].end
            };
            Change { range, with: Vec::new() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::stages::filter::from_toml;

    fn check(line: &str) -> Verdict {
        from_toml::<ToolCall>("").unwrap().check(&Record::from_line(line.as_bytes()))
    }

    fn edited(line: &str) -> String {
        let Verdict::Edit(changes, "tool_calls") = check(line) else { panic!("no edit: {line}") };
        let mut text = line.to_owned();
        for change in changes.into_iter().rev() {
            text.replace_range(change.range, std::str::from_utf8(&change.with).unwrap());
        }
        text
    }

    const CALL: &str = r#"{"type":"tool_use","input":{"a":[1,"]"]}}"#;

    #[test]
    fn call_is_cut_with_one_comma() {
        let text = r#"{"type":"text"}"#;
        let cases = [
            (format!("[{CALL}, {text}]"), format!("[{text}]")),
            (format!("[ {text} ,{CALL}\t]"), format!("[ {text}\t]")),
            (format!("[{text},{CALL},{text}]"), format!("[{text},{text}]")),
            (format!("[{CALL},{CALL},{text},{CALL},{CALL}]"), format!("[{text}]")),
        ];
        for (before, after) in cases {
            let line = |content: &str| {
                format!(r#"{{"uuid":"a" , "message":{{"x":1,"content":{content}}},"z":1.0}}"#)
            };
            assert_eq!(edited(&line(&before)), line(&after));
        }
    }

    #[test]
    fn record_with_only_calls_is_dropped() {
        let line = format!(r#"{{"message":{{"content":[{CALL},{CALL}]}}}}"#);
        assert_eq!(check(&line), Verdict::Drop("only_tool_calls"));
    }

    #[test]
    fn record_without_calls_is_kept() {
        let lines = [
            r#"{"message":{"content":"tool_use"}}"#,
            r#"{"message":{"content":[]},"x":"tool_use"}"#,
            r#"{"message":{"content":[{"type":"tool_result","x":{"type":"tool_use"}}]}}"#,
            r#"{"content":[{"type":"tool_use"}]}"#,
            r#"{"message":{"content":[{"type":"tool_use","type":"text"}]}}"#,
            r#"{"message":{"content":[{"type":"tool_use"}],"content":"x"}}"#,
            r#"{"message":[{"type":"tool_use"}]}"#,
            r#"{"message":{"content":[{"type":"tool_use"}]}"#,
        ];
        for line in lines {
            assert_eq!(check(line), Verdict::Keep, "{line}");
        }
    }

    #[test]
    fn oversized_record_is_kept_or_dropped_by_the_option() {
        let origin = Record::from_line(b"").origin();
        for (options, expected) in
            [("", Verdict::Keep), (r#"on_oversize = "drop""#, Verdict::Drop("oversized"))]
        {
            let part = Record::first_part(origin, 0, br#"{"type":"assistant","message":{"con"#);
            assert_eq!(from_toml::<ToolCall>(options).unwrap().check(&part), expected);
        }
    }

    #[test]
    fn call_written_with_escapes_is_found() {
        let line = r#"{"mess\u0061ge":{"c\u006fntent":[{"t\u0079pe":"tool\u005fuse"}]}}"#;
        assert_eq!(check(line), Verdict::Drop("only_tool_calls"));
    }

    proptest! {
        #[test]
        fn result_equals_the_original_without_calls(
            calls in prop::collection::vec(any::<bool>(), 1..8), spaced: bool
        ) {
            let blocks: Vec<Value> = calls.iter().enumerate().map(|(index, call)| {
                let kind = if *call { "tool_use" } else { "text" };
                json!({"type": kind, "n": index, "deep": [{"type": "tool_use"}, "]\"\\"]})
            }).collect();
            let original = json!({"message": {"role": "assistant", "content": blocks}, "uuid": "x"});
            let mut expected = original.clone();
            expected["message"]["content"].as_array_mut().unwrap().retain(|block| block["type"] != "tool_use");
            let line = if spaced { serde_json::to_string_pretty(&original) } else { serde_json::to_string(&original) }.unwrap();
            if calls.iter().all(|call| *call) {
                prop_assert_eq!(check(&line), Verdict::Drop("only_tool_calls"));
            } else if !calls.contains(&true) {
                prop_assert_eq!(check(&line), Verdict::Keep);
            } else {
                prop_assert_eq!(serde_json::from_str::<Value>(&edited(&line)).unwrap(), expected);
            }
        }
    }
}
