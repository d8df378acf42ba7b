//! The hooks, called by the real Claude Code client: its reaction to the responses.
//!
//! The client of these tests uses an API key, so the policy requires an account. The daemon runs in
//! one test only, since hooks answer without it.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use crate::support::{
    SECRET,
    agent::Agent,
    claude_client::Client,
    entries, eventually,
    home::Home,
    scripted_receiver::{ConfigResponse, ScriptedReceiver},
};
use ai_agent::internals::{
    compliance::policy_file::StoredPolicy,
    platform::Timestamp,
    protocol::{Digest, managed::Compliance},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use test_requires::requires;

const MESSAGE: &str = "Keys are not permitted on company devices.";
const BANNER: &str = "This session is logged for compliance.";

/// Writes a policy, and returns the step that installs it.
fn policy(work: &Path, action: Option<&str>) -> Value {
    let mut policy = json!({ "banner": BANNER, "violation_message": MESSAGE });
    if let Some(action) = action {
        policy["action"] = json!(action);
        policy["require_account"] = json!(true);
    }
    let compliance: Compliance = serde_json::from_value(policy).unwrap();
    let folder = work.join("policies").join(action.unwrap_or("none"));
    fs::create_dir_all(&folder).unwrap();
    let kept =
        StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(1), managed: None };
    fs::write(StoredPolicy::path(&folder), kept.to_file()).unwrap();
    let (from, to) = (folder.join("policy.json"), "@HOME@/.local/state/ai-agent");
    json!({ "sh": format!("install -d -m 700 {to} && install -m 600 {} {to}/policy.json", from.display()) })
}

fn scenario(work: &Path, name: &str, steps: &[Value]) -> PathBuf {
    let path = work.join(format!("{name}.json"));
    let mock = json!({ "default": { "blocks": [{ "text": "Noted." }] } });
    let scenario = json!({ "name": name, "about": name, "mock": mock, "steps": steps });
    fs::write(&path, scenario.to_string()).unwrap();
    path
}

/// Returns the results of the steps that ran the client.
fn results(work: &Path, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(work.join(name).join("result.json")).unwrap();
    let result: Value = serde_json::from_str(&text).unwrap();
    result["steps"].as_array().unwrap().clone()
}

fn found(step: &Value) -> String {
    step["found"].to_string()
}

/// An agent that ships the sessions of a scenario, and a receiver that manages it.
struct Daemon {
    receiver: ScriptedReceiver,
    work: TempDir,
    /// Home directory of the scenario.
    users: PathBuf,
    /// State directory of the agent: elsewhere, as with `agent.state_dir`.
    state: PathBuf,
    agent: Agent,
    _home: Home,
}

impl Daemon {
    /// Starts the agent of the scenario `name`, and waits for the policy.
    fn start(name: &str, managed: &str) -> Self {
        let receiver = ScriptedReceiver::start([]).manages(managed, SECRET);
        let (home, work) = (Home::new(), tempfile::tempdir().unwrap());
        let users = work.path().join(name).join("home");
        let config = format!(
            "[shipping]\nflush_interval = \"0s\"\n[source.claude-sessions]\nroots = [\"{}\"]",
            users.join(".claude/projects").display()
        );
        let agent = home.agent(&["run"]).config(&config).ships_to(&receiver.url()).start_and_wait();
        let state = home.path().join(".local/state/ai-agent");
        eventually("a policy", || fs::exists(state.join("policy.json")).unwrap().then_some(()));
        Self { receiver, work, users, state, agent, _home: home }
    }

    /// Returns the step that makes hooks find the state directory.
    fn point(&self) -> Value {
        let point = format!(
            "install -d -m 700 @HOME@/.local/state/ai-agent && printf %s {} > @HOME@/.local/state/ai-agent/state-dir",
            self.state.display()
        );
        json!({ "sh": point })
    }
}

