//! Several sinks: each gets every entry once, none delays another before the outbox is full, and
//! the entries of a removed sink are kept until it is forgotten.
#![cfg(unix)]

use std::{fs, io::Write as _, time::Duration};

use crate::support::{
    SECRET, TOKEN,
    agent::AgentCommand,
    entries,
    home::Home,
    lines_with_code, random,
    receiver::{Receiver, wait_for},
};
use ai_agent::internals::protocol::names::event;
use serde_json::{Value, json};

const MB: usize = 1 << 20;

/// Table of a sink that ships to `endpoint`.
fn http_siem(name: &str, endpoint: &str) -> String {
    format!(
        "[sink.{name}]\ntype = \"http-siem\"\nendpoint = \"{endpoint}\"\ntoken = \"{TOKEN}\"\n\
         hmac_secret = \"{SECRET}\"\n"
    )
}

#[test]
fn all_kinds_of_sinks_get_every_entry_once() {
    let home = Home::new();
    home.write("-p/a.jsonl", "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    let (one, other) = (Receiver::start(), Receiver::start());
    let copy = home.path().join("copy.ndjson");
    let config = format!(
        "pipeline.sinks = [\"siem\", \"second\", \"copy\", \"stdout\"]\n{}compression = \"gzip\"\n\
         [sink.copy]\ntype = \"file\"\npath = {copy:?}\n",
        http_siem("second", &other.url())
    );
    let ended = home.agent(&["run", "--once"]).config(&config).ships_to(&one.url()).succeed();
    let copied = fs::read(&copy).unwrap();
    assert_eq!(ended.stdout, copied);
    let copied = entries::parse(&copied);
    assert_eq!(entries::lines(&copied).len(), 3);
    let numbers: Vec<u64> = copied.iter().map(|entry| entry.seq).collect();
    for receiver in [&one, &other] {
        receiver.assert_complete();
        let held: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
        assert_eq!(held, numbers);
    }
}

/// Entries that only one sink lacks fill the outbox, until an administrator forgets that sink.
#[test]
fn unreachable_sink_fills_the_outbox_until_it_is_removed() {
    let home = Home::new();
    let mut random = random();
    let mut lines = Vec::new();
    for number in 0..2000 {
        let text: String = (0..16_000).map(|_| random.alphanumeric()).collect();
        writeln!(lines, "{{\"type\":\"user\",\"n\":{number},\"text\":\"{text}\"}}").unwrap();
    }
    assert!(lines.len() > 30 * MB);
    home.write("-p/a.jsonl", &lines);
    let receiver = Receiver::start();
    let common = "[shipping]\nflush_interval = \"0s\"\n[outbox]\nmax_bytes = \"32 MiB\"\n";
    let both = format!(
        "pipeline.sinks = [\"siem\", \"archive\"]\n{common}{}",
        http_siem("archive", "http://127.0.0.1:9")
    );
    let agent = |arguments: &[&str], config: &str| -> AgentCommand {
        home.agent(arguments).config(config).ships_to(&receiver.url())
    };
    let lines_there = || entries::lines(&receiver.entries()).len();

    let mut running = agent(&["run"], &both).start();
    running.wait_for_line("sink_behind", "sink=\"archive\"");
    running.wait_for_code("outbox_full");
    // The other sink has everything that was read, and no more is read.
    let read = wait_for(&receiver, "the event of a full outbox", |entries| {
        let full =
            |entry: &entries::StoredEntry| entry.event.as_deref() == Some(event::OUTBOX_FULL);
        entries.iter().any(full).then(|| entries::lines(entries).len())
    });
    assert!((1..2000).contains(&read), "{read}");
    running.stop();

    let mut running = agent(&["run"], common).start();
    running.wait_for_line("sink_not_configured", "sink=\"archive\"");
    running.wait_for_code("outbox_full");
    let log = running.stop().stderr;
    let logged = lines_with_code(&log, "sink_not_configured")[0];
    assert!(logged.contains("ERROR") && logged.contains("acknowledged=0"), "{logged}");
    assert_eq!(lines_there(), read);

    let refused = |name: &str| agent(&["outbox", "forget-sink", name], common).fail(2);
    let error = refused("siem");
    assert!(error.contains("`siem`"), "{error}");
    let error = refused("archiv");
    assert!(error.contains("`archive`"), "the name that was meant: {error}");
    agent(&["outbox", "forget-sink", "archive"], common).succeed();
    refused("archive");

    agent(&["run", "--once"], common).succeed();
    receiver.assert_complete();
    let entries = receiver.entries();
    let arrived = entries::lines(&entries);
    let expected: Vec<&[u8]> =
        lines.split(|byte| *byte == b'\n').filter(|it| !it.is_empty()).collect();
    assert_eq!(arrived.len(), expected.len());
    assert!(arrived.iter().zip(expected).all(|(line, expected)| line.bytes == expected));
    let removed = entries::events(&entries, event::SINK_REMOVED);
    let forgotten: Vec<&Value> = removed.iter().map(|event| &event.data["forgotten"]).collect();
    assert!(
        forgotten.len() >= 2 && forgotten[0] == false && *forgotten[forgotten.len() - 1] == true,
        "{forgotten:?}"
    );
    assert!(removed.iter().all(|event| event.data["sink"] == "archive"));

    // A sink that starts now does not get earlier entries, and reports no gap.
    let later = Receiver::start();
    let there = receiver.entries().len();
    home.append("-p/a.jsonl", "{\"type\":\"user\",\"n\":2000}\n");
    let with_later = format!(
        "pipeline.sinks = [\"siem\", \"later\"]\n{common}{}start = \"now\"\n",
        http_siem("later", &later.url())
    );
    agent(&["run", "--once"], &with_later).succeed();
    let stats = later.stats();
    let epoch = &stats["machines"][0]["epochs"][0];
    assert_eq!(epoch["begins_at"]["seq"], there, "{stats:#}");
    for list in ["gaps", "holes", "breaks"] {
        assert_eq!(epoch[list], json!([]), "{list}: {stats:#}");
    }
    assert_eq!(entries::lines(&later.entries()).len(), 1);
    receiver.assert_complete();
}

/// The limit applies to bytes on the wire. `--once` does not take a slow sink for a stalled one.
#[test]
fn rate_limit_of_a_sink_is_kept() {
    let home = Home::new();
    let mut random = random();
    for number in 0..6 {
        let text: String = (0..10_000).map(|_| random.alphanumeric()).collect();
        home.append("-p/a.jsonl", format!("{{\"n\":{number},\"text\":\"{text}\"}}\n"));
    }
    let receiver = Receiver::start();
    let config = "[shipping]\nbatch_size = 1\n[sink.siem]\nmax_bytes_per_second = \"10 KiB\"";
    let ended = home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url()).succeed();
    receiver.assert_complete();
    assert_eq!(entries::lines(&receiver.entries()).len(), 6);
    // Six times about 7 KiB, except the last.
    assert!(ended.after > Duration::from_secs(2), "{:?}", ended.after);
}

