//! Managed configuration: stored for when the server is unreachable, shown while an agent runs,
//! refused as a whole.
#![cfg(unix)]

use std::{fs, path::PathBuf};

use crate::support::{
    SECRET, entries, files_below,
    home::Home,
    receiver::{Receiver, wait_for},
    scripted_receiver::ScriptedReceiver,
};
use serde_json::{Value, json};

const MANAGED: &str = r#"{"version":1,"revision":"r7","filters":{"drop_meta":true}}"#;

fn with_record() -> Home {
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"type\":\"user\"}\n{\"isMeta\":true}\n");
    home
}

fn kept(home: &Home) -> PathBuf {
    home.path().join(".local/state/ai-agent/managed.json")
}

/// Runs once against a new receiver that serves `config`. Returns the offsets that arrived and the
/// names of the events. Of the state directory only the stored configuration is kept.
fn run(home: &Home, config: Option<&str>) -> (Vec<u64>, Vec<String>) {
    let receiver = ScriptedReceiver::start([]);
    let receiver = match config {
        Some(config) => receiver.manages(config, SECRET),
        None => receiver,
    };
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    for file in files_below(&home.path().join(".local/state/ai-agent")) {
        if file != kept(home) {
            fs::remove_file(file).unwrap();
        }
    }
    let entries = receiver.entries();
    let lines = entries::lines(&entries).iter().map(|line| line.offset).collect();
    let names = ["config_applied", "config_refused", "config_locked"];
    let events = names.iter().filter(|name| !entries::events(&entries, name).is_empty());
    (lines, events.map(|name| (*name).to_owned()).collect())
}

#[test]
fn stored_managed_config_applies_when_the_server_has_none() {
    use std::os::unix::fs::PermissionsExt as _;

    let home = with_record();
    assert_eq!(run(&home, Some(MANAGED)).0, [0]);
    assert_eq!(fs::metadata(kept(&home)).unwrap().permissions().mode() & 0o777, 0o600);
    home.append("-work/a.jsonl", "{\"isMeta\":true}\n{\"n\":4}\n");
    let (lines, events) = run(&home, None);
    assert_eq!(lines, [0, 48], "the filter of the last configuration still runs");
    assert_eq!(events, ["config_applied"]);
}

#[test]
fn refused_managed_config_does_not_replace_the_stored_one() {
    let home = with_record();
    run(&home, Some(MANAGED));
    let before = fs::read(kept(&home)).unwrap();
    for wrong in [
        r#"{"version":1,"shipping":{"batch_size":0}}"#,
        r#"{"version":1,"stages":{"sink":{"x":{"type":"stdout"}}}}"#,
        r#"{"version":1,"stages":{"filter":{"x":{"type":"meta"}}}}"#,
        r#"{"version":1,"tests":[{"name":"t","lines":[{"input":"{}","expect":"drop"}]}]}"#,
        "<html>please sign in</html>",
    ] {
        let (lines, events) = run(&home, Some(wrong));
        assert_eq!(lines, [0], "the last one is in force: {wrong}");
        assert_eq!(events, ["config_applied", "config_refused"], "{wrong}");
        assert_eq!(fs::read(kept(&home)).unwrap(), before, "{wrong}");
    }
}

/// Otherwise a user could restore the local configuration unnoticed.
#[test]
fn altered_stored_config_is_refused_and_reported() {
    let home = with_record();
    run(&home, Some(MANAGED));
    let text = fs::read_to_string(kept(&home)).unwrap();
    home.append("-work/a.jsonl", "{\"isMeta\":true}\n");
    for wrong in [&text.replace("drop_meta", "drop_mxta"), "{"] {
        fs::write(kept(&home), wrong).unwrap();
        assert_eq!(run(&home, None), (vec![0, 16, 32], vec!["config_refused".to_owned()]));
    }
}

#[test]
fn empty_managed_config_retracts_the_stored_one() {
    let home = with_record();
    run(&home, Some(MANAGED));
    run(&home, Some("{\"version\":1}"));
    home.append("-work/a.jsonl", "{\"isMeta\":true}\n");
    assert_eq!(run(&home, None).0, [0, 16, 32]);
}

#[test]
fn settings_without_effect_are_reported() {
    let home = Home::new();
    let file = home.path().join(".config/ai-agent/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, "locked = [\"shipping\"]").unwrap();
    let receiver = ScriptedReceiver::start([]);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let entries = receiver.entries();
    let locked = entries::events(&entries, "config_locked");
    assert_eq!(locked[0].data["attempts"], json!([{"key": "locked", "layer": "user"}]));
}

/// All commands work while an agent has the store open.
#[test]
fn config_commands_show_the_managed_config_of_a_running_agent() {
    let home = with_record();
    let receiver = Receiver::with_config(Some(MANAGED));
    let agent = home.agent(&["run"]).ships_to(&receiver.url()).start_and_wait();
    wait_for(&receiver, "the record arrived", |entries| {
        (!entries::lines(entries).is_empty()).then_some(())
    });
    let home = &home;
    let ships = |arguments| home.agent(arguments).ships_to(&receiver.url()).succeed();
    let shown = ships(&["config", "show", "--origin"]);
    let line = shown.text().lines().find(|line| line.contains("`r7`"));
    assert!(line.unwrap().starts_with("enabled = true"), "{}", shown.text());
    let explained = ships(&["config", "explain", "filter.meta.enabled"]);
    assert!(explained.text().contains("`r7`"), "{}", explained.text());
    let unverified = |report: &str| report.contains("is not verified");
    assert!(!unverified(ships(&["doctor"]).text()));
    assert!(unverified(home.agent(&["doctor"]).run().text()));
    ships(&["config", "check", "--strict"]);
    for arguments in [&["config", "schema"][..], &["test"]] {
        home.agent(arguments).succeed();
    }
    let same = home.path().join("same.toml");
    fs::write(&same, "").unwrap();
    let tried = home.agent(&["config", "try", "--json"]).arg(&same).succeed();
    let tried: Value = serde_json::from_slice(&tried.stdout).unwrap();
    assert_eq!((&tried["dropped_more"], &tried["dropped_less"]), (&json!([]), &json!([])));
    agent.stop();
}
