//! `run --test`: shows what would be shipped, without a server and secrets, and changes nothing.
#![cfg(unix)]

use std::fs;

use crate::support::{
    entries, files_below,
    home::Home,
    receiver::{Receiver, wait_for},
};
use serde_json::{Value, json};

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"";

/// Returns name, size and time of every file in a home directory.
fn listing(home: &Home) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
    let stamp = |path: std::path::PathBuf| {
        let metadata = fs::metadata(&path).unwrap();
        (path, metadata.len(), metadata.modified().unwrap())
    };
    files_below(home.path()).into_iter().map(stamp).collect()
}

/// A home directory with a line for each verdict.
fn varied() -> Home {
    let home = Home::new();
    home.write(
        "-work/a.jsonl",
        "{\"type\":\"user\",\"uuid\":\"a\"}\n\
         {\"type\":\"progress\"}\n\
         \n\
         {\"type\":\"user\",\"uuid\":\"a\"}\n\
         {\"isCompactSummary\":true}\n\
         {\"message\":{\"content\":[{\"type\":\"text\"},{\"type\":\"tool_use\"}]}}\n\
         no json\n",
    );
    home
}

#[test]
fn dry_run_shows_entries_and_changes_nothing() {
    let home = varied();
    let before = listing(&home);
    let ended = home.agent(&["run", "--test"]).succeed();
    assert_eq!(listing(&home), before);
    let entries = entries::parse(&ended.stdout);
    let lines: Vec<_> = entries::lines(&entries).into_iter().map(|line| line.bytes).collect();
    let expected = [
        "{\"type\":\"user\",\"uuid\":\"a\"}",
        "{\"message\":{\"content\":[{\"type\":\"text\"},{\"type\":\"tool_use\"}]}}",
        "no json",
    ];
    assert_eq!(lines, expected.map(|line| line.as_bytes().to_vec()));
    for [stage, reason] in [
        ["ignore-types", "ignored_type"],
        ["dedupe", "duplicate_uuid"],
        ["compact", "compact_summary"],
    ] {
        let found = ended.stderr.lines().any(|line| line.contains(stage) && line.contains(reason));
        assert!(found, "{reason}: {}", ended.stderr);
    }
}

#[test]
fn dry_run_as_json_has_a_verdict_for_each_line() {
    let home = varied();
    let before = listing(&home);
    let ended = home.agent(&["run", "--test", "--json"]).succeed();
    assert_eq!(listing(&home), before);
    let mut lines: Vec<Value> =
        ended.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap();
    let verdicts: Vec<Value> = lines
        .iter()
        .map(|line| json!([line["offset"], line["verdict"], line["stage"], line["reason"]]))
        .collect();
    assert_eq!(
        verdicts,
        [
            json!([0, "keep", null, null]),
            json!([27, "drop", "ignore-types", "ignored_type"]),
            json!([47, "blank", null, null]),
            json!([48, "drop", "dedupe", "duplicate_uuid"]),
            json!([75, "drop", "compact", "compact_summary"]),
            json!([101, "keep", null, null]),
            json!([163, "keep", null, null]),
        ]
    );
    assert_eq!(summary["summary"]["shipped"]["lines"], 3);
    assert_eq!(summary["summary"]["blank"]["lines"], 1);
    assert_eq!(summary["summary"]["filtered"]["dedupe"]["duplicate_uuid"]["lines"], 1);
    for line in &lines {
        assert!(line["path"].as_str().unwrap().ends_with("/-work/a.jsonl"));
    }
}

#[test]
fn dry_run_shows_what_is_cut() {
    let home = varied();
    let config = "[filter.tool-call]\nenabled = true";
    let ended = home.agent(&["run", "--test", "--json"]).config(config).succeed();
    let edit = ended.text().lines().find(|line| line.contains("\"edit\"")).expect("one is edited");
    let edit: Value = serde_json::from_str(edit).unwrap();
    assert_eq!(edit["stage"], "tool-call");
    assert_eq!(edit["cut_bytes"], r#",{"type":"tool_use"}"#.len());
    let ended = home.agent(&["run", "--test"]).config(config).succeed();
    let lines = entries::lines(&entries::parse(&ended.stdout));
    assert_eq!(lines[1].bytes, br#"{"message":{"content":[{"type":"text"}]}}"#);
}

#[test]
fn dry_run_works_while_an_agent_runs() {
    let (home, receiver) = (varied(), Receiver::start());
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    wait_for(&receiver, "all arrived", |entries| {
        (entries::lines(entries).len() == 3).then_some(())
    });
    // A dry run reads from the start, also what was already shipped.
    let ended = home.agent(&["run", "--test"]).succeed();
    assert_eq!(entries::lines(&entries::parse(&ended.stdout)).len(), 3);
    agent.stop();
    receiver.assert_complete();
}

#[test]
fn dry_run_refuses_an_invalid_sink_option() {
    let home = Home::new();
    let message = home.agent(&["run", "--test"]).config("[sink.siem]\nendpiont = \"x\"").fail(2);
    assert!(message.contains("endpiont") && message.contains("`endpoint`"), "{message}");
}

#[test]
fn mandatory_filters_cannot_be_disabled() {
    for filter in ["compact", "dedupe"] {
        let config = format!("[filter.{filter}]\nenabled = false");
        let error = varied().agent(&["run", "--test"]).config(&config).fail(2);
        assert!(error.contains(&format!("filter.{filter}.enabled")), "{error}");
    }
    let config = "[pipeline]\nfilters = []";
    let without = varied().agent(&["run", "--test", "--json"]).config(config).succeed();
    let with = varied().agent(&["run", "--test", "--json"]).succeed();
    let verdicts = |text: &str| {
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.map(|line| line["verdict"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(verdicts(without.text()), verdicts(with.text()));
}
