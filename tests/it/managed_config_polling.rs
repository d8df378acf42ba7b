//! Managed configuration while the agent runs: polled, applied or refused as a whole, and reported;
//! and replacement of secrets.
#![cfg(unix)]

use std::fs;

use crate::support::{
    SECRET, TOKEN,
    agent::Agent,
    entries, eventually,
    home::Home,
    lines_with_code,
    receiver::{Receiver, private, wait_for},
    scripted_receiver::{ConfigResponse, ScriptedReceiver},
};
use rustix::process::Signal;
use serde_json::Value;

const R7: &str = r#"{"version":1,"revision":"r7","filters":{"drop_meta":true}}"#;
const R8: &str = r#"{"version":1,"revision":"r8"}"#;

fn signed(config: &str) -> ConfigResponse {
    ConfigResponse::Signed(config.to_owned(), SECRET)
}

fn facts(home: &Home) -> Value {
    let path = home.path().join(".local/state/ai-agent/status.json");
    let text = fs::read_to_string(path).unwrap_or_default();
    serde_json::from_str::<Value>(&text).unwrap_or_default()["config"].clone()
}

fn wait_for_revision(home: &Home, revision: &str) {
    eventually(revision, || (facts(home)["applied"]["revision"] == revision).then_some(()));
}

/// Waits until another configuration than `before` is refused, for a reason with `token` in it.
#[track_caller]
fn wait_for_refusal(home: &Home, before: &Value, token: &str) {
    eventually(token, || {
        let refused = facts(home)["refused"].clone();
        let reason = refused["reason"].as_str()?;
        (refused != *before && reason.contains(token)).then_some(())
    });
}

/// Waits until the agent has polled once more and handled the response, which a second request
/// shows.
fn poll(agent: &Agent, receiver: &ScriptedReceiver) {
    for _ in 0..2 {
        let asked = receiver.config_requests();
        agent.signal(Signal::HUP);
        eventually("a poll", || (receiver.config_requests() > asked).then_some(()));
    }
}

