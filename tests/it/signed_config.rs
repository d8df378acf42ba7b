//! Managed configuration signed by the organisation: its sequence, its audience, and the watch over the
//! files that the agent leaves for hooks.
#![cfg(unix)]

use std::{fs, path::PathBuf, process::Command};

use crate::support::{
    SECRET,
    agent::{Agent, AgentCommand},
    entries::{self, StoredEntry},
    eventually,
    home::Home,
    lines_with_code,
    scripted_receiver::{ConfigResponse, ScriptedReceiver},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use siem_protocol::Digest;
use test_requires::requires;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/policy").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// A configuration of `tests/support/policy` with its signature.
fn signed(name: &str) -> ConfigResponse {
    let (body, minisig) = (text(&format!("{name}.json")), text(&format!("{name}.json.minisig")));
    ConfigResponse::Organisation(body, minisig, SECRET)
}

/// Configuration of an agent that trusts the organisation.
fn config() -> String {
    let key = text("org.pub").lines().nth(1).unwrap().to_owned();
    format!("managed.keys = [\"{key}\"]\n[shipping]\nflush_interval = \"0s\"")
}

fn agent(home: &Home, receiver: &ScriptedReceiver) -> AgentCommand {
    home.agent(&["run"]).config(&config()).ships_to(&receiver.url())
}

fn run_once(home: &Home, receiver: &ScriptedReceiver) -> String {
    home.agent(&["run", "--once"]).config(&config()).ships_to(&receiver.url()).succeed().stderr
}

fn facts(home: &Home) -> Value {
    let text = fs::read_to_string(home.state_dir().join("status.json")).unwrap_or_default();
    serde_json::from_str::<Value>(&text).unwrap_or_default()["config"].clone()
}

fn wait_for_revision(home: &Home, revision: &str) {
    eventually(revision, || (facts(home)["applied"]["revision"] == revision).then_some(()));
}

/// Waits until the agent has polled once more and handled the response.
fn poll(agent: &Agent, receiver: &ScriptedReceiver) {
    for _ in 0..2 {
        let asked = receiver.config_requests();
        agent.signal(Signal::HUP);
        eventually("a poll", || (receiver.config_requests() > asked).then_some(()));
    }
}

fn events(receiver: &ScriptedReceiver, name: &str) -> Vec<StoredEntry> {
    let stored = receiver.entries();
    entries::events(&stored, name).into_iter().cloned().collect()
}

fn wait_for_events(receiver: &ScriptedReceiver, name: &str, count: usize) -> Vec<StoredEntry> {
    eventually(name, || Some(events(receiver, name)).filter(|found| found.len() >= count))
}

#[test]
fn config_that_the_organisation_did_not_sign_for_now_is_refused() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-5"));
    let agent = agent(&home, &receiver).start_and_wait();
    wait_for_revision(&home, "serial-5");
    let applied = facts(&home);
    assert_eq!(applied["managed"]["authenticated_by"], "organisation");
    assert_eq!(applied["managed"]["serial"], 5);

    let body = text("serial-6.json");
    // Each content is reported once.
    let (edited, again) = (body.replace("warn", "block"), format!("{body} "));
    let table = [
        (signed("serial-4"), "`serial`"),
        (signed("serial-5-again"), "`serial`"),
        (signed("without-serial"), "`serial`"),
        (signed("without-audience"), "`audience`"),
        (signed("forged"), "`managed.keys`"),
        (ConfigResponse::Signed(body.clone(), SECRET), "`managed.keys`"),
        (
            ConfigResponse::Organisation(edited, text("serial-6.json.minisig"), SECRET),
            "`managed.keys`",
        ),
        (ConfigResponse::Organisation(again, "no signature".into(), SECRET), "`managed.keys`"),
        (
            ConfigResponse::Organisation(
                format!("{body}  "),
                text("serial-6.json.minisig"),
                "another-secret-of-another-fleet",
            ),
            "HMAC secret",
        ),
    ];
    for (at, (answer, token)) in table.iter().enumerate() {
        receiver.manage(answer.clone());
        poll(&agent, &receiver);
        let refused = wait_for_events(&receiver, "config_refused", at + 1);
        let reason = refused[at].data["reason"].as_str().unwrap();
        assert!(reason.contains(token), "{token}: {reason}");
        assert_eq!(facts(&home)["applied"], applied["applied"]);
    }
    // Meant for others: neither applied nor refused.
    receiver.manage(signed("other-audience"));
    poll(&agent, &receiver);
    poll(&agent, &receiver);
    assert_eq!(lines_with_code(&agent.log(), "managed_config_not_meant").len(), 1);
    assert_eq!(facts(&home)["applied"], applied["applied"]);
    receiver.manage(signed("serial-6"));
    poll(&agent, &receiver);
    wait_for_revision(&home, "serial-6");
    assert_eq!(events(&receiver, "config_refused").len(), table.len());
    agent.stop();
    let hash = Digest::of(text("serial-6.json").as_bytes());
    let last = receiver.headers().pop().unwrap();
    assert_eq!(last.managed_hash, Some(hash), "batches name what is in force");
}

