//! Tests of the hashes of sections and layers.

use std::collections::BTreeSet;

use figment::value::Value;
use siem_protocol::{Digest, agent_event::LayerHash};

use super::*;
use crate::config::sink::{SECRETS, has_option};

fn hashes(machine: &Machine) -> ConfigHashes {
    machine.load().unwrap().hashes
}

fn of_user(text: &str) -> ConfigHashes {
    without_paths(hashes(&user(text)))
}

/// Returns the hashes without the paths of files, which differ from machine to machine in these tests.
fn without_paths(hashes: ConfigHashes) -> ConfigHashes {
    let layers = hashes.layers.into_iter().map(|layer| LayerHash { file: None, ..layer });
    ConfigHashes { layers: layers.collect(), ..hashes }
}

/// Returns the sections that differ.
fn changed(one: &ConfigHashes, other: &ConfigHashes) -> BTreeSet<String> {
    assert_eq!(one.whole == other.whole, one.sections == other.sections);
    let names = one.sections.keys().chain(other.sections.keys());
    names.filter(|name| one.sections.get(*name) != other.sections.get(*name)).cloned().collect()
}

/// Returns the file of a machine that sets each option of the agent and of each stage.
fn every_option() -> String {
    let mut text = uncommented_defaults();
    let tests = text.find("\n[[test]]").unwrap();
    text.truncate(tests);
    let secrets: Vec<&str> = SECRETS.iter().map(|secret| secret.value).collect();
    let mut lists = std::collections::BTreeMap::<String, Vec<String>>::new();
    for stage in ai_agent_stage::registered() {
        let kind = stage.kind.to_string();
        let name = format!("my-{}", stage.name);
        let sample = stage.sample.lines().filter(|line| {
            let (key, _) = line.split_once(" = ").unwrap_or_default();
            !secrets.contains(&key) || !has_option(stage.name, &format!("{key}_file"))
        });
        let sample = sample.collect::<Vec<_>>().join("\n");
        text += &format!("\n[{kind}.{name}]\ntype = \"{}\"\n{sample}\n", stage.name);
        lists.entry(kind).or_default().push(name);
    }
    for (kind, names) in lists {
        let start = format!("\n{kind}s = [");
        assert!(text.contains(&start), "{kind}");
        let names: String = names.iter().map(|name| format!("\"{name}\", ")).collect();
        text = text.replacen(&start, &format!("{start}{names}"), 1);
    }
    text
}

/// Returns other values of the type of `value`, some of which are valid.
fn others(value: &Value) -> Vec<String> {
    let texts = [
        "61s",
        "7m",
        "off",
        "64 MiB",
        "3 MiB",
        "json",
        "warn",
        "block",
        "status",
        "none",
        "gzip",
        "drop",
        "now",
        "https://other.example.com",
        if cfg!(windows) { r"C:\other" } else { "/other" },
        "127.0.0.1:9465",
        "other",
    ];
    match value {
        Value::Bool(_, value) => vec![(!value).to_string()],
        Value::Num(_, number) => {
            let number = number.to_i128().unwrap_or(1);
            vec![(number + 1).to_string(), (number - 1).to_string()]
        }
        Value::String(_, text) => {
            let others = texts.iter().filter(|other| *other != text);
            others.map(|other| format!("{other:?}")).collect()
        }
        Value::Array(_, items) if items.len() > 1 => {
            let items: Vec<Value> = items.iter().rev().cloned().collect();
            vec![toml::Value::try_from(Value::from(items)).unwrap().to_string()]
        }
        _ => {
            let own = toml::Value::try_from(value.clone()).unwrap().to_string();
            let texts = [
                "[\"RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\"]",
                "[\"filter.*\"]",
                "[\"other\"]",
                "[]",
            ];
            texts.into_iter().filter(|other| **other != own).map(str::to_owned).collect()
        }
    }
}

