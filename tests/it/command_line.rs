//! The command line: the result of each mistake, and how the agent stops.
#![cfg(unix)]

use std::{fs, net::TcpListener, time::Duration};

use crate::support::{
    SECRET, TOKEN, entries, eventually,
    home::Home,
    lines_with_code,
    receiver::{Receiver, wait_for},
    scripted_receiver::{Answer, ScriptedReceiver},
};
use rustix::process::Signal;

const AT_ONCE: &str = "[shipping]\nflush_interval = \"0s\"";

/// A home directory with one record.
fn home() -> Home {
    let home = Home::new();
    home.write("-work/one.jsonl", "{\"n\":1}\n");
    home
}

/// An endpoint where no process listens.
fn unused_address() -> String {
    format!("http://{}", crate::support::unused_address())
}

#[test]
fn missing_settings_are_one_error_with_every_remedy() {
    let error = home().agent(&["run"]).fail(2);
    for word in [
        "CLAUDE_SIEM_ENDPOINT",
        "CLAUDE_SIEM_TOKEN",
        "CLAUDE_SIEM_HMAC_SECRET",
        "token_file",
        "hmac_secret_file",
        "[sink.siem]",
        "config.toml",
    ] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let error =
        home().agent(&["run"]).ships_to(&unused_address()).without("CLAUDE_SIEM_TOKEN").fail(2);
    assert!(error.contains("CLAUDE_SIEM_TOKEN"), "{error}");
    assert!(!error.contains("CLAUDE_SIEM_HMAC_SECRET"), "{error}");
}

#[test]
fn wrong_token_holds_delivery_and_loses_nothing() {
    let (home, receiver) = (home(), Receiver::start());
    let mut agent = home
        .agent(&["run"])
        .config(AT_ONCE)
        .ships_to(&receiver.url())
        .env("CLAUDE_SIEM_TOKEN", "another-token-entirely")
        .start();
    agent.wait_for_line("delivery_held", "401");
    assert!(!agent.log().contains("another-token-entirely"));
    agent.stop();
    assert_eq!(receiver.count(), 0);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    receiver.assert_complete();
}

#[test]
fn wrong_secret_holds_delivery_and_loses_nothing() {
    let (home, receiver) = (home(), Receiver::start());
    let mut agent = home
        .agent(&["run"])
        .config(AT_ONCE)
        .ships_to(&receiver.url())
        .env("CLAUDE_SIEM_HMAC_SECRET", "another-secret-entirely")
        .start();
    agent.wait_for_line("delivery_held", "403");
    assert!(!agent.log().contains("another-secret-entirely"));
    agent.stop();
    assert_eq!(receiver.count(), 0);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
}

#[test]
fn unreachable_receiver_is_logged_and_retried() {
    let (home, mut receiver) = (home(), Receiver::start());
    receiver.kill();
    let mut agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start();
    agent.wait_for_code("delivery_postponed");
    receiver.restart();
    wait_for(&receiver, "the record arrived", |entries| {
        (!entries::lines(entries).is_empty()).then_some(())
    });
    assert!(agent.runs());
    agent.stop();
    receiver.assert_complete();
}

#[test]
fn once_exits_1_when_the_receiver_is_unreachable() {
    let home = home();
    let ended = home
        .agent(&["run", "--once"])
        .ships_to(&unused_address())
        .env("AI_AGENT_TEST_CATCH_UP_MS", "3000")
        .start()
        .wait(2 * crate::support::PATIENCE);
    assert_eq!(ended.code, Some(1));
    assert_eq!(lines_with_code(&ended.stderr, "delivery_incomplete").len(), 1, "{}", ended.stderr);
    let receiver = Receiver::start();
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(entries::lines(&receiver.entries()).len(), 1);
    receiver.assert_complete();
}

