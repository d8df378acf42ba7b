//! Accounts reported by the daemon, the policy that it leaves for hooks, and the reports of hooks
//! that it ships.
#![cfg(unix)]

use std::{fs, io::Write as _, path::Path, process::Stdio};

use crate::support::{
    SECRET,
    entries::{self, StoredEntry},
    eventually,
    home::Home,
    scripted_receiver::{ConfigResponse, ScriptedReceiver},
};
use rustix::process::Signal;
use serde_json::{Value, json};

fn sign_in(home: &Home, email: &str) {
    let account = json!({ "oauthAccount": { "emailAddress": email, "organizationUuid": "o-1" } });
    fs::write(home.path().join(".claude.json"), account.to_string()).unwrap();
}

fn policy(action: &str, domain: &str) -> String {
    json!({ "version": 1, "revision": format!("{action} {domain}"), "compliance": {
        "permitted_email_domains": [domain], "action": action,
        "violation_message": "Personal accounts are not permitted.",
    }})
    .to_string()
}

/// Calls a hook as the client does, and returns its exit code.
fn hook(home: &Home, name: &str, session: &str) -> i32 {
    call_with(home, name, session, &home.projects())
}

/// Like [`hook`], for a session with its records in `projects`.
fn call_with(home: &Home, name: &str, session: &str, projects: &Path) -> i32 {
    let transcript = projects.join(format!("-work/{session}.jsonl"));
    let call = json!({ "session_id": session, "transcript_path": transcript, "cwd": "/work" });
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ai-agent"))
        .args(["check", "--hook", name])
        .env_clear()
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{call}").unwrap();
    child.wait().unwrap().code().unwrap()
}

fn wait_for_event(receiver: &ScriptedReceiver, name: &str, count: usize) -> StoredEntry {
    eventually(name, || {
        let stored = receiver.entries();
        let found = entries::events(&stored, name);
        (found.len() >= count).then(|| found[count - 1].clone())
    })
}

fn wait_for_policy(home: &Home) {
    let policy = home.path().join(".local/state/ai-agent/policy.json");
    eventually("a policy", || fs::exists(&policy).unwrap().then_some(()));
}

/// Hooks answer by the policy of the server, with and without the daemon.
#[test]
fn policy_reaches_the_hooks_and_violations_reach_the_server() {
    let home = Home::new();
    sign_in(&home, "me@gmail.com");
    let receiver = ScriptedReceiver::start([]).manages(&policy("block", "company.com"), SECRET);
    // Violations do not wait for the flush interval of an hour.
    let config = "[shipping]\nflush_interval = \"1h\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();

    let violation = wait_for_event(&receiver, "compliance_violation", 1);
    assert_eq!(violation.data["violation"], "email_domain");
    assert_eq!(violation.data["found"], "me@gmail.com");
    assert_eq!(violation.data["who"]["organization"], "o-1");
    assert_eq!(hook(&home, "UserPromptSubmit", "s-1"), 2);

    sign_in(&home, "me@company.com");
    assert_eq!(hook(&home, "UserPromptSubmit", "s-1"), 0, "checked at each call");

    // The policy changes while sessions run: an account that was permitted is not permitted now.
    receiver.manage(ConfigResponse::Signed(policy("block", "other.com"), SECRET));
    agent.signal(Signal::HUP);
    let violation = wait_for_event(&receiver, "compliance_violation", 2);
    assert_eq!(violation.data["found"], "me@company.com");
    eventually("the hook knows", || (hook(&home, "UserPromptSubmit", "s-1") == 2).then_some(()));
    let stored = receiver.entries();
    assert_eq!(entries::events(&stored, "compliance_restored").len(), 1, "before that");
    agent.stop();

    // While the daemon is stopped, hooks still answer and their reports wait.
    assert_eq!(hook(&home, "UserPromptSubmit", "s-2"), 2);
    let spool = home.path().join(".local/state/ai-agent/spool");
    assert!(fs::read_dir(&spool).unwrap().count() > 0);
    let agent = home
        .agent(&["run"])
        .config("[shipping]\nflush_interval = \"0s\"")
        .ships_to(&receiver.url())
        .start_and_wait();
    let blocked = eventually("what the hooks saw", || {
        let stored = receiver.entries();
        let answered = entries::events(&stored, "hook_answered");
        let blocked = answered.iter().filter(|event| event.data["decision"] == "blocked");
        let sessions: Vec<Value> = blocked.map(|it| it.data["session_id"].clone()).collect();
        sessions.contains(&json!("s-2")).then_some(answered.len())
    });
    assert!(blocked >= 3, "{blocked}");
    eventually("the spool is empty", || (fs::read_dir(&spool).unwrap().count() == 0).then_some(()));
    // A violation is reported once while it lasts, also across restarts.
    let stored = receiver.entries();
    assert_eq!(entries::events(&stored, "compliance_violation").len(), 2);
    agent.stop();
    let stored = receiver.entries();
    let answered = entries::events(&stored, "hook_answered");
    assert_eq!(answered.len(), blocked, "none is taken up twice");
}

