//! Queries in `docs/siem` that a program on this machine understands: a session in order and missing
//! numbers, from a few events with duplicates, parts and gaps.
#![cfg(unix)]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use ai_agent::internals::platform::SystemClock;
use ai_agent_stage::Clock as _;
use serde_json::{Value, json};
use test_requires::requires;

use crate::{
    siem_pages::{Block, blocks, console_requests},
    support::osmem::Osmem,
};

/// The ids in the queries.
const SESSION: &str = "6d1ae0eb-09ca-446a-a362-7b167b280f7a";
const WHOLE: &str = "01934f2e8a7c7d10b5e3a4c2d1f0e9b8:4096";
/// Contents of the session in order.
const IN_ORDER: [&str; 8] = ["a1", "a4", "a5-1", "a5-2", "a6", "a8", "b1", "b2"];

/// Returns the events in the order of arrival, with names of ECS. In the epoch `a` 3 and 7 are missing, 6
/// is there twice, 5 has two parts, and 2 is of another session.
fn events() -> Vec<Value> {
    let read = SystemClock.now().to_string();
    let event = |session: &str, content: &str| {
        let (epoch, rest) = content.split_at(1);
        let (number, part) = rest.split_once('-').unwrap_or((rest, ""));
        let mut event = json!({
            "@timestamp": "2026-11-21T20:00:00.000Z",
            "event.created": read,
            "event.id": content,
            "event.hash": "2cf2",
            "event.sequence": number.parse::<u64>().unwrap(),
            "event.original": content,
            "host.id": "m",
            "ai_agent.epoch": epoch,
            "log.file.path": format!("/home/dev/.claude/projects/-src/{session}.jsonl"),
        });
        if let Ok(part) = part.parse::<u64>() {
            event["ai_agent.part.of"] = json!(WHOLE);
            event["ai_agent.part.index"] = json!(part);
            event["ai_agent.part.total"] = json!(2);
        }
        event
    };
    let contents = ["b1", "a8", "a6", "a5-2", "a6", "a4", "a5-1", "a1", "b2"];
    let mut events: Vec<Value> = contents.iter().map(|content| event(SESSION, content)).collect();
    events.insert(3, event("another", "a2"));
    events
}

fn in_section<'a>(blocks: &'a [Block], section: &str, language: &str) -> Vec<&'a Block> {
    let found = blocks.iter().filter(|it| it.section == section && it.language == language);
    found.collect()
}

#[requires(servers)]
#[test]
fn query_dsl_finds_session_parts_and_gaps() {
    let server = Osmem::start();
    let blocks = blocks("elastic.md");
    let requests = |section| {
        let found = in_section(&blocks, section, "console");
        found.into_iter().flat_map(console_requests).collect::<Vec<_>>()
    };
    let setup = requests("In Elasticsearch");
    let (method, path, template) =
        setup.iter().find(|it| it.1.starts_with("_index_template")).unwrap();
    // The server has neither data streams nor pipelines.
    let mut template = template.clone();
    template.as_object_mut().unwrap().remove("data_stream").unwrap();
    template["template"].as_object_mut().unwrap().remove("settings").unwrap();
    let created = server.call(method, &format!("/{path}"), &template.to_string());
    assert_eq!(created["acknowledged"], true, "{created}");
    let mut bulk = String::new();
    for event in events() {
        bulk += &format!("{{\"create\":{{}}}}\n{event}\n");
    }
    let stored = server.call("POST", "/logs-claude_code.session-default/_bulk?refresh=true", &bulk);
    assert_eq!(stored["errors"], false, "{stored}");

    let search = |section| {
        let requests = requests(section);
        let [(method, path, query)] = &requests[..] else { panic!("{section}") };
        server.call(method, &format!("/{path}"), &query.to_string())
    };
    let contents = |found: &Value| -> Vec<String> {
        let hits = found["hits"]["hits"].as_array().unwrap_or_else(|| panic!("{found}")).iter();
        // Selected fields are returned as objects.
        let content = |hit: &Value| match &hit["_source"]["event.original"] {
            Value::String(content) => content.clone(),
            _ => hit["_source"]["event"]["original"].as_str().unwrap().to_owned(),
        };
        hits.map(content).collect()
    };
    let mut session = contents(&search("A session in order"));
    session.dedup();
    assert_eq!(session, IN_ORDER);
    assert_eq!(contents(&search("What arrives")), ["a5-1", "a5-2"]);
    let gaps = search("Gaps");
    let sender = |bucket: &Value| {
        let value = |name: &str| bucket[name]["value"].as_f64().unwrap();
        let missing = value("last") - value("first") + 1.0 - value("seen");
        (bucket["key"]["epoch"].as_str().unwrap().to_owned(), missing)
    };
    let buckets = gaps["aggregations"]["sender"]["buckets"].as_array();
    let buckets = buckets.unwrap_or_else(|| panic!("{gaps}")).iter();
    assert_eq!(buckets.map(sender).collect::<Vec<_>>(), [("a".into(), 2.0), ("b".into(), 0.0)]);
}

/// Runs commands of a page in a folder, where programs in its directory `bin` replace others.
#[track_caller]
fn run(folder: &Path, commands: &str) -> String {
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", folder.join("bin").display());
    let mut shell = Command::new("sh");
    let ended = shell.args(["-e", "-c", commands]).current_dir(folder).env("PATH", path).output();
    let ended = ended.unwrap();
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && errors.is_empty(), "{errors}\n{commands}");
    String::from_utf8(ended.stdout).unwrap()
}

fn write_lines(file: &Path, lines: impl IntoIterator<Item = Value>) {
    let text: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
}