#[test]
fn agent_stops_in_time_with_a_slow_receiver() {
    let (home, receiver) =
        (home(), ScriptedReceiver::start([Answer::After(Duration::from_secs(20))]));
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    eventually("a batch is under way", || (receiver.requests() > 0).then_some(()));
    agent.stop();
}

#[test]
fn batch_without_a_usable_receipt_is_sent_again() {
    let script = [
        Answer::Close,
        Answer::Status(503, &[("Retry-After", "1")], ""),
        Answer::StoreAndClose,
        Answer::Status(200, &[], "<html>please sign in</html>"),
    ];
    let (home, receiver) = (home(), ScriptedReceiver::start(script));
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    home.append("-work/one.jsonl", "{\"n\":2}\n");
    eventually("both records arrived", || {
        (entries::lines(&receiver.entries()).len() == 2).then_some(())
    });
    agent.stop();
    let lines = entries::lines(&receiver.entries());
    assert_eq!(lines.iter().map(|line| line.offset).collect::<Vec<_>>(), [0, 8]);
}

#[test]
fn permanently_refused_entry_does_not_stop_others() {
    let refused = Answer::Status(422, &[], "{\"title\":\"no\"}");
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    // After three halvings of 4 or 5 entries, the first is alone.
    let receiver =
        ScriptedReceiver::start([refused.clone(), refused.clone(), refused.clone(), refused]);
    // Everything else is delivered, but a script must learn of the dead letter.
    let error = home.agent(&["run", "--once"]).ships_to(&receiver.url()).fail(1);
    assert!(error.contains("refused 1 entry for good, kept as dead letters"), "{error}");
    let headers = receiver.headers();
    let dead: Vec<u64> =
        headers.iter().flat_map(|header| &header.dead_lettered).map(|letter| letter.seq).collect();
    assert_eq!(dead.len(), 1, "{headers:#?}");
    let numbers: Vec<u64> = receiver.entries().iter().map(|entry| entry.seq).collect();
    let expected: Vec<u64> =
        (1..=*numbers.last().unwrap()).filter(|seq| !dead.contains(seq)).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn bodies_are_compressed_as_configured() {
    for (option, encoding) in [("zstd", "zstd"), ("gzip", "gzip"), ("none", "identity")] {
        let (home, receiver) = (home(), ScriptedReceiver::start([]));
        let config = format!("[sink.siem]\ncompression = \"{option}\"");
        home.agent(&["run", "--once"]).config(&config).ships_to(&receiver.url()).succeed();
        assert_eq!(entries::lines(&receiver.entries()).len(), 1);
        assert!(receiver.encodings().iter().all(|used| used == encoding));
    }
}

#[test]
fn invalid_endpoint_is_an_error() {
    for (endpoint, word) in [
        ("siem.example.com", "siem.example.com"),
        ("ftp://siem.example.com", "http://"),
        ("http://user:pass@siem.example.com", "token_file"),
    ] {
        let error = home().agent(&["run"]).ships_to(endpoint).fail(2);
        assert!(error.contains("sink.siem.endpoint"), "{error}");
        assert!(error.contains("CLAUDE_SIEM_ENDPOINT"), "{error}");
        assert!(error.contains(word) && !error.contains("user:pass"), "{error}");
    }
}

#[test]
fn state_directory_that_cannot_be_created_is_an_error() {
    let home = home();
    fs::write(home.path().join("in-the-way"), "").unwrap();
    for dir in ["~/in-the-way", "~/in-the-way/state"] {
        let config = format!("[agent]\nstate_dir = \"{dir}\"");
        let error = home.agent(&["run"]).config(&config).ships_to(&unused_address()).fail(1);
        assert!(error.contains("in-the-way") && error.contains("state_dir"), "{error}");
    }
    let error = home
        .agent(&["run"])
        .config("[agent]\nstate_dir = \"relative\"")
        .ships_to(&unused_address())
        .fail(2);
    assert!(error.contains("agent.state_dir"), "{error}");
}

#[test]
fn missing_home_directory_is_an_error() {
    let home = home();
    let error = home.agent(&["run"]).without("HOME").ships_to(&unused_address()).fail(2);
    assert!(error.contains("HOME"), "{error}");
    let gone = home.path().join("gone");
    let error = home.agent(&["run"]).env("HOME", &gone).ships_to(&unused_address()).fail(2);
    assert!(error.contains("HOME") && error.contains(gone.to_str().unwrap()), "{error}");
    let error = home.agent(&["run"]).env("HOME", "somewhere").ships_to(&unused_address()).fail(2);
    assert!(error.contains("HOME") && error.contains("somewhere"), "{error}");
}

#[test]
fn second_agent_on_the_same_state_directory_is_refused() {
    let (home, receiver) = (home(), Receiver::start());
    let mut first = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    for arguments in [&["run"][..], &["run", "--once"]] {
        let error = home.agent(arguments).ships_to(&receiver.url()).fail(1);
        assert!(error.contains(&first.pid().to_string()), "{error}");
    }
    assert!(first.runs());
    first.stop();
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
}

#[test]
fn signals_stop_the_agent_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let (home, receiver) = (home(), Receiver::start());
        // Nothing would be sent for a day, except by a clean stop.
        let config = "[shipping]\nflush_interval = \"86400s\"";
        let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
        agent.stop_by(signal);
        let entries = receiver.entries();
        assert_eq!(entries::events(&entries, "agent_started").len(), 1);
        assert_eq!(entries::events(&entries, "agent_stopped").len(), 1);
        assert_eq!(entries.last().unwrap().event.as_deref(), Some("agent_stopped"));
    }
}

