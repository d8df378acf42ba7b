//! Tests of the configuration.

use std::fs;

use super::{schema::known_keys, *};
use crate::{Limits, QuotaLimits, ServeOptions};

fn of_file(text: &str) -> Result<Loaded, Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    fs::write(&path, text).unwrap();
    let inputs = Inputs { file: Some(path.clone()), ..Inputs::default() };
    load(&inputs).map_err(|problems| {
        let path = path.display().to_string();
        problems.iter().map(|problem| problem.to_string().replace(&path, "FILE")).collect()
    })
}

fn problems(text: &str) -> Vec<String> {
    of_file(text).err().unwrap_or_default()
}

#[test]
fn sample_documents_every_key_in_its_table() {
    let mut documented = Vec::new();
    let mut table = String::new();
    for line in DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[') {
            table = name.trim_end_matches(']').to_owned();
        }
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ")
            && !key.contains(|c: char| !(c.is_ascii_lowercase() || c == '_'))
        {
            documented.push(format!("{table}.{key}"));
        }
    }
    documented.sort();
    let known: Vec<_> = known_keys().into_iter().map(|known| known.key).collect();
    assert_eq!(documented, known);
}

/// The optional keys of the sample are examples that can be used as they are.
#[test]
fn sample_with_its_optional_keys_is_valid() {
    let text = DEFAULTS.replace("\n# listen", "\nlisten").replace("\n# level", "\nlevel");
    let text = [
        "certificate",
        "key",
        "client_ca",
        "token_file",
        "hmac_secret_file",
        "config_file",
        "folder",
    ]
    .iter()
    .fold(text, |text, key| text.replace(&format!("\n# {key} ="), &format!("\n{key} =")));
    let loaded = of_file(&text).unwrap();
    assert!(loaded.settings.tls.is_on() && loaded.settings.trust.level.is_some());
}

#[test]
fn defaults_are_those_of_the_library() {
    let settings = load(&Inputs::default()).unwrap().settings;
    let (limits, expected) = (settings.limits.limits(), Limits::default());
    assert_eq!(format!("{limits:?}"), format!("{expected:?}"));
    assert_eq!(settings.fleet.thresholds(), crate::fleet::FleetThresholds::default());
    let options = ServeOptions::default();
    assert_eq!(settings.quotas.limits(), QuotaLimits::default());
    assert_eq!(settings.http.connections, options.connections);
    assert_eq!(settings.http.header_timeout.0, options.header_timeout);
    assert_eq!(settings.http.write_timeout.0, options.write_timeout);
    assert_eq!(settings.http.header_size.as_usize(), options.header_bytes);
}

#[test]
fn layers_override_each_other_and_keep_their_origin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    fs::write(
        &path,
        "[http]\nlisten = \"127.0.0.1:1\"\nconnections = 100\n[log]\nlevel = \"warn\"",
    )
    .unwrap();
    let text = |text: &str| text.to_owned();
    let inputs = Inputs {
        file: Some(path.clone()),
        is_file_optional: false,
        variables: vec![
            (text("SIEM_SERVER_HTTP_LISTEN"), text("127.0.0.1:2")),
            (text("SIEM_SERVER_HTTP_CONNECTIONS"), text("200")),
            (text("SIEM_SERVER_HTTP_TRUSTED_PROXIES"), text("10.0.0.0/8, ::1")),
            (text("SIEM_SERVER_HTTP_BEHIND_TLS_PROXY"), text("true")),
            (text("SIEM_SERVER_CONFIG"), text("x")),
            (text("SIEM_SERVER_PORT_8080_TCP"), text("tcp://10.0.0.1:8080")),
            (text("OTHER"), text("x")),
        ],
        unreadable_variables: vec![text("OTHER_BINARY"), text("SIEM_SERVER_CONFIG")],
        arguments: vec![(text("--listen"), text("http.listen"), text("127.0.0.1:3"))],
    };
    let loaded = load(&inputs).unwrap();
    let http = &loaded.settings.http;
    assert_eq!(http.listen, "127.0.0.1:3".parse().unwrap());
    assert_eq!((http.connections, http.trusted_proxies.len()), (200, 2));
    assert_eq!(loaded.settings.log.level, "warn");
    let origin = |key: &str| loaded.location(key).to_string();
    assert_eq!(origin("http.listen"), "the argument `--listen`");
    let variable = "the environment variable `SIEM_SERVER_HTTP_CONNECTIONS`";
    assert_eq!(origin("http.connections"), variable);
    assert_eq!(origin("log.level"), format!("`{}:5`", path.display()));
    assert_eq!(origin("log.format"), "the built-in defaults");
    let shown = loaded.values();
    let value = |key: &str| shown.iter().find(|(shown, ..)| shown == key).unwrap().1.as_str();
    assert_eq!(value("http.trusted_proxies"), r#"["10.0.0.0/8","::1"]"#);
    assert_eq!(value("http.connections"), "200");
}

/// A filter with a word that is no level is valid, and hides all lines but those of a target of this name.
#[test]
fn word_that_is_no_level_of_the_log_is_a_problem() {
    let problems = |level: &str| problems(&format!("[log]\nlevel = {level:?}\n")).len();
    for level in ["warning", "inof", "info,debug2", "siem_server"] {
        assert_eq!(problems(level), 1, "{level}");
    }
    for level in ["info", "OFF", "info,siem_server=debug"] {
        assert_eq!(problems(level), 0, "{level}");
    }
}

