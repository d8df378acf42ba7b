//! The agent as a service of a plain user, against a real systemd user manager.
//!
//! The first test needs root. It runs the second one as another user.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    SECRET, TOKEN,
    agent::{AgentCommand, Finished},
    eventually,
    home::append_to,
    receiver::{Receiver, wait_for},
    systemd_user::{self, record, run_as_user, systemctl},
};
use serde_json::Value;
use test_requires::requires;

#[requires(systemd_user)]
#[test]
fn service_of_a_user_installs_upgrades_and_restarts() {
    run_as_user("systemd::as_a_user");
}

const CONFIG: &str = "shipping.flush_interval = \"0s\"\n";

/// The user, the program in two versions, and a receiver.
struct World {
    home: PathBuf,
    folder: tempfile::TempDir,
    receiver: Receiver,
    lines: u32,
}

impl World {
    fn new() -> Self {
        let world = Self {
            home: systemd_user::home(),
            folder: tempfile::tempdir().unwrap(),
            receiver: Receiver::start(),
            lines: 0,
        };
        let program = fs::read(env!("CARGO_BIN_EXE_ai-agent")).unwrap();
        for version in ["old", "new"] {
            // Bytes after the end of a program do not affect it.
            let mut file = fs::File::create(world.program(version)).unwrap();
            file.write_all(&program).unwrap();
            file.write_all(version.as_bytes()).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(world.home.join(".claude/projects/p")).unwrap();
        fs::create_dir_all(world.home.join(".config/ai-agent")).unwrap();
        world.configure(CONFIG);
        world
    }

    fn configure(&self, text: &str) {
        fs::write(self.home.join(".config/ai-agent/config.toml"), text).unwrap();
    }

    fn program(&self, version: &str) -> PathBuf {
        self.folder.path().join(version)
    }

    fn installed(&self) -> PathBuf {
        self.home.join(".local/bin/ai-agent")
    }

    fn unit(&self) -> PathBuf {
        self.home.join(".config/systemd/user/ai-agent.service")
    }

    fn environment(&self) -> PathBuf {
        self.home.join(".config/ai-agent/environment")
    }

    fn state(&self) -> PathBuf {
        self.home.join(".local/state/ai-agent")
    }

    fn agent(&self, program: &Path, arguments: &[&str]) -> AgentCommand {
        systemd_user::agent(program, &self.home, arguments)
    }

    fn run(&self, version: &str, arguments: &[&str]) -> Finished {
        self.agent(&self.program(version), arguments).succeed()
    }

    /// PID of the running agent, from its status file.
    fn pid(&self) -> Option<u32> {
        let status = fs::read(self.state().join("status.json")).ok()?;
        let status: Value = serde_json::from_slice(&status).ok()?;
        let pid = u32::try_from(status["pid"].as_u64()?).ok()?;
        Path::new(&format!("/proc/{pid}")).try_exists().unwrap().then_some(pid)
    }

    /// Writes a record, and waits until the receiver has it.
    fn ship(&mut self) {
        self.write();
        self.arrives();
    }

    fn write(&mut self) {
        self.lines += 1;
        let line = record(self.lines) + "\n";
        append_to(&self.home.join(".claude/projects/p/s.jsonl"), line);
    }

    fn arrives(&self) {
        let last = record(self.lines);
        wait_for(&self.receiver, "the record", |entries| {
            entries.iter().any(|entry| entry.bytes == last.as_bytes()).then_some(())
        });
    }
}

/// The body of the test above, which runs it as another user.
#[ignore = "run by service_of_a_user_installs_upgrades_and_restarts"]
#[test]
fn as_a_user() {
    let mut world = World::new();

    // Nothing is installed while settings are missing.
    let error = world.agent(&world.program("old"), &["install"]).fail(2);
    assert!(error.contains("CLAUDE_SIEM_ENDPOINT"), "{error}");
    assert!(!world.installed().try_exists().unwrap());

    let shown = world.agent(&world.program("old"), &["install", "--dry-run"]);
    let shown = shown.ships_to(&world.receiver.url()).succeed();
    assert!(shown.text().contains(world.unit().to_str().unwrap()), "{}", shown.text());
    assert!(!world.unit().try_exists().unwrap() && !world.installed().try_exists().unwrap());

    let installed = world.agent(&world.program("old"), &["install"]);
    let installed = installed.ships_to(&world.receiver.url()).succeed();
    eprintln!("{}", installed.text());
    let first = world.pid().expect("install returns when it is ready");
    assert!(installed.text().contains(&first.to_string()), "{}", installed.text());
    assert_eq!(systemctl(&["is-active", "ai-agent"]), "active");
    assert_eq!(systemctl(&["is-enabled", "ai-agent"]), "enabled");
    assert_eq!(
        systemctl(&["show", "--property=MainPID", "--value", "ai-agent"]),
        first.to_string()
    );
    world.agent(&world.installed(), &["check"]).succeed();
    world.ship();

    // Secrets are in one file that only the user can read.
    let mode = fs::metadata(world.environment()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let command_line = fs::read(format!("/proc/{first}/cmdline")).unwrap();
    let unit = fs::read(world.unit()).unwrap();
    for (name, text) in [("the list of processes", command_line), ("the unit", unit)] {
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains(TOKEN) && !text.contains(SECRET), "{name}");
    }

    // The service manager restarts a killed agent.
    Command::new("kill").args(["-9", &first.to_string()]).status().unwrap();
    eventually("it comes back", || world.pid().filter(|pid| *pid != first));
    world.ship();

    watchdog(&mut world);
    let second = world.pid().unwrap();

    // An upgrade needs no secrets again.
    let upgraded = world.run("new", &["install"]);
    eprintln!("{}", upgraded.text());
    let third = world.pid().unwrap();
    assert_ne!(third, second);
    assert!(fs::read(world.installed()).unwrap().ends_with(b"new"));
    world.ship();
    world.run("new", &["install"]);
    assert_eq!(world.pid(), Some(third), "an installation that is up to date keeps running");

    world.agent(&world.installed(), &["stop"]).succeed();
    world.agent(&world.installed(), &["check"]).fail(1);
    assert_eq!(systemctl(&["is-active", "ai-agent"]), "inactive");
    world.write();
    world.agent(&world.installed(), &["start"]).succeed();
    world.arrives();
    let before = world.pid().unwrap();
    // The running agent keeps its configuration, though the file is invalid now.
    world.configure("[filter.sidechain]\nenabeld = true");
    let error = world.agent(&world.installed(), &["restart"]).fail(2);
    assert!(error.contains("filter.sidechain.enabeld"), "{error}");
    assert_eq!(world.pid(), Some(before), "it was not stopped for one that would not begin");
    world.configure(CONFIG);
    world.agent(&world.installed(), &["restart"]).succeed();
    assert_ne!(world.pid(), Some(before));
    world.ship();

    // `install` repairs a damaged installation.
    systemctl(&["stop", "ai-agent"]);
    fs::remove_file(world.unit()).unwrap();
    fs::write(world.installed(), "half").unwrap();
    world.run("new", &["install"]);
    assert!(world.pid().is_some());
    world.ship();

    let gone = world.agent(&world.installed(), &["uninstall"]).succeed();
    eprintln!("{}", gone.text());
    assert_eq!(world.pid(), None);
    for path in [world.unit(), world.environment(), world.installed()] {
        assert!(!path.try_exists().unwrap(), "{}", path.display());
    }
    assert_eq!(systemctl(&["show", "--property=LoadState", "--value", "ai-agent"]), "not-found");
    assert!(world.state().join("outbox.redb").try_exists().unwrap(), "the state stays");
    let error = world.agent(&world.program("new"), &["start"]).fail(1);
    assert!(error.contains("ai-agent install"), "{error}");
    // A second `uninstall` does nothing.
    world.run("new", &["uninstall"]);

    // The state directory is used again, and removed by `--purge`.
    world.agent(&world.program("new"), &["install"]).ships_to(&world.receiver.url()).succeed();
    world.ship();
    world.receiver.assert_complete();
    world.run("new", &["uninstall", "--purge"]);
    assert!(!world.state().try_exists().unwrap());
    assert!(world.home.join(".claude/projects/p/s.jsonl").try_exists().unwrap());
}

/// An agent without progress is killed by its manager, and the next one continues. The watchdog of
/// the unit takes minutes; a drop-in shortens it here.
fn watchdog(world: &mut World) {
    let folder = world.home.join(".config/systemd/user/ai-agent.service.d");
    let results = world.home.join("results");
    let short = format!(
        "[Service]\nWatchdogSec=4s\nTimeoutAbortSec=2s\n\
         ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT >>{}'\n",
        results.display()
    );
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("watchdog.conf"), short).unwrap();
    systemctl(&["daemon-reload"]);
    world.agent(&world.installed(), &["restart"]).succeed();
    fs::remove_file(&results).unwrap();
    let restarts = || {
        let shown = systemctl(&["show", "--property=NRestarts", "--value", "ai-agent"]);
        shown.parse::<u32>().unwrap()
    };
    let (stuck, before) = (world.pid().unwrap(), restarts());
    // An agent that makes progress feeds the watchdog for longer than it would live without.
    world.ship();
    let fed = || {
        let property = ["show", "--property=WatchdogTimestampMonotonic", "--value", "ai-agent"];
        systemctl(&property).parse::<u64>().unwrap()
    };
    let first = fed();
    eventually("the watchdog is fed for 6 s", || (fed() > first + 6_000_000).then_some(()));
    assert_eq!((world.pid(), restarts()), (Some(stuck), before));

    Command::new("kill").args(["-STOP", &stuck.to_string()]).status().unwrap();
    world.write();
    eventually("it comes back", || world.pid().filter(|pid| *pid != stuck));
    assert_eq!(fs::read_to_string(&results).unwrap(), "watchdog\n");
    assert_eq!(restarts(), before + 1);
    world.arrives();
    world.receiver.assert_complete();

    fs::remove_dir_all(&folder).unwrap();
    systemctl(&["daemon-reload"]);
    world.agent(&world.installed(), &["restart"]).succeed();
    world.ship();
}