/// Puts a configuration of the organisation in the place of the stored one.
fn put_back(home: &Home, name: &str) {
    let file = home.state_dir().join("managed.json");
    let mut stored: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    stored["body"] = text(&format!("{name}.json")).into();
    stored["minisig"] = text(&format!("{name}.json.minisig")).into();
    fs::write(file, stored.to_string()).unwrap();
}

#[test]
fn old_signed_config_in_the_state_directory_is_refused() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-5"));
    run_once(&home, &receiver);
    receiver.manage(ConfigResponse::Nothing);
    run_once(&home, &receiver);
    assert_eq!(facts(&home)["applied"]["revision"], "serial-5", "the stored one is in force");
    assert_eq!(events(&receiver, "policy_tampered").len(), 0);

    put_back(&home, "serial-4");
    run_once(&home, &receiver);
    assert_eq!(facts(&home)["applied"]["revision"], Value::Null);
    let refused = events(&receiver, "config_refused");
    assert!(refused[0].data["reason"].as_str().unwrap().contains("`serial`"));
    let tampered = events(&receiver, "policy_tampered");
    assert_eq!(tampered[0].data["file"], "managed");
    assert_eq!(tampered[0].data["tampering"], "edited");
    // The server repairs it, but does not get an older one accepted.
    receiver.manage(signed("serial-4"));
    run_once(&home, &receiver);
    assert_eq!(facts(&home)["applied"]["revision"], Value::Null);
    receiver.manage(signed("serial-5"));
    run_once(&home, &receiver);
    assert_eq!(facts(&home)["applied"]["revision"], "serial-5");
}

/// A user who deletes the outbox must not be able to go back to an old configuration.
#[test]
fn stored_config_does_not_count_after_the_loss_of_the_outbox() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-6"));
    run_once(&home, &receiver);
    put_back(&home, "serial-5");
    for entry in fs::read_dir(home.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("outbox") || name.starts_with("checkpoints") {
            fs::remove_file(path).unwrap();
        }
    }
    let receiver = ScriptedReceiver::start([]);
    let log = run_once(&home, &receiver);
    assert_eq!(lines_with_code(&log, "managed_config_unproven").len(), 1, "{log}");
    assert_eq!(facts(&home)["applied"]["revision"], Value::Null);
    receiver.manage(signed("serial-6"));
    run_once(&home, &receiver);
    assert_eq!(facts(&home)["applied"]["revision"], "serial-6");
}

#[test]
fn expired_config_stays_in_force_with_an_alarm() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("expired"));
    let mut agent = agent(&home, &receiver).start_and_wait();
    agent.wait_for_code("managed_config_expired");
    wait_for_revision(&home, "expired");
    let status = home.agent(&["status", "--json"]).run();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let problems = status["problems"].to_string();
    assert!(problems.contains("2020-01-01T00:00:00"), "{problems}");
    let shown = home.agent(&["status"]).run();
    assert!(shown.text().contains("signed by the organisation"), "{}", shown.text());
    agent.stop();
    let heartbeat = events(&receiver, "heartbeat").pop().unwrap();
    assert_eq!(heartbeat.data["config"]["managed"]["expired"], true);
    assert_eq!(heartbeat.data["transport"], "local");
}

/// An agent of release 0.1 had no keys, and neither had its stored configuration a signature.
#[test]
fn keys_that_come_later_end_an_unproven_config() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(ConfigResponse::Signed(text("serial-5.json"), SECRET));
    let plain = "[shipping]\nflush_interval = \"0s\"";
    let agent = home.agent(&["run"]).config(plain).ships_to(&receiver.url());
    let mut agent = agent.start_and_wait();
    wait_for_revision(&home, "serial-5");
    assert_eq!(facts(&home)["managed"]["authenticated_by"], "shared_secret");
    let shown = home.agent(&["status"]).run();
    let sentence = "managed configuration is authenticated by the shared secret only";
    assert!(shown.text().contains(sentence), "{}", shown.text());
    fs::write(home.path().join("agent.toml"), config()).unwrap();
    agent.wait_for_code("managed_config_unproven");
    eventually("the local configuration", || {
        facts(&home)["applied"]["revision"].is_null().then_some(())
    });
    receiver.manage(signed("serial-5"));
    poll(&agent, &receiver);
    wait_for_revision(&home, "serial-5");
    assert_eq!(facts(&home)["managed"]["authenticated_by"], "organisation");
    agent.stop();
}

