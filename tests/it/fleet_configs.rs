//! Managed configurations of a fleet, with the receiver and two machines: the choice by audience, a
//! roll-out that halts, and going back.
#![cfg(unix)]

use std::{fs, path::PathBuf, process::Command};

use crate::support::{
    SECRET, TOKEN,
    agent::AgentCommand,
    home::Home,
    receiver::{Receiver, binary},
};
use serde_json::{Value, json};
use siem_protocol::managed::Audience;
use test_requires::requires;

/// A machine with an id of its own.
struct Machine {
    etc: tempfile::TempDir,
    home: Home,
    id: &'static str,
}

impl Machine {
    fn new(id: &'static str) -> Self {
        let etc = tempfile::tempdir().unwrap();
        for name in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
            let from = PathBuf::from("/etc").join(name);
            if fs::exists(&from).unwrap() {
                fs::copy(from, etc.path().join(name)).unwrap();
            }
        }
        fs::write(etc.path().join("machine-id"), id).unwrap();
        Self { etc, home: Home::new(), id }
    }

    fn agent(&self, arguments: &[&str]) -> AgentCommand {
        let script =
            format!("mount --bind '{}' /etc && exec \"$0\" \"$@\"", self.etc.path().display());
        let start = ["-m", "/bin/sh", "-c", &script, env!("CARGO_BIN_EXE_ai-agent")];
        AgentCommand::of("unshare".as_ref(), self.home.path(), &[&start[..], arguments].concat())
    }

    /// Asks the receiver and ships everything. Returns the revision that is in force then.
    fn revision(&self, receiver: &Receiver) -> Value {
        self.agent(&["run", "--once"]).ships_to(&receiver.url()).succeed();
        let status = fs::read_to_string(self.home.state_dir().join("status.json")).unwrap();
        let status: Value = serde_json::from_str(&status).unwrap();
        status["config"]["applied"]["revision"].clone()
    }
}

fn write(receiver: &Receiver, name: &str, text: &str) {
    let folder = receiver.data().join("configs");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
}

fn list(receiver: &Receiver) -> Value {
    serde_json::from_str(&receiver.administer(&["config", "list", "--json"])).unwrap()
}

