//! The filter `tool-call`: its result equals the line without its tool calls.

use ai_agent::internals::{
    protocol::json,
    stages::{
        Record, StageOptions,
        filter::{self, Change, Verdict},
    },
};
use serde_json::Value;

/// Fails if an edit changes nothing, or changes anything but tool calls.
pub fn run(line: &[u8]) {
    let verdict = check(line);
    assert!(is_verdict_on_a_part(line, "", &Verdict::Keep));
    assert!(is_verdict_on_a_part(line, r#"on_oversize = "drop""#, &Verdict::Drop("oversized")));
    let Some(text) = std::str::from_utf8(line).ok().filter(|text| json::check(text).is_some())
    else {
        assert_eq!(verdict, Verdict::Keep, "the line is not JSON");
        return;
    };
    if let Verdict::Edit(changes, reason) = &verdict {
        assert_eq!(*reason, "tool_calls");
        let rest = without(text, changes);
        let (before, after) = (json::check(text).unwrap(), json::check(&rest).unwrap());
        assert_eq!((after.object, after.padded), (true, before.padded));
        assert_eq!(check(rest.as_bytes()), Verdict::Keep, "a call is left");
    }
    // serde_json's values refuse lone surrogates, huge numbers and deep nesting.
    if let Ok(value) = serde_json::from_str(text) {
        compare(text, &verdict, value);
    }
}

fn check(line: &[u8]) -> Verdict {
    let options: StageOptions = "".parse().unwrap();
    filter::build("tool-call", &options).unwrap().check(&Record::from_line(line))
}

fn is_verdict_on_a_part(line: &[u8], options: &str, verdict: &Verdict) -> bool {
    let options: StageOptions = options.parse().unwrap();
    let origin = Record::from_line(b"").origin();
    let part = Record::first_part(origin, 0, line);
    filter::build("tool-call", &options).unwrap().check(&part) == *verdict
}

/// Returns the text without the ranges that are cut.
fn without(text: &str, changes: &[Change]) -> String {
    let (mut rest, mut at) = (String::new(), 0);
    for change in changes {
        assert!(change.with.is_empty() && !change.range.is_empty());
        rest.push_str(&text[at..change.range.start]);
        at = change.range.end;
    }
    rest + &text[at..]
}

/// Compares the verdict with a naive implementation.
fn compare(text: &str, verdict: &Verdict, mut value: Value) {
    let mut none = Vec::new();
    let content = value.get_mut("message").and_then(|message| message.get_mut("content"));
    let blocks = content.and_then(Value::as_array_mut).unwrap_or(&mut none);
    let all = blocks.len();
    blocks.retain(|block| block.get("type").and_then(Value::as_str) != Some("tool_use"));
    let left = blocks.len();
    match verdict {
        Verdict::Keep => assert_eq!(left, all, "a call was kept"),
        Verdict::Drop(reason) => {
            assert_eq!((*reason, left, all > 0), ("only_tool_calls", 0, true));
        }
        Verdict::Edit(changes, _) => {
            assert!(left < all && left > 0, "{left} of {all} blocks were to be left");
            assert_eq!(serde_json::from_str::<Value>(&without(text, changes)).unwrap(), value);
        }
        other => panic!("a filter that cuts returned {other:?}"),
    }
}