#[requires(client, tmux)]
#[test]
fn client_follows_the_hook_responses() {
    let client = Client::new();
    let work = tempfile::tempdir().unwrap();
    let (block, warn, none) = (
        policy(work.path(), Some("block")),
        policy(work.path(), Some("warn")),
        policy(work.path(), None),
    );
    let ask = |word: &str| json!({ "p": format!("Prompt word {word}."), "find": [word, MESSAGE, "logged for compliance"] });
    let resumed = |word: &str, how: &str| {
        let mut step = ask(word);
        step["resume"] = json!(true);
        step[how] = json!(true);
        step
    };
    let steps = [
        block.clone(),
        ask("PLUM"),
        warn,
        ask("FIG"),
        none.clone(),
        ask("KIWI"),
        block.clone(),
        resumed("PEAR", "resume"),
        resumed("LIME", "fork"),
    ];
    let headless = scenario(work.path(), "answers", &steps);
    let screen = |word: &str| {
        json!({ "tui": [
            ["wait", "❯", 30], ["sleep", 1.5], ["shot", "start"],
            ["type", format!("Prompt word {word}")], ["key", "Enter"],
            ["wait", "Noted|not permitted", 20], ["sleep", 1], ["shot", "asked"],
            ["key", "C-c"], ["key", "C-c"], ["sleep", 1]
        ], "find": [word] })
    };
    let steps = [none, screen("MANGO"), block, screen("QUINCE")];
    let on_screen = scenario(work.path(), "screen", &steps);
    let scenarios = [headless, on_screen];
    let hook = Path::new(env!("CARGO_BIN_EXE_ai-agent"));
    client.run(&scenarios, work.path(), Some(hook));

    let steps = results(work.path(), "answers");
    let [blocked, warned, free, resumed, forked] = steps.as_slice() else { panic!("{steps:?}") };
    for blocked in [blocked, resumed, forked] {
        assert_eq!(blocked["requests"], json!([]), "no request to the model: {blocked}");
        assert!(blocked["result"].as_str().unwrap().contains(MESSAGE), "{blocked}");
    }
    assert!(found(warned).contains("FIG: messages"), "{warned}");
    assert!(found(warned).contains(&format!("{MESSAGE}: messages")), "the model sees it: {warned}");
    assert!(found(free).contains("KIWI: messages"), "{free}");
    assert!(!found(free).contains(MESSAGE), "{free}");
    for step in &steps {
        assert!(!found(step).contains("logged for compliance"), "the banner is for people: {step}");
    }

    let shot = |step: u32, name: &str| {
        let path = work.path().join(format!("screen/steps/{step:02}.{name}.txt"));
        fs::read_to_string(path).unwrap()
    };
    assert!(shot(2, "start").contains(BANNER), "{}", shot(2, "start"));
    assert!(shot(2, "asked").contains("Noted"), "{}", shot(2, "asked"));
    // No banner: a session blocked from its start shows the reason instead.
    assert!(shot(4, "start").contains(MESSAGE), "{}", shot(4, "start"));
    assert!(shot(4, "asked").contains(MESSAGE), "{}", shot(4, "asked"));
    let steps = results(work.path(), "screen");
    assert!(found(&steps[0]).contains("MANGO: messages"), "{}", steps[0]);
    assert!(!found(&steps[1]).contains("QUINCE"), "{}", steps[1]);
}