#[requires(mount)]
#[test]
fn machines_get_their_files_and_a_refused_rollout_halts() {
    let one = Machine::new("11111111111111111111111111111111");
    let two = Machine::new("22222222222222222222222222222222");
    let receiver = Receiver::start();
    assert_eq!(one.revision(&receiver), Value::Null);
    for machine in [&one, &two] {
        let audience = json!({ "machines": [machine.id] });
        let text = json!({
            "version": 1, "revision": machine.id, "serial": 1, "audience": audience,
        });
        write(&receiver, &format!("{}.json", machine.id), &text.to_string());
    }
    write(&receiver, "all.json", r#"{"version":1,"revision":"all","serial":1,"audience":{}}"#);
    for machine in [&one, &two] {
        assert_eq!(machine.revision(&receiver), machine.id);
        fs::remove_file(receiver.data().join(format!("configs/{}.json", machine.id))).unwrap();
        assert_eq!(machine.revision(&receiver), "all");
    }

    // A user of one group gets the file of that group.
    let output = Command::new("id").arg("-gn").output().unwrap();
    let group = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let of_group = json!({
        "version": 1, "revision": "group", "serial": 2, "audience": { "groups": [group] },
    });
    write(&receiver, "group.json", &of_group.to_string());
    assert_eq!(one.revision(&receiver), "group");
    fs::remove_file(receiver.data().join("configs/group.json")).unwrap();
    assert_eq!(one.revision(&receiver), "all");

    // 0 %, then the part with one of the machines, then all: refused by the first one.
    let next = r#"{"version":1,"revision":"next","serial":3,"audience":{},
        "stages":{"filter":{"x":{"type":"no-such-filter"}}}}"#;
    write(&receiver, "next.json.rollout", r#"{"percent":0}"#);
    write(&receiver, "next.json", next);
    for machine in [&one, &two] {
        assert_eq!(machine.revision(&receiver), "all");
    }
    assert_eq!(list(&receiver)["files"][1]["offered"], 0);
    let mut machines = [&one, &two];
    machines.sort_by_key(|machine| Audience::bucket(machine.id));
    let [first, second] = machines;
    let percent = (Audience::bucket(first.id) + 1).to_string();
    let limits = ["--min-refused", "1", "--max-refused-percent", "0"];
    let rollout = |percent: &str| {
        let command = ["config", "rollout", "next.json", "--percent", percent];
        receiver.administer(&[&command[..], &limits].concat())
    };
    rollout(&percent);
    assert_eq!(first.revision(&receiver), "all", "it is refused");
    let listed = list(&receiver);
    assert_eq!(listed["files"][1]["halted"], true, "{listed:#}");
    let refused = receiver.stats()["config"]["files"].clone();
    assert!(refused.to_string().contains("\"halted\":true"), "{refused:#}");
    rollout("100");
    assert_eq!(second.revision(&receiver), "all");
    let devices = receiver.administer(&["config", "devices", "--json"]);
    let devices: Value = serde_json::from_str(&devices).unwrap();
    let of = |id: &str| {
        let all = devices.as_array().unwrap();
        all.iter().find(|it| it["device"]["machine"] == id).unwrap().clone()
    };
    let refused = &of(first.id)["device"]["refused"];
    assert!(refused["reason"].to_string().contains("filter.x"), "{refused:#}");
    assert_eq!(of(second.id)["device"]["refused"], Value::Null, "it never got it");

    // The old content under a higher serial, for all.
    let reverted = receiver.administer(&["config", "revert", "next.json"]);
    assert!(reverted.contains("serial 4"), "{reverted}");
    for machine in [&one, &two] {
        assert_eq!(machine.revision(&receiver), "all");
    }
    let resolved = receiver.administer(&[
        "config",
        "resolve",
        "--machine",
        one.id,
        "--user",
        "root",
        "--json",
    ]);
    let resolved: Value = serde_json::from_str(&resolved).unwrap();
    assert_eq!(resolved["file"], "next.json");
}

/// Exit code and problems of `siem-server config check`.
fn check(receiver: &Receiver) -> (Option<i32>, Value) {
    let mut command = Command::new(binary("siem-server"));
    command.args(["config", "check", "--json", "--data"]).arg(receiver.data());
    command.env("CLAUDE_SIEM_TOKEN", TOKEN).env("CLAUDE_SIEM_HMAC_SECRET", SECRET);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    (output.status.code(), report["problems"].clone())
}

/// In signed mode the server cannot write the file that goes back: the organisation signs it.
#[requires(minisign)]
#[test]
fn signed_revert_is_prepared_for_the_organisation() {
    let policy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/policy");
    let receiver = Receiver::start();
    let folder = receiver.data().join("configs");
    fs::create_dir_all(&folder).unwrap();
    let install = |from: &str| {
        for ending in ["json.minisig", "json"] {
            let to = folder.join(format!("policy.{ending}"));
            fs::copy(policy.join(format!("{from}.{ending}")), to).unwrap();
        }
    };
    let home = Home::new();
    let key = fs::read_to_string(policy.join("org.pub")).unwrap();
    fs::copy(policy.join("org.pub"), folder.join("org.pub")).unwrap();
    let config = format!("managed.keys = [\"{}\"]", key.lines().nth(1).unwrap());
    let revision = || {
        let agent = home.agent(&["run", "--once"]).config(&config).ships_to(&receiver.url());
        agent.succeed();
        let status = fs::read_to_string(home.state_dir().join("status.json")).unwrap();
        serde_json::from_str::<Value>(&status).unwrap()["config"]["managed"]["serial"].clone()
    };
    install("serial-5");
    assert_eq!(revision(), 5);
    install("serial-6");
    assert_eq!(revision(), 6);
    assert_eq!(check(&receiver), (Some(0), json!([])));
    let prepared = home.path().join("policy.json");
    receiver.administer(&[
        "config",
        "revert",
        "policy.json",
        "--output",
        prepared.to_str().unwrap(),
    ]);
    assert_eq!(revision(), 6, "nothing is served before it is signed");
    let mut minisign = Command::new("minisign");
    minisign.args(["-S", "-s"]).arg(policy.join("org.key")).arg("-m").arg(&prepared);
    assert!(minisign.output().unwrap().status.success());
    // An unsigned edit of an operator is found before agents see it.
    fs::write(folder.join("policy.json"), fs::read(&prepared).unwrap()).unwrap();
    let (code, problems) = check(&receiver);
    assert_eq!((code, &problems[0]["code"]), (Some(1), &json!("signature")), "{problems:#}");
    assert_eq!(revision(), 6);
    let minisig = home.path().join("policy.json.minisig");
    fs::copy(minisig, folder.join("policy.json.minisig")).unwrap();
    assert_eq!(revision(), 7);
}