/// A client with another configuration directory writes its sessions there.
#[test]
fn directory_named_by_a_hook_is_read_from_then_on() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]).manages(&policy("warn", "company.com"), SECRET);
    let config = "[shipping]\nflush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    wait_for_policy(&home);
    let elsewhere = tempfile::tempdir().unwrap();
    let root = elsewhere.path().canonicalize().unwrap().join("projects");
    fs::create_dir_all(root.join("-work")).unwrap();
    let transcript = root.join("-work/s-9.jsonl");
    fs::write(&transcript, "{\"type\":\"user\",\"n\":9}\n").unwrap();
    assert_eq!(call_with(&home, "SessionStart", "s-9", &root), 0);
    let learnt = wait_for_event(&receiver, "root_learnt", 1);
    assert_eq!(learnt.data["root"], root.to_str().unwrap());
    let line = |number: &str| {
        let stored = receiver.entries();
        let found = entries::lines(&stored)
            .iter()
            .any(|line| String::from_utf8_lossy(&line.bytes).contains(&format!("\"n\":{number}")));
        found.then_some(())
    };
    eventually("its record", || line("9"));
    agent.stop();
    // The next start knows the directory, though no hook names it again.
    crate::support::home::append_to(&transcript, "{\"type\":\"user\",\"n\":10}\n");
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    eventually("its next record", || line("10"));
    agent.stop();
}

/// The account of another configuration directory is also checked, once one of its sessions is
/// known.
#[test]
fn account_beside_a_learnt_directory_is_checked() {
    let home = Home::new();
    sign_in(&home, "me@company.com");
    let receiver = ScriptedReceiver::start([]).manages(&policy("warn", "company.com"), SECRET);
    let config = "[shipping]\nflush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    wait_for_policy(&home);
    let elsewhere = tempfile::tempdir_in(home.path()).unwrap();
    let folder = elsewhere.path().canonicalize().unwrap();
    let account = json!({ "oauthAccount": { "emailAddress": "me@gmail.com" } });
    fs::write(folder.join(".claude.json"), account.to_string()).unwrap();
    fs::create_dir_all(folder.join("projects/-work")).unwrap();
    assert_eq!(call_with(&home, "SessionStart", "s-9", &folder.join("projects")), 0);
    let violation = wait_for_event(&receiver, "compliance_violation", 1);
    assert_eq!(violation.data["found"], "me@gmail.com");
    assert_eq!(violation.data["file"], folder.join(".claude.json").to_str().unwrap());
    agent.stop();
}

/// The event was reported for sessions that were logged in another file than the hook named.
#[test]
fn session_logged_in_another_file_is_not_reported() {
    let home = Home::new();
    let policy = json!({ "version": 1, "revision": "1", "compliance": {
        "action": "warn", "transcript_within_seconds": 1,
    }});
    let receiver = ScriptedReceiver::start([]).manages(&policy.to_string(), SECRET);
    let config = "[shipping]\nflush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(config).ships_to(&receiver.url()).start_and_wait();
    wait_for_policy(&home);
    let line =
        |session: &str| format!("{{\"uuid\":\"u-{session}\",\"sessionId\":\"{session}\"}}\n");
    let other = home.projects().join("-other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("another-name.jsonl"), line("moved")).unwrap();
    fs::write(other.join("mixed.jsonl"), format!("{}{}", line("x"), line("resumed"))).unwrap();
    for session in ["moved", "resumed", "unlogged"] {
        assert_eq!(hook(&home, "UserPromptSubmit", session), 0);
    }
    let event = wait_for_event(&receiver, "session_unlogged", 1);
    assert_eq!(event.data["session_id"], "unlogged");
    agent.stop();
    assert_eq!(entries::events(&receiver.entries(), "session_unlogged").len(), 1);
}
