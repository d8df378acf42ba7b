//! The key of the device: made once, replaced in a new epoch when it is lost, rotated within one.

use std::{fs, path::PathBuf};

use crate::support::{
    agent::{Agent, AgentCommand},
    entries::{self, StoredEntry},
    eventually,
    home::Home,
    receiver::{Receiver, settle},
};
use ai_agent::internals::protocol::names::event;
use serde_json::Value;

const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"";

fn agent(home: &Home, receiver: &Receiver, arguments: &[&str]) -> AgentCommand {
    home.agent(arguments).config(CONFIG).ships_to(&receiver.url())
}

fn key_file(home: &Home) -> PathBuf {
    home.state_dir().join("device.key")
}

/// The member of `device show --json`.
fn shown(home: &Home, receiver: &Receiver, member: &str) -> Value {
    let shown = agent(home, receiver, &["device", "show", "--json"]).succeed();
    serde_json::from_slice::<Value>(&shown.stdout).unwrap()[member].take()
}

fn shown_key(home: &Home, receiver: &Receiver) -> String {
    shown(home, receiver, "key").as_str().unwrap().to_owned()
}

/// Ships what there is and returns the key.
fn ship(home: &Home, receiver: &Receiver) -> String {
    agent(home, receiver, &["run", "--once"]).succeed();
    shown_key(home, receiver)
}

/// Reasons of all keys that were reported, in order.
fn reasons(receiver: &Receiver) -> Vec<String> {
    let epochs = receiver.epochs();
    let all: Vec<StoredEntry> = epochs.into_iter().flatten().collect();
    let created = entries::events(&all, event::DEVICE_KEY_CREATED);
    let mut created: Vec<_> = created
        .iter()
        .map(|entry| (entry.whole["at"].to_string(), entry.data["reason"].as_str().unwrap()))
        .collect();
    created.sort_by(|(one, _), (other, _)| one.cmp(other));
    created.into_iter().map(|(_, reason)| reason.to_owned()).collect()
}

fn count_of_lines(receiver: &Receiver) -> usize {
    receiver.epochs().iter().map(|epoch| entries::lines(epoch).len()).sum()
}

/// Fails unless each epoch is numbered from 1 without gaps.
#[track_caller]
fn assert_without_gaps(receiver: &Receiver) {
    for epoch in receiver.epochs() {
        let numbers: Vec<u64> = epoch.iter().map(|entry| entry.seq).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    }
}

/// Starts an agent, waits until a line of its own is delivered, and returns it.
fn running(home: &Home, receiver: &Receiver) -> Agent {
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let running = agent(home, receiver, &["run"]).start_and_wait();
    settle(receiver, 1);
    running
}

