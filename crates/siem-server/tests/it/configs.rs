//! Managed configurations of a fleet over HTTP: the choice by device, roll-outs, and answers.

use std::{fs, sync::Arc};

use serde_json::json;
use siem_protocol::{Chain, Digest, Identity, names::header, statement::TrustLevel};
use siem_server::{
    FileStore, FileStoreOptions, Receiver, ServeOptions,
    configs::FolderOptions,
    trust::{Registry, RegistryOptions},
};

use crate::common::{BatchText, Server, TOKEN, identity, keys};

/// A receiver with a folder of configurations.
struct Fleet {
    server: Server,
    serial: u64,
}

impl Fleet {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("configs")).unwrap();
        Self { server: serve(data).await, serial: 0 }
    }

    async fn restart(self) -> Self {
        let data = self.server.end().await;
        Self { server: serve(data).await, serial: self.serial }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.server.data.path().join("configs").join(name), text).unwrap();
    }

    /// Sends a batch of a machine, with this configuration in force and this event.
    async fn ship(&mut self, machine: &str, in_force: Option<Digest>, event: Option<String>) {
        self.serial += 1;
        let mut batch = BatchText::new(1, 1);
        batch.header.machine_id = machine.into();
        batch.header.epoch = format!("01930000-0000-7000-8000-{:012}", self.serial);
        batch.header.managed_hash = in_force;
        if let Some(event) = event {
            batch = batch.line(1, &event);
            let after = Digest::ZERO.chain(Digest::of(event.as_bytes()));
            batch.header.chain = Some(Chain { before: Digest::ZERO, after });
        }
        self.server.take(&batch).await;
    }

    async fn refuse(&mut self, machine: &str, in_force: Option<Digest>, hash: Digest) {
        let data = json!({ "from": "server", "reason": "`x` is wrong", "hash": hash });
        let event = json!({
            "seq": 1, "kind": "event", "source": "agent", "event": "config_refused", "data": data,
        });
        self.ship(machine, in_force, Some(event.to_string())).await;
    }

    async fn stats(&self) -> serde_json::Value {
        serde_json::to_value(self.server.stats().await.config).unwrap()
    }
}

async fn serve(data: tempfile::TempDir) -> Server {
    let registry =
        Registry::open(&data.path().join("trust"), RegistryOptions::new(TrustLevel::Shared));
    let registry = Arc::new(registry.unwrap());
    let options = FileStoreOptions::default();
    let store = FileStore::open_with_registry(data.path(), options, registry.clone()).unwrap();
    let receiver = Receiver::new(keys(), Arc::new(store))
        .with_registry(registry)
        .with_config_folder(FolderOptions::of_data(data.path()));
    Server::serving(data, receiver, ServeOptions::default()).await
}

