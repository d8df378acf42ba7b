//! A user with a systemd manager, whom a script of the shared tools creates.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{agent::AgentCommand, shared};

/// Set for a test that runs as the user.
const INSIDE: &str = "AI_AGENT_TEST_AS_USER";

/// Runs an ignored test of this binary as a new user, and removes the user. Needs root.
#[track_caller]
pub(crate) fn run_as_user(test: &str) {
    let user = format!("agent-test-{:08x}", fastrand::u32(..));
    let mut command = Command::new(shared().join("tools/with-systemd-user"));
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    command.env("SVC_USER", &user).env(format!("PASS_{INSIDE}"), "1").current_dir("/");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let streams =
        [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
    let removed = Command::new("userdel").args(["--remove", "--force", &user]).output();
    assert!(output.status.success(), "{}\n{}", streams[0], streams[1]);
    assert!(streams[0].contains("1 passed"), "{}", streams[0]);
    eprintln!("{}", streams[1]);
    assert!(removed.unwrap().status.success());
}

/// Returns the home directory of the user that [`run_as_user`] has made.
#[track_caller]
pub(crate) fn home() -> PathBuf {
    assert!(std::env::var_os(INSIDE).is_some(), "this would install the agent for this user");
    PathBuf::from(std::env::var_os("HOME").unwrap())
}

/// Returns a command of the agent that reaches the user's service manager.
pub(crate) fn agent(program: &Path, home: &Path, arguments: &[&str]) -> AgentCommand {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap();
    AgentCommand::of(program, home, arguments).env("XDG_RUNTIME_DIR", runtime)
}

/// Returns the output of `systemctl --user`.
pub(crate) fn systemctl(arguments: &[&str]) -> String {
    let output = Command::new("systemctl").arg("--user").args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns a record of a session.
pub(crate) fn record(number: u32) -> String {
    format!("{{\"type\":\"user\",\"uuid\":\"{number}\"}}")
}
