//! New programs that do not run: the previous one comes back, and no record is lost.
//!
//! The service manager is a loop of the test here; `update_systemd` has a real one.

use std::{
    env::consts::EXE_SUFFIX,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    agent::{Agent, AgentCommand},
    entries, eventually,
    home::Home,
    receiver::{Receiver, wait_for},
    releases::write_release,
};

/// Steps before which an installation is killed, in their order, as `update::steps` names them.
const STEPS: [&str; 6] =
    ["CopyNew", "KeepPrevious", "WriteRecord", "StartSupervisor", "Swap", "RunNew"];

/// A user with an installed program, and a new release.
struct World {
    home: Home,
    receiver: Receiver,
    lines: u32,
}

impl World {
    fn new(fault: &str) -> Self {
        let world = Self { home: Home::new(), receiver: Receiver::start(), lines: 0 };
        fs::create_dir(world.home.path().join("bin")).unwrap();
        let config = if cfg!(windows) { "AppData/Roaming/ai-agent" } else { ".config/ai-agent" };
        let config = world.home.path().join(config);
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("config.toml"), "shipping.flush_interval = \"0s\"").unwrap();
        write_release(&world.program(), "0.1.0", "none");
        write_release(&world.staged(), "0.2.0", fault);
        world
    }

    fn program(&self) -> PathBuf {
        self.home.path().join(format!("bin/ai-agent{EXE_SUFFIX}"))
    }

    fn previous(&self) -> PathBuf {
        self.home.path().join(format!("bin/ai-agent.previous{EXE_SUFFIX}"))
    }

    fn staged(&self) -> PathBuf {
        self.home.path().join(format!("staged{EXE_SUFFIX}"))
    }

    /// Starts the program in place, as a service manager does.
    fn start(&self) -> Agent {
        self.command().start()
    }

    fn command(&self) -> AgentCommand {
        let command = AgentCommand::of(&self.program(), self.home.path(), &["run"]);
        command.ships_to(&self.receiver.url())
    }

    /// Starts the program in place until one is running, and returns it and the number of starts that
    /// failed.
    fn keep_running(&self) -> (Agent, u32) {
        for failed in 0..10 {
            let before = self.version();
            let mut agent = self.start();
            let is_running = eventually("the agent runs or ends", || {
                let runs = agent.runs();
                let is_started = self.is_run_by(&agent, before.as_ref());
                (is_started || !runs).then_some(is_started)
            });
            if is_running {
                return (agent, failed);
            }
        }
        panic!("no agent runs: the machine has none any more");
    }

    /// PID and version of the agent that wrote its status file last.
    fn version(&self) -> Option<(u32, String)> {
        let status = fs::read(self.home.state_dir().join("status.json")).ok()?;
        let status: Value = serde_json::from_slice(&status).ok()?;
        let pid = u32::try_from(status["pid"].as_u64()?).ok()?;
        Some((pid, status["version"].as_str()?.to_owned()))
    }

    /// Returns whether the status file is that of `agent`, which on Windows may have started another process in
    /// its place; `before` is the content of the file before its start.
    fn is_run_by(&self, agent: &Agent, before: Option<&(u32, String)>) -> bool {
        let known = before.map(|(pid, _)| *pid);
        self.version().is_some_and(|(pid, _)| match cfg!(windows) {
            true => known != Some(pid),
            false => pid == agent.pid(),
        })
    }

    fn running_version(&self) -> String {
        self.version().unwrap().1
    }

    /// Installs the new release. Returns the exit code.
    fn install(&self) -> Option<i32> {
        self.installer().status().unwrap().code()
    }

    fn installer(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ai-agent-test-release"));
        let [program, staged] = [self.program(), self.staged()];
        command.arg("test-install").arg(program).arg(staged).args(["0.1.0", "0.2.0"]);
        command.stderr(Stdio::null());
        command
    }

    /// Begins to install the new release, and kills the process before `step`.
    fn install_until(&self, step: &str) {
        let ended = self.installer().env("AI_AGENT_TEST_KILL_BEFORE", step).status().unwrap();
        // Windows gives an aborted process an exit code.
        let is_killed = ended.code().is_none_or(|code| cfg!(windows) && !matches!(code, 0 | 1));
        assert!(is_killed, "it was not killed before {step}: {ended}");
    }

    fn record_file(&self) -> PathBuf {
        self.home.path().join(format!("bin/ai-agent{EXE_SUFFIX}.update.json"))
    }

    fn record(&self) -> Value {
        // Windows may refuse to open a file that is being replaced.
        let record = eventually("the record can be read", || fs::read(self.record_file()).ok());
        serde_json::from_slice(&record).unwrap()
    }

    /// Starts the supervisor, a process of the previous program.
    fn supervise(&self, timeout_ms: &str) -> Agent {
        AgentCommand::of(&self.previous(), self.home.path(), &["supervise-update"])
            .arg(self.program())
            .arg(timeout_ms)
            .start()
    }

    fn state(&self) -> String {
        self.record()["state"].as_str().unwrap().to_owned()
    }

    /// Waits for an event, and returns its data.
    fn event(&self, name: &str) -> Value {
        wait_for(&self.receiver, name, |entries| {
            Some(entries::events(entries, name).first()?.data.clone())
        })
    }

    /// Stops an agent that has run another program in its place, which on Windows is a child of it.
    fn stop(&self, agent: Agent) {
        let running = self.version().map(|(pid, _)| pid);
        if let Some(child) = running.filter(|pid| cfg!(windows) && *pid != agent.pid()) {
            let killed = Command::new("taskkill").args(["/F", "/PID", &child.to_string()]).status();
            assert!(killed.unwrap().success());
        }
        agent.stop();
    }

    /// Writes a record, and waits until the receiver has it.
    fn ship(&mut self) {
        self.lines += 1;
        let line = format!("{{\"type\":\"user\",\"uuid\":\"{}\"}}", self.lines);
        self.home.append("p/s.jsonl", format!("{line}\n"));
        wait_for(&self.receiver, "the record", |entries| {
            entries.iter().any(|entry| entry.bytes == line.as_bytes()).then_some(())
        });
    }
}

fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn good_release_is_confirmed_by_its_local_health() {
    let mut world = World::new("none");
    let (agent, _) = world.keep_running();
    world.ship();
    agent.stop();
    // The receiver is away: no reason to go back.
    world.receiver.kill();
    assert_eq!(world.install(), Some(0));
    let (agent, failed) = world.keep_running();
    assert_eq!((failed, world.running_version()), (0, "0.2.0".to_owned()));
    eventually("the release is confirmed", || (world.state() == "confirmed").then_some(()));
    world.receiver.restart();
    world.ship();
    let installed = world.event("update_installed");
    assert_eq!((&installed["from"], &installed["to"]), (&"0.1.0".into(), &"0.2.0".into()));
    agent.stop();
    world.receiver.assert_complete();
}

/// An agent that is started for a moment each time must not be rolled back at its third start.
#[test]
fn runs_with_once_confirm_a_release() {
    let world = World::new("none");
    assert_eq!(world.install(), Some(0));
    let once = || AgentCommand::of(&world.program(), world.home.path(), &["run", "--once"]);
    once().ships_to(&world.receiver.url()).succeed();
    assert_eq!(world.state(), "confirmed");
}

#[test]
fn release_that_aborts_is_rolled_back_at_its_third_start() {
    let mut world = World::new("abort-later");
    let (agent, _) = world.keep_running();
    world.ship();
    agent.stop();
    assert_eq!(world.install(), Some(0));
    assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
    let mut starts = 0;
    let agent = loop {
        starts += 1;
        let before = world.version();
        let mut agent = world.start();
        let record = eventually("the agent ends or is the previous one", || {
            let is_back =
                world.state() == "rolled-back" && world.is_run_by(&agent, before.as_ref());
            (is_back || !agent.runs()).then_some(is_back)
        });
        if record {
            break agent;
        }
        assert!(starts < 3, "it is started {starts} times");
    };
    assert_eq!((starts, world.running_version()), (3, "0.1.0".to_owned()));
    assert_eq!(world.record()["reason"], "crashed");
    world.ship();
    let failed = world.event("update_failed");
    assert_eq!((&failed["to"], &failed["reason"]), (&"0.2.0".into(), &"crashed".into()));
    let detail = failed["detail"].as_str().unwrap();
    assert!(detail.contains("agent_started"), "the log is missing: {detail}");
    world.stop(agent);
    world.receiver.assert_complete();
}

#[test]
fn release_that_breaks_at_its_place_is_never_started() {
    let world = World::new("in-place");
    assert_eq!(world.install(), Some(1));
    assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
    assert_eq!(world.record()["reason"], "not-executable");
    let (agent, failed) = world.keep_running();
    assert_eq!((failed, world.running_version()), (0, "0.1.0".to_owned()));
    agent.stop();
}

