//! Commands that only read and answer print no warnings before the answer.
#![cfg(unix)]

use crate::support::home::Home;

/// A configuration with a warning: the token can be guessed.
const SHORT: &str = "[sink.siem]\nendpoint = \"http://127.0.0.1:9\"\ntoken = \"short\"\n";

#[test]
fn read_only_commands_print_no_warnings() {
    let home = Home::new();
    let commands: [&[&str]; 26] = [
        &["status"],
        &["status", "--json"],
        &["check"],
        &["check", "--strict"],
        &["config", "show"],
        &["config", "show", "--json"],
        &["config", "explain", "sink.siem.token"],
        &["config", "schema"],
        &["config", "check"],
        &["doctor"],
        &["test"],
        &["hooks", "status"],
        &["deadletter", "list"],
        &["deadletter", "list", "--json"],
        &["outbox", "status"],
        &["outbox", "verify"],
        &["device", "show"],
        &["audit", "status"],
        &["audit", "tail", "--log", "/no/such.log"],
        &["update", "status"],
        &["update", "check"],
        &["outbox", "list"],
        &["logs"],
        &["man"],
        &["stages"],
        &["run", "--test"],
    ];
    for command in commands {
        let ended = home.agent(command).config(SHORT).run();
        assert!(!ended.stderr.contains(" WARN "), "{command:?}: {}", ended.stderr);
        assert!(!String::from_utf8_lossy(&ended.stdout).contains(" WARN "), "{command:?}");
    }
}

/// These two report them, and so does the agent when it starts.
#[test]
fn doctor_config_check_and_run_report_the_warnings() {
    let home = Home::new();
    let report = home.agent(&["doctor"]).config(SHORT).run().text().to_owned();
    let warned = report.lines().find(|line| line.contains("`sink.siem.token`"));
    assert!(warned.is_some_and(|line| line.starts_with("warn  ")), "{report}");
    let checked = home.agent(&["config", "check"]).config(SHORT).run();
    let warned = checked.stderr.lines().find(|line| line.contains("16 bytes"));
    assert!(warned.is_some_and(|line| line.starts_with("warning")), "{}", checked.stderr);
    let run = home.agent(&["run"]).config(SHORT).run();
    assert!(run.stderr.contains("code=\"config_warning\""), "{}", run.stderr);
    if rustix::process::geteuid().is_root() {
        assert!(report.lines().any(|line| line.starts_with("warn  user")), "{report}");
        assert!(run.stderr.contains("code=\"running_as_root\""), "{}", run.stderr);
    }
}