/// `status` said for ever that a delivery was postponed, and `doctor` nothing.
#[test]
fn file_sink_that_cannot_write_is_held_until_it_can() {
    let (dir, missing) = ("a directory in its place", "a missing directory");
    for (what, name) in [(dir, "out"), (missing, "missing/out")] {
        let home = Home::new();
        home.write("-p/a.jsonl", "{\"n\":1}\n");
        let path = home.path().join(name);
        if what == dir {
            fs::create_dir(&path).unwrap();
        }
        let config = format!(
            "[shipping]\nflush_interval = \"0s\"\n[pipeline]\nsinks = [\"out\"]\n\
             [sink.out]\ntype = \"file\"\npath = {path:?}\n"
        );
        let start = || home.agent(&["run"]).config(&config).start_and_wait();
        let mut agent = start();
        agent.wait_for_code("delivery_held");
        let json = |arguments: &[&str]| {
            let ended = home.agent(arguments).config(&config).run();
            (ended.code, serde_json::from_slice::<Value>(&ended.stdout).unwrap())
        };
        let (_, status) = json(&["status", "--json"]);
        let sink = &status["sinks"][0];
        assert_eq!(sink["held"], true, "{what}: {status:#}");
        let problem = sink["last_error"]["reason"].as_str().unwrap();
        assert!(problem.contains(path.to_str().unwrap()), "{what}: {problem}");
        let (code, checks) = json(&["doctor", "--json"]);
        let about_path = |it: &&Value| {
            it["code"] == "paths" && it["text"].as_str().unwrap().contains("sink.out.path")
        };
        let found = checks["checks"].as_array().unwrap().iter().find(about_path);
        let outcome = if what == dir { "fail" } else { "warn" };
        assert_eq!(found.map(|it| &it["outcome"]), Some(&json!(outcome)), "{what}: {checks:#}");
        assert_eq!(code, Some(1), "{what}: the agent delivers nothing: {checks:#}");
        if what == dir {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::create_dir(path.parent().unwrap()).unwrap();
        }
        // The agent may write only to directories that were there when it started.
        agent.kill();
        let agent = start();
        home.agent(&["flush"]).config(&config).succeed();
        agent.stop();
        let lines = entries::parse(&fs::read(&path).unwrap());
        assert_eq!(entries::lines(&lines).len(), 1, "{what}");
    }
}

