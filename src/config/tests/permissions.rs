//! Tests of who may change a key, compared with what loading does.

use serde_json::json;

use super::*;

fn path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

fn explain(machine: &Machine, key: &str) -> (Permission, Permission) {
    let explained = machine.load().unwrap().explain_key(&path(key));
    (explained.user, explained.server)
}

/// Returns managed configurations that set a key, with other values than the defaults.
fn managed_for(key: &str) -> Vec<serde_json::Value> {
    let values = [
        json!(true),
        json!(false),
        json!(7),
        json!("block"),
        json!("drop"),
        json!("61s"),
        json!(["other"]),
        json!({ "a": "b" }),
    ];
    let parts = path(key);
    let wrap = |value: &serde_json::Value| -> Vec<serde_json::Value> {
        let member = match key {
            "filter.ignore-types.types" => Some(json!({ "filters": { "ignore_types": value } })),
            "filter.sidechain.enabled" => Some(json!({ "filters": { "drop_sidechain": value } })),
            "filter.meta.enabled" => Some(json!({ "filters": { "drop_meta": value } })),
            "filter.tool-call.enabled" => Some(json!({ "filters": { "drop_tool_calls": value } })),
            "shipping.flush_interval" => {
                Some(json!({ "shipping": { "flush_interval_seconds": value } }))
            }
            _ => None,
        };
        let by_name = match parts.as_slice() {
            [kind, name, option] => {
                Some(json!({ "stages": { kind: { name: { option: value } } } }))
            }
            [table, option] => Some(json!({ table: { option: value } })),
            _ => None,
        };
        member.into_iter().chain(by_name).collect()
    };
    values.iter().flat_map(wrap).collect()
}

/// Returns whether any managed configuration changes the key.
fn server_can_set(machine: &mut Machine, key: &str) -> bool {
    let value_of = |machine: &Machine| {
        let found = machine.load().ok()?.explain_key(&path(key)).values.into_iter().next()?;
        Some((found.value, found.location.origin))
    };
    // A stage is enabled by default.
    let before = value_of(machine).map(|(value, _)| value);
    let before = before.or(key.ends_with(".enabled").then(|| true.into()));
    let can = managed_for(key).into_iter().any(|mut body| {
        body["version"] = json!(1);
        let Ok(config) = ManagedConfig::parse(body.to_string().as_bytes()) else { return false };
        machine.managed = Some(config.into());
        value_of(machine).is_some_and(|(value, origin)| {
            matches!(origin, LayerOrigin::Managed(_)) && Some(value) != before
        })
    });
    machine.managed = None;
    can
}

/// `explain` said that `managed.allow` lacks keys that can never be in it, and that the server may
/// disable filters that are always on.
#[test]
fn server_may_set_what_loading_accepts() {
    let files = [
        "",
        "[managed]\nallow = ['filter.*', 'enricher.labels']",
        "locked = ['shipping', 'filter.*.enabled', 'compliance.action']\n\
         [managed]\nallow = ['filter.tool-call', 'enricher.host']",
        "locked = ['filter']\n[managed]\nallow = ['filter.*']",
    ];
    for file in files {
        let text = format!(
            "{file}\n[pipeline]\nfilters = ['mine']\nenrichers = ['labels', 'host']\n\
             [filter.mine]\ntype = 'ignore-types'\ntypes = ['x']\n[enricher.labels.labels]\n\
             [compliance]\naction = 'warn'\nrequire_account = false\n"
        );
        let mut machine = Machine::new().machine(&text);
        let mut keys: Vec<String> =
            machine.load().unwrap().effective_values().iter().map(ConfigValue::key).collect();
        for name in BUILT_IN_FILTERS {
            keys.push(format!("filter.{name}.enabled"));
            keys.push(format!("filter.{name}.type"));
        }
        keys.extend(["filter.tool-call.on_oversize", "enricher.labels.labels"].map(str::to_owned));
        let mut settable = 0;
        for key in keys {
            let (_, server) = explain(&machine, &key);
            let can = server_can_set(&mut machine, &key);
            // The list is extended, which no test here does.
            if key.starts_with("pipeline.") {
                continue;
            }
            assert_eq!(server == Permission::Full, can, "{key}: {server:?}\n{file}");
            settable += u32::from(can);
        }
        assert!(settable > 0, "{file}");
    }
}

#[test]
fn reason_of_a_refusal_is_that_of_the_key() {
    let machine = Machine::new().machine("locked = ['sink.siem.token']");
    let none = |key: &str| match explain(&machine, key).1 {
        Permission::None(why) => why,
        other => panic!("{key}: {other:?}"),
    };
    assert!(none("filter.mask.own").contains("`filter.mask` nor `filter.*`"));
    assert!(none("enricher").contains("`managed.allow`"));
    for key in ["sink.siem.endpoint", "agent.poll_interval", "pipeline.filters", "outbox"] {
        let why = none(key);
        assert!(!why.contains("managed.allow") && why.contains("`compliance`"), "{key}: {why}");
    }
    assert!(none("sink.siem.token").contains("locks"));
    assert!(none("filter.compact.enabled").contains("always on"));
    let machine = Machine::new().machine("pipeline.sinks = ['stdout']");
    assert!(matches!(
        explain(&machine, "shipping.batch_size").1,
        Permission::None(why) if why.contains("`http-siem`")
    ));
}

