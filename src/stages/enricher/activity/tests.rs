use ai_agent_stage::{Origin, StageOptions, build_enricher, testing::context};
use serde_json::{Value, json};

use super::*;

fn activity() -> Box<dyn Enricher> {
    build_enricher("activity", &"".parse::<StageOptions>().unwrap(), &context().into()).unwrap()
}

fn value(object: Option<&RawValue>) -> Value {
    object.map_or(Value::Null, |object| serde_json::from_str(object.get()).unwrap())
}

fn add(line: &str) -> Value {
    value(activity().enrich(&Record::from_line(line.as_bytes())))
}

/// Adds to a call of a tool with this input.
fn of_call(input: &str) -> Value {
    add(&format!(
        r#"{{"type":"assistant","message":{{"content":[{{"type":"tool_use","id":"t","name":"Bash","input":{input}}}]}}}}"#
    ))
}

#[test]
fn call_has_its_command_line() {
    let added = of_call(r#"{"command":"echo \"ü\"\n"}"#);
    let expected = json!({
        "event.action": "tool_call",
        "ai_agent.actor": "assistant",
        "gen_ai.tool.name": "Bash",
        "gen_ai.tool.call.id": "t",
        "ai_agent.tool.kind": "execute",
        "process.command_line": "echo \"ü\"\n",
    });
    assert_eq!(added, expected);
}

/// A lone surrogate is valid JSON, and no text: a command with one must not disappear.
#[test]
fn lone_surrogate_does_not_hide_a_command() {
    assert_eq!(
        of_call(r#"{"command":"rm \ud800 -rf"}"#)["process.command_line"],
        "rm \u{fffd} -rf"
    );
}

#[test]
fn long_command_is_cut_with_a_mark() {
    let added = of_call(&format!(r#"{{"command":"start{}end"}}"#, " ".repeat(10_000)));
    let command = added["process.command_line"].as_str().unwrap();
    assert!(command.starts_with("start ") && command.ends_with(" end") && command.contains('…'));
    assert_eq!(command.len(), 8192 + '…'.len_utf8());
    assert_eq!(added["ai_agent.truncated"], "process.command_line");
}

#[test]
fn last_of_two_equal_members_counts() {
    let added =
        of_call(r#"{"command":"a","file_path":"/a"},"input":{"command":"b","command":"c"}"#);
    assert_eq!(added["process.command_line"], "c");
    assert_eq!(added.get("file.path"), None);
}

#[test]
fn result_has_name_and_duration_of_its_call() {
    let mut activity = activity();
    let origin = Record::from_line(b"").origin();
    let call = br#"{"type":"assistant","timestamp":"2026-11-21T20:00:00.000Z","message":{"content":[{"type":"tool_use","id":"t","name":"mcp__git__push"}]}}"#;
    let result = br#"{"type":"user","timestamp":"2026-11-21T20:00:01.500Z","message":{"content":[{"type":"tool_result","tool_use_id":"t","is_error":true}]}}"#;
    activity.enrich(&Record::new(origin, 0, call));
    let mut result = || value(activity.enrich(&Record::new(origin, 500, result)));
    let added = result();
    let expected = json!({
        "event.action": "tool_result",
        "ai_agent.actor": "tool",
        "gen_ai.tool.name": "mcp__git__push",
        "gen_ai.tool.call.id": "t",
        "ai_agent.tool.kind": "mcp",
        "ai_agent.mcp.server": "git",
        "event.duration": 1_500_000_000_u64,
        "event.outcome": "failure",
    });
    assert_eq!(added, expected);
    assert_eq!(result(), added, "read again after a rollback");
}

#[test]
fn result_in_another_file_has_no_name() {
    let mut activity = activity();
    let one = Record::from_line(b"").origin();
    let other = Origin::new(FileKey(99), one.path.clone(), one.generation.clone());
    let call = br#"{"type":"assistant","message":{"content":[{"type":"tool_use","id":"t","name":"Bash"}]}}"#;
    let result =
        br#"{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"t"}]}}"#;
    activity.enrich(&Record::new(one, 0, call));
    let added = value(activity.enrich(&Record::new(&other, 500, result)));
    assert_eq!(added.get("gen_ai.tool.name"), None);
    assert_eq!(added["event.outcome"], "success");
}

#[test]
fn turns_are_counted_from_the_start_of_a_file() {
    let prompt = br#"{"type":"user","parentUuid":"p","message":{"content":"x"}}"#;
    let origin = Record::from_line(b"").origin();
    let turns = |offsets: [u64; 3]| {
        let mut activity = activity();
        offsets.map(|offset| {
            value(activity.enrich(&Record::new(origin, offset, prompt)))["ai_agent.turn"].as_u64()
        })
    };
    assert_eq!(turns([0, 100, 200]), [Some(1), Some(2), Some(3)]);
    assert_eq!(turns([100, 200, 300]), [None; 3], "earlier turns were not seen");
}

#[test]
fn first_part_has_the_fields_that_end_in_it() {
    // The type would follow.
    let part = br#"{"sessionId":"s","message":{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"Write","input":{"file_path":"/home/dev/.bashrc","content":"aaaa"#;
    let origin = Record::from_line(b"").origin();
    let added = value(activity().enrich(&Record::first_part(origin, 0, part)));
    assert_eq!(added["file.path"], "/home/dev/.bashrc");
    assert_eq!(added["ai_agent.tool.kind"], "write");
    assert_eq!(added["gen_ai.conversation.id"], "s");
}

#[test]
fn nothing_is_added_where_nothing_can_be_said() {
    let lines =
        ["", "null", "[]", "{}", r#"{"type":"summary"}"#, r#"{"sessionId":"s"}"#, "{\"type\":"];
    for line in lines {
        assert_eq!(add(line), Value::Null, "{line}");
    }
}

#[test]
fn text_of_the_conversation_is_not_copied() {
    let lines = [
        r#"{"type":"user","message":{"content":"geheim"}}"#,
        r#"{"type":"user","message":{"content":[{"type":"text","text":"geheim"}]}}"#,
        r#"{"type":"user","message":{"content":[{"type":"tool_result","content":"geheim"}]},"toolUseResult":"geheim"}"#,
        r#"{"type":"assistant","message":{"content":[{"type":"text","text":"geheim"},{"type":"thinking","thinking":"geheim"}]}}"#,
        r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"Write","input":{"content":"geheim"}}]}}"#,
        r#"{"type":"system","content":"geheim"}"#,
        r#"{"type":"attachment","attachment":{"type":"queued_command","prompt":"geheim"}}"#,
        r#"{"type":"last-prompt","sessionId":"s","lastPrompt":"geheim"}"#,
    ];
    for line in lines {
        assert!(!add(line).to_string().contains("geheim"), "{line}");
    }
}