#[test]
fn installation_killed_at_any_step_leaves_an_agent_that_runs() {
    for step in STEPS {
        let mut world = World::new("none");
        world.install_until(step);
        let (agent, failed) = world.keep_running();
        let is_new = step == "RunNew";
        let expected = if is_new { "0.2.0" } else { "0.1.0" };
        assert_eq!((failed, &*world.running_version()), (0, expected), "{step}");
        world.ship();
        if is_new {
            eventually("it is confirmed", || (world.state() == "confirmed").then_some(()));
        }
        agent.stop();
        if !is_new {
            assert_eq!(world.install(), Some(0), "{step}");
            assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
        }
        world.receiver.assert_complete();
    }
}

/// The new program has no guard at all: a process of the previous one replaces it.
#[test]
fn supervisor_replaces_a_release_that_hangs_before_main() {
    let mut world = World::new("hang");
    let (agent, _) = world.keep_running();
    agent.stop();
    assert_eq!(world.install(), Some(0));
    let hanging = world.start();
    let mut supervisor = world.supervise("500");
    eventually("the previous program is back", || (world.state() == "rolled-back").then_some(()));
    eventually("the supervisor ends", || (!supervisor.runs()).then_some(()));
    assert_eq!(world.record()["reason"], "not-confirmed");
    assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
    hanging.kill();
    let (agent, _) = world.keep_running();
    world.ship();
    agent.stop();
    world.receiver.assert_complete();
}

/// The release reaches its guard and hangs behind it: a thread of the guard puts the previous one back.
#[cfg(unix)]
#[test]
fn guard_replaces_a_release_that_hangs_behind_it() {
    let mut world = World::new("stuck");
    assert_eq!(world.install(), Some(0));
    let agent = world.command().env("AI_AGENT_TEST_UPDATE_TIMEOUT_MS", "500").start();
    // No service manager starts it: the same process becomes the previous program.
    let expected = Some((agent.pid(), "0.1.0".to_owned()));
    eventually("the previous program runs", || (world.version() == expected).then_some(()));
    assert_eq!(
        (&*world.state(), &world.record()["reason"]),
        ("rolled-back", &"not-confirmed".into())
    );
    world.ship();
    assert_eq!(world.event("update_failed")["reason"], "no_progress");
    agent.stop();
    world.receiver.assert_complete();
}

/// Regression: a good release was rolled back since another agent, or a wrong configuration, kept it from
/// starting.
#[test]
fn start_that_the_machine_prevents_does_not_count() {
    let world = World::new("none");
    let (agent, _) = world.keep_running();
    assert_eq!(world.install(), Some(0));
    for _ in 0..3 {
        let error = world.command().fail(1);
        assert!(error.contains("another agent"), "{error}");
    }
    agent.stop();
    for _ in 0..3 {
        world.command().config("no such setting").fail(2);
    }
    let record = world.record();
    assert_eq!((&record["starts"], &record["withdrawn"]), (&0.into(), &6.into()), "{record}");
    let (agent, failed) = world.keep_running();
    assert_eq!((failed, world.running_version()), (0, "0.2.0".to_owned()));
    agent.stop();
}

#[test]
fn release_that_refuses_a_good_configuration_is_rolled_back() {
    let world = World::new("refuse");
    assert_eq!(world.install(), Some(0));
    let (agent, failed) = world.keep_running();
    assert_eq!((failed, world.running_version()), (2, "0.1.0".to_owned()));
    assert_eq!(world.record()["reason"], "crashed");
    world.stop(agent);
}

/// The service manager runs it before each start, for a new program that ends before `main`.
#[test]
fn guard_of_the_previous_program_counts_starts_of_the_new_one() {
    let world = World::new("abort");
    assert_eq!(world.install(), Some(0));
    for start in 1..=3 {
        let guard = AgentCommand::of(&world.previous(), world.home.path(), &["guard-update"]);
        // In another service, which passes its name on, each start counts.
        let guard = guard.env("INVOCATION_ID", "1").env("SYSTEMD_EXEC_PID", "1");
        guard.arg(world.program()).succeed();
        let expected = if start < 3 { "unconfirmed" } else { "rolled-back" };
        assert_eq!(world.state(), expected, "start {start}");
    }
    let (agent, _) = world.keep_running();
    assert_eq!(world.running_version(), "0.1.0");
    agent.stop();
}