#[test]
fn table_of_which_a_part_may_be_set_names_the_part() {
    let machine = Machine::new().machine(
        "locked = ['shipping.batch_size', 'filter.*.enabled']\n\
         managed.allow = ['filter.mine', 'enricher.*']",
    );
    let part = |permission: Permission| match permission {
        Permission::Partial(what) => what,
        other => panic!("{other:?}"),
    };
    let (user, server) = explain(&machine, "shipping");
    assert_eq!(part(user), "all but `shipping.batch_size`, which is locked");
    assert_eq!(part(server), "only `shipping.flush_interval`");
    let (user, server) = explain(&machine, "filter");
    assert_eq!(part(user), "all but `filter.*.enabled`, which is locked");
    assert_eq!(part(server), "only `filter.ignore-types.types`, `filter.mine`");
    assert_eq!(part(explain(&machine, "agent").0), "all but `agent.require_tls`, which is locked");
    let (user, server) = explain(&machine, "pipeline.enrichers");
    assert_eq!(user, Permission::Full);
    assert!(part(server).contains("adding stages"));
    let (_, server) = explain(&machine, "enricher.host");
    assert_eq!(server, Permission::Full);
}

#[test]
fn values_that_a_higher_layer_hides_are_found() {
    let config = ManagedConfig::parse(
        br#"{"version":1,"revision":"r7","shipping":{"batch_size":500,"flush_interval_seconds":9},
            "stages":{"filter":{"mine":{"type":"meta"},"new":{"type":"meta"}}}}"#,
    );
    let machine = Machine::new()
        .machine("locked = ['outbox']\nmanaged.allow = ['filter.*']\n[filter.mine]\ntype = 'mask'")
        .explicit(
            "[shipping]\nbatch_size = 7\nflush_interval = '9s'\n[outbox]\nmax_bytes = '64 MiB'\n\
             [sink.siem]\ntoken_file = '/t'\ntimeout = '9s'\nendpoint = 'https://a.example.com'\n\
             [pipeline]\nfilters = ['mine']\n[filter.mine]\ntype = 'ignore-types'\ntypes = ['x']",
        )
        .variable("CLAUDE_SIEM_TOKEN", "a-token-of-16-bytes")
        .variable("CLAUDE_SIEM_ENDPOINT", "https://b.example.com")
        .managed(config.unwrap());
    let loaded = machine.load().unwrap();
    let hidden = loaded.hidden_values(|origin| matches!(origin, LayerOrigin::Explicit(_)));
    let hidden: Vec<(&str, Option<usize>, &str)> = hidden
        .iter()
        .map(|hidden| (hidden.key.as_str(), hidden.location.line, hidden.reason.as_str()))
        .collect();
    let server = "the server's managed configuration `r7` sets";
    assert_eq!(
        hidden,
        [
            ("outbox", Some(4), "the machine's file locks the key"),
            ("filter.mine", Some(12), &*format!("{server} another type")),
            ("shipping.batch_size", Some(2), &format!("{server} `500`")),
            (
                "sink.siem.endpoint",
                Some(9),
                "the environment variable `CLAUDE_SIEM_ENDPOINT` sets `\"https://b.example.com\"`"
            ),
            (
                "sink.siem.token_file",
                Some(7),
                "the environment variable `CLAUDE_SIEM_TOKEN` sets `token`"
            ),
        ]
    );
}

#[test]
fn changed_values_are_those_that_differ_from_the_defaults() {
    let machine = Machine::new()
        .machine("shipping.batch_size = 1000\noutbox.max_bytes = '64 MiB'")
        .user("[pipeline]\nenrichers = ['host', 'labels']\n[enricher.labels.labels]\nteam = 'a'")
        .variable("CLAUDE_SIEM_POLL_INTERVAL", "61s");
    let loaded = machine.load().unwrap();
    let shown = loaded.shown_values();
    let changed = shown.iter().filter(|shown| shown.is_changed);
    let changed: Vec<(String, &str)> =
        changed.map(|shown| (shown.key(), shown.origin["layer"].as_str().unwrap())).collect();
    let expected = [
        ("agent.poll_interval", "environment"),
        ("outbox.max_bytes", "machine"),
        ("pipeline.enrichers", "user"),
        ("enricher.labels.labels.team", "user"),
    ];
    assert_eq!(changed, expected.map(|(key, layer)| (key.to_owned(), layer)));
}
