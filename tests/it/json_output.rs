//! Output of `--json`, as docs/scripts.md describes it.
#![cfg(unix)]

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::{files_below, home::Home};
use serde_json::{Value, json};

/// Runs a command, and returns the object that it prints with the exit code.
fn object(home: &Home, arguments: &[&str]) -> (Value, i32) {
    let ended = home.agent(arguments).run();
    let value = serde_json::from_slice(&ended.stdout);
    (value.unwrap_or_else(|error| panic!("{error}: {}", ended.text())), ended.code.unwrap())
}

fn names(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn doctor_json_has_a_code_and_an_outcome_for_each_check() {
    let (report, code) = object(&Home::new(), &["doctor", "--json"]);
    assert_eq!(code, 1);
    assert_eq!(names(&report), ["at", "checks", "outcome", "version"].into());
    assert_eq!((&report["version"], &report["outcome"]), (&1.into(), &"fail".into()));
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 5, "{report}");
    for check in checks {
        assert_eq!(names(check), ["code", "outcome", "text"].into());
    }
    let outcome = |code: &str| {
        let check = checks.iter().find(|check| check["code"] == code);
        check.unwrap_or_else(|| panic!("{code}: {report}"))["outcome"].clone()
    };
    // No endpoint is set, and no agent is running.
    for (code, expected) in
        [("state", "warn"), ("receiver", "fail"), ("agent", "fail"), ("open_files", "ok")]
    {
        assert_eq!(outcome(code), expected, "{code}: {report}");
    }
}

#[test]
fn doctor_json_reports_an_invalid_config_as_a_check() {
    let home = Home::new();
    let path = home.path().join("broken.toml");
    fs::write(&path, "= broken").unwrap();
    let (report, code) = object(&home, &["doctor", "--json", "--config", path.to_str().unwrap()]);
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["code"] == "configuration").unwrap();
    assert_eq!((code, &check["outcome"]), (1, &"fail".into()));
    assert!(check["text"].as_str().unwrap().contains("broken.toml"), "{report}");
}

/// A check with a code that the page lacks could not be handled by a script.
#[test]
fn doctor_codes_of_the_sources_are_those_of_the_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for path in files_below(&root.join("src/cli/doctor")) {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().replace("\n", " ");
        for before in [
            "SUBJECT: &str = ",
            "CONFIGURATION: &str = ",
            "CheckResult::ok(",
            "CheckResult::warn(",
            "CheckResult::fail(",
        ] {
            let subjects = code.split(before).skip(1);
            let subjects = subjects.filter_map(|rest| rest.trim_start().strip_prefix('"'));
            let subjects = subjects.map(|rest| rest.split('"').next().unwrap());
            found.extend(subjects.map(|it| it.to_lowercase().replace(' ', "_")));
        }
    }
    let page = fs::read_to_string(root.join("docs/scripts.md")).unwrap();
    let (_, section) = page.split_once("\n### `doctor --json`\n").unwrap();
    let (_, codes) = section.split_once("\nCodes: ").unwrap();
    let codes = codes.split('.').next().unwrap();
    let listed: BTreeSet<String> = codes.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    assert!(listed.len() > 15, "{listed:?}");
    assert_eq!(listed, found);
}

#[test]
fn test_json_has_an_outcome_for_each_test() {
    let home = Home::new();
    let path = home.path().join("tests.toml");
    let test = |name: &str, expect: &str| {
        format!(
            "[[test]]\nname = \"{name}\"\nlines = [{{ input = '{{}}', expect = \"{expect}\" }}]\n"
        )
    };
    fs::write(&path, test("one", "keep") + &test("two", "drop")).unwrap();
    let (report, code) = object(&home, &["test", "--json", path.to_str().unwrap()]);
    assert_eq!((code, &report["passed"], &report["failed"]), (1, &1.into(), &1.into()));
    let [one, two] = report["tests"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&one["name"], &one["outcome"]), (&"one".into(), &"ok".into()));
    assert_eq!((&two["name"], &two["outcome"]), (&"two".into(), &"fail".into()));
    assert!(two["location"].as_str().unwrap().contains("tests.toml"), "{report}");
    let outcome =
        |verdict: &str| json!({ "verdict": verdict, "by": null, "reason": null, "output": null });
    let mismatch =
        json!({ "line": 1, "input": "{}", "expected": outcome("drop"), "found": outcome("keep") });
    assert_eq!(two["mismatches"], json!([mismatch]));
}

#[test]
fn hooks_status_json_names_the_reason_of_an_inactive_hook() {
    let home = Home::new();
    let (report, code) = object(&home, &["hooks", "status", "--json"]);
    assert_eq!((code, &report["active"], &report["hooks"]), (1, &false.into(), &json!([])));
    assert_eq!(report["inactive"], json!(["SessionStart", "UserPromptSubmit"]));
    let command = "/nowhere/ai-agent check --hook SessionStart";
    let settings = json!({
        "hooks": { "SessionStart": [{ "hooks": [{ "type": "command", "command": command }] }] },
    });
    let path = home.path().join(".claude/settings.json");
    fs::write(&path, settings.to_string()).unwrap();
    let (report, _) = object(&home, &["hooks", "status", "--json"]);
    let hook = &report["hooks"][0];
    assert_eq!(
        names(hook),
        ["active", "code", "name", "owner", "path", "problem"].into(),
        "{report}"
    );
    assert_eq!((&hook["code"], &hook["owner"]), (&"program_missing".into(), &"user".into()));
    let file = json!({ "path": path, "owner": "user", "error": null });
    assert!(report["files"].as_array().unwrap().contains(&file), "{report}");
    fs::write(&path, "[").unwrap();
    let (report, _) = object(&home, &["hooks", "status", "--json"]);
    let mut files = report["files"].as_array().unwrap().iter();
    let file = files.find(|file| file["path"] == json!(path)).unwrap();
    assert!(file["error"].is_string(), "{report}");
}

#[cfg(target_os = "linux")]
#[test]
fn audit_status_json_has_the_state_of_rules_and_log() {
    let home = Home::new();
    let log = home.path().join("audit.log");
    let (report, code) =
        object(&home, &["audit", "status", "--json", "--log", log.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert_eq!(names(&report), ["log", "rules", "rules_file", "source", "version"].into());
    assert_eq!(names(&report["rules"]), ["code", "count", "text"].into());
    assert!(report["log"]["error"].is_string() && report["source"] == false, "{report}");
    fs::write(&log, "").unwrap();
    let (report, _) = object(&home, &["audit", "status", "--json", "--log", log.to_str().unwrap()]);
    assert!(report["log"]["error"].is_null(), "{report}");
}