#[test]
fn policy_files_are_restored_while_the_agent_runs() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-5"));
    let agent = agent(&home, &receiver).start_and_wait();
    wait_for_revision(&home, "serial-5");
    let state = home.state_dir();
    let mut count = 0;
    for (file, name) in
        [("policy.json", "policy"), ("managed.json", "managed"), ("state-dir", "pointer")]
    {
        let path = state.join(file);
        let content = eventually(file, || fs::read(&path).ok());
        for tampering in ["deleted", "edited", "replaced"] {
            match tampering {
                "deleted" => fs::remove_file(&path).unwrap(),
                "edited" => fs::write(&path, "{}").unwrap(),
                _ => {
                    let elsewhere = state.join("elsewhere");
                    fs::rename(&path, &elsewhere).unwrap();
                    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
                }
            }
            count += 1;
            let event = wait_for_events(&receiver, "policy_tampered", count).pop().unwrap();
            assert_eq!(event.data["file"], name);
            assert_eq!(
                (&event.data["tampering"], &event.data["restored"]),
                (&tampering.into(), &true.into())
            );
            assert_eq!(fs::read(&path).unwrap(), content, "{file} {tampering}");
            assert!(fs::symlink_metadata(&path).unwrap().is_file());
        }
    }
    agent.stop();
    assert_eq!(events(&receiver, "policy_tampered").len(), count, "each change is one event");
}

#[test]
fn policy_deleted_while_no_agent_runs_is_reported() {
    let home = Home::new();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-5"));
    run_once(&home, &receiver);
    for (file, name) in [("policy.json", "policy"), ("state-dir", "pointer")] {
        fs::remove_file(home.state_dir().join(file)).unwrap();
        let before = events(&receiver, "policy_tampered").len();
        run_once(&home, &receiver);
        let tampered = events(&receiver, "policy_tampered");
        assert_eq!(tampered.len(), before + 1);
        assert_eq!(tampered[before].data["file"], name);
        assert_eq!(tampered[before].data["tampering"], "deleted");
        assert!(fs::exists(home.state_dir().join(file)).unwrap());
    }
    let before = events(&receiver, "policy_tampered").len();
    run_once(&home, &receiver);
    assert_eq!(events(&receiver, "policy_tampered").len(), before);
}

#[test]
fn unencrypted_transport_warns_or_is_refused() {
    let home = Home::new();
    let check = |text: &str| {
        let file = home.path().join("check.toml");
        fs::write(&file, text).unwrap();
        home.agent(&["config", "check", file.to_str().unwrap()])
    };
    let plain = "sink.siem.endpoint = 'http://siem.example.com'\n";
    let warned = check(plain).succeed().stderr;
    assert_eq!(warned.matches("unencrypted").count(), 1, "{warned}");
    let syslog = "pipeline.sinks = ['log']\n[sink.log]\ntype = 'syslog'\ntransport = 'tcp'\n\
                  address = 'log.example.com'\n";
    let warned = check(syslog).succeed().stderr;
    assert_eq!(warned.matches("unencrypted").count(), 1, "{warned}");
    let keys = config();
    let keys = keys.lines().next().unwrap();
    for (required, token) in [("agent.require_tls = true", "require_tls"), (keys, "managed.keys")] {
        for sinks in [plain, syslog] {
            let error = check(&format!("{required}\n{sinks}")).fail(1);
            assert!(error.contains(token) && error.contains("sink."), "{error}");
        }
        let local = "sink.siem.endpoint = 'http://127.0.0.1:8080'\n";
        let checked = check(&format!("{required}\n{local}")).succeed().stderr;
        assert!(!checked.contains("unencrypted"), "{checked}");
    }
    let file = home.path().join("check.toml");
    fs::write(&file, keys).unwrap();
    for (name, code) in [("serial-5", 0), ("without-serial", 1)] {
        let managed = path(&format!("{name}.json"));
        let arguments = ["config", "check", file.to_str().unwrap(), managed.to_str().unwrap()];
        assert_eq!(home.agent(&arguments).run().code, Some(code), "{name}");
    }
    let wrong = check("managed.keys = ['RWQ']").fail(1);
    assert!(wrong.contains("managed.keys[0]"), "{wrong}");
}

