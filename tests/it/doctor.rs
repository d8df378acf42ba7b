//! `ai-agent doctor` on healthy and on broken machines.
#![cfg(unix)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use crate::support::{
    SECRET, TOKEN, entries, eventually,
    home::Home,
    receiver::Receiver,
    scripted_receiver::{ConfigResponse, ScriptedReceiver},
};

const NOTHING: &str = "{\"version\":1}";

/// Returns the line of one check.
#[track_caller]
fn line<'a>(report: &'a str, about: &str) -> &'a str {
    let found = report.lines().find(|line| line.get(6..).is_some_and(|it| it.starts_with(about)));
    found.unwrap_or_else(|| panic!("nothing about {about}:\n{report}"))
}

fn is_well(line: &str) -> bool {
    line.starts_with("ok ")
}

fn is_failure(line: &str) -> bool {
    line.starts_with("FAIL ")
}

#[test]
fn doctor_on_a_healthy_machine_passes() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]).manages(NOTHING, SECRET));
    home.write("-work/s.jsonl", "{\"type\":\"user\"}\n");
    let agent = home.agent(&["run"]).ships_to(&receiver.url()).start_and_wait();
    eventually("it delivers", || (!receiver.entries().is_empty()).then_some(()));
    let report = home.agent(&["doctor", "--canary"]).ships_to(&receiver.url()).succeed();
    let report = report.text();
    for about in [
        "configuration",
        "state",
        "disk",
        "sessions",
        "name",
        "receiver",
        "token",
        "HMAC secret",
        "agent",
        "canary",
    ] {
        assert!(is_well(line(report, about)), "{report}");
    }
    assert!(line(report, "service").contains("`ai-agent install`"), "{report}");
    assert!(line(report, "hooks").contains("`ai-agent hooks install`"), "{report}");
    let stored = receiver.entries();
    let canaries = entries::events(&stored, "canary");
    assert_eq!(canaries.len(), 1);
    let id = canaries[0].data["id"].as_str().unwrap();
    assert!(line(report, "canary").contains(id), "{report}");
    agent.stop();
}

/// The second sink once shipped to a receiver that refused its token, and all checks passed.
#[test]
fn doctor_checks_the_receiver_of_each_sink() {
    let home = Home::new();
    let receivers = [SECRET, "another secret"]
        .map(|secret| ScriptedReceiver::start([]).manages(NOTHING, secret));
    let archive = format!(
        "[pipeline]\nsinks = [\"siem\", \"archive\"]\n[sink.archive]\ntype = \"http-siem\"\nendpoint = \"{}\"\n\
         token = \"{TOKEN}\"\n",
        receivers[1].url()
    );
    let report = |config: &str| {
        home.agent(&["doctor"]).config(config).ships_to(&receivers[0].url()).run().text().to_owned()
    };
    let complete = format!("{archive}hmac_secret = \"{SECRET}\"\n");
    let found = report(&complete);
    for (about, name, is_ok) in [
        ("receiver", "siem", true),
        ("receiver", "archive", false),
        ("token", "archive", false),
        ("HMAC secret", "siem", true),
        ("HMAC secret", "archive", false),
    ] {
        let about = format!("{about:<13}  `{name}`: ");
        assert_eq!(is_well(line(&found, &about)), is_ok, "{about}: {found}");
    }
    // A setting that the second sink lacks does not prevent the checks of the first one.
    let found = report(&archive);
    assert!(is_well(line(&found, &format!("{:<13}  `siem`: ", "receiver"))), "{found}");
    assert!(found.contains("cannot deliver without the HMAC secret"), "{found}");
}

/// A name that only the proxy can resolve was a failure, and the hint was about the receiver.
#[test]
fn doctor_checks_the_proxy_in_place_of_the_name() {
    let home = Home::new();
    let config = "[sink.siem]\nproxy = \"http://127.0.0.1:1\"\n";
    let report = home.agent(&["doctor"]).config(config).ships_to("https://siem.invalid").run();
    let report = report.text();
    let has_name = |line: &str| line.get(6..).is_some_and(|it| it.starts_with("name "));
    assert!(!report.lines().any(has_name), "{report}");
    assert!(is_well(line(report, "proxy")), "{report}");
    let receiver = line(report, "receiver");
    assert!(is_failure(receiver) && receiver.ends_with("check the proxy"), "{receiver}");
}

#[test]
fn doctor_failures_name_the_problem_and_the_remedy() {
    let failed_report = |home: &Home, url: &str, arguments: &[&str]| {
        let ended = home.agent(arguments).ships_to(url).run();
        assert_eq!(ended.code, Some(1), "{}", ended.text());
        ended.text().to_owned()
    };
    let home = Home::new();
    // A missing endpoint was reported as an invalid URL in a layer without a file.
    let report = home.agent(&["doctor"]).run();
    let missing = line(report.text(), "receiver");
    assert!(is_failure(missing), "{missing}");
    assert!(report.text().contains("CLAUDE_SIEM_ENDPOINT"), "{}", report.text());
    // No receiver listens, and no agent runs.
    let report = failed_report(&home, "http://127.0.0.1:9", &["doctor", "--canary"]);
    assert!(is_failure(line(&report, "receiver")), "{report}");
    assert!(line(&report, "receiver").contains("127.0.0.1:9"), "{report}");
    assert!(line(&report, "agent").contains("`ai-agent start`"), "{report}");
    assert!(is_failure(line(&report, "canary")), "{report}");
    assert!(line(&report, "sessions").contains(".claude/projects"), "{report}");
    let report = failed_report(&home, "http://unknown.invalid", &["doctor"]);
    assert!(line(&report, "name").contains("`endpoint`"), "{report}");
    // A receiver with another secret, then a server that signs nothing.
    let receiver = ScriptedReceiver::start([]).manages(NOTHING, "another-secret-0123456789");
    let report = failed_report(&home, &receiver.url(), &["doctor"]);
    assert!(is_failure(line(&report, "HMAC secret")), "{report}");
    receiver.manage(ConfigResponse::Unsigned(NOTHING.to_owned()));
    let report = failed_report(&home, &receiver.url(), &["doctor"]);
    assert!(is_failure(line(&report, "HMAC secret")), "{report}");
    // The state directory is a file.
    let state = home.path().join(".local/state/ai-agent");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    fs::write(&state, "").unwrap();
    let report = failed_report(&home, &receiver.url(), &["doctor"]);
    assert!(is_failure(line(&report, "state")), "{report}");
}

