//! Protection of the agent's own files and process: owner and mode of the state directory, symlinks,
//! core files, Landlock.
#![cfg(unix)]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{eventually, home::Home};
use ai_agent::internals::{
    compliance::policy_file::StoredPolicy,
    platform::Timestamp,
    protocol::{Digest, managed::Compliance},
};
use serde_json::{Value, json};
use test_requires::requires;

/// Configuration of an agent that delivers to a file, without a server.
fn to_file(path: &Path) -> String {
    format!(
        "[pipeline]\nsinks = [\"copy\"]\n[shipping]\nflush_interval = \"0s\"\n[sink.copy]\n\
         type = \"file\"\npath = \"{}\"\n",
        path.display()
    )
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Creates a directory for the file of a sink.
fn sink_dir(home: &Home, name: &str) -> std::path::PathBuf {
    let dir = home.path().join(name);
    fs::create_dir(&dir).unwrap();
    dir
}

/// Returns the report of `status --json`, which fails if no agent is running.
fn status(home: &Home) -> Value {
    let config = home.path().join("agent.toml");
    let ended = home.agent(&["status", "--json", "--config"]).arg(config).run();
    serde_json::from_slice(&ended.stdout).unwrap()
}

#[test]
fn commands_refuse_a_state_directory_that_others_can_write() {
    let home = Home::new();
    let config = to_file(&sink_dir(&home, "sink").join("out.ndjson"));
    home.agent(&["run", "--once"]).config(&config).succeed();
    let state = home.state_dir();
    set_mode(&state, 0o777);
    let commands: [&[&str]; 6] = [
        &["run", "--once"],
        &["status"],
        &["check"],
        &["flush"],
        &["outbox", "status"],
        &["deadletter", "list"],
    ];
    for command in commands {
        let error = home.agent(command).config(&config).fail(1);
        let remedy = format!("chmod 700 '{}'", state.display());
        assert!(error.contains(&remedy), "{command:?}: {error}");
    }
    let doctor = home.agent(&["doctor"]).config(&config).run();
    assert!(doctor.text().contains("FAIL  state") && doctor.text().contains("chmod 700"));
    set_mode(&state, 0o700);
    home.agent(&["outbox", "status"]).config(&config).succeed();
}

/// Root may look at the agent of another user, and may not write there.
#[requires(root)]
#[test]
fn state_directory_of_another_user_is_read_only_for_root() {
    let home = Home::new();
    let config = to_file(&sink_dir(&home, "sink").join("out.ndjson"));
    home.agent(&["run", "--once"]).config(&config).succeed();
    std::os::unix::fs::chown(home.state_dir(), Some(1234), Some(1234)).unwrap();
    let error = home.agent(&["run", "--once"]).config(&config).fail(1);
    for word in ["belongs to user 1234", "sudo -u '#1234'", "chown -R root"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    let stopped = home.agent(&["status"]).config(&config).fail(1);
    assert!(stopped.contains("the agent is not running"), "{stopped}");
}

/// Any user could delete the policy, or put a report in the name of this one.
#[test]
fn hook_ignores_a_state_directory_that_others_can_write() {
    let home = Home::new();
    let state = home.state_dir();
    let compliance: Compliance = serde_json::from_value(json!({
        "permitted_email_domains": ["company.com"], "action": "block",
        "violation_message": "Not permitted.",
    }))
    .unwrap();
    let account = json!({ "oauthAccount": { "emailAddress": "me@gmail.com" } });
    fs::write(home.path().join(".claude.json"), account.to_string()).unwrap();
    let policy =
        StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(1), managed: None };
    fs::create_dir_all(&state).unwrap();
    set_mode(&state, 0o700);
    fs::write(StoredPolicy::path(&state), policy.to_file()).unwrap();
    let hook = || {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ai-agent"))
            .args(["check", "--hook", "UserPromptSubmit"])
            .env_clear()
            .env("HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{{\"session_id\":\"s\"}}").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(hook().0, Some(2), "the policy blocks");
    fs::remove_dir_all(state.join("spool")).unwrap();
    set_mode(&state, 0o733);
    let (code, error) = hook();
    assert_eq!(code, Some(0), "a policy that others can delete is not used: {error}");
    assert!(error.contains("chmod 700"), "{error}");
    assert!(!state.join("spool").try_exists().unwrap(), "and nothing is written there");
}

#[test]
fn no_file_of_the_agent_is_written_through_a_symlink() {
    let names = [
        "agent.lock",
        "agent.pid",
        "agent.sock",
        "outbox.redb",
        "status.json",
        "policy.json",
        "device.key",
        "logs",
        "logs/agent.log",
        "spool",
    ];
    for name in names {
        let home = Home::new();
        home.write("-p/a.jsonl", "{\"n\":1}\n");
        let config = to_file(&sink_dir(&home, "sink").join("out.ndjson"));
        let (state, precious) = (home.state_dir(), home.path().join("precious"));
        fs::create_dir_all(&state).unwrap();
        set_mode(&state, 0o700);
        if ["logs", "spool"].contains(&name) {
            fs::create_dir(&precious).unwrap();
        } else {
            fs::write(&precious, "precious").unwrap();
        }
        let link = state.join(name);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&precious, &link).unwrap();
        let ended = home.agent(&["run", "--once"]).config(&config).run();
        match fs::read_dir(&precious) {
            Ok(entries) => assert_eq!(entries.count(), 0, "{name}: {}", ended.stderr),
            Err(_) => assert_eq!(fs::read(&precious).unwrap(), b"precious", "{name}"),
        }
        if ["agent.lock", "agent.pid", "outbox.redb"].contains(&name) {
            assert_eq!(ended.code, Some(1), "{name}: {}", ended.stderr);
            assert!(ended.stderr.contains("is a symbolic link"), "{name}: {}", ended.stderr);
        } else {
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        }
    }
}

#[cfg(target_os = "linux")]
#[requires(landlock)]
#[test]
fn every_thread_of_the_agent_is_restricted() {
    let (home, sink) = (Home::new(), tempfile::tempdir().unwrap());
    let dir = sink.path().join("sink");
    fs::create_dir(&dir).unwrap();
    let config = to_file(&dir.join("out.ndjson"));
    let agent = home.agent(&["run"]).config(&config).start_and_wait();
    home.write("-p/a.jsonl", "{\"uuid\":\"a\"}\n");
    let out = |dir: &Path| fs::read_to_string(dir.join("out.ndjson")).unwrap_or_default();
    eventually("the first record", || out(&dir).contains("uuid").then_some(()));
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        // Landlock needs it, and each thread inherits both from the one that starts it.
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        threads += 1;
    }
    assert!(threads > 2, "{threads} threads");
    let landlock = &status(&home)["agent"]["landlock"];
    assert_eq!(landlock["active"], true, "{landlock}");
    assert!(landlock["abi"].as_i64().unwrap() >= 3, "{landlock}");
    let doctor = home.agent(&["doctor", "--config"]).arg(home.path().join("agent.toml")).run();
    assert!(doctor.text().contains("landlock       active (ABI "), "{}", doctor.text());

    // The directory of the sink now leads elsewhere.
    let elsewhere = sink.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::rename(&dir, sink.path().join("moved")).unwrap();
    symlink(&elsewhere, &dir).unwrap();
    home.write("-p/b.jsonl", "{\"uuid\":\"b\"}\n");
    eventually("a denied write", || {
        let status = status(&home);
        let problem = status["sinks"][0]["last_error"]["reason"].as_str()?.to_owned();
        problem.contains("Permission denied").then_some(())
    });
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    agent.stop();
}