/// Signs with the tool of an administrator, for this user and their groups.
#[requires(minisign)]
#[test]
fn config_signed_with_minisign_for_this_user_applies() {
    let home = Home::new();
    let names = |arguments: &[&str]| {
        let output = Command::new("id").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let receiver = ScriptedReceiver::start([]);
    let sign = |serial: u64, audience: Value| {
        let body = json!({
            "version": 1, "revision": format!("r{serial}"), "serial": serial,
            "issued": "2026-11-29T12:00:00Z", "audience": audience,
        });
        let file = home.path().join("config.json");
        fs::write(&file, body.to_string()).unwrap();
        let output = Command::new("minisign")
            .args(["-S", "-s"])
            .arg(path("org.key"))
            .arg("-m")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let minisig = fs::read_to_string(home.path().join("config.json.minisig")).unwrap();
        receiver.manage(ConfigResponse::Organisation(body.to_string(), minisig, SECRET));
    };
    let (user, group) = (names(&["-un"]), names(&["-gn"]));
    sign(1, json!({ "users": [user], "groups": ["no-such-group", group], "percentage": 100 }));
    let agent = agent(&home, &receiver).start_and_wait();
    wait_for_revision(&home, "r1");
    for other in [
        json!({ "users": ["another"] }),
        json!({ "groups": ["no-such-group"] }),
        json!({ "machines": ["another"] }),
        json!({ "percentage": 0 }),
    ] {
        sign(2, other);
        poll(&agent, &receiver);
        assert_eq!(facts(&home)["applied"]["revision"], "r1");
    }
    sign(3, json!({}));
    poll(&agent, &receiver);
    wait_for_revision(&home, "r3");
    assert_eq!(events(&receiver, "config_refused").len(), 0);
    agent.stop();
}

/// A machine whose directory `/etc` is a copy, with a machine's file.
struct Machine {
    etc: tempfile::TempDir,
    home: Home,
}

impl Machine {
    fn new(machine: &str) -> Self {
        let etc = tempfile::tempdir().unwrap();
        for name in ["passwd", "group", "nsswitch.conf", "machine-id", "ld.so.cache"] {
            let from = PathBuf::from("/etc").join(name);
            if fs::exists(&from).unwrap() {
                fs::copy(from, etc.path().join(name)).unwrap();
            }
        }
        fs::create_dir(etc.path().join("ai-agent")).unwrap();
        fs::write(etc.path().join("ai-agent/config.toml"), machine).unwrap();
        Self { etc, home: Home::new() }
    }

    fn agent(&self, arguments: &[&str]) -> AgentCommand {
        let script =
            format!("mount --bind '{}' /etc && exec \"$0\" \"$@\"", self.etc.path().display());
        let start = ["-m", "/bin/sh", "-c", &script, env!("CARGO_BIN_EXE_ai-agent")];
        AgentCommand::of("unshare".as_ref(), self.home.path(), &[&start[..], arguments].concat())
    }

    /// Calls the hook of a prompt: exit code, and the policy's source in its report.
    fn prompt(&self) -> (Option<i32>, Value) {
        let spool = self.home.state_dir().join("spool");
        drop(fs::remove_dir_all(&spool));
        let ended = self.agent(&["check", "--hook", "UserPromptSubmit"]).run();
        let report = fs::read_dir(&spool).unwrap().next().unwrap().unwrap().path();
        let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
        assert_eq!(report["policy_hash"].as_str().unwrap().len(), 64);
        (ended.code, report["policy_source"].clone())
    }
}

/// With nothing but the files in the state directory, a user cannot lift a block.
#[requires(mount)]
#[test]
fn hook_follows_the_source_that_proves_most() {
    let machine = Machine::new(&config());
    let state = machine.home.state_dir();
    let account = json!({ "oauthAccount": { "emailAddress": "me@gmail.com" } });
    fs::write(machine.home.path().join(".claude.json"), account.to_string()).unwrap();
    let receiver = ScriptedReceiver::start([]);
    receiver.manage(signed("serial-5"));
    machine.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
    assert_eq!(machine.prompt(), (Some(2), "managed".into()));
    // A policy file without a rule does not matter while the organisation's signature holds.
    let policy = state.join("policy.json");
    let mut open: Value = serde_json::from_slice(&fs::read(&policy).unwrap()).unwrap();
    open["compliance"] = json!({});
    fs::write(&policy, open.to_string()).unwrap();
    assert_eq!(machine.prompt(), (Some(2), "managed".into()));
    fs::remove_file(&policy).unwrap();
    assert_eq!(machine.prompt(), (Some(2), "managed".into()));
    fs::remove_file(state.join("managed.json")).unwrap();
    assert_eq!(machine.prompt(), (Some(0), "machine_fallback".into()));
    let file = machine.etc.path().join("ai-agent/config.toml");
    let block =
        "compliance.action = 'block'\ncompliance.permitted_email_domains = ['company.com']\n";
    fs::write(&file, format!("{block}{}", config())).unwrap();
    assert_eq!(machine.prompt(), (Some(2), "machine_fallback".into()));
    fs::write(&policy, open.to_string()).unwrap();
    assert_eq!(machine.prompt(), (Some(0), "policy_file".into()));
    fs::write(&file, format!("locked = ['compliance']\n{block}{}", config())).unwrap();
    assert_eq!(machine.prompt(), (Some(2), "machine_locked".into()));
}