/// Receiver, daemon, hook and client together, during one session.
#[requires(client, tmux)]
#[test]
fn policy_changed_by_the_server_applies_to_the_next_prompt() {
    let client = Client::new();
    let managed = |revision: &str, action: &str, required: bool| {
        let compliance = json!({
            "action": action, "require_account": required, "violation_message": MESSAGE,
        });
        json!({ "version": 1, "revision": revision, "compliance": compliance }).to_string()
    };
    let daemon = Daemon::start("changed", &managed("1", "warn", false));
    let Daemon { receiver, work, users, state, agent, .. } = &daemon;
    let wait = format!(
        "!touch ~/asked; until grep -q block {}/policy.json; do sleep 0.1; done; echo BY$((1+1))",
        state.display()
    );
    let screen = json!({ "tui": [
        ["wait", "❯", 30], ["sleep", 1.5],
        ["type", "Prompt word OLIVE"], ["key", "Enter"], ["wait", "Noted", 20], ["sleep", 1],
        ["type", wait], ["key", "Enter"], ["wait", "BY2", 60], ["sleep", 1],
        ["type", "Prompt word GRAPE"], ["key", "Enter"], ["wait", "not permitted", 20],
        ["sleep", 1], ["shot", "asked"],
        ["key", "C-c"], ["key", "C-c"], ["sleep", 1]
    ], "find": ["OLIVE", "GRAPE"] });
    let scenario = scenario(work.path(), "changed", &[daemon.point(), screen]);
    let hook = Path::new(env!("CARGO_BIN_EXE_ai-agent"));
    thread::scope(|scope| {
        let run = scope.spawn(|| client.run(&[scenario], work.path(), Some(hook)));
        let asked = users.join("asked");
        let has_marker = || (fs::exists(&asked).unwrap() || run.is_finished()).then_some(());
        crate::support::within(
            crate::support::claude_client::LONGEST,
            "the session asks",
            has_marker,
        );
        receiver.manage(ConfigResponse::Signed(managed("2", "block", true), SECRET));
        agent.signal(Signal::HUP);
        run.join().unwrap();
    });
    let results = results(work.path(), "changed");
    let [screen] = results.as_slice() else { panic!("{results:?}") };
    assert!(found(screen).contains("OLIVE: messages"), "{screen}");
    assert!(!found(screen).contains("GRAPE"), "{screen}");
    let shot = fs::read_to_string(work.path().join("changed/steps/02.asked.txt")).unwrap();
    assert!(shot.contains(MESSAGE), "{shot}");
    eventually("what the hook saw and the session's records", || {
        let stored = receiver.entries();
        let blocked = |event: &&entries::StoredEntry| event.data["decision"] == "blocked";
        let blocked = entries::events(&stored, "hook_answered").into_iter().any(|it| blocked(&it));
        let has_record = entries::lines(&stored)
            .iter()
            .any(|line| String::from_utf8_lossy(&line.bytes).contains("Prompt word OLIVE"));
        (blocked && has_record).then_some(())
    });
    daemon.agent.stop();
}

/// Resumed, forked and moved sessions write to another file than the one that the hook names.
#[requires(client)]
#[test]
fn real_client_sessions_are_never_unlogged() {
    let client = Client::new();
    let policy = json!({ "version": 1, "revision": "1", "compliance": {
        "action": "warn", "transcript_within_seconds": 5,
    }});
    let daemon = Daemon::start("sessions", &policy.to_string());
    let Daemon { receiver, work, .. } = &daemon;
    let steps = [
        daemon.point(),
        json!({ "p": "Prompt word APPLE." }),
        json!({ "p": "Prompt word BANANA.", "resume": true }),
        json!({ "p": "Prompt word CHERRY.", "resume": true, "fork": true }),
        json!({ "p": "Prompt word DATE.", "args": ["--worktree", "moved"] }),
        json!({ "p": "Prompt word ELDER.", "resume": true, "args": ["--worktree", "again"] }),
        json!({ "p": "Not logged.", "args": ["--no-session-persistence"] }),
    ];
    let path = scenario(work.path(), "sessions", &steps);
    let mut scenario: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    scenario["git"] = json!(true);
    fs::write(&path, scenario.to_string()).unwrap();
    let hook = Path::new(env!("CARGO_BIN_EXE_ai-agent"));
    client.run(&[path], work.path(), Some(hook));
    eventually("the session without a log", || {
        let stored = receiver.entries();
        (!entries::events(&stored, "session_unlogged").is_empty()).then_some(())
    });
    for word in ["APPLE", "BANANA", "CHERRY", "DATE", "ELDER"] {
        let has_word = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(word);
        eventually(word, || {
            let stored = receiver.entries();
            entries::lines(&stored).iter().any(|line| has_word(&line.bytes)).then_some(())
        });
    }
    let Daemon { agent, receiver, .. } = daemon;
    agent.stop();
    let stored = receiver.entries();
    let unlogged = entries::events(&stored, "session_unlogged");
    assert_eq!(unlogged.len(), 1, "{unlogged:?}");
}
