//! Tests of whole configurations, through [`load`].

mod credentials;
mod errors;
mod hashes;
mod inline_tests;
mod layer_order;
mod locks;
mod managed;
mod options_of_stages;
mod permissions;
mod secrets;
mod sinks;
mod update;

use std::{fs, path::PathBuf};

use siem_protocol::{
    ManagedConfig,
    agent_event::UpdateMode,
    managed::{Filters, Shipping as ManagedShipping},
};

use super::{
    pipeline::{ALWAYS_ON, BUILT_IN_FILTERS},
    *,
};
use crate::platform::{Environment, InstalledPaths, Paths, secure_file};

/// Machine with a home directory in which tests write configuration files.
struct Machine {
    dir: tempfile::TempDir,
    paths: Paths,
    variables: Vec<(&'static str, String)>,
    explicit: Option<PathBuf>,
    managed: Option<ManagedSettings>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("etc/config.d")).unwrap();
        fs::create_dir_all(at("home")).unwrap();
        let paths = Paths {
            home: at("home"),
            machine_config: at("etc/config.toml"),
            machine_config_dir: at("etc/config.d"),
            user_config: at("home/config.toml"),
            default_state_dir: at("home/state"),
            claude_desktop: PathBuf::new(),
            store_packages: None,
            client_settings: at("etc/claude-code"),
            pointer: at("home/state/state-dir"),
            installed: InstalledPaths::default(),
        };
        Self { dir, paths, variables: Vec::new(), explicit: None, managed: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only its owner can read.
    fn write(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        secure_file::replace(&self.path(name), text.as_ref()).unwrap();
        self
    }

    fn machine(self, text: &str) -> Self {
        self.write("etc/config.toml", text)
    }

    fn user(self, text: &str) -> Self {
        self.write("home/config.toml", text)
    }

    fn explicit(mut self, text: &str) -> Self {
        self = self.write("explicit.toml", text);
        self.explicit = Some(self.path("explicit.toml"));
        self
    }

    fn variable(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    fn managed(mut self, managed: impl Into<ManagedSettings>) -> Self {
        self.managed = Some(managed.into());
        self
    }

    fn load(&self) -> Result<LoadedConfig, ConfigError> {
        load(&ConfigInputs {
            paths: &self.paths,
            environment: &self.variables.iter().cloned().collect(),
            explicit: self.explicit.as_deref(),
            managed: self.managed.as_ref(),
        })
    }

    fn settings(&self) -> Settings {
        self.load().unwrap().settings
    }

    /// Returns the error, with `DIR` for the temporary directory and `/` in paths.
    fn error(&self) -> String {
        self.plain(&self.load().unwrap_err().to_string())
    }

    fn warnings(&self) -> Vec<String> {
        self.load()
            .unwrap()
            .warnings
            .iter()
            .map(|warning| self.plain(&warning.to_string()))
            .collect()
    }

    fn plain(&self, text: &str) -> String {
        let text = text.replace(self.dir.path().to_str().unwrap(), "DIR");
        text.replace(std::path::MAIN_SEPARATOR, "/")
    }
}

fn user(text: &str) -> Machine {
    Machine::new().user(text)
}

fn names(stages: &[StageTable]) -> Vec<&str> {
    stages.iter().map(|stage| stage.name.as_str()).collect()
}

fn stage<'a>(stages: &'a [StageTable], name: &str) -> &'a StageTable {
    stages.iter().find(|stage| stage.name == name).unwrap()
}

