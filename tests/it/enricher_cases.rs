//! Runs every case in `tests/cases/activity/CASE/`: the lines of `input.jsonl` go through the enricher
//! with the options of `stage.toml`, and `expected.jsonl` has what it adds to each, or `null`. The
//! lines are made by hand: one of each kind of record that the client is known to write.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ai_agent::internals::stages::{Record, StageOptions, enricher::Enricher};
use ai_agent_stage::testing::context;
use proptest::prelude::*;

use crate::fuzz_corpora::bodies::activity;

/// Types of enrichers that have cases: those whose object depends on the record.
const ENRICHERS: [&str; 1] = ["activity"];

fn cases(enricher: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(enricher);
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn build(enricher: &str, case: &Path) -> Box<dyn Enricher> {
    let options = fs::read_to_string(case.join("stage.toml")).unwrap();
    let options: StageOptions = options.parse().unwrap();
    ai_agent_stage::build_enricher(enricher, &options, &context().into()).unwrap()
}

/// Returns what the enricher adds to each line of the case, which is read as one file.
fn run(enricher: &mut dyn Enricher, case: &Path) -> Vec<String> {
    let input = fs::read(case.join("input.jsonl")).unwrap();
    let origin = Record::from_line(b"").origin().clone();
    let (mut added, mut offset) = (Vec::new(), 0);
    for line in input.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n') {
        let object = enricher.enrich(&Record::new(&origin, offset, line));
        added.push(object.map_or("null", |object| object.get()).to_owned());
        offset += line.len() as u64 + 1;
    }
    added
}

#[test]
fn enricher_cases_add_what_they_expect() {
    let mut failures = Vec::new();
    for name in ENRICHERS {
        for case in cases(name) {
            let found = run(&mut *build(name, &case), &case);
            let expected = fs::read_to_string(case.join("expected.jsonl")).unwrap_or_default();
            for (number, found) in found.iter().enumerate() {
                if expected.lines().nth(number) != Some(found) {
                    let at = format!("{}:{}", case.display(), number + 1);
                    let expected = expected.lines().nth(number).unwrap_or_default();
                    failures.push(format!("{at}:\n- {expected}\n+ {found}"));
                }
            }
            if expected.lines().count() > found.len() {
                failures.push(format!("{}: more lines are expected", case.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn cases_add_only_documented_fields() {
    for name in ENRICHERS {
        for case in cases(name) {
            run(&mut *build(name, &case), &case).iter().for_each(|added| {
                if added != "null" {
                    activity::assert_documented(added);
                }
            });
        }
    }
}

/// A field that no case has could be wrong without notice.
#[test]
fn every_documented_field_is_in_a_case() {
    let mut all = String::new();
    for case in cases("activity") {
        all += &fs::read_to_string(case.join("expected.jsonl")).unwrap();
    }
    for (field, _) in activity::documented() {
        assert!(all.contains(&format!("\"{field}\":")), "no case has `{field}`");
    }
}

/// A group that could not be stored is read again: the lines must get the same objects.
#[test]
fn rolled_back_lines_get_the_same_object_again() {
    for case in cases("activity") {
        let mut enricher = build("activity", &case);
        let first = run(&mut *enricher, &case);
        enricher.rollback();
        assert_eq!(run(&mut *enricher, &case), first, "{}", case.display());
    }
}

/// Returns text of a record of the client with anything in its members.
fn record() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "[a-zä\u{1f600} ]{0,12}".prop_map(|text| serde_json::json!(text)),
        any::<i64>().prop_map(|number| serde_json::json!(number)),
        any::<f64>().prop_map(|number| serde_json::json!(number)),
        any::<bool>().prop_map(|flag| serde_json::json!(flag)),
        Just(serde_json::Value::Null),
        prop::sample::select(WORDS.as_slice()).prop_map(|word| serde_json::json!(word)),
    ];
    let value = leaf.prop_recursive(6, 64, 6, |inner| {
        let key = prop::sample::select(KEYS.as_slice());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::Array),
            prop::collection::vec((key, inner), 0..8).prop_map(|members| {
                let members = members.into_iter().map(|(key, value)| (key.to_owned(), value));
                serde_json::Value::Object(members.collect())
            }),
        ]
    });
    let kind = prop::sample::select(KINDS.as_slice());
    let key = prop::sample::select(KEYS.as_slice());
    (kind, prop::collection::vec((key, value), 0..12)).prop_map(|(kind, members)| {
        let mut text = format!("{{\"type\":\"{kind}\"");
        for (key, value) in members {
            text += &format!(",\"{key}\":{value}");
        }
        text + "}"
    })
}

/// Types of records.
static KINDS: [&str; 6] = ["user", "assistant", "system", "attachment", "permission-mode", "mode"];

/// Members that the enricher reads.
static KEYS: [&str; 40] = [
    "message",
    "content",
    "type",
    "id",
    "name",
    "input",
    "text",
    "command",
    "file_path",
    "path",
    "url",
    "usage",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "model",
    "tool_use_id",
    "is_error",
    "toolUseResult",
    "permissionDecision",
    "decision",
    "source",
    "reasonType",
    "toolDenialKind",
    "turnPosition",
    "turnIndex",
    "attachment",
    "prompt",
    "addedNames",
    "durationMs",
    "hookInfos",
    "subtype",
    "sessionId",
    "version",
    "agentId",
    "permissionMode",
    "cwd",
    "gitBranch",
    "timestamp",
    "parentUuid",
];

/// Texts that the enricher looks for.
static WORDS: [&str; 20] = [
    "tool_use",
    "tool_result",
    "text",
    "thinking",
    "Bash",
    "mcp__a__b",
    "accept",
    "user_temporary",
    "hook_success",
    "mcp_instructions_delta",
    "queued_command",
    "stop_hook_summary",
    "local_command",
    "<bash-input>rm\n\"x\"</bash-input>",
    "<command-name>/x",
    "[Request interrupted by user]",
    "https://u@EXAMPLE.com:1/\"",
    "2026-11-21T20:44:25.593Z",
    "ExitPlanMode",
    "User has approved your plan",
];

proptest! {
    #[test]
    fn any_record_adds_documented_fields(lines in prop::collection::vec(record(), 1..6)) {
        activity::run(lines.join("\n").as_bytes());
    }

    #[test]
    fn any_bytes_add_documented_fields(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        activity::run(&bytes);
        activity::run(&[b"{\"type\":\"user\",\"message\":", bytes.as_slice()].concat());
    }

    /// The first part of a long line ends anywhere.
    #[test]
    fn any_first_part_adds_documented_fields(line in record(), end in any::<prop::sample::Index>()) {
        activity::run(&line.as_bytes()[..end.index(line.len() + 1)]);
    }
}