/// An alert on an event of the agent named no machine, and the lines of a file named no user.
#[test]
fn events_and_lines_of_files_name_machine_and_user() {
    let home = Home::new();
    home.write("-p/a.jsonl", "{\"timestamp\":\"2026-11-20T10:00:00Z\", \"n\":1}\nno json\n");
    home.write("-p/b.jsonl", "{\"uuid\":\"b\",\"n\":1}\n{\"uuid\":\"b\",\"n\":2}\n");
    let copy = home.path().join("copy.ndjson");
    let config = format!(
        "[pipeline]\nsinks = [\"copy\", \"old\"]\nenrichers = [\"host\", \"labels\"]\n\
         [enricher.labels.labels]\nteam = \"a\"\n[sink.copy]\ntype = \"file\"\npath = {copy:?}\n"
    );
    let old = format!("[sink.old]\ntype = \"file\"\npath = {:?}\n", home.path().join("old"));
    home.agent(&["run", "--once"]).config(&format!("{config}{old}")).succeed();
    let config = config.replace(", \"old\"", "");
    // Written without an agent.
    home.agent(&["outbox", "forget-sink", "old"]).config(&config).succeed();
    home.write("-p/b.jsonl", "{\"other\":\"file\"}\n");
    home.agent(&["run", "--once"]).config(&config).succeed();

    let text = fs::read_to_string(&copy).unwrap();
    let lines: Vec<Value> = text.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let (mut events, mut records) = (Vec::new(), Vec::new());
    for line in &lines {
        let host = &line["host"];
        for name in ["machine_id", "hostname", "user"] {
            assert!(line[name].as_str().is_some_and(|it| !it.is_empty()), "{name}: {line}");
            assert_eq!(line[name], host[name], "{line}");
        }
        assert_eq!(line["labels"], json!({ "team": "a" }), "{line}");
        assert_eq!(line["epoch"].as_str().map(str::len), Some(36), "{line}");
        match line["event"].as_str() {
            Some(event) => {
                assert_eq!(line["time"], line["at"], "{line}");
                events.push(event);
            }
            None => records.push((&line["time"], line)),
        }
    }
    let of_agent =
        [event::AGENT_STARTED, event::HEARTBEAT, event::SINK_REMOVED, event::EPOCH_STARTED];
    let of_files = [event::UUID_REUSED, event::FILE_REWRITTEN];
    for event in of_agent.into_iter().chain(of_files) {
        assert!(events.contains(&event), "{event}: {events:?}");
    }
    records.retain(|(_, line)| line["path"].as_str().is_some_and(|it| it.ends_with("a.jsonl")));
    let [(first, _), (second, line)] = &records[..] else { panic!("{records:?}") };
    assert_eq!(**first, "2026-11-20T10:00:00.000Z");
    assert_eq!(**second, line["read_at"]);
    let record = "\"record\":{\"timestamp\":\"2026-11-20T10:00:00Z\", \"n\":1}}\n";
    assert!(text.contains(record), "{text}");
}