#[test]
fn name_that_no_key_can_have_is_a_problem() {
    let problems = |name: &str| problems(&format!("[trust]\nreceiver_name = {name:?}\n")).len();
    for name in ["", "a b", "a+b", "a\n"] {
        assert_eq!(problems(name), 1, "{name:?}");
    }
    assert_eq!(problems("siem.example.com"), 0);
}

#[test]
fn all_problems_are_reported_at_once() {
    let found = problems(
        "[http]\nlisen = 1\nlisten = \"localhost\"\nconnections = 3\ntrusted_proxies = [\"10.0.0.0/8\", \"x\"]\n\
         [tls]\nkey = \"k\"\n[limits]\nbody_size = \"big\"\nmemory = \"1 MiB\"\n[log]\nformat = \"jsn\"\n\
         [htpp]\nx = 1\n",
    );
    let expected = [
        "unknown key `http.lisen` in `FILE:2`: did you mean `listen`?",
        "unknown key `htpp` in `FILE:13`: did you mean `http`?",
        "`http.listen` in `FILE:3` is the string \"localhost\", expected an address with a port, such as \"127.0.0.1:8080\"",
        "`http.trusted_proxies[1]` in `FILE:5` is the string \"x\", expected an address or a network such as \"10.0.0.0/8\"",
        "`limits.body_size` in `FILE:9` is invalid: `big` is not a size such as \"4 MiB\"",
        "`log.format` in `FILE:12` is \"jsn\", expected `text` or `json`: did you mean `json`?",
        "`http.connections` in `FILE:4` is out of range, expected 16 or more",
        "`tls.key` in `FILE:7` needs a certificate: set `tls.certificate`",
        "`limits.memory` in `FILE:10` is less than twice `limits.decoded_size`: set it to twice that size or more",
    ];
    for expected in expected {
        assert!(found.iter().any(|found| found == expected), "{expected}\nin {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn plain_http_for_other_machines_is_refused() {
    let found = problems("[http]\nlisten = \"0.0.0.0:8080\"");
    assert_eq!(found.len(), 1, "{found:?}");
    for word in ["FILE:2", "`tls.certificate`", "`http.behind_tls_proxy = true`", "trusted_proxies"]
    {
        assert!(found[0].contains(word), "{word}: {}", found[0]);
    }
    let with = |text: &str| problems(&format!("{text}\n[http]\nlisten = \"[::]:8080\""));
    assert!(with("[tls]\ncertificate = \"c\"\nkey = \"k\"").is_empty());
    assert_eq!(problems("[http]\nlisten = \"[::1]:8080\""), [""; 0]);
    let proxied = "[http]\nlisten = \"0.0.0.0:1\"\nbehind_tls_proxy = true\n";
    assert_eq!(problems(&format!("{proxied}trusted_proxies = [\"10.1.1.1\"]")), [""; 0]);
    assert!(problems(proxied)[0].contains("set `http.trusted_proxies`"));
}

#[test]
fn problem_of_a_table_hides_those_of_its_missing_values() {
    let found = problems("tls = 5\n[http]\nlisten = \"0.0.0.0:1\"");
    assert_eq!(found, ["`tls` in `FILE:1` is the number 5, expected a table"]);
}

#[test]
fn unknown_variables_and_arguments_are_refused() {
    let text = |text: &str| text.to_owned();
    let inputs = Inputs {
        variables: vec![(text("SIEM_SERVER_HTTP_LISTN"), text("x"))],
        arguments: vec![(text("--set"), text("store.dir"), text("x"))],
        ..Inputs::default()
    };
    let found = load(&inputs).unwrap_err();
    assert!(found[0].message.ends_with("did you mean `SIEM_SERVER_HTTP_LISTEN`?"), "{}", found[0]);
    assert!(found[1].message.contains("unknown key `store.dir` in the argument `--set`"));
}

#[test]
fn unreadable_file_is_one_problem() {
    let directory = tempfile::tempdir().unwrap();
    let inputs = Inputs { file: Some(directory.path().join("absent")), ..Inputs::default() };
    let found = load(&inputs).unwrap_err();
    assert_eq!((found.len(), found[0].code), (1, "file_unreadable"));
    assert!(load(&Inputs { is_file_optional: true, ..inputs }).is_ok());
    let found = problems("[http]\nlisten = \n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("`FILE:2` is not valid TOML, column "), "{found:?}");
}

#[test]
fn metrics_are_served_on_this_machine_only() {
    let found = problems("[metrics]\nlisten = \"0.0.0.0:9465\"");
    assert_eq!(
        found,
        [
            "`metrics.listen` in `FILE:2` is the string \"0.0.0.0:9465\", expected a loopback address with a \
          port, such as \"127.0.0.1:9465\", or `unix:` and an absolute path"
        ]
    );
    assert!(problems("[metrics]\nlisten = \"127.0.0.1:9465\"").is_empty());
    assert_eq!(problems("[quotas]\ntoken_size_per_day = \"1 MiB\"").len(), 1);
}