#[test]
fn agent_without_a_receiver_stops_in_time() {
    let home = home();
    let agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&unused_address()).start_and_wait();
    agent.stop();
    // The agent also stops while it waits for a response: this port accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    let agent = home.agent(&["run", "--debug"]).config(AT_ONCE).ships_to(&silent).start();
    let _asking = listener.accept().unwrap();
    agent.stop();
}

#[test]
fn sighup_reloads_and_does_not_stop_the_agent() {
    let (home, receiver) = (home(), Receiver::start());
    let mut agent = home.agent(&["run"]).config(AT_ONCE).ships_to(&receiver.url()).start_and_wait();
    agent.signal(Signal::HUP);
    agent.wait_for_code("reload_by_signal");
    home.append("-work/one.jsonl", "{\"n\":2}\n");
    wait_for(&receiver, "it still ships", |entries| {
        (entries::lines(entries).len() == 2).then_some(())
    });
    agent.stop();
}

#[test]
fn poll_interval_below_a_minute_is_refused() {
    let home = home();
    for value in ["59s", "0s", "1"] {
        let agent = home.agent(&["run"]).ships_to(&unused_address());
        let error = agent.env("CLAUDE_SIEM_POLL_INTERVAL", value).fail(2);
        assert!(error.contains("CLAUDE_SIEM_POLL_INTERVAL"), "{error}");
    }
    let error = home.agent(&["run", "--test"]).config("[agent]\npoll_interval = \"30s\"").fail(2);
    assert!(error.contains("agent.poll_interval") && error.contains("60s"), "{error}");
    assert!(error.contains("agent.toml"), "{error}");
}

#[test]
fn config_mistake_is_reported_with_file_and_key() {
    let cases = [
        ("[filter.ignore-types]\ntype = [\"x\"]", "filter.ignore-types.type"),
        ("[filter.ignore-types]\ntipes = [\"x\"]", "types"),
        // A misspelt `enabled` was ignored, and the stage stayed off without a message.
        ("[filter.sidechain]\nenabeld = true", "filter.sidechain.enabeld"),
        ("[shiping]\nbatch_size = 1", "shipping"),
        ("[shipping]\nbatch_size = 0", "shipping.batch_size"),
        ("[pipeline]\nfilters = [\"no-such-filter\"]", "pipeline.filters"),
        ("[pipeline", "TOML"),
    ];
    for (config, word) in cases {
        for arguments in [&["run"][..], &["run", "--test"]] {
            let error = home().agent(arguments).ships_to(&unused_address()).config(config).fail(2);
            assert!(error.contains(word), "{config}: {error}");
            assert!(error.contains("agent.toml"), "{config}: {error}");
        }
    }
    let error = home().agent(&["run", "--config", "/no/such/file.toml"]).fail(2);
    assert!(error.contains("/no/such/file.toml"), "{error}");
}

