//! Runs every case in `tests/cases/auditd/CASE/`: the source reads `audit.log` with the options of
//! `stage.toml`, and `expected.jsonl` has where each entry begins, how long it is, how many lines it
//! has and what they tell. The log in `real` is what the kernel and auditd wrote.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{agent::Finished, entries, home::Home};
use serde_json::{Value, json};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/auditd");
    let mut cases: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

/// Reads a log in a dry run.
fn dry_run(log: &Path, more: &[&str], before: &str, options: &str) -> Finished {
    let home = Home::new();
    let folder = home.path().join("audit");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("audit.log");
    fs::copy(log, &path).unwrap();
    let source = format!("[source.auditd]\npath = {path:?}\n{options}");
    let config = format!("pipeline.sources = [\"auditd\"]\n{before}\n{source}");
    home.agent(&[&["run", "--test"], more].concat()).config(&config).succeed()
}

#[test]
fn auditd_cases_ship_what_they_expect() {
    let mut failures = Vec::new();
    for case in cases() {
        let options = fs::read_to_string(case.join("stage.toml")).unwrap();
        let log = case.join("audit.log");
        let ended = dry_run(&log, &[], "", &options);
        let is_entry = |line: &&[u8]| line.starts_with(b"{");
        let lines = ended.stdout.split(|byte| *byte == b'\n').filter(is_entry);
        let shipped = entries::parse(&lines.collect::<Vec<_>>().join(&b'\n'));
        let report = &ended.stderr;
        let bytes = fs::read(&log).unwrap();
        let mut found = String::new();
        for entry in &shipped {
            let lines: Vec<&[u8]> = entry.bytes.split(|byte| *byte == b'\n').collect();
            for line in &lines {
                let is_there = bytes.windows(line.len()).any(|window| window == *line);
                assert!(is_there, "a line is not as it stood: {}", line.escape_ascii());
            }
            let at = usize::try_from(entry.offset).unwrap();
            assert!(bytes[at..].starts_with(lines[0]), "{}: {report}", case.display());
            let of = json!({
                "offset": entry.offset, "length": entry.length, "lines": lines.len(),
                "audit": entry.whole["audit"],
            });
            found += &format!("{of}\n");
        }
        let expected = fs::read_to_string(case.join("expected.jsonl")).unwrap_or_default();
        if found != expected {
            failures.push(format!("{}:\n{found}", case.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn audit_log_bytes_are_all_accounted_for() {
    for case in cases() {
        let options = fs::read_to_string(case.join("stage.toml")).unwrap();
        let log = case.join("audit.log");
        let ended = dry_run(&log, &["--json"], "", &options);
        let last: Value = serde_json::from_str(ended.text().lines().last().unwrap()).unwrap();
        let of = |summary: &Value| summary["bytes"].as_u64().unwrap();
        let summary = &last["summary"];
        let reasons = summary["filtered"]["auditd"].as_object().cloned().unwrap_or_default();
        let left_out: u64 = reasons.values().map(of).sum();
        let endings = summary["endings"].as_u64().unwrap();
        let all = of(&summary["shipped"]) + endings + left_out;
        assert_eq!(all, fs::metadata(&log).unwrap().len(), "{}: {summary}", case.display());
    }
}

/// A mask of the raw lines must also apply to the fields parsed from them.
#[test]
fn mask_applies_to_parsed_audit_fields() {
    let log =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/auditd/interleaved/audit.log");
    let mask = "[filter.mask]\nown = { word = \"claude-hooks-1\" }\n";
    let ended = dry_run(&log, &[], "pipeline.filters = [\"mask\"]", mask);
    let text = String::from_utf8_lossy(&ended.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("[masked:word]")).unwrap();
    let entry: Value = serde_json::from_str(line).unwrap();
    assert_eq!(entry["audit"]["argv"], json!(["docker", "stop", "[masked:word]"]));
    assert!(!line.contains("\"claude-hooks-1\""), "{line}");
    assert!(entry["sha256"].is_string() && entry["masked"].is_array());
}
