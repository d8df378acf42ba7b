//! Sigma rules in `config/detections`: a script converts them and evaluates them over their examples.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use test_requires::requires;

use crate::support::files_below;

const RULES: &str = "config/detections";
const PAGES: [&str; 3] = ["docs/activity.md", "docs/events.md", "docs/siem/fields.md"];

/// The Python environment that `cargo xtask test` installs.
fn python() -> PathBuf {
    let servers = env::var_os("AI_AGENT_SERVERS").map(PathBuf::from);
    let cache = || PathBuf::from(env::var_os("HOME").unwrap()).join(".cache/ai-agent-servers");
    servers.unwrap_or_else(cache).join("bin/python")
}

/// Runs the script. Returns whether the rules are good, and its output.
fn check(root: &Path) -> (bool, String) {
    let script = repository().join("tests/detections/check.py");
    // Without byte code, which would be written beside the script.
    let output = Command::new(python()).arg("-B").arg(script).arg(root).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Copies what the script reads, with the condition of each rule replaced.
fn with_condition(condition: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let pages = PAGES.map(|page| repository().join(page));
    for file in files_below(&repository().join(RULES)).into_iter().chain(pages) {
        let mut text = fs::read_to_string(&file).unwrap();
        if file.extension().is_some_and(|it| it == "yml") {
            let start = text.find("    condition: ").unwrap();
            let end = start + text[start..].find('\n').unwrap();
            text.replace_range(start..end, &format!("    condition: {condition}"));
        }
        let target = copy.path().join(file.strip_prefix(repository()).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, text).unwrap();
    }
    copy
}

/// Names of all examples that match, or of those that do not, with the file of their rule.
fn examples(kind: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for file in files_below(&repository().join(RULES).join("examples")) {
        let examples: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let rule = format!("{}.yml", file.file_stem().unwrap().display());
        for example in examples[kind].as_array().unwrap() {
            found.push((rule.clone(), example["why"].as_str().unwrap().to_owned()));
        }
    }
    found
}

#[requires(servers)]
#[test]
fn rules_are_converted_and_agree_with_their_examples() {
    let (is_good, text) = check(repository());
    assert!(is_good, "{text}");
    assert!(text.contains("10 rules, "), "{text}");
}

#[requires(servers)]
#[test]
fn each_example_fails_if_its_rule_is_broken() {
    let broken = [
        ("agent and not agent", "match", "does not match"),
        ("agent or not agent", "no_match", "matches"),
    ];
    for (condition, kind, failure) in broken {
        let (is_good, text) = check(with_condition(condition).path());
        assert!(!is_good, "{text}");
        let examples = examples(kind);
        assert!(examples.len() > 100, "only {} examples", examples.len());
        for (rule, why) in examples {
            let line = format!("{rule}: example `{why}` {failure}");
            assert!(text.contains(&line), "no `{line}` in:\n{text}");
        }
    }
}
