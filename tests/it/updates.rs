//! Updates of the agent from a receiver: what it reports, what it refuses, and what it leaves alone.
#![cfg(unix)]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::support::{
    agent::{Agent, AgentCommand},
    entries::{self, StoredEntry},
    eventually,
    home::Home,
    minisign::Minisign,
    release_server::{Fault, Releases, release},
    scripted_receiver::ScriptedReceiver,
    within,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use siem_protocol::update::{Rollout, UpdateRelease};
use test_requires::requires;

/// A release of the distant future.
const NEXT: &str = "99.0.0";

fn key() -> Minisign {
    Minisign::new(7)
}

fn config(mode: &str) -> String {
    format!(
        "shipping.flush_interval = \"0s\"\n[update]\nmode = \"{mode}\"\nkeys = [\"{}\"]\n",
        key().public()
    )
}

/// A home with a program of its own, and the receiver that the agent ships to.
struct Machine {
    home: Home,
    receiver: ScriptedReceiver,
    program: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let home = Home::new();
        let program = home.path().join("bin/ai-agent");
        fs::create_dir(home.path().join("bin")).unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_ai-agent"));
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program).unwrap();
        }
        Self { home, receiver: ScriptedReceiver::start([]), program }
    }

    fn releases(&self) -> Releases {
        self.receiver.releases()
    }

    /// Offers a program as the next release.
    fn offer(&self, program: &[u8]) -> UpdateRelease {
        let release = release(NEXT, program, &key());
        self.releases().serve(&release, program, "e1");
        self.releases().offer(std::slice::from_ref(&release));
        release
    }

    fn command(&self, mode: &str, arguments: &[&str]) -> AgentCommand {
        let command = AgentCommand::of(&self.program, self.home.path(), arguments);
        command.config(&config(mode)).ships_to(&self.receiver.url())
    }

    fn start(&self, mode: &str) -> Agent {
        self.command(mode, &["run"]).start_and_wait()
    }

    /// Returns the events about updates.
    fn events(&self) -> Vec<StoredEntry> {
        let is_about_updates =
            |entry: &StoredEntry| entry.event.as_ref().is_some_and(|it| it.starts_with("update_"));
        self.receiver.entries().into_iter().filter(is_about_updates).collect()
    }

    #[track_caller]
    fn wait_for_event(&self, name: &str) -> Value {
        eventually(name, || {
            let entries = self.receiver.entries();
            entries::events(&entries, name).last().map(|entry| entry.data.clone())
        })
    }

    /// Returns `update` of the agent's status.
    fn status(&self, mode: &str) -> Value {
        let ended = self.command(mode, &["status", "--json"]).run();
        serde_json::from_slice::<Value>(&ended.stdout).unwrap()["update"].clone()
    }

    /// Waits until so many bytes of a release have arrived. Returns the path of their file.
    #[track_caller]
    fn wait_for_part(&self, release: &UpdateRelease, size: u64) -> PathBuf {
        let part = self.home.state_dir().join(format!("update/{}.part", release.artifact));
        eventually("a part of the release", || {
            fs::metadata(&part).is_ok_and(|found| found.len() == size).then_some(())
        });
        part
    }

    /// Waits until the agent has checked once more, and handled the response, which a second check
    /// shows.
    fn check_again(&self, agent: &Agent) {
        for _ in 0..2 {
            let before = self.releases().queries().len();
            agent.signal(Signal::HUP);
            eventually("a check", || (self.releases().queries().len() > before).then_some(()));
        }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        let built = fs::metadata(env!("CARGO_BIN_EXE_ai-agent")).unwrap().len();
        assert_eq!(fs::metadata(&self.program).unwrap().len(), built);
        let names: Vec<_> = fs::read_dir(self.home.path().join("bin")).unwrap().collect();
        let names = names.into_iter().map(|it| it.unwrap().file_name().into_string().unwrap());
        let names: Vec<_> = names.filter(|name| !name.ends_with(".lock")).collect();
        assert_eq!(names, ["ai-agent"]);
    }
}

#[test]
fn newer_release_is_reported_once_in_mode_notify() {
    let machine = Machine::new();
    machine.offer(b"a program");
    let mut agent = machine.start("notify");
    agent.wait_for_code("update_available");
    let own = env!("CARGO_PKG_VERSION");
    let expected = json!({ "from": own, "to": NEXT, "reason": "notify" });
    assert_eq!(machine.wait_for_event("update_available"), expected);
    machine.check_again(&agent);
    let status = machine.status("notify");
    assert_eq!(status["state"], "available");
    assert_eq!((&status["version"], &status["mode"]), (&json!(NEXT), &json!("notify")));
    assert!(status["checked_at"].is_string());
    agent.stop();
    let entries = machine.receiver.entries();
    let last = entries::events(&entries, "heartbeat").last().unwrap().data["update"].clone();
    assert_eq!(last["state"], "available");
    assert_eq!(last["version"], NEXT);

    let agent = machine.start("notify");
    machine.check_again(&agent);
    agent.stop();
    assert_eq!(machine.events().len(), 1, "a restart does not report it again");
    assert_eq!(machine.releases().requests(), [], "nothing is downloaded");
    machine.assert_untouched();
}