#[test]
fn secret_file_readable_by_others_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;

    let (home, receiver) = (home(), Receiver::start());
    let token = home.path().join("token");
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let run = || {
        home.agent(&["run", "--once"])
            .config("[sink.siem]\ntoken_file = \"~/token\"")
            .ships_to(&receiver.url())
            .without("CLAUDE_SIEM_TOKEN")
    };
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let error = run().fail(2);
    assert!(error.contains("chmod 600") && error.contains("token"), "{error}");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    run().succeed();
}

#[test]
fn stages_are_listed_and_shown() {
    let home = home();
    let list = home.agent(&["stages"]).succeed();
    for stage in ai_agent::internals::stages::all() {
        let line = list.text().lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(stage.kind.to_string().as_str())
                && words.next() == Some(stage.name)
        });
        let line = line.unwrap_or_else(|| panic!("{stage:?} is not listed"));
        assert!(line.ends_with(stage.summary), "{line}");

        let shown = home.agent(&["stages", "show", stage.name]).succeed();
        assert!(shown.text().contains(stage.summary), "{}", shown.text());
        shown.text()[shown.text().find('[').unwrap()..]
            .parse::<toml::Table>()
            .unwrap_or_else(|error| panic!("{stage:?}: {error}\n{}", shown.text()));
    }
    let error = home.agent(&["stages", "show", "ignore-type"]).fail(2);
    assert!(error.contains("`ignore-types`"), "{error}");
    let error = home.agent(&["stages", "show", "xyzzy"]).fail(2);
    assert!(error.contains("xyzzy") && error.contains("ai-agent stages"), "{error}");
}

#[test]
fn debug_logs_more_and_no_secret() {
    let (home, receiver) = (home(), Receiver::start());
    let plain = home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert!(!plain.stderr.contains("DEBUG"), "{}", plain.stderr);
    home.append("-work/one.jsonl", "{\"n\":2}\n");
    let run = |level: &str| {
        home.append("-work/one.jsonl", "{\"n\":3}\n");
        let agent = home.agent(&["--debug", "run", "--once"]).ships_to(&receiver.url());
        let agent = if level.is_empty() { agent } else { agent.env("RUST_LOG", level) };
        agent.succeed().stderr
    };
    let log = run("");
    assert!(log.contains("DEBUG"), "{log}");
    // Log lines of libraries are included.
    let log = run("trace");
    assert!(log.contains("TRACE"), "no traces");
    let hex = siem_protocol::sign(SECRET.as_bytes(), b"");
    assert!(!log.contains(&hex));
    assert!(!log.contains("{\"n\":3}"), "a record's content was logged");
}

#[test]
fn records_can_go_to_only_a_file_and_standard_output() {
    let home = home();
    let out = home.path().join("out.ndjson");
    let config = format!(
        "[pipeline]\nsinks = [\"out\", \"stdout\"]\n[sink.out]\ntype = \"file\"\npath = {out:?}\n\
         [sink.stdout]"
    );
    let ended = home.agent(&["run", "--once"]).config(&config).succeed();
    let written = fs::read(&out).unwrap();
    assert_eq!(ended.stdout, written);
    assert_eq!(entries::lines(&entries::parse(&written))[0].bytes, b"{\"n\":1}");
    home.append("-work/one.jsonl", "{\"n\":2}\n");
    home.agent(&["run", "--once"]).config(&config).succeed();
    let entries = entries::parse(&fs::read(&out).unwrap());
    let numbers: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(entries::lines(&entries).len(), 2);
}