/// Returns the default file with the value of each option that is a comment in it.
fn uncommented_defaults() -> String {
    let uncommented = |line: &str| match line.strip_prefix("# ") {
        Some(header) if header.starts_with("[[") => header.to_owned(),
        Some(rest) if rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let text = read_layers::DEFAULTS.lines().map(uncommented).collect::<Vec<_>>().join("\n");
    // Each of these is set next to the option for the file that should be used instead.
    let plain = ["token", "hmac_secret", "enroll_token", "proxy_password"]
        .map(|key| format!("{key} = \"…\""));
    let kept = text.lines().filter(|line| !plain.iter().any(|plain| plain == line));
    kept.collect::<Vec<_>>().join("\n")
}

fn types(settings: &Settings) -> Vec<String> {
    let filter = stage(&settings.pipeline.filters, "ignore-types");
    filter.options.get("types").unwrap().deserialize().unwrap()
}

mod defaults {
    use super::*;

    #[test]
    fn defaults_decide_every_setting() {
        let machine = Machine::new();
        let loaded = machine.load().unwrap();
        assert_eq!(loaded.warnings, []);
        let Settings {
            agent,
            shipping,
            outbox,
            metrics_listen,
            pipeline,
            compliance,
            require_signature,
            managed_keys,
            update,
            hash: _,
        } = &loaded.settings;
        assert!(require_signature);
        assert!(!agent.require_tls && managed_keys.is_empty() && metrics_listen.is_none());
        assert!(update.mode == UpdateMode::Off && update.keys.is_empty());
        assert_eq!(update.interval.as_secs(), 6 * 3600);
        assert_eq!(*compliance, siem_protocol::managed::Compliance::default());
        assert_eq!(agent.state_dir, machine.path("home/state"));
        assert_eq!(agent.poll_interval.as_secs(), 300);
        assert_eq!(shipping.batch_size, 1000);
        assert_eq!(shipping.max_batch_bytes, 4 << 20);
        assert_eq!(*shipping, ShippingSettings::default());
        assert_eq!(shipping.flush_interval.as_secs(), 5);
        assert_eq!(outbox.max_bytes, 1 << 30);
        assert_eq!(outbox.max_dead_letter_bytes, 64 << 20);
        assert_eq!(names(&pipeline.sources), ["claude-sessions", "hook-spool"]);
        assert_eq!(names(&pipeline.filters), ["compact", "dedupe", "ignore-types"]);
        assert_eq!(names(&pipeline.enrichers), ["host"]);
        assert_eq!(names(&pipeline.sinks), ["siem"]);
        assert_eq!(pipeline.sinks[0].stage, "http-siem");
        let off = names(&loaded.disabled.filters);
        assert_eq!(off, ["sidechain", "meta", "tool-call"]);
    }

    /// Every option is in the file, as a comment if it has no default.
    #[test]
    fn default_file_contains_every_key() {
        let definitions = serde_json::to_value(schemars::schema_for!(settings::Tables)).unwrap();
        let tables = definitions["properties"].as_object().unwrap();
        let mut checked = 0;
        for (table, schema) in tables {
            // The others are tables of stages, and `locked`.
            let Some(name) = schema["$ref"].as_str() else { continue };
            let name = name.rsplit('/').next().unwrap();
            let start = format!("\n[{table}]\n");
            let text = read_layers::DEFAULTS.split_once(&start).unwrap().1;
            let text = text.split("\n[").next().unwrap();
            let keys = definitions["$defs"][name]["properties"].as_object().unwrap();
            for key in keys.keys() {
                let given = |line: &str| {
                    line.trim_start_matches("# ").split_once(" = ").is_some_and(|(k, _)| k == key)
                };
                assert!(text.lines().any(given), "{table}.{key}");
                checked += 1;
            }
        }
        assert_eq!(checked, 29);
    }

    /// A value in a comment must be valid when it is uncommented.
    #[test]
    fn default_file_is_valid_with_every_comment_removed() {
        let text = uncommented_defaults();
        let loaded = user(&text).load().unwrap();
        assert!(loaded.missing_for_delivery().is_none());
        assert!(loaded.settings.agent.state_dir.ends_with("home/.local/state/ai-agent"));
        assert_eq!(loaded.tests.len(), 1);
        assert!(loaded.settings.compliance.transcript_within_seconds.is_some());
    }
}

mod filters {
    use super::*;

    const ON: &str = "[filter.sidechain]\nenabled = true\n[filter.meta]\nenabled = true\n\
                      [filter.tool-call]\nenabled = true\n[filter.mine]\n";

    #[test]
    fn omitted_built_in_filters_run_first() {
        let machine = user(&format!("pipeline.filters = [\"mine\", \"meta\", \"dedupe\"]\n{ON}"));
        let expected =
            ["compact", "ignore-types", "sidechain", "tool-call", "mine", "meta", "dedupe"];
        assert_eq!(names(&machine.settings().pipeline.filters), expected);
    }

    #[test]
    fn empty_list_still_runs_the_built_in_filters() {
        let machine = user(&format!("pipeline.filters = []\n{ON}"));
        assert_eq!(names(&machine.settings().pipeline.filters), BUILT_IN_FILTERS);
    }

    #[test]
    fn compact_and_dedupe_cannot_be_disabled() {
        for name in ALWAYS_ON {
            let error = user(&format!("[filter.{name}]\nenabled = false")).error();
            assert_eq!(
                error,
                format!(
                    "`filter.{name}.enabled` in the user's file `DIR/home/config.toml:2` is false, \
                     but `{name}` is always on: remove this line"
                )
            );
        }
        let settings = user("[filter.compact]\nenabled = true").settings();
        assert_eq!(settings.pipeline.filters[0].name, "compact");
    }

    #[test]
    fn built_in_filters_keep_their_type() {
        for name in BUILT_IN_FILTERS {
            let error = user(&format!("[filter.{name}]\ntype = \"mask\"")).error();
            assert_eq!(
                error,
                format!(
                    "`filter.{name}.type` in the user's file `DIR/home/config.toml:2` is \"mask\", \
                     but `{name}` is built in and keeps its type: give another filter another name"
                )
            );
        }
        user("[filter.meta]\ntype = \"meta\"").settings();
    }

    #[test]
    fn second_instance_of_a_type_has_its_own_name() {
        let settings = user(
            "pipeline.filters = [\"noise\"]\n[filter.noise]\ntype = \"ignore-types\"\n\
             types = [\"x\"]",
        )
        .settings();
        let filter = stage(&settings.pipeline.filters, "noise");
        assert_eq!((filter.stage.as_str(), filter.enabled), ("ignore-types", true));
        assert_eq!(format!("{:?}", filter.options), r#"{"types"}"#);
    }

    #[test]
    fn name_without_table_is_its_type() {
        let settings = user("pipeline.enrichers = [\"host\", \"labels\"]").settings();
        let labels = stage(&settings.pipeline.enrichers, "labels");
        assert_eq!(labels.stage, "labels");
        assert_eq!(format!("{:?}", labels.options), "{}");
    }
}

mod warnings {
    use super::*;

    #[test]
    fn unknown_variable_is_a_warning_with_a_suggestion() {
        let machine = Machine::new()
            .variable("CLAUDE_SIEM_TOKN", "s3cr3t")
            .variable("CLAUDE_SIEM_COLOUR", "x")
            .variable("CLAUDE_OTHER", "x");
        assert_eq!(
            machine.warnings(),
            [
                "the environment variable `CLAUDE_SIEM_COLOUR` is unknown",
                "the environment variable `CLAUDE_SIEM_TOKN` is unknown: did you mean \
                 `CLAUDE_SIEM_TOKEN`?"
            ]
        );
    }

    #[test]
    fn table_that_no_list_contains_is_a_warning() {
        let machine = user("[filter.mine]\nx = 1\n[enricher.labels]\nteam = \"x\"");
        assert_eq!(
            machine.warnings(),
            [
                "the table `[filter.mine]` in the user's file `DIR/home/config.toml:1` has no \
                 effect: `pipeline.filters` does not list `mine`",
                "the table `[enricher.labels]` in the user's file `DIR/home/config.toml:3` has no \
                 effect: `pipeline.enrichers` does not list `labels`"
            ]
        );
    }

    #[test]
    fn unlisted_table_of_the_defaults_is_no_warning() {
        assert_eq!(user("pipeline.sinks = [\"stdout\"]").warnings(), Vec::<String>::new());
    }

    #[test]
    fn short_secret_is_a_warning() {
        let machine = Machine::new().variable("CLAUDE_SIEM_TOKEN", "fifteen-bytes-x");
        assert_eq!(
            machine.warnings(),
            [
                "`sink.siem.token` in the environment variable `CLAUDE_SIEM_TOKEN` is shorter than 16 bytes and can be guessed: use a longer one"
            ]
        );
    }

    #[cfg(unix)]
    #[test]
    fn secret_in_a_file_readable_by_all_is_a_warning() {
        use std::os::unix::fs::PermissionsExt as _;

        let machine = user("[sink.siem]\ntoken = \"a-token-of-16-bytes\"");
        assert_eq!(machine.warnings(), Vec::<String>::new());
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(machine.path("home/config.toml"), open).unwrap();
        assert_eq!(
            machine.warnings(),
            [
                "`sink.siem.token` is set in the user's file `DIR/home/config.toml:2`, which every user of this machine can read: fix it with `chmod o-r`"
            ]
        );
    }
}

mod delivery {
    use super::*;

    fn missing(machine: &Machine) -> Option<String> {
        let error = machine.load().unwrap().missing_for_delivery()?;
        Some(machine.plain(&error.to_string()))
    }

    #[test]
    fn one_error_lists_all_missing_settings() {
        let expected = "cannot deliver without the HMAC secret, the endpoint and the token\n  \
            the endpoint: set CLAUDE_SIEM_ENDPOINT, or set `endpoint` under `[sink.siem]`\n  \
            the token: set CLAUDE_SIEM_TOKEN, or set `token` or `token_file` under \
            `[sink.siem]`\n  \
            the HMAC secret: set CLAUDE_SIEM_HMAC_SECRET, or set `hmac_secret` or \
            `hmac_secret_file` under `[sink.siem]`\n\
            configuration files: DIR/home/config.toml or DIR/etc/config.toml";
        assert_eq!(missing(&Machine::new()).unwrap(), expected);
    }

    #[test]
    fn settings_that_are_set_are_not_listed() {
        let machine = user("[sink.siem]\ntoken_file = \"/t\"\nendpoint = \" \"")
            .variable("CLAUDE_SIEM_HMAC_SECRET", "a-secret-of-16-bytes");
        let error = missing(&machine).unwrap();
        let first = error.lines().next().unwrap();
        assert_eq!(first, "cannot deliver without the endpoint");
        assert_eq!(missing(&machine.variable("CLAUDE_SIEM_ENDPOINT", "https://x")), None);
    }

    #[test]
    fn sink_with_another_name_has_no_variables() {
        let machine =
            user("pipeline.sinks = [\"main\"]\n[sink.main]\ntype = \"http-siem\"\ntoken = \"x\"");
        let error = missing(&machine).unwrap();
        assert!(error.contains("\n  the endpoint: set `endpoint` under `[sink.main]`\n"));
        assert!(!error.contains("CLAUDE_SIEM"), "{error}");
    }

    #[test]
    fn other_sink_types_require_nothing() {
        assert_eq!(missing(&user("pipeline.sinks = [\"stdout\"]")), None);
    }

    #[test]
    fn later_layer_decides_between_secret_and_file() {
        let token = |machine: Machine| {
            let options = machine.settings().pipeline.sinks[0].options.clone();
            (options.get("token").is_some(), options.get("token_file").is_some())
        };
        let machine = || Machine::new().machine("[sink.siem]\ntoken_file = \"/t\"");
        assert_eq!(token(machine().variable("CLAUDE_SIEM_TOKEN", "x")), (true, false));
        assert_eq!(token(machine().user("[sink.siem]\ntoken = \"x\"")), (true, false));
        let machine = Machine::new().machine("[sink.siem]\ntoken = \"x\"");
        assert_eq!(token(machine.user("[sink.siem]\ntoken_file = \"/t\"")), (false, true));

        let both = user("[sink.siem]\ntoken_file = \"/t\"\ntoken = \"x\"").error();
        assert_eq!(
            both,
            "`sink.siem.token_file` in the user's file `DIR/home/config.toml:2` conflicts with `token` in the same layer: set only one of them"
        );
    }
}