#[test]
fn nothing_is_requested_while_updates_are_off() {
    let machine = Machine::new();
    machine.offer(b"a program");
    let agent = machine.start("off");
    let asked = machine.receiver.config_requests();
    agent.signal(Signal::HUP);
    eventually("a poll", || (machine.receiver.config_requests() > asked).then_some(()));
    assert_eq!(machine.status("off")["state"], "off");
    agent.stop();
    assert_eq!(machine.releases().queries(), Vec::<String>::new());
}

#[test]
fn release_by_another_key_is_refused_and_reported_once() {
    let machine = Machine::new();
    let forged = release(NEXT, b"a program", &Minisign::new(8));
    machine.releases().serve(&forged, b"a program", "e1");
    machine.releases().offer(&[forged]);
    let mut agent = machine.start("install");
    agent.wait_for_code("update_refused");
    let data = machine.wait_for_event("update_refused");
    assert_eq!((&data["to"], &data["reason"]), (&json!(NEXT), &json!("unknown_key")));
    machine.check_again(&agent);
    let has_failed = || machine.status("install")["state"] == "failed";
    eventually("it is refused again", || has_failed().then_some(()));
    agent.stop();
    assert_eq!(machine.events().len(), 1);
    machine.assert_untouched();
}

#[test]
fn program_that_fails_its_self_test_is_not_installed() {
    let machine = Machine::new();
    machine.offer(b"#!/bin/sh\necho defect >&2\nexit 3\n");
    let agent = machine.start("install");
    let data = machine.wait_for_event("update_failed");
    assert_eq!((&data["to"], &data["reason"]), (&json!(NEXT), &json!("self_test")));
    assert!(data["detail"].as_str().unwrap().contains("defect"), "{data}");
    machine.check_again(&agent);
    assert_eq!(machine.releases().requests().len(), 1, "the verified file is kept");

    // The next release cannot be executed at all.
    let second = release("99.1.0", b"\x7fELF no program", &key());
    machine.releases().serve(&second, b"\x7fELF no program", "e2");
    machine.releases().offer(&[second]);
    agent.signal(Signal::HUP);
    eventually("two failures", || (machine.events().len() == 2).then_some(()));
    agent.stop();
    let reasons: Vec<_> = machine.events().iter().map(|it| it.data["reason"].clone()).collect();
    assert_eq!(reasons, ["self_test", "not_executable"]);
    machine.assert_untouched();
}

/// Regression: the next start reported it once more, from the record of the update.
#[test]
fn release_that_fails_in_its_place_is_reported_once() {
    let machine = Machine::new();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --self-test ] || exit 3\necho 'self-test of ai-agent {NEXT}: ok'\n"
    );
    machine.offer(script.as_bytes());
    let agent = machine.start("install");
    assert_eq!(machine.wait_for_event("update_failed")["reason"], "not_executable");
    agent.stop();
    let agent = machine.start("install");
    machine.check_again(&agent);
    assert_eq!(machine.status("install")["state"], "rolled_back");
    agent.stop();
    assert_eq!(machine.events().len(), 1);
}

#[test]
fn staged_and_halted_roll_outs_wait() {
    let machine = Machine::new();
    let rollouts = [
        (Rollout { percent: 0, ..Rollout::ALL }, "not_yet"),
        (Rollout { halted: true, ..Rollout::ALL }, "halted"),
        (Rollout { groups: vec!["no-such-group".to_owned()], ..Rollout::ALL }, "other_group"),
    ];
    let agent = machine.start("install");
    for (rollout, reason) in rollouts {
        let waiting = UpdateRelease { rollout, ..release(NEXT, b"a program", &key()) };
        machine.releases().offer(&[waiting]);
        machine.check_again(&agent);
        let status = machine.status("install");
        assert_eq!((&status["state"], &status["reason"]), (&json!("waiting"), &json!(reason)));
    }
    // The release before it is for everybody.
    let halted = Rollout { halted: true, ..Rollout::ALL };
    let before = release("98.0.0", b"#!/bin/sh\nexit 3\n", &key());
    machine.releases().serve(&before, b"#!/bin/sh\nexit 3\n", "e1");
    let newest = UpdateRelease { rollout: halted, ..release(NEXT, b"a program", &key()) };
    machine.releases().offer(&[newest, before]);
    agent.signal(Signal::HUP);
    assert_eq!(machine.wait_for_event("update_failed")["to"], "98.0.0");
    agent.stop();
    assert_eq!(machine.events().len(), 1);
}