/// Options of stages were not in the hash unless the stage was a filter or an enricher, and nothing
/// else was.
#[test]
fn every_option_changes_the_hash_of_its_section() {
    let machine = Machine::new().machine(&every_option());
    let loaded = machine.load().unwrap();
    let mut machine = machine;
    let mut options = 0;
    for shown in loaded.effective_values() {
        if shown.value.as_str() == Some("***") {
            continue;
        }
        let key: Vec<String> = shown.path.iter().map(|part| format!("{part:?}")).collect();
        let mut errors = Vec::new();
        let found = others(&shown.value).into_iter().find_map(|other| {
            machine = std::mem::replace(&mut machine, Machine::new())
                .write("etc/config.d/99.toml", format!("{} = {other}", key.join(".")));
            machine.load().map_err(|error| errors.push(error.to_string())).ok()
        });
        let found =
            found.unwrap_or_else(|| panic!("no other value of {}: {errors:#?}", shown.key()));
        let section = BTreeSet::from([shown.path[0].clone()]);
        assert_eq!(changed(&loaded.hashes, &found.hashes), section, "{}", shown.key());
        options += 1;
    }
    assert!(options > 100, "{options}");
}

/// Of an endpoint only the path and the query are secret, unless a file contains it.
#[test]
fn value_of_a_secret_changes_no_hash_but_its_presence_does() {
    let sinks = ["http-siem", "elasticsearch", "splunk-hec", "http", "otlp"];
    let mut tried = BTreeSet::new();
    for stage in sinks {
        for secret in SECRETS.iter().filter(|secret| secret.value != "endpoint") {
            if !has_option(stage, secret.value) {
                continue;
            }
            tried.insert(secret.value);
            let sink = |value: &str| {
                let value = match (secret.value, value) {
                    (_, "") => String::new(),
                    ("headers", value) => format!("headers = {{ Authorization = {value:?} }}"),
                    (option, value) => format!("{option} = {value:?}"),
                };
                of_user(&format!(
                    "pipeline.sinks = [\"it\"]\n[sink.it]\ntype = \"{stage}\"\n{value}"
                ))
            };
            let one = sink("a-secret-of-some-length");
            assert_eq!(one, sink("another-one-of-some-length"), "{stage}");
            let sections = BTreeSet::from(["sink".to_owned()]);
            assert_eq!(changed(&one, &sink("")), sections, "{stage} {}", secret.value);
        }
    }
    assert_eq!(tried.len(), SECRETS.len() - 1, "{tried:?}");

    let variable = |value: &str| hashes(&Machine::new().variable("CLAUDE_SIEM_TOKEN", value));
    assert_eq!(variable("one-long-enough-token"), variable("other-long-enough-token"));
    let proxy =
        |user: &str| of_user(&format!("[sink.siem]\nproxy = \"http://{user}proxy.example.com\""));
    assert_eq!(proxy("u:one@"), proxy("u:two@"));
    assert_ne!(proxy("u:one@"), proxy(""));
    let endpoint = |url: &str| {
        of_user(&format!("pipeline.sinks = [\"x\"]\n[sink.x]\ntype = \"http\"\nendpoint = {url:?}"))
    };
    assert_eq!(endpoint("https://a.test/one"), endpoint("https://a.test/two?sig=x"));
    assert_ne!(endpoint("https://a.test/one"), endpoint("https://b.test/one"));
    // The path of a receiver of this protocol is no secret: machines that differ in it differ.
    let siem = |url: &str| of_user(&format!("sink.siem.endpoint = {url:?}"));
    let (one, two) = (siem("https://a.test/one"), siem("https://a.test/two"));
    assert!(one.whole != two.whole && one.layers != two.layers);
    assert_eq!(siem("https://u:p@a.test/one?a"), siem("https://v:q@a.test/one?b"));
}

/// What differs by machine is not in the hash: the home directory, and where systemd puts credentials.
#[test]
fn machines_with_the_same_files_have_the_same_hashes() {
    let with_credential = |text: &str| {
        let machine = Machine::new().machine(text);
        let directory = machine.path("credentials");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("ai-agent.siem.token"), text).unwrap();
        let directory = directory.to_str().unwrap().to_owned();
        without_paths(hashes(&machine.variable("CREDENTIALS_DIRECTORY", &directory)))
    };
    let text =
        "agent.state_dir = \"~/state\"\nsink.siem.start = \"now\"\noutbox.max_bytes = \"1 GiB\"";
    let (one, other) = (with_credential(text), with_credential(&format!("# Rolled out.\n{text}")));
    assert_eq!(one, other);
    let names: Vec<&str> = one.layers.iter().map(|layer| layer.layer.as_str()).collect();
    assert_eq!(names, ["defaults", "credential", "machine"]);
    let machine = |text: &str| hashes(&Machine::new().machine(text));
    assert_eq!(changed(&one, &machine(text)), BTreeSet::from(["sink".to_owned()]));
    // The same value as the default's, and other order and white space.
    assert_eq!(
        machine(text).sections,
        machine("[sink.siem]\nstart='now'\n[agent]\nstate_dir = '~/state'").sections
    );
}

