//! Managed configurations with any content.

use std::path::PathBuf;

use ai_agent::internals::{
    config::{self, ConfigError, ConfigInputs, LayerOrigin, ManagedSettings},
    platform::{Environment, InstalledPaths, Paths},
    protocol::{ManagedConfig, ManagedError, managed},
};
use serde_json::Value;

/// Fails if an invalid configuration is accepted, an error names no key, or a valid one is refused, by agent or
/// receiver.
pub fn run(body: &[u8]) {
    let value = serde_json::from_slice::<Value>(body).ok();
    match ManagedConfig::parse(body) {
        Ok(parsed) => accepted(&parsed, value.as_ref()),
        Err(error) => refused(&error, value.as_ref()),
    }
}

fn accepted(parsed: &ManagedConfig, value: Option<&Value>) {
    if let Some(value) = value {
        assert!(value.is_object());
        assert_eq!(value["version"], managed::VERSION);
        for section in ["filters", "shipping", "compliance", "audience"] {
            assert!(value[section].is_object() || value[section].is_null(), "{section}");
        }
    }
    // No files exist there, so the only lower layer are the defaults.
    let at = |name: &str| PathBuf::from("/nonexistent/ai-agent-fuzz").join(name);
    let paths = Paths {
        home: at("home"),
        machine_config: at("machine.toml"),
        machine_config_dir: at("config.d"),
        user_config: at("user.toml"),
        default_state_dir: at("state"),
        claude_desktop: PathBuf::new(),
        store_packages: None,
        client_settings: "/etc/claude-code".into(),
        pointer: "/home/u/.local/state/ai-agent/state-dir".into(),
        installed: InstalledPaths::default(),
    };
    let environment = &Environment::default();
    let managed = ManagedSettings::from(parsed.clone());
    let inputs =
        ConfigInputs { paths: &paths, environment, explicit: None, managed: Some(&managed) };
    let loaded = match config::load(&inputs) {
        Ok(loaded) => loaded,
        // Stages, tests and the policy are validated only when a configuration is loaded.
        Err(error) => return check_load_error(&error, parsed),
    };
    // A receiver that checks the values serves everything that an agent accepts.
    assert_eq!(parsed.wrong_values(), []);
    super::config::build(&loaded, &paths).unwrap();
    let shipping = parsed.shipping.clone().unwrap_or_default();
    let in_force = &loaded.settings.shipping;
    assert!(shipping.batch_size.is_none_or(|size| in_force.batch_size as u64 == size));
    let interval = in_force.flush_interval.as_secs();
    assert!(shipping.flush_interval_seconds.is_none_or(|seconds| interval == seconds));
    let filters = parsed.filters.clone().unwrap_or_default();
    for (name, wanted) in [
        ("sidechain", filters.drop_sidechain),
        ("meta", filters.drop_meta),
        ("tool-call", filters.drop_tool_calls),
    ] {
        let runs = loaded.settings.pipeline.filters.iter().any(|filter| filter.name == name);
        assert_eq!(runs, wanted.unwrap_or(false), "{name}");
    }
}

/// Checks that an error names a key of the managed configuration.
fn check_load_error(error: &ConfigError, parsed: &ManagedConfig) {
    let (ConfigError::Value { key, location, .. } | ConfigError::UnknownKey { key, location, .. }) =
        error
    else {
        assert!(matches!(error, ConfigError::MissingKey { .. }), "{error}");
        return;
    };
    assert!(matches!(location.origin, LayerOrigin::Managed(_)), "{error}");
    match key.split(['.', '[']).next() {
        Some("stages") => assert!(parsed.stages.is_some()),
        Some("tests" | "test") => assert!(parsed.tests.is_some()),
        Some("compliance") => assert!(parsed.compliance.is_some()),
        _ => panic!("{error}"),
    }
}

fn refused(error: &ManagedError, value: Option<&Value>) {
    let said = error.to_string();
    match error {
        ManagedError::TooLarge => panic!("no input is that large"),
        ManagedError::TooManyValues => {}
        ManagedError::Version(version) => assert_ne!(*version, managed::VERSION),
        ManagedError::Range { key, .. } | ManagedError::Time(key) => assert!(said.contains(key)),
        ManagedError::Member { key, .. } => {
            assert!(said.contains(key));
            let top = key.split(['.', '[']).next().unwrap();
            assert!(value.is_none_or(|value| value.get(top).is_some()), "{said}");
        }
        ManagedError::Json(source) => {
            // Only if there is no member whose path could be named.
            let is_object = value.is_some_and(Value::is_object);
            assert!(!is_object || source.to_string().contains('`'), "{said}: {source}");
        }
    }
}
