//! Updates of a service against a real systemd user manager, with records that are written all the time.
//!
//! As in `systemd`, the first test needs root, and runs the second one as another user.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;
use siem_protocol::update::{
    ArtifactName, CatalogArtifact, CatalogRelease, ReleaseCatalog, Rollout, TrustedComment, Version,
};
use test_requires::requires;

use crate::support::{
    agent::AgentCommand,
    entries, eventually,
    home::append_to,
    minisign::Minisign,
    random, random_moment,
    receiver::{Receiver, wait_for},
    release_server::platform,
    releases::{small_program, write_release},
    systemd_user::{self, record, run_as_user, systemctl},
    within,
};

/// Time after which a release that hangs is replaced, in milliseconds.
const TIMEOUT: &str = "20000";
/// Longest time until a release is in place, or the one before is back.
const PATIENCE: Duration = Duration::from_secs(180);

#[requires(systemd_user)]
#[test]
fn service_updates_itself_and_comes_back_from_bad_releases() {
    // The user cannot write it.
    small_program();
    run_as_user("update_systemd::as_a_user");
}

/// The user's service, and the receiver with the releases.
struct World {
    home: PathBuf,
    receiver: Receiver,
    key: Minisign,
}

impl World {
    fn new() -> Self {
        let home = systemd_user::home();
        fs::create_dir_all(home.join(".claude/projects/p")).unwrap();
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("dist")).unwrap();
        let world =
            Self { home, receiver: Receiver::over(data, Vec::new()), key: Minisign::new(9) };
        world.configure("notify");
        // Tests with a debug build can shorten the times of the guards.
        let folder = world.home.join(".config/systemd/user/ai-agent.service.d");
        fs::create_dir_all(&folder).unwrap();
        let text = format!("[Service]\nEnvironment=AI_AGENT_TEST_UPDATE_TIMEOUT_MS={TIMEOUT}\n");
        fs::write(folder.join("timeout.conf"), text).unwrap();
        world
    }

    fn installed(&self) -> PathBuf {
        self.home.join(".local/bin/ai-agent")
    }

    fn configure(&self, mode: &str) {
        let folder = self.home.join(".config/ai-agent");
        fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "shipping.flush_interval = \"0s\"\n[update]\nmode = \"{mode}\"\nkeys = [\"{}\"]\n",
            self.key.public()
        );
        fs::write(folder.join("config.toml"), text).unwrap();
    }

    fn agent(&self, program: &Path, arguments: &[&str]) -> AgentCommand {
        systemd_user::agent(program, &self.home, arguments)
    }

    /// Adds a release to those of the receiver.
    fn publish(&self, version: &str, fault: &str, rollout: Rollout) {
        let version: Version = version.parse().unwrap();
        let (dist, platform) = (self.receiver.data().join("dist"), platform());
        let name = ArtifactName::of(&version, &platform);
        write_release(&dist.join(name.as_str()), &version.to_string(), fault);
        let content = fs::read(dist.join(name.as_str())).unwrap();
        let mut artifact = CatalogArtifact::new(&platform, name, &content);
        let comment = TrustedComment { version: version.clone(), platform }.to_string();
        artifact.minisig = Some(self.key.sign(&content, &comment));
        let manifest = dist.join("manifest.json");
        let known = fs::read(&manifest).map(|body| ReleaseCatalog::parse(&body).unwrap());
        let mut catalog = known.unwrap_or_default();
        let published_at = "2026-11-29T00:00:00Z".to_owned();
        let artifacts = vec![artifact];
        let unknown = Default::default();
        let release = CatalogRelease { version, published_at, rollout, artifacts, unknown };
        catalog.releases.push(release);
        let new = dist.join("manifest.new");
        fs::write(&new, catalog.to_json().unwrap()).unwrap();
        fs::rename(new, manifest).unwrap();
    }

    /// Makes the agent look for releases at once.
    fn check(&self) {
        systemctl(&["reload", "ai-agent"]);
    }

    /// Waits for an event about an update to `to`, and returns its data.
    #[track_caller]
    fn wait_for_event(&self, name: &str, to: &str) -> Value {
        let mut polls = 0;
        within(PATIENCE, &format!("{name} {to}"), || {
            // An agent that is just starting may miss the signal.
            polls += 1;
            if polls % 25 == 0 {
                self.check();
            }
            let entries = self.receiver.entries();
            let events = entries::events(&entries, name);
            events.iter().find(|event| event.data["to"] == to).map(|event| event.data.clone())
        })
    }

    /// Version of the running agent.
    fn version(&self) -> Option<String> {
        let status = fs::read(self.home.join(".local/state/ai-agent/status.json")).ok()?;
        let status: Value = serde_json::from_slice(&status).ok()?;
        Path::new(&format!("/proc/{}", status["pid"])).try_exists().unwrap().then_some(())?;
        Some(status["version"].as_str()?.to_owned())
    }

    #[track_caller]
    fn assert_runs(&self, version: &str) {
        eventually(&format!("{version} runs"), || (self.version()? == version).then_some(()));
        assert_eq!(systemctl(&["is-active", "ai-agent"]), "active");
    }

    fn update_status(&self) -> Value {
        let ended = self.agent(&self.installed(), &["update", "status", "--json"]).succeed();
        serde_json::from_slice(&ended.stdout).unwrap()
    }
}

