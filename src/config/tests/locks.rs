//! Locked keys.

use super::*;

const BY: &str = "has no effect: the machine's file locks the key";

fn managed(json: &str) -> ManagedSettings {
    ManagedSettings::read(json.as_bytes(), None).unwrap()
}

#[test]
fn locked_key_is_ignored_in_other_layers() {
    let machine = Machine::new()
        .machine(
            "locked = [\"sink.siem.endpoint\", \"filter.*.enabled\", \"shipping\"]\n\
             [sink.siem]\nendpoint = \"https://machine\"",
        )
        .user("[sink.siem]\nendpoint = \"https://user\"\n[shipping]\nbatch_size = 7")
        .explicit("[filter.meta]\nenabled = true")
        .variable("CLAUDE_SIEM_ENDPOINT", "https://variable")
        .managed(managed(
            r#"{"version":1,"revision":"r7","filters":{"drop_sidechain":true,"ignore_types":["x"]},
                "shipping":{"flush_interval_seconds":9}}"#,
        ));
    let loaded = machine.load().unwrap();
    let Settings { shipping, pipeline, .. } = &loaded.settings;
    assert_eq!(
        pipeline.sinks[0].options.get("endpoint").unwrap().as_str(),
        Some("https://machine")
    );
    assert_eq!(names(&pipeline.filters), ["compact", "dedupe", "ignore-types"]);
    assert_eq!(*shipping, ShippingSettings::default());
    assert_eq!(types(&loaded.settings), ["x"], "what is not locked is still the server's");
    let expected = [
        format!("`shipping` in the user's file `DIR/home/config.toml:3` {BY}"),
        format!("`sink.siem.endpoint` in the user's file `DIR/home/config.toml:2` {BY}"),
        format!("`filter.meta.enabled` in the file `DIR/explicit.toml:2` given with --config {BY}"),
        format!("`sink.siem.endpoint` in the environment variable `CLAUDE_SIEM_ENDPOINT` {BY}"),
        format!("`filter.sidechain.enabled` in the server's managed configuration `r7` {BY}"),
        format!("`shipping` in the server's managed configuration `r7` {BY}"),
    ];
    assert_eq!(machine.warnings(), expected);
    let layers: Vec<_> =
        loaded.locked_overrides.iter().map(|it| it.location.origin.layer()).collect();
    assert_eq!(layers, ["user", "user", "command-line", "environment", "managed", "managed"]);
}

/// With `type = "stdout"` none of the locked options would have an effect.
#[test]
fn type_of_a_stage_with_a_locked_option_is_locked() {
    let machine = Machine::new()
        .machine("locked = [\"sink.siem.endpoint\"]\n[sink.siem]\nendpoint = \"https://machine\"")
        .user("[sink.siem]\ntype = \"stdout\"");
    let sink = &machine.settings().pipeline.sinks[0];
    assert_eq!(sink.stage, "http-siem");
    assert_eq!(sink.options.get("endpoint").unwrap().as_str(), Some("https://machine"));
}

/// Locking `enabled` of all filters once removed the type of every new filter of the server.
#[test]
fn locking_enabled_does_not_lock_the_type() {
    let machine = Machine::new()
        .machine("locked = [\"filter.*.enabled\"]\nmanaged.allow = [\"filter.*\"]")
        .managed(managed(r#"{"version":1,"stages":{"filter":{"new":{"type":"meta"}}}}"#));
    assert_eq!(stage(&machine.settings().pipeline.filters, "new").stage, "meta");
    assert_eq!(machine.warnings(), Vec::<String>::new());
}

/// A list in the place of a table, with the values of its options in their order, replaced what the
/// machine's file had locked in it.
#[test]
fn list_in_place_of_a_table_does_not_replace_locked_keys() {
    let machine = Machine::new()
        .machine(
            "locked = [\"shipping.batch_size\", \"sink.siem.endpoint\"]\n[agent]\nrequire_tls = true\n\
             [shipping]\nbatch_size = 9\n[sink.siem]\nendpoint = \"https://machine\"",
        )
        .user(
            "agent = ['/tmp/s', '60s', 'text', false]\nshipping = [7, '4 MiB', '5s']\n\
             [sink]\nsiem = ['x']",
        );
    let Settings { agent, shipping, pipeline, .. } = machine.settings();
    assert!(agent.require_tls);
    assert_eq!(shipping.batch_size, 9);
    let endpoint = pipeline.sinks[0].options.get("endpoint").unwrap();
    assert_eq!(endpoint.as_str(), Some("https://machine"));
    let part = "has no effect: the machine's file locks a part of it";
    let line = |key: &str, line| {
        format!("`{key}` in the user's file `DIR/home/config.toml:{line}` {part}")
    };
    assert_eq!(machine.warnings(), [line("agent", 1), line("shipping", 2), line("sink.siem", 4)]);
}

#[test]
fn only_the_machine_file_locks_keys() {
    let machine = user("locked = [\"shipping\"]").explicit("shipping.batch_size = 7");
    assert_eq!(machine.settings().shipping.batch_size, 7);
    assert_eq!(
        machine.warnings(),
        ["`locked` in the user's file `DIR/home/config.toml:1` has no effect: only the machine's \
          file can lock keys"]
    );
}

#[test]
fn machine_file_alone_decides_about_managed_settings() {
    let labels = r#"{"version":1,"stages":{"enricher":{"labels":{"labels":{"team":"x"}}}}}"#;
    let user_allows = user("managed.allow = [\"enricher.*\"]").managed(managed(labels));
    let settings = user_allows.settings();
    assert_eq!(names(&settings.pipeline.enrichers), ["host", "labels"]);

    let machine = user_allows.machine("");
    assert_eq!(
        machine.error(),
        "`stages.enricher.labels` in the server's managed configuration is not allowed on this machine: the machine's file must contain `managed.allow = [\"enricher.labels\"]`"
    );
    let machine = machine.managed(managed(r#"{"version":1}"#));
    assert_eq!(
        machine.warnings(),
        [
            "`managed` in the user's file `DIR/home/config.toml:1` has no effect: only the machine's \
          file can set it"
        ]
    );
}

/// A proxy or an authority of the user's environment could read what a locked sink sends.
#[test]
fn variables_of_the_user_do_not_count_for_a_locked_sink() {
    let load = |machine: &str| {
        let machine = Machine::new().machine(machine).variable("HTTPS_PROXY", "http://proxy");
        machine.variable("SSL_CERT_FILE", "/home/u/ca.pem").load().unwrap()
    };
    for (locked, proxy, certificates) in [
        ("sink", true, true),
        ("sink.siem", true, true),
        ("sink.*.proxy", true, false),
        ("sink.siem.ca_file", false, true),
        ("sink.other", false, false),
        ("sink.siem.endpoint", false, false),
    ] {
        let loaded = load(&format!("locked = ['{locked}']"));
        let ignored = loaded.ignored_variables("siem");
        assert_eq!(ignored.contains(&"HTTPS_PROXY"), proxy, "{locked}");
        assert_eq!(ignored.contains(&"SSL_CERT_FILE"), certificates, "{locked}");
        for (name, is_ignored) in [("HTTPS_PROXY", proxy), ("SSL_CERT_FILE", certificates)] {
            let mut warnings = loaded.warnings.iter();
            assert_eq!(
                warnings.any(|warning| warning.to_string().contains(name)),
                is_ignored,
                "{locked}"
            );
        }
    }
}
