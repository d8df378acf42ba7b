//! Managed configuration over the layers of a machine.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ALLOWS: &str = "[managed]\nallow = [\"filter.*\", \"enricher.labels\"]";

fn read(json: &Value) -> ManagedSettings {
    ManagedSettings::read(json.to_string().as_bytes(), None).unwrap()
}

fn over(machine: &str, json: &Value) -> Machine {
    Machine::new().machine(machine).managed(read(json))
}

#[test]
fn each_member_sets_its_key() {
    let machine = over(
        "",
        &json!({
            "version": 1,
            "filters": {"ignore_types": ["a"], "drop_meta": true},
            "shipping": {"batch_size": 3, "flush_interval_seconds": 0},
            "compliance": {
                "permitted_email_domains": ["company.com", "*.company.com"],
                "permitted_org_ids": ["org"],
                "banner": "b", "action": "block", "violation_message": "m",
                "require_account": true, "on_error": "block", "transcript_within_seconds": 60,
            },
        }),
    );
    let Settings { shipping, pipeline, compliance, .. } = machine.settings();
    assert_eq!(names(&pipeline.filters), ["compact", "dedupe", "ignore-types", "meta"]);
    assert_eq!((shipping.batch_size, shipping.flush_interval.as_secs()), (3, 0));
    assert_eq!(compliance, machine.managed.as_ref().unwrap().config.clone().compliance.unwrap());
}

#[test]
fn absent_member_keeps_the_local_value() {
    let local = "[compliance]\nbanner = \"local\"\naction = \"warn\"";
    let settings =
        over(local, &json!({"version": 1, "compliance": {"action": "block"}})).settings();
    assert_eq!(settings.compliance.banner.as_deref(), Some("local"));
    assert_eq!(settings.compliance.action, Some(siem_protocol::managed::Action::Block));
}

#[test]
fn stage_tables_are_accepted_where_allowed() {
    let settings = over(
        &format!("pipeline.filters = [\"mine\"]\n[filter.mine]\ntype = \"ignore-types\"\n{ALLOWS}"),
        &json!({
            "version": 1,
            "filters": {"drop_meta": true},
            "stages": {
                "filter": {
                    "mine": {"types": ["x"]},
                    "new": {"type": "ignore-types", "types": ["y"]},
                    "another": {"type": "meta", "enabled": false},
                    "meta": {},
                },
                "enricher": {"labels": {"labels": {"team": "t"}}},
            },
        }),
    )
    .settings();
    let filters = &settings.pipeline.filters;
    assert_eq!(
        names(filters),
        ["compact", "dedupe", "ignore-types", "meta", "mine", "new"],
        "one that no list names runs last"
    );
    let mine: Vec<String> =
        stage(filters, "mine").options.get("types").unwrap().deserialize().unwrap();
    assert_eq!((stage(filters, "mine").stage.as_str(), mine), ("ignore-types", vec!["x".into()]));
    assert_eq!(names(&settings.pipeline.enrichers), ["host", "labels"]);
}

#[test]
fn locked_list_gets_no_new_stage() {
    let machine = over(
        &format!("locked = [\"pipeline.filters\"]\n{ALLOWS}"),
        &json!({"version": 1, "stages": {"filter": {"new": {"type": "meta"}}}}),
    );
    assert_eq!(names(&machine.settings().pipeline.filters), ["compact", "dedupe", "ignore-types"]);
    assert_eq!(
        machine.warnings(),
        ["the table `[filter.new]` in the server's managed configuration has no effect: \
          `pipeline.filters` does not list `new`"]
    );
}

/// Each is refused as a whole, with an error that names the key.
#[test]
fn invalid_member_is_an_error_with_its_key() {
    let cases = [
        (
            json!({"stages": {"sink": {"mine": {"type": "stdout"}}}}),
            "`stages.sink` in M cannot be set by the server: only tables of `filter` and `enricher` can",
        ),
        (
            json!({"stages": {"source": {}}}),
            "`stages.source` in M cannot be set by the server: only tables of `filter` and `enricher` can",
        ),
        (json!({"stages": ["x"]}), "`stages` in M must be an object"),
        (json!({"stages": {"filter": {"x": 1}}}), "`stages.filter.x` in M must be an object"),
        (
            json!({"stages": {"enricher": {"host": {}}}}),
            "`stages.enricher.host` in M is not allowed on this machine: the machine's file must contain `managed.allow = [\"enricher.host\"]`",
        ),
        (
            json!({"stages": {"filter": {"x": {"types": [null]}}}}),
            "`stages.filter.x.types[0]` in M is null: omit it instead",
        ),
        (
            json!({"stages": {"filter": {"Bad_Name": {}}}}),
            "`pipeline.filters[6]` in M is \"Bad_Name\", must be lower-case words with hyphens, such as `my-stage`",
        ),
        (
            json!({"stages": {"filter": {"dedupe": {"enabled": false}}}}),
            "`filter.dedupe.enabled` in M is false, but `dedupe` is always on: remove this line",
        ),
        (
            json!({"compliance": {"permitted_email_domains": ["a.com", "@b.com"]}}),
            "`compliance.permitted_email_domains[1]` in M is \"@b.com\", must be the part of an \
             address after the `@`, such as `company.com`, or `*.company.com` for its subdomains",
        ),
        (
            json!({"compliance": {"permitted_org_ids": [" "]}}),
            "`compliance.permitted_org_ids[0]` in M is empty, must be an organisation id",
        ),
        (json!({"tests": {}}), "`test` in M must be a list of tables, `[[test]]`"),
        (
            json!({"tests": [{"name": "t", "lines": [{"input": "", "expect": "kep"}]}]}),
            "`tests[0].lines[0].expect` in M is \"kep\", expected `keep`, `drop` or `edit`: did \
             you mean `keep`?",
        ),
    ];
    for (mut config, expected) in cases {
        config["version"] = 1.into();
        config["revision"] = "r1".into();
        let expected = expected.replace('M', "the server's managed configuration `r1`");
        assert_eq!(over(ALLOWS, &config).error(), expected, "{config}");
    }
}