/// Appends numbered records until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Writer {
    fn start(home: &Path) -> Self {
        let path = home.join(".claude/projects/p/s.jsonl");
        let stop = Arc::new(AtomicBool::new(false));
        let is_stopped = Arc::clone(&stop);
        let mut random = random();
        let thread = thread::spawn(move || {
            let mut count = 0;
            while !is_stopped.load(Ordering::Relaxed) {
                count += 1;
                append_to(&path, record(count) + "\n");
                random_moment(&mut random, Duration::from_millis(40));
            }
            count
        });
        Self { stop, thread }
    }

    /// Returns the number of records.
    fn finish(self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The body of the test above, which runs it as another user.
#[ignore = "run by service_updates_itself_and_comes_back_from_bad_releases"]
#[test]
fn as_a_user() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    write_release(&first, "0.1.0", "none");
    let writer = Writer::start(&world.home);
    world.agent(&first, &["install"]).ships_to(&world.receiver.url()).succeed();
    world.assert_runs("0.1.0");

    // It only notifies.
    world.publish("0.2.0", "none", Rollout::ALL);
    world.check();
    world.wait_for_event("update_available", "0.2.0");
    world.assert_runs("0.1.0");

    world.configure("install");
    world.agent(&world.installed(), &["restart"]).succeed();
    world.check();
    world.wait_for_event("update_installed", "0.2.0");
    world.assert_runs("0.2.0");

    // It passes its self-test and then aborts before `main`: the guard in the unit counts its starts.
    world.publish("0.3.0", "abort", Rollout::ALL);
    world.check();
    let failed = world.wait_for_event("update_failed", "0.3.0");
    assert_eq!(failed["reason"], "crashed", "{failed}");
    world.assert_runs("0.2.0");
    assert_eq!(world.update_status()["state"], "rolled_back");
    // It is not installed again by itself.
    world.check();
    world.check();

    // It hangs before `main`: the supervisor replaces it.
    world.publish("0.3.1", "hang", Rollout::ALL);
    world.check();
    let failed = world.wait_for_event("update_failed", "0.3.1");
    assert_eq!(failed["reason"], "no_progress", "{failed}");
    world.assert_runs("0.2.0");

    // A release whose roll-out is halted is not installed until it is resumed.
    world.publish("0.4.0", "none", Rollout::ALL);
    for version in ["0.3.0", "0.3.1", "0.4.0"] {
        world.receiver.administer(&["update", "rollout", version, "--halt"]);
    }
    world.check();
    let waits = || {
        let status = world.update_status();
        (status["state"] == "waiting" && status["reason"] == "halted").then_some(())
    };
    eventually("the agent waits", waits);
    world.assert_runs("0.2.0");
    world.receiver.administer(&["update", "rollout", "0.4.0", "--resume"]);
    world.check();
    world.wait_for_event("update_installed", "0.4.0");
    world.assert_runs("0.4.0");

    // A person goes back, and forth again.
    world.agent(&world.installed(), &["update", "rollback"]).succeed();
    world.assert_runs("0.2.0");
    assert_eq!(world.wait_for_event("update_failed", "0.4.0")["reason"], "by_hand");
    world
        .agent(&world.installed(), &["update", "install"])
        .ships_to(&world.receiver.url())
        .succeed();
    world.assert_runs("0.4.0");
    let is_confirmed = || world.update_status()["record"]["state"] == "confirmed";
    eventually("it is confirmed", || is_confirmed().then_some(()));

    let count = writer.finish();
    let last = record(count);
    wait_for(&world.receiver, "the last record", |entries| {
        entries.iter().any(|entry| entry.bytes == last.as_bytes()).then_some(())
    });
    world.agent(&world.installed(), &["uninstall"]).succeed();
    world.receiver.assert_complete();
    let entries = world.receiver.entries();
    // None was tried again by itself.
    assert_eq!(entries::events(&entries, "update_failed").len(), 3);
    let stored: Vec<&[u8]> = entries.iter().map(|entry| &*entry.bytes).collect();
    let stored: Vec<&[u8]> =
        stored.into_iter().filter(|bytes| bytes.starts_with(b"{\"type\":\"user\"")).collect();
    let expected: Vec<String> = (1..=count).map(record).collect();
    let expected: Vec<&[u8]> = expected.iter().map(|record| record.as_bytes()).collect();
    assert!(stored == expected, "{} of {count} records arrived once and in order", stored.len());
    eprintln!("{count} records through two updates, two rollbacks and a halted roll-out");
}