#[test]
fn new_release_tests_itself_with_the_files_of_this_machine() {
    let world = World::new("none");
    let account = format!("{{\"pad\":\"{}\"}}", "x".repeat(100_000));
    fs::write(world.home.path().join(".claude.json"), account).unwrap();
    let (agent, _) = world.keep_running();
    // The running agent holds the store.
    let test = || AgentCommand::of(&world.staged(), world.home.path(), &["--self-test"]);
    let passed = test().ships_to(&world.receiver.url()).succeed();
    assert_eq!(passed.text(), "self-test of ai-agent 0.2.0: ok\n");
    // Without an endpoint, the configuration is not complete.
    let failed = test().run();
    assert_eq!(failed.code, Some(1), "{}", failed.text());
    assert!(failed.stderr.contains("CLAUDE_SIEM_ENDPOINT"), "{}", failed.stderr);
    agent.stop();
    // A hook keeps the account of a large file that did not change a moment ago.
    let kept = world.home.state_dir().join("account.json");
    drop(fs::remove_file(&kept));
    eventually("a hook is answered", || {
        test().ships_to(&world.receiver.url()).succeed();
        kept.is_file().then_some(())
    });
    let left = fs::read_dir(world.home.state_dir().join("update")).unwrap().count();
    assert_eq!(left, 0, "the copy of the store is removed");
}

/// Windows does not replace a running program in one step: the power may fail in between.
#[test]
fn supervisor_fills_the_place_of_a_program_that_is_missing() {
    let mut world = World::new("none");
    world.install_until("Swap");
    fs::rename(world.program(), world.home.path().join(format!("bin/ai-agent.old0{EXE_SUFFIX}")))
        .unwrap();
    let mut supervisor = world.supervise("60000");
    eventually("the supervisor ends", || (!supervisor.runs()).then_some(()));
    assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
    assert_eq!(world.state(), "rolled-back");
    let (agent, _) = world.keep_running();
    world.ship();
    agent.stop();
    assert_eq!(world.install(), Some(0));
}

/// The agent itself downloads, verifies, tests and starts the release, without a service manager.
#[test]
fn agent_replaces_itself_by_a_release_of_the_receiver() {
    use crate::support::{
        minisign::Minisign, release_server::release, scripted_receiver::ScriptedReceiver,
    };

    let (world, key) = (World::new("none"), Minisign::new(7));
    let receiver = ScriptedReceiver::start([]);
    let program = fs::read(world.staged()).unwrap();
    let release = release("0.2.0", &program, &key);
    receiver.releases().serve(&release, &program, "e1");
    receiver.releases().offer(&[release]);
    let config = format!("[update]\nmode = \"install\"\nkeys = [\"{}\"]\n", key.public());
    let command = AgentCommand::of(&world.program(), world.home.path(), &["run"]);
    let agent = command.config(&config).ships_to(&receiver.url()).start();
    let installed = eventually("the event", || {
        let entries = receiver.entries();
        entries::events(&entries, "update_installed").first().map(|entry| entry.data.clone())
    });
    assert_eq!((&installed["from"], &installed["to"]), (&"0.1.0".into(), &"0.2.0".into()));
    assert_eq!(world.state(), "confirmed");
    assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
    assert_eq!(world.running_version(), "0.2.0");
    world.stop(agent);
}

#[cfg(unix)]
#[test]
fn commands_install_a_release_and_go_back() {
    use crate::support::{
        minisign::Minisign, release_server::release, scripted_receiver::ScriptedReceiver,
    };

    let (world, key) = (World::new("none"), Minisign::new(7));
    let receiver = ScriptedReceiver::start([]);
    let offer = |version: &str| {
        let program = fs::read(world.staged()).unwrap();
        let release = release(version, &program, &key);
        receiver.releases().serve(&release, &program, version);
        receiver.releases().offer(&[release]);
    };
    let command = |arguments: &[&str]| {
        let command = AgentCommand::of(&world.program(), world.home.path(), &["update"]);
        let config = format!("update.keys = [\"{}\"]\n", key.public());
        let command = arguments.iter().fold(command, |command, argument| command.arg(argument));
        command.config(&config).ships_to(&receiver.url())
    };
    let done = |arguments: &[&str]| {
        let ended = command(arguments).arg("--json").succeed();
        let json: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let [installed, state] = ["installed", "state"].map(|name| json[name].as_str().unwrap());
        assert_eq!(version_of(&world.program()), format!("ai-agent {installed}"));
        format!("{installed} {state}")
    };
    offer("0.2.0");
    assert_eq!(done(&["install"]), "0.2.0 unconfirmed");
    let error = command(&["install"]).fail(1);
    assert!(error.contains("0.2.0 has not been confirmed yet"), "{error}");
    assert_eq!(done(&["rollback"]), "0.1.0 rolled_back");
    assert_eq!(world.record()["reason"], "by-hand");
    write_release(&world.staged(), "0.0.9", "none");
    offer("0.0.9");
    assert_eq!(done(&["install"]), "0.1.0 current");
    assert_eq!(done(&["install", "--allow-downgrade"]), "0.0.9 unconfirmed");
}