/// A receiver served values that every agent refuses. It now refuses them itself, with code that agents
/// share: each member is walked with the ends of its range.
#[test]
fn receiver_refuses_the_values_that_each_agent_refuses() {
    let stages = |kinds: Value| json!({ "stages": kinds });
    let member = |section: &str, name: &str, value: &Value| json!({ section: { name: value } });
    // Section and member, values that are accepted, and those that are not.
    let members: [(&str, &str, &[Value], &[Value]); 16] = [
        ("filters", "ignore_types", &[json!([]), json!([""])], &[json!([1])]),
        ("filters", "drop_sidechain", &[json!(true)], &[json!(1)]),
        ("filters", "drop_meta", &[json!(true)], &[json!(1)]),
        ("filters", "drop_tool_calls", &[json!(true)], &[json!(1)]),
        ("shipping", "batch_size", &[json!(1), json!(10_000)], &[json!(0), json!(10_001)]),
        (
            "shipping",
            "flush_interval_seconds",
            &[json!(0), json!(86_400)],
            &[json!(-1), json!(86_401), json!(u64::MAX)],
        ),
        (
            "compliance",
            "permitted_email_domains",
            &[json!([]), json!(["a.example", "*.a.example"])],
            &[json!(["a.example", "@a.example"]), json!([""]), json!(["*"]), json!("a.example")],
        ),
        (
            "compliance",
            "permitted_org_ids",
            &[json!([]), json!(["o"])],
            &[json!([""]), json!(["o", " "])],
        ),
        ("compliance", "banner", &[json!("")], &[json!(1)]),
        ("compliance", "action", &[json!("warn"), json!("block")], &[json!("allow")]),
        ("compliance", "violation_message", &[json!("")], &[json!(1)]),
        ("compliance", "require_account", &[json!(true)], &[json!("yes")]),
        ("compliance", "on_error", &[json!("allow"), json!("block")], &[json!("warn")]),
        ("compliance", "on_unknown", &[json!("allow"), json!("warn")], &[json!("")]),
        (
            "compliance",
            "transcript_within_seconds",
            &[json!(1), json!(604_800)],
            &[json!(0), json!(604_801), json!(u64::MAX)],
        ),
        ("audience", "percentage", &[json!(0), json!(100)], &[json!(101)]),
    ];
    let schema = schemars::schema_for!(ManagedConfig).to_value();
    for (section, definition) in
        [("filters", "Filters"), ("shipping", "Shipping"), ("compliance", "Compliance")]
    {
        let known = schema["$defs"][definition]["properties"].as_object().unwrap().keys();
        let mut walked: Vec<_> =
            members.iter().filter(|it| it.0 == section).map(|it| it.1).collect();
        walked.sort_unstable();
        assert_eq!(known.collect::<Vec<_>>(), walked, "{section}");
    }
    let mut cases = Vec::new();
    for (section, name, right, wrong) in members {
        cases.extend(right.iter().map(|value| (member(section, name, value), true)));
        cases.extend(wrong.iter().map(|value| (member(section, name, value), false)));
    }
    cases.extend([
        (stages(json!({ "filter": { "x": { "type": "meta" } }, "enricher": {} })), true),
        (stages(json!([])), false),
        (stages(json!({ "sink": {} })), false),
        (stages(json!({ "source": { "x": { "type": "meta" } } })), false),
        (stages(json!({ "filter": [] })), false),
        (stages(json!({ "filter": { "x": "meta" } })), false),
        (stages(json!({ "filter": { "x": { "type": "ignore-types", "types": [null] } } })), false),
        (json!({ "tests": [] }), true),
        (json!({ "tests": {} }), false),
        (json!({ "tests": [{ "name": null }] }), false),
    ]);
    for (mut config, is_right) in cases {
        config["version"] = 1.into();
        let text = config.to_string();
        let agent = ManagedSettings::read(text.as_bytes(), None)
            .is_ok_and(|read| Machine::new().machine(ALLOWS).managed(read).load().is_ok());
        let receiver = ManagedConfig::parse(text.as_bytes())
            .is_ok_and(|config| config.wrong_values().is_empty());
        assert_eq!((agent, receiver), (is_right, is_right), "{text}");
    }
}

