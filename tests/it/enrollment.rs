//! Trust between agent and receiver: keys are pinned, batches sealed, and only signed answers count.
#![cfg(unix)]

use std::time::Duration;

use ai_agent::internals::protocol::{
    names::event,
    note::VerifierKey,
    statement::{Statement as _, StoredReceipt},
};
use serde_json::Value;

use crate::support::{
    agent::AgentCommand,
    entries, eventually,
    home::Home,
    random, random_moment,
    receiver::{NAME, Receiver, settle},
};

const CONFIG: &str = "[shipping]\nflush_interval = \"0s\"\nbatch_size = 20";
const FILE: &str = "-p/a.jsonl";

fn agent(home: &Home, receiver: &Receiver, arguments: &[&str]) -> AgentCommand {
    home.agent(arguments).config(CONFIG).ships_to(&receiver.url())
}

/// Appends `count` records after the first `written`.
fn append(home: &Home, written: &mut usize, count: usize) {
    let records = *written + 1..=*written + count;
    *written += count;
    home.append(FILE, records.map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>());
}

fn json(command: AgentCommand) -> Value {
    serde_json::from_slice(&command.succeed().stdout).unwrap()
}

/// State of the device at the receiver.
fn trust(home: &Home, receiver: &Receiver) -> Value {
    json(agent(home, receiver, &["device", "show", "--json"]))["receivers"][0].take()
}

/// Fails unless `count` lines arrived, each once.
#[track_caller]
fn assert_lines(receiver: &Receiver, count: usize) {
    let entries = receiver.entries();
    let lines = entries::lines(&entries);
    let expected: Vec<String> = (1..=count).map(|n| format!("{{\"n\":{n}}}")).collect();
    let found: Vec<_> = lines.iter().map(|line| String::from_utf8_lossy(&line.bytes)).collect();
    assert_eq!(found, expected);
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=entries.len() as u64).collect::<Vec<_>>());
}

#[test]
fn killed_agent_keeps_its_pins_and_receipts() {
    let (home, receiver) = (Home::new(), Receiver::at_level("first-use"));
    let (mut random, mut written) = (random(), 0);
    for _ in 0..6 {
        append(&home, &mut written, 100);
        let running = agent(&home, &receiver, &["run"]).start();
        random_moment(&mut random, Duration::from_millis(900));
        running.kill();
    }
    agent(&home, &receiver, &["run", "--once"]).succeed();
    assert_lines(&receiver, written);

    let trust = trust(&home, &receiver);
    assert!(matches!(trust["state"].as_str(), Some("unconfirmed" | "confirmed")), "{trust}");
    assert_eq!((&trust["level"], &trust["receiver"]), (&"first-use".into(), &NAME.into()));
    let keys: Vec<VerifierKey> = serde_json::from_value(trust["receiver_keys"].clone()).unwrap();

    let status = json(agent(&home, &receiver, &["outbox", "status", "--receipt", "--json"]));
    let sink = &status["sinks"][0];
    let receipt = sink["receipt"].as_str().unwrap();
    let opened = StoredReceipt::open(receipt, &keys).unwrap().statement;
    assert_eq!(Value::from(opened.epoch), status["epoch"]);
    assert_eq!(Value::from(opened.last_seq), sink["acknowledged"]);
    let text = agent(&home, &receiver, &["outbox", "status", "--receipt"]).succeed();
    assert!(text.text().contains(receipt), "{}", text.text());
}

/// A server with the token and the secret, but another key, takes the receiver's place.
#[test]
fn server_with_another_key_gets_nothing_deleted() {
    let (home, mut written) = (Home::new(), 0);
    let mut receiver = Receiver::at_level("first-use");
    let mut running = agent(&home, &receiver, &["run"]).start_and_wait();
    append(&home, &mut written, 10);
    settle(&receiver, written);

    receiver.kill();
    let stranger = receiver.impostor("first-use");
    append(&home, &mut written, 10);
    running.wait_for_code("receipt_untrusted");
    eventually("the state", || {
        (trust(&home, &receiver)["state"] == "receipt_untrusted").then_some(())
    });
    drop(stranger);

    receiver.restart();
    settle(&receiver, written);
    eventually("the event", || {
        let entries = receiver.entries();
        let events = entries::events(&entries, event::RECEIPT_UNTRUSTED);
        events.first().map(|event| assert_eq!(event.data["problem"], "wrong_key"))
    });
    running.stop();
    assert_lines(&receiver, written);
    assert_ne!(trust(&home, &receiver)["state"], "receipt_untrusted");
}

#[test]
fn receiver_without_keys_works_as_before() {
    let (home, receiver, mut written) = (Home::new(), Receiver::start(), 0);
    append(&home, &mut written, 10);
    agent(&home, &receiver, &["run", "--once"]).succeed();
    assert_lines(&receiver, written);
    assert_eq!(trust(&home, &receiver)["state"], "shared");
    let status = json(agent(&home, &receiver, &["outbox", "status", "--receipt", "--json"]));
    assert_eq!(status["sinks"][0]["receipt"], Value::Null);
}