/// The reasons are shown to administrators.
#[test]
fn invalid_managed_config_is_refused_once_and_changes_nothing() {
    let other = ConfigResponse::Signed(R8.to_owned(), "another-secret-of-another-fleet");
    let unsigned = |text: &str| ConfigResponse::Unsigned(text.to_owned());
    let table = [
        (signed(r#"{"version":1,"filters":{"drop_meta":"yes"}}"#), "`filters.drop_meta`"),
        (
            signed(r#"{"version":1,"filters":{"drop_meta":false},"shipping":{"batch_size":0}}"#),
            "`shipping.batch_size`",
        ),
        (signed(r#"{"version":2}"#), "version 2"),
        (signed(r#"{"version":1,"stages":{"filter":{"x":{"type":"metta"}}}}"#), "`metta`"),
        (signed(r#"{"version":1,"stages":{"sink":{"x":{"type":"stdout"}}}}"#), "`stages.sink`"),
        (signed(r#"{"version":1,"stages":{"source":{"x":{}}}}"#), "`stages.source`"),
        (
            signed(
                r#"{"version":1,"tests":[{"name":"t1","lines":[{"input":"{}","expect":"drop"}]}]}"#,
            ),
            "`t1`",
        ),
        (other, "HMAC secret"),
        (ConfigResponse::Replayed, "secret"),
        (signed(&format!("{{\"version\":1,\"x\":\"{}\"}}", "x".repeat(10 << 20))), "4 MiB"),
        (unsigned("<html>please sign in</html>"), ""),
    ];
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"isMeta\":true}\n{\"n\":1}\n");
    let receiver = ScriptedReceiver::start([]).manages(R7, SECRET);
    let config = "managed.allow = [\"filter.*\"]\nshipping.flush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    wait_for_revision(&home, "r7");
    let applied = facts(&home)["applied"].clone();
    for (answer, token) in &table {
        let before = facts(&home)["refused"].clone();
        receiver.manage(answer.clone());
        poll(&agent, &receiver);
        wait_for_refusal(&home, &before, token);
        poll(&agent, &receiver);
        let facts = facts(&home);
        assert_eq!(facts["refused"]["from"], "server");
        assert_eq!(facts["applied"], applied);
    }
    home.append("-work/a.jsonl", "{\"isMeta\":true}\n{\"n\":2}\n");
    receiver.manage(signed(R8));
    poll(&agent, &receiver);
    wait_for_revision(&home, "r8");
    assert_eq!(facts(&home)["refused"], Value::Null);
    eventually("the new one is reported", || {
        (entries::events(&receiver.entries(), "config_applied").len() == 2).then_some(())
    });
    let stored = receiver.entries();
    let refused = entries::events(&stored, "config_refused");
    assert_eq!(refused.len(), table.len());
    for (event, (_, token)) in refused.iter().zip(&table) {
        assert!(event.data["reason"].as_str().unwrap().contains(token));
    }
    let second = entries::events(&stored, "config_applied")[1];
    assert_eq!(second.data["previous_revision"], "r7");
    assert_eq!(second.data["previous_hash"], applied["hash"]);
    let before = stored.iter().filter(|entry| entry.seq < second.seq).cloned().collect::<Vec<_>>();
    let offsets: Vec<u64> = entries::lines(&before).iter().map(|line| line.offset).collect();
    assert!(offsets.iter().all(|offset| [16, 40].contains(offset)), "{offsets:?}");
    agent.stop();
}

/// The machine's file can allow receivers that sign nothing.
#[test]
fn unsigned_config_applies_without_require_signature() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(ConfigResponse::Unsigned(R7.to_owned()));
    let agent = home.agent(&["run"]).config("managed.require_signature = false");
    let agent = agent.ships_to(&receiver.url()).start_and_wait();
    wait_for_revision(&home, "r7");
    assert_eq!(facts(&home)["signed_at"], Value::Null, "it has no signature");
    receiver.manage(ConfigResponse::Unsigned("<html>please sign in</html>".to_owned()));
    poll(&agent, &receiver);
    eventually("it is refused", || facts(&home)["refused"]["reason"].as_str().map(drop));
    agent.stop();
    // The stored configuration applies too.
    let agent = home.agent(&["run"]).config("managed.require_signature = false");
    let agent = agent.ships_to(&receiver.url()).start_and_wait();
    wait_for_revision(&home, "r7");
    agent.stop();
}

#[test]
fn invalid_config_file_is_refused_once() {
    let table = [
        ("filter.meta = [", "line 1, column 16"),
        ("filter.meta.enabeld = true", "`filter.meta.enabeld`"),
        ("agent.poll_interval = \"5s\"", "60s"),
        ("sink.siem.ca_file = \"/nowhere/ca.pem\"", "`sink.siem.ca_file`"),
        ("[[test]]\nname = \"t\"\nlines = [{ input = \"{}\", expect = \"drop\" }]", "`t`"),
    ];
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    let config = "shipping.flush_interval = \"0s\"\n";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    let file = home.path().join("agent.toml");
    for (text, token) in table {
        let before = facts(&home)["refused"].clone();
        fs::write(&file, text).unwrap();
        wait_for_refusal(&home, &before, token);
    }
    fs::write(&file, format!("{config}filter.meta.enabled = true")).unwrap();
    eventually("the one that is right", || (facts(&home)["refused"].is_null()).then_some(()));
    eventually("its event", || {
        (!entries::events(&receiver.entries(), "config_applied").is_empty()).then_some(())
    });
    assert_eq!(entries::events(&receiver.entries(), "config_refused").len(), table.len());
    agent.stop();
}

/// The agent waits for the first response of the server, but a file may change meanwhile.
#[test]
fn config_file_changed_during_start_is_noticed() {
    let home = Home::new();
    // Accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let agent = home.agent(&["run"]).config("filter.meta.enabled = true").ships_to(&url).start();
    let state = home.path().join(".local/state/ai-agent");
    eventually("it starts", || fs::metadata(state.join("agent.pid")).ok());
    fs::write(home.path().join("agent.toml"), "filter.meta.enabeld = true").unwrap();
    let started = lines_with_code(&agent.log(), "agent_started").len();
    assert_eq!(started, 0, "it was too quick for this test");
    eventually("it is seen", || {
        facts(&home)["refused"]["reason"].as_str()?.contains("enabeld").then_some(())
    });
    agent.stop();
}

#[test]
fn unchanged_managed_config_updates_the_time_of_contact() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]).manages(R7, SECRET);
    let agent = home.agent(&["run"]).ships_to(&receiver.url()).start_and_wait();
    wait_for_revision(&home, "r7");
    let first = facts(&home);
    poll(&agent, &receiver);
    let second = eventually("a signed answer", || {
        let facts = facts(&home);
        (facts["signed_at"] != first["signed_at"]).then_some(facts)
    });
    assert_eq!(second["applied"], first["applied"]);
    // An unsigned response proves nothing.
    for answer in [ConfigResponse::Nothing, ConfigResponse::Status(503)] {
        receiver.manage(answer);
        poll(&agent, &receiver);
        let before = facts(&home)["signed_at"].clone();
        poll(&agent, &receiver);
        assert_eq!(facts(&home)["signed_at"], before);
        assert_eq!(facts(&home)["applied"], first["applied"]);
    }
    agent.stop();
}

#[test]
fn stored_managed_config_applies_at_once_without_the_server() {
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"isMeta\":true}\n{\"n\":1}\n");
    let receiver = ScriptedReceiver::start([]).manages(R7, SECRET);
    home.agent(&["run"]).ships_to(&receiver.url()).start_and_wait().stop();
    home.append("-work/a.jsonl", "{\"isMeta\":true}\n{\"n\":2}\n");
    receiver.manage(ConfigResponse::Hangs);
    let config = "shipping.flush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    assert_eq!(facts(&home)["applied"]["revision"], "r7");
    assert!(facts(&home)["signed_at"].is_string(), "when it was there last is known");
    eventually("the second line", || {
        entries::lines(&receiver.entries()).iter().any(|line| line.offset == 40).then_some(())
    });
    let lines = entries::lines(&receiver.entries());
    assert_eq!(lines.iter().map(|line| line.offset).collect::<Vec<_>>(), [16, 40]);
    agent.stop();
}

/// No restart is needed: the receiver accepts both for a while, and the agent notices that its
/// files change.
#[test]
fn token_and_secret_are_replaced_without_a_restart() {
    const NEW: [&str; 2] = ["token-of-tomorrow-77d1", "secret-of-tomorrow-5a09"];
    let home = Home::new();
    let mut receiver = Receiver::start();
    let [token, secret] = ["token", "hmac"].map(|name| home.path().join(name));
    private(&token, TOKEN);
    private(&secret, SECRET);
    let config = format!(
        "shipping.flush_interval = \"0s\"\n[sink.siem]\nendpoint = \"{}\"\ntoken_file = {token:?}\n\
         hmac_secret_file = {secret:?}\n",
        receiver.url()
    );
    let mut agent = home.agent(&["run"]).config(&config).start_and_wait();
    let arrived = |receiver: &Receiver, count: usize| {
        wait_for(receiver, "the line", |entries| {
            (entries::lines(entries).len() >= count).then_some(())
        });
    };
    home.append("-work/a.jsonl", "{\"n\":1}\n");
    arrived(&receiver, 1);
    receiver.restart_with(&[NEW[0], TOKEN], &[NEW[1], SECRET]);
    home.append("-work/a.jsonl", "{\"n\":2}\n");
    arrived(&receiver, 2);
    private(&token, NEW[0]);
    private(&secret, NEW[1]);
    agent.wait_for_code("sink_restarted");
    receiver.restart_with(&[NEW[0]], &[NEW[1]]);
    home.append("-work/a.jsonl", "{\"n\":3}\n");
    arrived(&receiver, 3);
    let ended = agent.stop();
    assert_eq!(lines_with_code(&ended.stderr, "agent_started").len(), 1, "{}", ended.stderr);
    assert!(NEW.iter().all(|secret| !ended.stderr.contains(secret)), "a secret was printed");
    for file in crate::support::files_below(&home.path().join(".local/state/ai-agent")) {
        let text = String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned();
        let secrets = [TOKEN, SECRET, NEW[0], NEW[1]];
        assert!(secrets.iter().all(|secret| !text.contains(secret)), "in {}", file.display());
    }
    receiver.assert_complete();
}