const MANAGED: &str = r#"{"version":1,"revision":"r7",
    "filters":{"ignore_types":["user"],"drop_meta":true,"drop_tool_calls":true},
    "shipping":{"batch_size":2,"flush_interval_seconds":0}}"#;

#[test]
fn managed_config_applies_before_the_first_record_is_filtered() {
    let home = Home::new();
    home.write(
        "-work/a.jsonl",
        "{\"type\":\"user\"}\n{\"type\":\"progress\"}\n{\"isMeta\":true}\n\
         {\"message\":{\"content\":[{\"type\":\"tool_use\"}]}}\n{\"n\":5}\n",
    );
    let receiver = Receiver::with_config(Some(MANAGED));
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let entries = receiver.entries();
    let lines: Vec<_> = entries::lines(&entries).into_iter().map(|line| line.bytes).collect();
    assert_eq!(lines, [b"{\"type\":\"progress\"}".to_vec(), b"{\"n\":5}".to_vec()]);
    let applied = entries::events(&entries, "config_applied");
    assert_eq!(applied[0].data["revision"], "r7");
    receiver.assert_complete();
}

#[test]
fn managed_batch_size_limits_batches() {
    let home = Home::new();
    home.write("-work/a.jsonl", "{\"n\":1}\n".repeat(10));
    let receiver = ScriptedReceiver::start([]).manages(MANAGED, SECRET);
    home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    let counts: Vec<u64> = receiver.headers().iter().map(|header| header.count).collect();
    assert!(counts.len() >= 6 && counts.iter().all(|count| *count <= 2), "{counts:?}");
    assert_eq!(receiver.config_requests(), 1);
    let versions = receiver.config_versions();
    assert_eq!(versions[0], "0", "no configuration is in force at the first request");
    assert!(versions[1..].iter().all(|version| version == "r7"), "{versions:?}");
}

#[test]
fn invalid_managed_config_is_refused_and_reported() {
    let wrong = [
        (MANAGED, "another-secret"),
        (r#"{"version":2}"#, SECRET),
        (r#"{"version":1,"filters":{"drop_meta":true},"shipping":{"batch_size":0}}"#, SECRET),
        (r#"{"version":1,"filters":{"drop_meta":"yes"}}"#, SECRET),
        ("no json", SECRET),
    ];
    for (config, secret) in wrong {
        let home = Home::new();
        home.write(
            "-work/a.jsonl",
            "{\"type\":\"user\"}\n{\"type\":\"progress\"}\n{\"isMeta\":true}\n",
        );
        let receiver = ScriptedReceiver::start([]).manages(config, secret);
        home.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
        let entries = receiver.entries();
        let lines: Vec<_> = entries::lines(&entries).iter().map(|line| line.offset).collect();
        assert_eq!(lines, [0, 36], "the local rules are in force: {config}");
        let refused = entries::events(&entries, "config_refused");
        assert_eq!(refused.len(), 1, "{config}");
        assert!(!refused[0].data["reason"].as_str().unwrap().is_empty());
        assert!(entries::events(&entries, "config_applied").is_empty());
    }
}

#[test]
fn help_lists_every_command() {
    let help = home().agent(&["--help"]).succeed();
    for word in ["run", "stages", "--config", "--debug"] {
        assert!(help.text().contains(word), "{word}");
    }
    let version = home().agent(&["--version"]).succeed();
    assert_eq!(version.text().trim(), format!("ai-agent {}", env!("CARGO_PKG_VERSION")));
    for arguments in [&["walk"][..], &[], &["run", "--json"], &["run", "--test", "--once"]] {
        let ended = home().agent(arguments).run();
        assert_eq!(ended.code, Some(2), "{arguments:?}");
    }
}