/// Landlock permits directories, which must exist.
#[cfg(target_os = "linux")]
#[requires(landlock)]
#[test]
fn directory_of_a_sink_that_is_made_later_needs_a_restart() {
    let (home, sink) = (Home::new(), tempfile::tempdir().unwrap());
    home.write("-p/a.jsonl", "{\"uuid\":\"a\"}\n");
    let dir = sink.path().join("later");
    let config = to_file(&dir.join("out.ndjson"));
    let agent = home.agent(&["run"]).config(&config).start_and_wait();
    fs::create_dir(&dir).unwrap();
    eventually("the remedy", || {
        let status = status(&home);
        let error = status["sinks"][0]["last_error"]["reason"].as_str()?.to_owned();
        error.contains("restart needed").then_some(())
    });
    agent.stop();
    home.agent(&["run", "--once"]).config(&config).succeed();
    assert!(fs::read_to_string(dir.join("out.ndjson")).unwrap().contains("uuid"));
}

#[cfg(target_os = "linux")]
#[requires(landlock)]
#[test]
fn new_directory_of_a_sink_needs_a_restart() {
    let home = Home::new();
    home.write("-p/a.jsonl", "{\"uuid\":\"a\"}\n");
    let (old, new) = (sink_dir(&home, "old"), sink_dir(&home, "new"));
    let agent = home.agent(&["run"]).config(&to_file(&old.join("out.ndjson"))).start_and_wait();
    let config = home.path().join("agent.toml");
    let reload = |path: &Path| {
        fs::write(&config, to_file(path)).unwrap();
        home.agent(&["reload", "--config"]).arg(&config).run()
    };
    // Another file in a known directory.
    assert_eq!(reload(&old.join("other.ndjson")).code, Some(0));
    let refused = reload(&new.join("out.ndjson"));
    assert_eq!(refused.code, Some(1), "{}", refused.text());
    let status = status(&home);
    let problems = status["problems"].to_string();
    assert!(problems.contains("restart needed"), "{status:#}");
    agent.stop();
    home.agent(&["run", "--once"]).config(&to_file(&new.join("out.ndjson"))).succeed();
}

#[cfg(target_os = "linux")]
#[requires(unprivileged)]
#[test]
fn agent_leaves_no_core_and_hides_its_memory() {
    let home = Home::new();
    let config = to_file(&sink_dir(&home, "sink").join("out.ndjson"));
    let agent = home.agent(&["run"]).config(&config);
    let is_root = fs::metadata(home.path()).unwrap().uid() == 0;
    let agent = if is_root {
        home.give_to(65_534);
        agent.user(65_534)
    } else {
        agent
    };
    let agent = agent.start_and_wait();
    let process = Path::new("/proc").join(agent.pid().to_string());
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let core: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "{core:?}");
    // The system gives the files of a process that cannot be dumped to root.
    assert_eq!(fs::metadata(process.join("environ")).unwrap().uid(), 0);
    agent.stop();
}