#[test]
fn key_is_made_once_and_private() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let empty = agent(&home, &receiver, &["device", "show"]).succeed();
    assert!(empty.text().starts_with("problem     there is no device key"), "{}", empty.text());
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let first = ship(&home, &receiver);
    assert!(first.starts_with("ai-agent-device+"), "{first}");
    home.append("-work/a.jsonl", "{\"n\":2}\n");
    assert_eq!(ship(&home, &receiver), first);
    assert_eq!(reasons(&receiver), ["first"]);
    assert_eq!(receiver.epochs().len(), 1);
    receiver.assert_complete();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(key_file(&home)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn lost_key_with_a_backlog_loses_nothing() {
    let (home, mut receiver) = (Home::new(), Receiver::start());
    home.write("-work/a.jsonl", "{\"n\":1}\n{\"n\":2}\n");
    let first = ship(&home, &receiver);
    receiver.kill();
    home.append("-work/a.jsonl", "{\"n\":3}\n{\"n\":4}\n");
    let mut waiting = agent(&home, &receiver, &["run"]).start_and_wait();
    waiting.wait_for_code("delivery_postponed");
    waiting.stop();
    fs::remove_file(key_file(&home)).unwrap();
    receiver.restart();
    let second = ship(&home, &receiver);
    assert_ne!(second, first);
    assert_eq!(reasons(&receiver), ["first", "missing"]);
    assert_eq!((receiver.epochs().len(), count_of_lines(&receiver)), (2, 4));
    assert_without_gaps(&receiver);

    // A second loss within the hour holds what must be signed, and says so.
    fs::remove_file(key_file(&home)).unwrap();
    let mut held = agent(&home, &receiver, &["run"]).start_and_wait();
    held.wait_for_line("device_key_unavailable", "less than an hour ago");
    assert_eq!(shown(&home, &receiver, "key"), Value::Null);
}

#[test]
fn damaged_and_foreign_keys_are_replaced() {
    for (reason, damage) in [
        ("damaged", (|key| key[..key.len() / 2].to_owned()) as fn(&str) -> String),
        ("damaged", |_| String::new()),
        ("other_machine", |key| key.replace("\"machine_id\": \"", "\"machine_id\": \"x")),
    ] {
        let (home, receiver) = (Home::new(), Receiver::start());
        home.write("-work/a.jsonl", "{\"n\":1}\n");
        let first = ship(&home, &receiver);
        let key = fs::read_to_string(key_file(&home)).unwrap();
        fs::write(key_file(&home), damage(&key)).unwrap();
        home.append("-work/a.jsonl", "{\"n\":2}\n");
        assert_ne!(ship(&home, &receiver), first);
        assert_eq!(reasons(&receiver), ["first", reason]);
        assert_eq!((receiver.epochs().len(), count_of_lines(&receiver)), (2, 2));
        assert_without_gaps(&receiver);
    }
}

#[cfg(unix)]
#[test]
fn key_that_others_can_read_is_refused_until_it_is_fixed() {
    use std::os::unix::fs::PermissionsExt as _;

    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let first = ship(&home, &receiver);
    let set_mode = |mode| {
        fs::set_permissions(key_file(&home), fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o644);
    let mut refused = agent(&home, &receiver, &["run"]).start_and_wait();
    refused.wait_for_line("device_key_unavailable", "chmod 600");
    let status = agent(&home, &receiver, &["status"]).succeed();
    assert!(status.text().contains("no key to sign with"), "{}", status.text());
    assert!(status.text().contains("chmod 600"), "{}", status.text());
    set_mode(0o600);
    refused.wait_for_code("device_key_changing");
    let key = eventually("the key is in force", || {
        shown(&home, &receiver, "key").as_str().map(str::to_owned)
    });
    assert_eq!(key, first);
    refused.stop();
    assert_eq!(reasons(&receiver), ["first"]);
    assert_eq!(receiver.epochs().len(), 1);
}

#[test]
fn running_agent_rotates_within_the_epoch() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let running = running(&home, &receiver);
    let first = shown_key(&home, &receiver);
    let rotated = agent(&home, &receiver, &["device", "rotate"]).succeed();
    let second = shown_key(&home, &receiver);
    assert_ne!(second, first);
    for key in [&first, &second] {
        assert!(rotated.text().contains(key.as_str()), "{key}: {}", rotated.text());
    }
    // A receiver without keys has nothing to confirm.
    eventually("the key before is removed", || {
        shown(&home, &receiver, "previous_key").is_null().then_some(())
    });
    home.append("-work/a.jsonl", "{\"n\":2}\n");
    settle(&receiver, 2);
    running.stop();
    home.append("-work/a.jsonl", "{\"n\":3}\n");
    assert_eq!(ship(&home, &receiver), second);
    assert_eq!(reasons(&receiver), ["first", "rotated"]);
    assert_eq!((receiver.epochs().len(), count_of_lines(&receiver)), (1, 3));
    receiver.assert_complete();
}

#[test]
fn stopped_agent_rotates_within_the_epoch() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let error = agent(&home, &receiver, &["device", "rotate"]).fail(1);
    assert!(error.contains("no outbox yet"), "{error}");
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    let first = ship(&home, &receiver);
    agent(&home, &receiver, &["device", "rotate"]).succeed();
    let second = shown_key(&home, &receiver);
    assert_ne!(second, first);
    // The receivers have to confirm one rotation before the next.
    let error = agent(&home, &receiver, &["device", "rotate"]).fail(2);
    assert!(error.contains("`ai-agent device show`"), "{error}");
    home.append("-work/a.jsonl", "{\"n\":2}\n");
    assert_eq!(ship(&home, &receiver), second);
    assert_eq!(reasons(&receiver), ["first", "rotated"]);
    assert_eq!((receiver.epochs().len(), count_of_lines(&receiver)), (1, 2));
    receiver.assert_complete();
}

#[test]
fn no_output_or_other_file_contains_the_private_key() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let running = running(&home, &receiver);
    let secret = || {
        let contents: Value = serde_json::from_slice(&fs::read(key_file(&home)).unwrap()).unwrap();
        contents["key"].as_str().unwrap().splitn(5, '+').last().unwrap().to_owned()
    };
    let before = secret();
    let mut texts = vec![];
    for arguments in [
        &["device", "show"] as &[&str],
        &["device", "show", "--json"],
        &["device", "rotate"],
        &["status", "--json"],
        &["outbox", "export"],
    ] {
        let ended = agent(&home, &receiver, arguments).run();
        texts.push(ended.text().to_owned() + &ended.stderr);
    }
    texts.push(running.log());
    running.stop();
    // The key before the rotation is removed once every receiver has the new one.
    let after = secret();
    assert_ne!(before, after);
    for secret in [&before, &after] {
        assert!(texts.iter().all(|text| !text.contains(secret)), "{texts:?}");
        for path in crate::support::files_below(home.path()) {
            let bytes = fs::read(&path).unwrap();
            let is_there = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            let is_expected = path == key_file(&home) && (secret == &after || is_there);
            assert_eq!(is_there, is_expected, "{}", path.display());
        }
    }
}

/// A private key that stays behind is a secret that no one guards.
#[test]
fn purge_deletes_the_key_with_all_other_state() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("-work/a.jsonl", "{\"n\":1}\n");
    ship(&home, &receiver);
    let purge = home.agent(&["uninstall", "--purge", "--dry-run"]).succeed();
    for entry in fs::read_dir(home.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        // The pointer to the directory is deleted with it, and not listed.
        if path.ends_with("state-dir") {
            continue;
        }
        let line = format!("would remove `{}`", path.display());
        assert!(purge.text().contains(&line), "{line}: {}", purge.text());
    }
}