#[test]
fn layers_show_where_a_machine_differs() {
    let base = Machine::new()
        .machine("shipping.batch_size = 7\nlocked = [\"agent\"]")
        .write("etc/config.d/10.toml", "[outbox]")
        .variable("CLAUDE_SIEM_ENDPOINT", "https://a.example.com")
        .variable("CLAUDE_SIEM_TOKEN", "a-token-of-16-bytes");
    let before = hashes(&base);
    let base = base.user("agent.poll_interval = \"61s\"");
    let with_locked_value = hashes(&base);
    // It has no effect, and shows all the same.
    assert_eq!(before.sections, with_locked_value.sections);
    let layers: Vec<_> = with_locked_value.layers.iter().map(|it| it.layer.as_str()).collect();
    assert_eq!(layers, ["defaults", "machine", "machine", "user", "environment"]);
    let file = with_locked_value.layers[3].file.as_deref().unwrap();
    assert!(file.ends_with("config.toml"), "{file}");
    let base = base.user("agent.poll_interval = \"62s\"");
    let differing = hashes(&base);
    let pairs = differing.layers.iter().zip(&with_locked_value.layers);
    let differ: Vec<bool> = pairs.map(|(one, other)| one.hash != other.hash).collect();
    assert_eq!(differ, [false, false, false, true, false]);
    let managed: ManagedConfig =
        serde_json::from_str(r#"{"version":1,"shipping":{"batch_size":8}}"#).unwrap();
    let managed = hashes(&base.managed(managed));
    assert_eq!(managed.layers.last().unwrap().layer, "managed");
    assert_eq!(changed(&managed, &differing), BTreeSet::from(["shipping".to_owned()]));
}

/// A name that a person chose may look like that of a secret.
#[test]
fn names_of_stages_and_patterns_are_no_secrets() {
    let filter = "filter".to_owned();
    for text in [
        "pipeline.filters = [\"mask\"]\n[filter.mask.own]\nmy-token = \"VALUE\"",
        "pipeline.filters = [\"no-secrets\"]\n[filter.no-secrets]\ntype = \"path\"\ndrop_cwd = [\"/VALUE\"]",
        "pipeline.filters = [\"x\"]\n[filter.x]\nlist = [{ own = { password = \"VALUE\" } }]",
    ] {
        let of = |value: &str| of_user(&text.replace("VALUE", value));
        assert_eq!(changed(&of("a"), &of("b")), BTreeSet::from([filter.clone()]), "{text}");
    }
    let source = |value: &str| {
        let text = "pipeline.sources = [\"x\"]\n[source.x]\nlist = [{ password = \"VALUE\" }]";
        of_user(&text.replace("VALUE", value))
    };
    assert_eq!(source("a"), source("b"));
}

#[test]
fn stages_that_no_list_names_do_not_count() {
    let hashes = of_user("[filter.mine]\nx = 1\n[sink.other]\ntype = \"stdout\"");
    assert_eq!(hashes.sections, of_user("").sections);
    assert_eq!(of_user("filter.meta.enabled = false").whole, of_user("").whole);
}

/// Administrators compare these values over months: they may change only on purpose.
#[test]
fn hash_of_the_defaults_is_stable() {
    let hashes = of_user("");
    let sections: Vec<&str> = hashes.sections.keys().map(String::as_str).collect();
    let expected = [
        "agent", "filter", "locked", "managed", "outbox", "pipeline", "shipping", "sink", "source",
    ];
    assert_eq!(sections, expected);
    assert_eq!(
        hashes.sections["shipping"],
        Digest::of(br#"{"batch_size":1000,"flush_interval":"5s","max_batch_bytes":"4 MiB"}"#)
    );
    assert_eq!(user("").settings().config_hash(), hashes.whole);
    assert_eq!(hashes.layers[0].hash, hashes.whole, "no other layer has a value");
    assert_eq!(
        hashes.whole.to_string(),
        "f92b9d59777308cd4e07360bd11a9f07165569b070ec90daf63ab853233df488"
    );
}