/// Returns a program that passes its self-test and is no agent.
fn passing_script() -> String {
    format!(
        "#!/bin/sh\ncase $1 in\n--self-test) echo 'self-test of ai-agent {NEXT}: ok';;\n\
         --version) echo 'ai-agent {NEXT}';;\nesac\n"
    )
}

/// Returns a program that fails its self-test, and is longer than the part that arrives before a fault.
fn long_script() -> String {
    format!("#!/bin/sh\nexit 3\n{}\n", "#".repeat(200))
}

#[test]
fn release_that_is_halted_during_its_download_is_not_installed() {
    let machine = Machine::new();
    let release = machine.offer(passing_script().as_bytes());
    let halted = Rollout { halted: true, ..Rollout::ALL };
    machine.releases().offer_after_download(&[UpdateRelease { rollout: halted, ..release }]);
    let agent = machine.start("install");
    eventually("it waits", || {
        let status = machine.status("install");
        (status["state"] == "waiting" && status["reason"] == "halted").then_some(())
    });
    agent.stop();
    assert_eq!(machine.releases().requests().len(), 1);
    machine.assert_untouched();
}

#[test]
fn killed_download_is_resumed() {
    let machine = Machine::new();
    let release = machine.offer(long_script().as_bytes());
    machine.releases().fault(Fault::StallAfter(100));
    let agent = machine.start("install");
    machine.wait_for_part(&release, 100);
    agent.kill();
    let agent = machine.start("install");
    agent.signal(Signal::HUP);
    assert_eq!(machine.wait_for_event("update_failed")["reason"], "self_test");
    agent.stop();
    let ranges = machine.releases().requests().into_iter().map(|it| it.range);
    assert_eq!(ranges.collect::<Vec<_>>(), [None, Some("bytes=100-".to_owned())]);
}

/// Regression: the download continued for hours, and what had arrived stayed on the disk for good.
#[test]
fn download_ends_when_updates_are_turned_off() {
    let machine = Machine::new();
    let release = machine.offer(long_script().as_bytes());
    machine.releases().fault(Fault::StallAfter(100));
    let agent = machine.start("install");
    let part = machine.wait_for_part(&release, 100);
    // Writes the configuration that the agent has.
    drop(machine.command("off", &["run"]));
    agent.signal(Signal::HUP);
    // A receiver that sends nothing is given up after 30 s.
    let soon = Duration::from_secs(20);
    within(soon, "it is removed", || (!part.try_exists().unwrap()).then_some(()));
    agent.stop();
}

/// Regression: the running agent took the update for pending until its restart.
#[test]
fn killed_install_leaves_a_running_agent_that_checks() {
    let machine = Machine::new();
    machine.offer(passing_script().as_bytes());
    let mut agent = machine.start("notify");
    agent.wait_for_code("update_available");
    let install = machine.command("notify", &["update", "install"]);
    assert_eq!(install.env("AI_AGENT_TEST_KILL_BEFORE", "Swap").run().code, None);
    machine.check_again(&agent);
    assert_eq!(machine.status("notify")["state"], "available");
    agent.stop();
}

/// Regression: the lock of the program was held during a download.
#[test]
fn command_does_not_wait_for_a_download() {
    let machine = Machine::new();
    machine.offer(b"a program");
    machine.releases().fault(Fault::StallAfter(1));
    let agent = machine.start("install");
    eventually("a download", || (!machine.releases().requests().is_empty()).then_some(()));
    let command = |action: &str| machine.command("install", &["update", action]).fail(1);
    let error = command("rollback");
    assert!(error.contains("no previous program"), "{error}");
    let error = command("install");
    assert!(error.contains("another process downloads"), "{error}");
    agent.stop();
}

/// An administrator or a package manager replaces a program of the machine.
#[requires(root)]
#[test]
fn program_of_root_is_only_reported() {
    const USER: u32 = 65_534;
    let machine = Machine::new();
    machine.offer(b"a program");
    machine.home.agent(&[]).config(&config("install"));
    machine.home.give_to(USER);
    let bin = machine.home.path().join("bin");
    std::os::unix::fs::chown(&machine.program, Some(0), Some(0)).unwrap();
    std::os::unix::fs::chown(&bin, Some(0), Some(0)).unwrap();
    let agent = machine.command("install", &["run"]).user(USER).start_and_wait();
    let data = machine.wait_for_event("update_available");
    assert_eq!(data["reason"], "machine_wide");
    agent.stop();
    assert_eq!(machine.releases().requests(), []);
    machine.assert_untouched();
}

