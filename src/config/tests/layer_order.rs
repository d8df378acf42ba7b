//! Order in which layers override each other.

use super::*;

fn batch_size(machine: &Machine) -> usize {
    machine.settings().shipping.batch_size
}

#[test]
fn later_layer_overrides_earlier_ones() {
    let says = |size: u32| format!("shipping.batch_size = {size}");
    let machine = Machine::new();
    assert_eq!(batch_size(&machine), 1000);
    let machine = machine.machine(&says(1));
    assert_eq!(batch_size(&machine), 1);
    let machine = machine.write("etc/config.d/b.toml", says(3));
    let machine = machine.write("etc/config.d/a.toml", says(2));
    let machine = machine.write("etc/config.d/.hidden.toml", says(99));
    let machine = machine.write("etc/config.d/z.toml~", says(99));
    assert_eq!(batch_size(&machine), 3);
    let machine = machine.user(&says(4));
    assert_eq!(batch_size(&machine), 4);
    let machine = machine.explicit(&says(5));
    assert_eq!(batch_size(&machine), 5);
    let shipping = ManagedShipping { batch_size: Some(6), flush_interval_seconds: None };
    let shipping = Some(shipping);
    let machine = machine.managed(ManagedConfig { version: 1, shipping, ..Default::default() });
    assert_eq!(batch_size(&machine), 6);
}

#[test]
fn environment_overrides_files() {
    let machine = Machine::new()
        .explicit("agent.poll_interval = \"100s\"\n[sink.siem]\nendpoint = \"https://file\"")
        .variable("CLAUDE_SIEM_ENDPOINT", "https://variable")
        .variable("CLAUDE_SIEM_TOKEN", "a-token-of-16-bytes")
        .variable("CLAUDE_SIEM_HMAC_SECRET", "a-secret-of-16-bytes")
        .variable("CLAUDE_SIEM_POLL_INTERVAL", "5m");
    let loaded = machine.load().unwrap();
    assert_eq!(loaded.settings.agent.poll_interval.as_secs(), 300);
    let options = &loaded.settings.pipeline.sinks[0].options;
    assert_eq!(options.get("endpoint").unwrap().as_str(), Some("https://variable"));
    assert_eq!(options.get("token").unwrap().as_str(), Some("a-token-of-16-bytes"));
    assert!(loaded.missing_for_delivery().is_none());
    assert_eq!(loaded.warnings, []);
}

#[test]
fn empty_variable_is_ignored() {
    let machine = user("agent.poll_interval = \"100s\"")
        .variable("CLAUDE_SIEM_POLL_INTERVAL", "")
        .variable("CLAUDE_SIEM_ENDPOINT", "  ");
    let loaded = machine.load().unwrap();
    assert_eq!(loaded.settings.agent.poll_interval.as_secs(), 100);
    assert_eq!(loaded.settings.pipeline.sinks[0].options.get("endpoint"), None);
}

#[test]
fn tables_are_merged_and_lists_replaced() {
    let machine = Machine::new()
        .machine("[filter.ignore-types]\ntypes = [\"a\", \"b\"]\n[shipping]\nbatch_size = 7")
        .user("[filter.ignore-types]\ntypes = [\"c\"]\n[shipping]\nflush_interval = \"1s\"");
    let settings = machine.settings();
    assert_eq!(types(&settings), ["c"]);
    assert_eq!(settings.shipping.batch_size, 7);
    assert_eq!(settings.shipping.flush_interval.as_secs(), 1);
    assert_eq!(settings.shipping.max_batch_bytes, 4 << 20);
}

#[test]
fn server_sets_the_built_in_filters() {
    let filters = Filters {
        ignore_types: Some(vec!["x".to_owned()]),
        drop_sidechain: Some(true),
        drop_meta: Some(false),
        drop_tool_calls: Some(true),
    };
    let shipping = ManagedShipping { batch_size: Some(100), flush_interval_seconds: Some(300) };
    let machine = user("[filter.meta]\nenabled = true").managed(ManagedConfig {
        version: 1,
        filters: Some(filters),
        shipping: Some(shipping),
        ..Default::default()
    });
    let settings = machine.settings();
    let expected = ["compact", "dedupe", "ignore-types", "sidechain", "tool-call"];
    assert_eq!(names(&settings.pipeline.filters), expected);
    assert_eq!(types(&settings), ["x"]);
    assert_eq!(settings.shipping.batch_size, 100);
    assert_eq!(settings.shipping.flush_interval.as_secs(), 300);
}

#[test]
fn settings_that_the_server_omits_are_unchanged() {
    let machine = user("[filter.meta]\nenabled = true")
        .managed(ManagedConfig { version: 1, ..Default::default() });
    assert_eq!(machine.settings(), user("[filter.meta]\nenabled = true").settings_in(&machine));
}

impl Machine {
    /// Returns the settings with the state directory of `other`.
    fn settings_in(&self, other: &Self) -> Settings {
        let mut settings = self.settings();
        settings.agent.state_dir = other.path("home/state");
        settings
    }
}

/// The default options of `siem` belong to `http-siem`; `stdout` has none of them.
#[test]
fn another_type_discards_options_of_the_first() {
    let loaded = Machine::new()
        .machine("[sink.siem]\nendpoint = \"https://machine\"")
        .user("[sink.siem]\ntype = \"stdout\"\npretty = true")
        .variable("CLAUDE_SIEM_TOKEN", "a-token-of-16-bytes")
        .load()
        .unwrap();
    let sink = &loaded.settings.pipeline.sinks[0];
    assert_eq!(sink.stage, "stdout");
    assert_eq!(format!("{:?}", sink.options), r#"{"pretty"}"#);
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "the environment variable `CLAUDE_SIEM_TOKEN` has no effect: the sink `siem` is not of type `http-siem`"
        ]
    );
}

#[test]
fn same_type_again_keeps_the_options() {
    let machine = Machine::new()
        .machine("[sink.siem]\nendpoint = \"https://machine\"")
        .user("[sink.siem]\ntype = \"http-siem\"");
    let sink = &machine.settings().pipeline.sinks[0];
    assert_eq!(sink.options.get("endpoint").unwrap().as_str(), Some("https://machine"));
    assert!(sink.options.get("compression").is_some());
}

#[test]
fn type_set_again_restores_its_options() {
    let machine = Machine::new()
        .machine("[sink.siem]\ntype = \"stdout\"\npretty = true")
        .user("[sink.siem]\ntype = \"http-siem\"");
    let options = &machine.settings().pipeline.sinks[0].options;
    assert!(options.get("compression").is_some() && options.get("pretty").is_none());
}

/// One file of `config.d` contains the options of a sink, a later one its type.
#[test]
fn options_without_type_apply_to_a_later_type() {
    let settings = Machine::new()
        .write("etc/config.d/1.toml", "[sink.main]\nendpoint = \"https://x\"")
        .write("etc/config.d/2.toml", "[sink.main]\ntype = \"http-siem\"")
        .user("pipeline.sinks = [\"main\"]")
        .settings();
    assert!(settings.pipeline.sinks[0].options.get("endpoint").is_some());
}

#[test]
fn tilde_in_state_dir_is_the_home_directory() {
    let machine = user("agent.state_dir = \"~/there\"");
    assert_eq!(machine.settings().agent.state_dir, machine.path("home/there"));
}