/// Checking a configuration builds its disabled sources too; doctor reported their directories.
#[test]
fn doctor_ignores_roots_of_disabled_sources() {
    let home = Home::new();
    let dirs = ["used", "disabled"].map(|name| home.path().join(name).join("projects"));
    for dir in &dirs {
        fs::create_dir_all(dir.join("-work")).unwrap();
        fs::write(dir.join("-work/s.jsonl"), "{}\n").unwrap();
    }
    let config = format!(
        r#"
        [pipeline]
        sources = ["claude-sessions", "other"]
        [source.claude-sessions]
        roots = ['{}']
        [source.other]
        type = "claude-sessions"
        enabled = false
        roots = ['{}']
        "#,
        dirs[0].display(),
        dirs[1].display()
    );
    let file = home.path().join("doctor.toml");
    fs::write(&file, config).unwrap();
    let report = home.agent(&["doctor", "--config", file.to_str().unwrap()]).run();
    assert!(report.text().contains(dirs[0].to_str().unwrap()), "{}", report.text());
    assert!(!report.text().contains(dirs[1].to_str().unwrap()), "{}", report.text());
}

/// The first mistake hid all others, and the rest of the machine was not checked.
#[test]
fn doctor_reports_all_mistakes_of_a_configuration() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]).manages(NOTHING, SECRET));
    home.write("-work/s.jsonl", "{}\n");
    let config = "shiping.x = 1\n[agent]\npoll_interval = 5\n[filter.meta]\nenabled = 1\n";
    let ended = home.agent(&["doctor"]).config(config).ships_to(&receiver.url()).run();
    assert_eq!(ended.code, Some(1), "{}", ended.text());
    let checked = home.agent(&["config", "check"]).config(config).ships_to(&receiver.url()).run();
    let report = ended.text();
    for mistake in ["shiping", "agent.poll_interval", "filter.meta.enabled"] {
        let is_about = |line: &&str| is_failure(line) && line.contains(mistake);
        assert!(report.lines().any(|line| is_about(&line)), "{mistake}: {report}");
        assert!(checked.stderr.contains(mistake), "{mistake}: {}", checked.stderr);
    }
    for about in ["state", "disk", "sessions", "agent"] {
        line(report, about);
    }
    assert!(!report.contains("receiver "), "{report}");
}

/// `run` refuses a configuration whose test fails; doctor found nothing wrong with it.
#[test]
fn doctor_runs_the_tests_of_the_configuration() {
    let (home, receiver) = (Home::new(), ScriptedReceiver::start([]).manages(NOTHING, SECRET));
    let config = "[[test]]\nname = 'dropped'\nlines = [{ input = '{\"type\":\"user\"}', expect = 'drop' }]\n";
    let ended = home.agent(&["doctor"]).config(config).ships_to(&receiver.url()).run();
    let configuration = line(ended.text(), "configuration");
    let names_it = configuration.contains("test `dropped`");
    assert!(is_failure(configuration) && names_it, "{}", ended.text());
}

/// A server that is no receiver, or a wrong path, once passed all checks by its status 404.
#[test]
fn doctor_claims_nothing_about_a_server_without_proof() {
    let home = Home::new();
    let other = ScriptedReceiver::start([]);
    let ended = home.agent(&["doctor"]).ships_to(&other.url()).run();
    for about in ["receiver", "token", "HMAC secret"] {
        let line = line(ended.text(), about);
        assert!(line.starts_with("warn  ") && line.contains("not verified"), "{}", ended.text());
    }
    // The receiver without a managed configuration proves itself, and a wrong path below it does not.
    let receiver = Receiver::start();
    let report = |url: &str| home.agent(&["doctor"]).ships_to(url).run().text().to_owned();
    let right = report(&receiver.url());
    let wrong = report(&format!("{}/wrong", receiver.url()));
    for about in ["receiver", "token", "HMAC secret"] {
        assert!(is_well(line(&right, about)), "{right}");
        assert!(line(&wrong, about).contains("not verified"), "{wrong}");
    }
    let wrong = home.agent(&["doctor"]).ships_to(&receiver.url());
    let wrong = wrong.env("CLAUDE_SIEM_TOKEN", "another-token-0123456789").run();
    assert!(is_failure(line(wrong.text(), "token")), "{}", wrong.text());
}

/// Any web server responds to a request without events.
#[test]
fn doctor_claims_nothing_about_sinks_that_prove_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            drop(stream.read(&mut [0; 8192]));
            let response =
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            drop(stream.write_all(response.as_bytes()));
        }
    });
    let home = Home::new();
    let config =
        format!("pipeline.sinks = ['web']\n[sink.web]\ntype = 'http'\nendpoint = '{url}'\n");
    let ended = home.agent(&["doctor"]).config(&config).run();
    let line = line(ended.text(), "sink");
    assert!(line.starts_with("warn  ") && line.contains("not verified"), "{}", ended.text());
}
