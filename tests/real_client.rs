//! The real Claude Code client, against a scripted model and without a network, while the agent
//! runs on its home: what the client wrote arrives.
#![allow(clippy::unwrap_used, reason = "a test ends there")]
#![cfg(target_os = "linux")]

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{
    entries, files_below,
    home::Home,
    naive::{self, Rules},
    receiver::{Receiver, settle},
    shared,
};

/// How long the client may take, its download included.
const LONGEST: Duration = Duration::from_secs(400);

const SCENARIOS: [&str; 2] = ["text", "subagent"];

/// The script that runs the client; none where something that it needs is missing.
fn script() -> Option<PathBuf> {
    let script = shared()?.join("realclient/run.sh");
    for tool in ["npm", "python3"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            let on_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
            assert!(!on_ci, "the real client needs {tool}, and this is the place to have it");
            eprintln!("skipped: the real client needs {tool}");
            return None;
        }
    }
    Some(script)
}

/// Where the client is kept from one run to the next.
fn cache() -> PathBuf {
    if let Some(given) = std::env::var_os("RC_CACHE") {
        return given.into();
    }
    let home = std::env::var_os("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
    home.join(".cache/ai-agent-realclient")
}

#[test]
fn what_the_real_client_writes_arrives() {
    let Some(script) = script() else { return };
    let work = tempfile::tempdir().unwrap();
    let roots = SCENARIOS.map(|name| work.path().join(name).join("home/.claude/projects"));
    let (home, receiver) = (Home::new(), Receiver::start());
    let config =
        format!("[shipping]\nflush_interval = \"0s\"\n[source.claude-sessions]\nroots = {roots:?}");
    let agent = home.agent(&["run"]).config(&config).ships_to(&receiver.url()).start_and_wait();
    if !run_client(&script, work.path()) {
        eprintln!("skipped: the real client could not be fetched from the npm registry");
        return;
    }

    let rules = Rules::default();
    let expected: Vec<_> = roots.iter().flat_map(|root| naive::read_tree(root, &rules)).collect();
    assert!(expected.len() >= 15, "the client wrote {} records", expected.len());
    let of_sub_agents = roots.iter().flat_map(|root| files_below(root));
    assert!(
        of_sub_agents
            .into_iter()
            .any(|path| path.components().any(|c| c.as_os_str() == "subagents"))
    );
    settle(&receiver, expected.len());
    agent.stop();
    naive::assert_same(&expected, &entries::lines(&receiver.entries()));
    receiver.assert_whole();
}

/// Runs the client; false where it could not be fetched, and was not there from another time.
fn run_client(script: &Path, work: &Path) -> bool {
    let log = work.join("client.log");
    let folder = script.parent().unwrap();
    let mut child = Command::new(script)
        .args(SCENARIOS.map(|name| folder.join(format!("scenarios/{name}.json"))))
        .env("RC_WORK", work)
        .env("RC_CACHE", cache())
        .stdin(Stdio::null())
        .stdout(fs::File::create(&log).unwrap())
        .stderr(fs::File::options().append(true).open(&log).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LONGEST {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the client took too long:\n{}", fs::read_to_string(&log).unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let is_client = |path: &PathBuf| path.file_name().is_some_and(|name| name == "claude");
    if !status.success() && !files_below(&cache()).iter().any(is_client) {
        return false;
    }
    assert!(status.success(), "{}", fs::read_to_string(&log).unwrap());
    true
}
