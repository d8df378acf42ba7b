//! The log of the agent and its destinations.

use std::fs;

use crate::support::{home::Home, lines_with_code, receiver::Receiver};
use serde_json::Value;

fn log(home: &Home) -> String {
    fs::read_to_string(home.path().join("state/logs/agent.log")).unwrap()
}

fn config(home: &Home, more: &str) -> String {
    format!("[agent]\nstate_dir = '{}'\n{more}", home.path().join("state").display())
}

#[test]
fn running_agent_logs_to_its_file_and_standard_error() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("p/s.jsonl", "{\"type\":\"user\",\"text\":\"do-not-log-me\"}\n");
    let once = home.agent(&["run", "--once"]).config(&config(&home, ""));
    let ended = once.ships_to(&receiver.url()).succeed();
    let (file, stderr) = (log(&home), ended.stderr);
    for text in [&file, &stderr] {
        let started = lines_with_code(text, "agent_started");
        assert!(started[0].contains(" INFO ai_agent::"), "{text}");
        assert_eq!(lines_with_code(text, "all_delivered").len(), 1, "{text}");
        assert!(!text.contains("do-not-log-me"), "{text}");
    }
    assert!(!file.contains('\u{1b}'), "a file has no colours: {file}");

    // A process without the lock of the state directory does not write its log.
    home.agent(&["config", "check", "--debug"]).config(&config(&home, "")).run();
    assert_eq!(log(&home), file);
}

#[test]
fn json_log_has_level_and_fields() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let once = home.agent(&["run", "--once", "--debug"]);
    let once = once.config(&config(&home, "log_format = \"json\"\n"));
    once.ships_to(&receiver.url()).succeed();
    let lines: Vec<Value> =
        log(&home).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let started = lines.iter().find(|line| line["fields"]["code"] == "agent_started").unwrap();
    assert_eq!(started["level"], "info");
    assert!(started["fields"]["epoch"].is_string(), "{started}");
}

#[test]
fn logs_prints_the_last_lines_of_all_files() {
    let home = Home::new();
    let folder = home.path().join("state/logs");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("agent.log.1"), "one\ntwo\n").unwrap();
    fs::write(folder.join("agent.log"), "three\nfour\n").unwrap();
    let logs = |arguments: &[&str]| {
        let agent = home.agent(&[&["logs"], arguments].concat()).config(&config(&home, ""));
        agent.succeed().text().to_owned()
    };
    assert_eq!(logs(&[]), "one\ntwo\nthree\nfour\n");
    assert_eq!(logs(&["-n", "3"]), "two\nthree\nfour\n");
    assert_eq!(logs(&["--lines=0"]), "");
}

/// Another program wrote to the log: lines that are left out are not left out in silence.
#[test]
fn logs_say_when_they_leave_out_the_start_of_a_file() {
    let home = Home::new();
    let folder = home.path().join("state/logs");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("agent.log");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    crate::support::home::append_to(&path, "\none\n");
    let logs = |count: &str| {
        let agent = home.agent(&["logs", "-n", count]).config(&config(&home, ""));
        agent.succeed().stderr.contains("only lines at its end")
    };
    assert!(logs("1000") && !logs("1"));
}

/// The agent renames its log when it is large.
#[cfg(unix)]
#[test]
fn logs_follow_prints_new_lines_across_a_rotation() {
    use crate::support::{eventually, home::append_to};

    let home = Home::new();
    let folder = home.path().join("state/logs");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("agent.log");
    append_to(&path, "one\ntwo\n");
    let follower = home.agent(&["logs", "-f", "-n", "1"]).config(&config(&home, "")).start();
    let printed = |text: &str| {
        eventually("the lines are printed", || {
            (follower.stdout() == text.as_bytes()).then_some(())
        });
    };
    printed("two\n");
    append_to(&path, "three\n");
    printed("two\nthree\n");
    append_to(&path, "four\n");
    fs::rename(&path, folder.join("agent.log.1")).unwrap();
    append_to(&path, "five\n");
    printed("two\nthree\nfour\nfive\n");
    append_to(&path, "six\n");
    printed("two\nthree\nfour\nfive\nsix\n");
    follower.kill();
}

/// A file in place of the directory stands in for an unwritable disk.
#[test]
fn unwritable_log_file_does_not_stop_the_agent() {
    let (home, receiver) = (Home::new(), Receiver::start());
    home.write("p/s.jsonl", "{\"type\":\"user\"}\n");
    fs::create_dir(home.path().join("state")).unwrap();
    fs::write(home.path().join("state/logs"), "").unwrap();
    let once = home.agent(&["run", "--once"]).config(&config(&home, ""));
    let ended = once.ships_to(&receiver.url()).succeed();
    assert_eq!(ended.stderr.matches("state/logs").count(), 1, "{}", ended.stderr);
    assert!(receiver.entries().iter().any(|entry| entry.bytes == b"{\"type\":\"user\"}"));
}

/// The journal adds the time, and expects a number for the priority.
#[cfg(target_os = "linux")]
#[test]
fn journal_lines_have_priorities_and_no_times() {
    use std::{os::linux::fs::MetadataExt as _, process::Command};

    let home = Home::new();
    let journal = fs::File::create(home.path().join("journal")).unwrap();
    let stat = journal.metadata().unwrap();
    let run = |stream: String| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-agent"));
        command.args(["run", "--once"]).env_clear().env("HOME", home.path());
        // An unknown variable causes a warning.
        command.env("CLAUDE_SIEM_COLOUR", "red").env("JOURNAL_STREAM", stream);
        command.stderr(journal.try_clone().unwrap()).status().unwrap();
        fs::read_to_string(home.path().join("journal")).unwrap()
    };
    let to_journal = run(format!("{}:{}", stat.st_dev(), stat.st_ino()));
    assert!(to_journal.starts_with("<4>ai_agent::"), "{to_journal}");
    // The variable may be inherited by a program with another standard error.
    let to_file = run("1:2".to_owned())[to_journal.len()..].to_owned();
    assert!(to_file.starts_with("20") && to_file.contains(" WARN ai_agent::"), "{to_file}");
}