/// Fails unless the output names 3 and 7 of the epoch `a` as missing, and no others.
#[track_caller]
fn assert_gaps(printed: &str) {
    let printed: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, [json!({ "host": "m", "epoch": "a", "missing": [3, 7] })]);
}

#[track_caller]
fn assert_session(printed: &str) {
    assert_eq!(printed.lines().collect::<Vec<_>>(), IN_ORDER);
}

/// Text of a value, without quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[requires(jq)]
#[test]
fn commands_for_rsyslog_find_session_parts_and_gaps() {
    let folder = tempfile::tempdir().unwrap();
    // Each value is a string there.
    let strings = |event: Value| {
        let fields = event.as_object().unwrap().iter();
        fields.map(|(name, value)| (name.clone(), json!(text(value)))).collect::<Value>()
    };
    write_lines(&folder.path().join("laptop-7.jsonl"), events().into_iter().map(strings));
    let blocks = blocks("rsyslog.md");
    let run = |section| {
        let commands = &in_section(&blocks, section, "sh")[0].text;
        run(folder.path(), &commands.replace("/var/log/ai-agent", folder.path().to_str().unwrap()))
    };
    assert_session(&run("A session in order"));
    assert_gaps(&run("Gaps"));
    let parts: Value = serde_json::from_str(&run("What arrives")).unwrap();
    let whole = json!({ "id": WHOLE, "sha256": "2cf2", "encoding": null, "original": "a5-1a5-2" });
    assert_eq!(parts, whole);
}

/// Names of OpenTelemetry for the fields of [`events`].
const OTEL: [(&str, &str); 8] = [
    ("event.id", "log.record.uid"),
    ("event.sequence", "ai_agent.sequence"),
    ("host.id", "host.id"),
    ("ai_agent.epoch", "ai_agent.epoch"),
    ("ai_agent.part.of", "ai_agent.part.of"),
    ("ai_agent.part.index", "ai_agent.part.index"),
    ("ai_agent.part.total", "ai_agent.part.total"),
    ("log.file.path", "log.file.path"),
];

/// Returns an export request as the collector's file exporter and `otlp_json` write it.
fn otlp_json(event: &Value) -> Value {
    let attributes = |of_resource: bool| -> Vec<Value> {
        let names = OTEL.iter().filter(|(ecs, name)| {
            !event[*ecs].is_null() && ["host.id", "ai_agent.epoch"].contains(name) == of_resource
        });
        let attribute = |(ecs, name): &(&str, &str)| {
            let value = &event[*ecs];
            let kind = if value.is_number() { "intValue" } else { "stringValue" };
            json!({ "key": *name, "value": { kind: text(value) } })
        };
        names.map(attribute).collect()
    };
    json!({ "resourceLogs": [{
        "resource": { "attributes": attributes(true) },
        "scopeLogs": [{ "logRecords": [{
            "attributes": attributes(false),
            "body": { "stringValue": event["event.original"] },
        }] }],
    }] })
}

/// Returns an event as `logcli --output=jsonl` prints it.
fn of_loki(event: &Value) -> Value {
    let labels = OTEL.iter().filter(|(ecs, _)| !event[*ecs].is_null());
    let labels: Value =
        labels.map(|(ecs, name)| (name.replace('.', "_"), json!(text(&event[*ecs])))).collect();
    json!({ "labels": labels, "line": event["event.original"], "timestamp": event["event.created"] })
}

#[requires(jq)]
#[test]
fn commands_for_otlp_files_find_session_and_gaps() {
    let folder = tempfile::tempdir().unwrap();
    write_lines(&folder.path().join("logs.json"), events().iter().map(otlp_json));
    let blocks = blocks("otel.md");
    assert_session(&run(folder.path(), &in_section(&blocks, "A session in order", "sh")[1].text));
    assert_gaps(&run(folder.path(), &in_section(&blocks, "Gaps", "sh")[1].text));
}

/// The part of the commands behind `logcli`, which is replaced by a program that prints events.
#[requires(jq)]
#[test]
fn commands_for_loki_find_session_and_gaps() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("bin/logcli");
    fs::create_dir(folder.path().join("bin")).unwrap();
    fs::write(&program, "#!/bin/sh\nexec cat found.jsonl\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let found = folder.path().join("found.jsonl");
    let blocks = blocks("otel.md");
    write_lines(&found, events().iter().map(of_loki));
    assert_gaps(&run(folder.path(), &in_section(&blocks, "Gaps", "sh")[0].text));
    let is_of_session = |event: &&Value| event["log.file.path"].to_string().contains(SESSION);
    write_lines(&found, events().iter().filter(is_of_session).map(of_loki));
    assert_session(&run(folder.path(), &in_section(&blocks, "A session in order", "sh")[0].text));
}

#[requires(jq)]
#[test]
fn command_for_files_of_the_receiver_finds_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let entry =
        |event: &Value| json!({ "seq": event["event.sequence"], "path": event["log.file.path"] });
    let mut entries: Vec<Value> = events().iter().map(entry).collect();
    entries.push(json!({ "seq": 9, "event": "heartbeat" }));
    write_lines(&folder.path().join("siem-data/machines/m/1.ndjson"), entries);
    let blocks = blocks("direct-or-relay.md");
    let commands = &in_section(&blocks, "A session in order", "sh")[0].text;
    let printed = run(folder.path(), &commands.replace("<machine>", "m"));
    assert_eq!(printed.lines().count(), events().len() - 1);
    assert!(printed.lines().all(|line| line.contains(SESSION)));
}