/// Running programs, and files that another program holds, as virus scanners do.
#[cfg(windows)]
mod windows {
    use std::{fs::File, os::windows::fs::OpenOptionsExt as _};

    use super::*;

    /// Keeps other programs from renaming or deleting a file.
    fn hold(path: &Path) -> std::io::Result<File> {
        /// `FILE_SHARE_READ | FILE_SHARE_WRITE`, and not `FILE_SHARE_DELETE`.
        const SHARED: u32 = 3;
        File::options().read(true).share_mode(SHARED).open(path)
    }

    #[test]
    fn installation_waits_for_a_program_that_is_held() {
        let world = World::new("none");
        let held = hold(&world.program()).unwrap();
        let mut installer = world.installer().spawn().unwrap();
        let link = world.home.path().join("bin/ai-agent.previous.new.exe");
        eventually("the program cannot be kept yet", || link.is_file().then_some(()));
        assert_eq!(installer.try_wait().unwrap(), None);
        drop(held);
        assert_eq!(installer.wait().unwrap().code(), Some(0));
        assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
    }

    #[test]
    fn new_program_that_stays_held_is_not_installed() {
        let mut world = World::new("none");
        let mut installer = world.installer().spawn().unwrap();
        let next = world.home.path().join("bin/ai-agent.next.exe");
        let held = eventually("the copy", || hold(&next).ok());
        let ended = eventually("the installation fails", || {
            assert!(world.program().is_file(), "its place is empty");
            installer.try_wait().unwrap()
        });
        assert_eq!(ended.code(), Some(1));
        assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
        assert_eq!(world.state(), "interrupted");
        let (agent, _) = world.keep_running();
        world.ship();
        let failed = world.event("update_failed");
        assert_eq!((&failed["to"], &failed["reason"]), (&"0.2.0".into(), &"install".into()));
        agent.stop();
        drop(held);
        assert_eq!(world.install(), Some(0));
    }

    /// The new program runs while it is replaced by the previous one, whose file a supervisor runs.
    #[test]
    fn rollback_waits_for_a_program_that_is_held() {
        let world = World::new("hang");
        assert_eq!(world.install(), Some(0));
        let hanging = world.start();
        let held = hold(&world.previous()).unwrap();
        let mut supervisor = world.supervise("1");
        eventually("the rollback begins", || (world.state() == "rolling-back").then_some(()));
        assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
        assert!(supervisor.runs());
        drop(held);
        eventually("it is back", || (world.state() == "rolled-back").then_some(()));
        assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
        hanging.kill();
    }

    #[test]
    fn killed_rollback_is_completed_at_the_next_start() {
        let world = World::new("abort");
        assert_eq!(world.install(), Some(0));
        let guard = || {
            AgentCommand::of(&world.previous(), world.home.path(), &["guard-update"])
                .arg(world.program())
        };
        guard().succeed();
        guard().succeed();
        let killed = guard().env("AI_AGENT_TEST_KILL_BEFORE", "Restore").run();
        assert_ne!(killed.code, Some(0));
        assert_eq!(world.state(), "rolling-back");
        assert_eq!(version_of(&world.program()), "ai-agent 0.2.0");
        guard().succeed();
        assert_eq!(world.state(), "rolled-back");
        assert_eq!(version_of(&world.program()), "ai-agent 0.1.0");
    }

    #[test]
    fn uninstallation_waits_for_the_supervisor_of_an_update() {
        let world = World::new("none");
        assert_eq!(world.install(), Some(0));
        let installed = world.home.path().join("AppData/Local/ai-agent");
        fs::create_dir_all(&installed).unwrap();
        for entry in fs::read_dir(world.home.path().join("bin")).unwrap() {
            let entry = entry.unwrap();
            fs::rename(entry.path(), installed.join(entry.file_name())).unwrap();
        }
        fs::write(installed.join("task.xml"), "").unwrap();
        let previous = installed.join("ai-agent.previous.exe");
        let mut supervisor = AgentCommand::of(&previous, world.home.path(), &["supervise-update"])
            .arg(installed.join("ai-agent.exe"))
            .arg("60000")
            .start();
        assert!(fs::remove_file(&previous).is_err(), "it runs");
        let ended = world.home.agent(&["uninstall"]).succeed();
        let left: Vec<_> = fs::read_dir(&installed).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}: {}", ended.text());
        eventually("the supervisor ends", || (!supervisor.runs()).then_some(()));
    }
}