#[test]
fn commands_check_and_refuse_without_an_agent() {
    let machine = Machine::new();
    let check = || {
        let ended = machine.command("notify", &["update", "check", "--json"]).succeed();
        serde_json::from_slice::<Value>(&ended.stdout).unwrap()
    };
    let none = check();
    assert_eq!((&none["state"], &none["release"]), (&json!("current"), &Value::Null));
    let program = b"#!/bin/sh\nexit 3\n";
    let release = machine.offer(program);
    let found = check();
    assert_eq!((&found["state"], &found["release"]), (&json!("available"), &json!(NEXT)));
    assert_eq!(found["version"], 1);

    let install = || machine.command("notify", &["update", "install"]);
    let error = install().fail(1);
    assert!(error.contains("self-test"), "{error}");
    let halted = Rollout { halted: true, ..Rollout::ALL };
    machine.releases().offer(&[UpdateRelease { rollout: halted, ..release.clone() }]);
    let error = install().fail(1);
    assert!(error.contains("halted"), "{error}");
    machine.releases().offer(&[UpdateRelease { minisig: None, ..release }]);
    let error = install().fail(1);
    assert!(error.contains("not signed"), "{error}");
    machine.releases().offer(&[]);
    let text = install().succeed();
    assert!(text.text().contains("newest"), "{}", text.text());
    let error = machine.command("notify", &["update", "rollback"]).fail(1);
    assert!(error.contains("no previous program"), "{error}");

    let without_keys =
        AgentCommand::of(&machine.program, machine.home.path(), &["update", "install"]);
    let error = without_keys.ships_to(&machine.receiver.url()).fail(2);
    assert!(error.contains("`update.keys`"), "{error}");
    machine.assert_untouched();
}

#[test]
fn status_of_updates_names_program_and_settings() {
    let machine = Machine::new();
    let ended = machine.command("install", &["update", "status", "--json"]).succeed();
    let status: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let program = machine.program.canonicalize().unwrap();
    assert_eq!(status["installed"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["mode"], &status["state"]), (&json!("install"), &json!("current")));
    assert_eq!(status["program"], program.to_str().unwrap());
    assert_eq!((&status["not_replaceable"], &status["previous"]), (&Value::Null, &Value::Null));
    let text = machine.command("install", &["update", "status"]).succeed();
    assert!(text.text().contains("no newer release (mode `install`)"), "{}", text.text());
}

/// Regression: JSON output panicked, since a path in it was not UTF-8.
#[cfg(target_os = "linux")]
#[test]
fn status_of_updates_names_a_program_at_any_path() {
    use std::os::unix::ffi::OsStrExt as _;

    let machine = Machine::new();
    let folder = machine.home.path().join(std::ffi::OsStr::from_bytes(b"bin\xff"));
    fs::rename(machine.program.parent().unwrap(), &folder).unwrap();
    let program = folder.join("ai-agent");
    let status = AgentCommand::of(&program, machine.home.path(), &["update", "status", "--json"]);
    let status: Value = serde_json::from_slice(&status.succeed().stdout).unwrap();
    assert_eq!(status["program"], program.display().to_string());
}

/// A program that passes the self-test and is no agent: its supervisor brings the previous one back, which
/// does not try it again.
#[test]
fn installed_program_is_started_and_rolled_back_by_itself() {
    let machine = Machine::new();
    let marker = machine.home.path().join("started");
    let script = format!(
        "#!/bin/sh\ncase $1 in\n--self-test) echo 'self-test of ai-agent {NEXT}: ok';;\n\
         --version) echo 'ai-agent {NEXT}';;\nrun) echo \"$@\" > '{}'; exit 7;;\nesac\n",
        marker.display()
    );
    machine.offer(script.as_bytes());
    let command =
        machine.command("install", &["run"]).env("AI_AGENT_TEST_UPDATE_TIMEOUT_MS", "3000");
    let ended = command.start().wait(crate::support::PATIENCE);
    assert_eq!(ended.code, Some(7), "{}", ended.stderr);
    assert!(ended.stderr.contains("update_in_place"), "{}", ended.stderr);
    let arguments = fs::read_to_string(&marker).unwrap();
    assert!(arguments.starts_with("run --config "), "{arguments}");
    let built = fs::metadata(env!("CARGO_BIN_EXE_ai-agent")).unwrap().len();
    let is_back = || fs::metadata(&machine.program).is_ok_and(|it| it.len() == built).then_some(());
    eventually("the previous program", is_back);

    let agent = machine.start("install");
    machine.check_again(&agent);
    let status = machine.status("install");
    assert_eq!((&status["state"], &status["version"]), (&json!("rolled_back"), &json!(NEXT)));
    agent.stop();
    assert_eq!(machine.releases().requests().len(), 1, "it is not downloaded again");
}