/// Asks as an agent of this machine does, with further headers.
async fn ask_with(server: &Server, machine: &str, more: &[(&str, &str)]) -> reqwest::Response {
    let identity = Identity { machine_id: machine.into(), ..identity() };
    let mut request = reqwest::Client::new().get(server.url("/config")).bearer_auth(TOKEN);
    for (name, value) in identity.headers() {
        request = request.header(name, value);
    }
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

/// Revision that a machine gets.
async fn ask(fleet: &Fleet, machine: &str) -> Option<String> {
    let response = ask_with(&fleet.server, machine, &[]).await;
    if response.status() == 404 {
        return None;
    }
    assert_eq!(response.status(), 200);
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    Some(body["revision"].as_str().unwrap().to_owned())
}

fn config(revision: &str, serial: u64, audience: &str) -> String {
    format!(r#"{{"version":1,"revision":"{revision}","serial":{serial},"audience":{audience}}}"#)
}

#[tokio::test]
async fn each_device_gets_the_file_that_is_meant_for_it() {
    let fleet = Fleet::start().await;
    assert_eq!(ask(&fleet, "m-1").await, None);
    fleet.write("one.json", &config("one", 1, r#"{"machines":["m-1"]}"#));
    fleet.write("linux.json", &config("linux", 2, r#"{"os":["linux"]}"#));
    fs::write(fleet.server.data.path().join("config.json"), config("rest", 3, "{}")).unwrap();
    assert_eq!(ask(&fleet, "m-1").await.unwrap(), "one");
    assert_eq!(ask(&fleet, "m-2").await.unwrap(), "linux");
    let macos = ask_with(&fleet.server, "m-2", &[(header::OS, "macos")]).await;
    // The header is there twice; the first one counts.
    assert!(macos.text().await.unwrap().contains("linux"));
    // A request that names no device, such as one of curl.
    assert!(fleet.server.config().await.text().await.unwrap().contains("rest"));
    // Replaced without a restart.
    fleet.write("one.json", &config("two", 4, r#"{"machines":["m-1"]}"#));
    assert_eq!(ask(&fleet, "m-1").await.unwrap(), "two");
    fleet.write("one.json", "{");
    assert_eq!(ask(&fleet, "m-1").await.unwrap(), "two", "its content before stays");
    let fleet = fleet.restart().await;
    assert_eq!(ask(&fleet, "m-1").await.unwrap(), "two", "also after a restart");
}

#[tokio::test]
async fn groups_are_requested_only_where_a_file_needs_them() {
    let fleet = Fleet::start().await;
    fleet.write("all.json", &config("all", 1, "{}"));
    let vary = |response: &reqwest::Response| {
        response.headers()["vary"].to_str().unwrap().contains(header::GROUPS)
    };
    assert!(!vary(&ask_with(&fleet.server, "m-1", &[]).await));
    fleet.write("ops.json", &config("ops", 2, r#"{"groups":["ops team"]}"#));
    let response = ask_with(&fleet.server, "m-1", &[]).await;
    assert!(vary(&response));
    assert!(response.text().await.unwrap().contains("all"));
    for (groups, revision) in [("dev,ops%20team", "ops"), ("dev", "all"), ("", "all")] {
        let response = ask_with(&fleet.server, "m-1", &[(header::GROUPS, groups)]).await;
        assert!(response.text().await.unwrap().contains(revision), "{groups}");
    }
    let wrong = ask_with(&fleet.server, "m-1", &[(header::GROUPS, "%ff")]).await;
    assert_eq!(wrong.status(), 400);
}

#[tokio::test]
async fn rollout_halts_for_refusals_and_stays_halted() {
    let mut fleet = Fleet::start().await;
    let (old, new) = (config("old", 1, "{}"), config("new", 2, "{}"));
    fleet.write("old.json", &old);
    fleet.write("new.json", &new);
    fleet.write("new.json.rollout", r#"{"percent":0,"max_refused_percent":40,"min_refused":2}"#);
    assert_eq!(ask(&fleet, "m-1").await.unwrap(), "old");
    fleet.write("new.json.rollout", r#"{"percent":100,"max_refused_percent":40,"min_refused":2}"#);
    for machine in ["m-1", "m-2", "m-3"] {
        assert_eq!(ask(&fleet, machine).await.unwrap(), "new");
    }
    let (old, new) = (Digest::of(old.as_bytes()), Digest::of(new.as_bytes()));
    fleet.ship("m-1", Some(new), None).await;
    fleet.refuse("m-2", Some(old), new).await;
    // A repetition counts once.
    fleet.refuse("m-2", Some(old), new).await;
    fleet.ship("m-4", None, None).await;
    let stats = fleet.stats().await;
    let of_new = &stats["files"][0];
    assert_eq!((&of_new["file"], &of_new["halted"]), (&json!("new.json"), &json!(false)));
    let counts = ["applied", "refused", "offered", "not_asked"].map(|it| of_new[it].as_u64());
    assert_eq!(counts, [1, 1, 1, 1].map(Some));
    assert_eq!(of_new["refusals"][0]["machine"], "m-2");
    assert_eq!(of_new["refusals"][0]["reason"], "`x` is wrong");
    assert_eq!(of_new["waiting"][0]["machine"], "m-4");
    // Two of three devices refuse it.
    fleet.refuse("m-3", Some(old), new).await;
    let stats = fleet.stats().await;
    let of_new = &stats["files"][0];
    assert_eq!(of_new["halted"], true);
    // Who refused it, and why, is what the operator looks for then.
    let counts = ["applied", "refused", "offered", "not_asked"].map(|it| of_new[it].as_u64());
    assert_eq!(counts, [1, 2, 0, 0].map(Some));
    assert_eq!(of_new["refusals"].as_array().unwrap().len(), 2);
    let fleet = fleet.restart().await;
    for (machine, revision) in [("m-1", "new"), ("m-2", "old"), ("m-3", "old"), ("m-4", "old")] {
        assert_eq!(ask(&fleet, machine).await.unwrap(), revision, "{machine}");
    }
}

/// Agents of release 0.1 do not say which content they refused.
#[tokio::test]
async fn refusal_without_a_hash_is_of_the_content_offered_last() {
    let mut fleet = Fleet::start().await;
    let text = config("a", 1, "{}");
    fleet.write("a.json", &text);
    ask(&fleet, "m-1").await;
    let event = r#"{"seq":1,"kind":"event","event":"config_refused","data":{"from":"server","reason":"r"}}"#;
    fleet.ship("m-1", None, Some(event.into())).await;
    let of_files = event.replace("server", "files");
    ask(&fleet, "m-2").await;
    fleet.ship("m-2", None, Some(of_files)).await;
    let stats = fleet.stats().await;
    assert_eq!(
        (&stats["files"][0]["refused"], &stats["files"][0]["offered"]),
        (&json!(1), &json!(1))
    );
}

/// To count the answers takes time that grows with the number of all devices.
#[tokio::test]
async fn later_pages_of_stats_repeat_the_answers_of_the_first_one() {
    let mut fleet = Fleet::start().await;
    let text = config("a", 1, "{}");
    fleet.write("a.json", &text);
    for machine in ["m-1", "m-2"] {
        ask(&fleet, machine).await;
        fleet.ship(machine, None, None).await;
    }
    let page = |url: String| async move {
        let request = reqwest::Client::new().get(url).bearer_auth(TOKEN);
        let body = request.send().await.unwrap().bytes().await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()
    };
    let first = page(fleet.server.url("/stats?limit=1")).await;
    assert_eq!(first["config"]["files"][0]["offered"], 2);
    fleet.refuse("m-2", None, Digest::of(text.as_bytes())).await;
    let next = first["next"].as_str().unwrap();
    let second = page(fleet.server.url(&format!("/stats?limit=1&cursor={next}"))).await;
    assert_eq!(second["config"], first["config"]);
    let again = page(fleet.server.url("/stats?limit=1")).await;
    let counts = ["offered", "refused"].map(|it| again["config"]["files"][0][it].as_u64());
    assert_eq!(counts, [1, 1].map(Some));
}