#[test]
fn oversized_configuration_is_refused() {
    let body = format!("{{\"version\":1,\"x\":\"{}\"}}", "x".repeat(4 << 20));
    let error = ManagedSettings::read(body.as_bytes(), None).unwrap_err().to_string();
    assert_eq!(error, "the managed configuration is larger than 4 MiB");
}

#[test]
fn unknown_member_is_a_warning_with_a_suggestion() {
    let managed = read(&json!({
        "version": 1, "flters": {}, "colour": 1,
        "filters": {"drop_metas": true}, "shipping": {"batchsize": 1},
        "compliance": {"baner": "x"},
    }));
    let unknown = |member: &str, hint: &str| {
        format!("`{member}` in the managed configuration is unknown and has no effect{hint}")
    };
    let warnings: Vec<String> = managed.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            unknown("colour", ""),
            unknown("flters", ": did you mean `filters`?"),
            unknown("filters.drop_metas", ": did you mean `drop_meta`?"),
            unknown("shipping.batchsize", ": did you mean `batch_size`?"),
            unknown("compliance.baner", ": did you mean `banner`?"),
        ]
    );
}

#[test]
fn revision_defaults_to_the_etag() {
    let revision =
        |body: &str| ManagedSettings::read(body.as_bytes(), Some("\"e\"")).unwrap().revision;
    assert_eq!(revision(r#"{"version":1}"#).as_deref(), Some("\"e\""));
    assert_eq!(revision(r#"{"version":1,"revision":"r"}"#).as_deref(), Some("r"));
}

/// Generates small JSON values with meaningful names among the keys.
fn anything() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("filter"),
        Just("sink"),
        Just("enricher"),
        Just("labels"),
        Just("type"),
        Just("meta"),
        Just("enabled"),
        Just("ignore-types"),
        Just("types"),
        Just("name"),
        Just("lines"),
        Just("input"),
        Just("expect"),
        Just("keep"),
        Just("x.y"),
        Just(""),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(word.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Generates tables of stages, many of them valid, and many not allowed.
fn stages() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![4 => Just("filter"), 2 => Just("enricher"), 1 => Just("sink")];
    let name = prop_oneof![Just("new"), Just("meta"), Just("labels"), Just("dedupe"), Just("siem")];
    let table = prop_oneof![
        Just(json!({"type": "meta"})),
        Just(json!({"type": "meta", "enabled": false})),
        Just(json!({})),
        anything(),
    ];
    let tables = proptest::collection::btree_map(name.prop_map(str::to_owned), table, 0..3);
    let tables = tables.prop_map(|tables| Value::Object(tables.into_iter().collect()));
    proptest::collection::btree_map(kind.prop_map(str::to_owned), tables, 0..3)
        .prop_map(|kinds| Value::Object(kinds.into_iter().collect()))
}

/// Generates lists of tests, some of them valid.
fn tests() -> impl Strategy<Value = Value> {
    prop_oneof![3 => Just(json!([])), 1 => anything()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// With any response of a server, there is no panic, only filters, enrichers, shipping and the policy
    /// change, and stages that the machine does not allow change nothing.
    #[test]
    fn managed_config_changes_only_permitted_keys(
        stages in prop_oneof![3 => stages(), 1 => anything()], tests in tests(),
        allowed in any::<bool>(), size in 0u64..12_000,
    ) {
        let body = json!({
            "version": 1, "stages": stages, "tests": tests, "shipping": {"batch_size": size},
            "sink": {"siem": {"endpoint": "https://evil"}}, "locked": [], "agent": {"state_dir": "/x"},
        });
        let local = Machine::new().machine(if allowed { ALLOWS } else { "" });
        let before = local.settings();
        let Ok(managed) = ManagedSettings::read(body.to_string().as_bytes(), None) else {
            prop_assert!(!(1..=10_000).contains(&size));
            return Ok(());
        };
        let Ok(loaded) = local.managed(managed).load() else { return Ok(()) };
        let after = loaded.settings;
        prop_assert_eq!(&after.pipeline.sinks, &before.pipeline.sinks);
        prop_assert_eq!(&after.pipeline.sources, &before.pipeline.sources);
        prop_assert_eq!(&after.agent, &before.agent);
        prop_assert_eq!(&after.outbox, &before.outbox);
        prop_assert_eq!(after.shipping.batch_size as u64, size);
        prop_assert!(after.pipeline.filters[..2].iter().map(|it| &*it.name).eq(ALWAYS_ON));
        if !allowed {
            prop_assert_eq!(&after.pipeline.filters, &before.pipeline.filters);
            prop_assert_eq!(&after.pipeline.enrichers, &before.pipeline.enrichers);
        }
    }
}
