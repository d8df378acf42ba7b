//! The rules of the configuration, through [`load`].

mod locks;
mod managed;
mod toml_tests;

use std::fs;

use siem_protocol::{
    ManagedConfig,
    managed::{Filters, Shipping as ManagedShipping},
};

use super::*;

/// A machine with a home directory, on which tests write configuration files.
struct Machine {
    dir: tempfile::TempDir,
    paths: Paths,
    variables: Vec<(&'static str, String)>,
    explicit: Option<PathBuf>,
    managed: Option<Managed>,
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
        };
        Self { dir, paths, variables: Vec::new(), explicit: None, managed: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that only its owner can read.
    fn write(self, name: &str, text: impl AsRef<[u8]>) -> Self {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
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

    fn managed(mut self, managed: impl Into<Managed>) -> Self {
        self.managed = Some(managed.into());
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&Inputs {
            paths: &self.paths,
            environment: &self.variables.iter().cloned().collect(),
            explicit: self.explicit.as_deref(),
            managed: self.managed.as_ref(),
        })
    }

    fn settings(&self) -> Settings {
        self.load().unwrap().settings
    }

    /// The error, with `DIR` for the directory that changes from run to run, and `/` in paths.
    fn error(&self) -> String {
        self.plain(&self.load().unwrap_err().to_string())
    }

    fn warnings(&self) -> Vec<String> {
        self.load().unwrap().warnings.iter().map(|warning| self.plain(warning)).collect()
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

fn types(settings: &Settings) -> Vec<String> {
    let filter = stage(&settings.pipeline.filters, "ignore-types");
    filter.options.get("types").unwrap().deserialize().unwrap()
}

mod defaults {
    use super::*;

    #[test]
    fn decide_everything() {
        let machine = Machine::new();
        let loaded = machine.load().unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let Settings { agent, shipping, outbox, pipeline, compliance } = &loaded.settings;
        assert_eq!(*compliance, siem_protocol::managed::Compliance::default());
        assert_eq!(agent.state_dir, machine.path("home/state"));
        assert_eq!(agent.poll_interval.as_secs(), 300);
        assert_eq!(shipping.batch_size, 1000);
        assert_eq!(shipping.max_batch_bytes, 4 << 20);
        assert_eq!(*shipping, Shipping::default());
        assert_eq!(shipping.flush_interval.as_secs(), 5);
        assert_eq!(outbox.max_bytes, 1 << 30);
        assert_eq!(outbox.max_dead_letter_bytes, 64 << 20);
        assert_eq!(names(&pipeline.sources), ["claude-sessions"]);
        assert_eq!(names(&pipeline.filters), ["compact", "dedupe", "ignore-types"]);
        assert_eq!(names(&pipeline.enrichers), ["host"]);
        assert_eq!(names(&pipeline.sinks), ["siem"]);
        assert_eq!(pipeline.sinks[0].stage, "http-siem");
        let off = names(&loaded.switched_off.filters);
        assert_eq!(off, ["sidechain", "meta", "tool-call"]);
    }

    /// Every option stands in the file: as itself, or as a comment where it has no default.
    #[test]
    fn show_every_key() {
        let schema = serde_json::to_value(schemars::schema_for!(settings::Tables)).unwrap();
        let tables = schema["properties"].as_object().unwrap();
        let mut checked = 0;
        for table in ["agent", "shipping", "outbox", "managed", "compliance", "pipeline"] {
            assert!(tables.contains_key(table));
            let start = format!("\n[{table}]\n");
            let text = layers::DEFAULTS.split_once(&start).unwrap().1;
            let text = text.split("\n[").next().unwrap();
            let name = tables[table]["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            let keys = schema["$defs"][name]["properties"].as_object().unwrap();
            for key in keys.keys() {
                let given = |line: &str| {
                    line.trim_start_matches("# ").split_once(" = ").is_some_and(|(k, _)| k == key)
                };
                assert!(text.lines().any(given), "{table}.{key}");
                checked += 1;
            }
        }
        assert_eq!(checked, 20);
    }

    /// What a comment offers must be right when somebody uncomments it.
    #[test]
    fn are_still_right_with_every_comment_in_force() {
        let uncommented = |line: &str| match line.strip_prefix("# ") {
            Some(header) if header.starts_with("[[") => header.to_owned(),
            Some(rest) if rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) => {
                rest.to_owned()
            }
            _ => line.to_owned(),
        };
        let text = layers::DEFAULTS.lines().map(uncommented).collect::<Vec<_>>().join("\n");
        // Each of these stands beside the file that it is better given in.
        let plain = ["token", "hmac_secret", "proxy_password"].map(|key| format!("{key} = \"…\""));
        let kept = text.lines().filter(|line| !plain.iter().any(|plain| plain == line));
        let text = kept.collect::<Vec<_>>().join("\n");
        let loaded = user(&text).load().unwrap();
        assert!(loaded.missing_for_delivery().is_none());
        assert!(loaded.settings.agent.state_dir.ends_with("home/.local/state/ai-agent"));
        assert_eq!(loaded.tests.len(), 1);
        assert!(loaded.settings.compliance.transcript_within_seconds.is_some());
    }
}

mod layer_order {
    use super::*;

    fn batch_size(machine: &Machine) -> usize {
        machine.settings().shipping.batch_size
    }

    #[test]
    fn the_higher_layer_wins() {
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
    fn the_environment_is_above_the_files() {
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
        assert_eq!(loaded.warnings, Vec::<String>::new());
    }

    #[test]
    fn an_empty_variable_is_no_layer() {
        let machine = user("agent.poll_interval = \"100s\"")
            .variable("CLAUDE_SIEM_POLL_INTERVAL", "")
            .variable("CLAUDE_SIEM_ENDPOINT", "  ");
        let loaded = machine.load().unwrap();
        assert_eq!(loaded.settings.agent.poll_interval.as_secs(), 100);
        assert_eq!(loaded.settings.pipeline.sinks[0].options.get("endpoint"), None);
    }

    #[test]
    fn tables_merge_and_lists_replace() {
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
    fn what_the_server_manages_sets_the_built_in_filters() {
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
    fn what_the_server_leaves_out_stays() {
        let machine = user("[filter.meta]\nenabled = true")
            .managed(ManagedConfig { version: 1, ..Default::default() });
        assert_eq!(machine.settings(), user("[filter.meta]\nenabled = true").settings_in(&machine));
    }

    impl Machine {
        /// The settings, as if the state lay where `other` has it.
        fn settings_in(&self, other: &Self) -> Settings {
            let mut settings = self.settings();
            settings.agent.state_dir = other.path("home/state");
            settings
        }
    }

    /// The defaults' options of `siem` are those of `http-siem`: `stdout` knows none of them.
    #[test]
    fn another_type_forgets_the_options_of_the_first() {
        let loaded = Machine::new()
            .machine("[sink.siem]\nendpoint = \"https://machine\"")
            .user("[sink.siem]\ntype = \"stdout\"\npretty = true")
            .variable("CLAUDE_SIEM_TOKEN", "a-token-of-16-bytes")
            .load()
            .unwrap();
        let sink = &loaded.settings.pipeline.sinks[0];
        assert_eq!(sink.stage, "stdout");
        assert_eq!(format!("{:?}", sink.options), r#"{"pretty"}"#);
        assert_eq!(
            loaded.warnings,
            ["the environment variable `CLAUDE_SIEM_TOKEN` has no effect: the sink `siem` is no \
              `http-siem`"]
        );
    }

    #[test]
    fn the_same_type_again_forgets_nothing() {
        let machine = Machine::new()
            .machine("[sink.siem]\nendpoint = \"https://machine\"")
            .user("[sink.siem]\ntype = \"http-siem\"");
        let sink = &machine.settings().pipeline.sinks[0];
        assert_eq!(sink.options.get("endpoint").unwrap().as_str(), Some("https://machine"));
        assert!(sink.options.get("compression").is_some());
    }

    #[test]
    fn a_type_that_comes_back_has_its_options_again() {
        let machine = Machine::new()
            .machine("[sink.siem]\ntype = \"stdout\"\npretty = true")
            .user("[sink.siem]\ntype = \"http-siem\"");
        let options = &machine.settings().pipeline.sinks[0].options;
        assert!(options.get("compression").is_some() && options.get("pretty").is_none());
    }

    /// One file of `config.d` says where the sink is, a later one what it is.
    #[test]
    fn options_without_a_type_wait_for_one() {
        let settings = Machine::new()
            .write("etc/config.d/1.toml", "[sink.main]\nendpoint = \"https://x\"")
            .write("etc/config.d/2.toml", "[sink.main]\ntype = \"http-siem\"")
            .user("pipeline.sinks = [\"main\"]")
            .settings();
        assert!(settings.pipeline.sinks[0].options.get("endpoint").is_some());
    }

    #[test]
    fn a_state_dir_below_the_home_directory() {
        let machine = user("agent.state_dir = \"~/there\"");
        assert_eq!(machine.settings().agent.state_dir, machine.path("home/there"));
    }
}

mod filters {
    use super::*;

    const ON: &str = "[filter.sidechain]\nenabled = true\n[filter.meta]\nenabled = true\n\
                      [filter.tool-call]\nenabled = true\n[filter.mine]\n";

    #[test]
    fn those_that_the_list_omits_run_first() {
        let machine = user(&format!("pipeline.filters = [\"mine\", \"meta\", \"dedupe\"]\n{ON}"));
        let expected =
            ["compact", "ignore-types", "sidechain", "tool-call", "mine", "meta", "dedupe"];
        assert_eq!(names(&machine.settings().pipeline.filters), expected);
    }

    #[test]
    fn an_empty_list_still_runs_all_six() {
        let machine = user(&format!("pipeline.filters = []\n{ON}"));
        assert_eq!(names(&machine.settings().pipeline.filters), BUILT_IN_FILTERS);
    }

    #[test]
    fn compact_and_dedupe_are_always_on() {
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
    fn built_in_ones_keep_their_type() {
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
    fn a_second_instance_of_a_type_has_a_name_of_its_own() {
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
    fn a_name_without_a_table_is_its_type() {
        let settings = user("pipeline.enrichers = [\"host\", \"labels\"]").settings();
        let labels = stage(&settings.pipeline.enrichers, "labels");
        assert_eq!(labels.stage, "labels");
        assert_eq!(format!("{:?}", labels.options), "{}");
    }
}

mod errors {
    use super::*;

    const FILE: &str = "the user's file `DIR/home/config.toml`";
    const LINE_1: &str = "the user's file `DIR/home/config.toml:1`";

    /// Each wrong file, and what is said about it; `FILE` stands for the file.
    #[test]
    fn name_layer_key_and_what_would_be_right() {
        let cases = [
            (
                "shipping.bach_size = 1",
                "unknown key `shipping.bach_size` in FILE: did you mean `batch_size`?",
            ),
            (
                "agent.colour = 1",
                "unknown key `agent.colour` in FILE: expected `state_dir` or `poll_interval`",
            ),
            ("[filtr.x]", "unknown key `filtr` in FILE: did you mean `filter`?"),
            (
                "[ignore-types]",
                "unknown key `ignore-types` in FILE: expected `locked`, `agent`, `shipping`, \
                 `outbox`, `managed`, `compliance`, `pipeline`, `test`, `source`, `filter`, \
                 `enricher` or `sink`",
            ),
            (
                "shipping.batch_size = \"many\"",
                "`shipping.batch_size` in FILE is the text \"many\", expected a whole number, 0 or \
                 more",
            ),
            (
                "shipping.batch_size = -1",
                "`shipping.batch_size` in FILE is the number -1, expected a whole number, 0 or \
                 more",
            ),
            (
                "shipping.batch_size = 0",
                "`shipping.batch_size` in FILE is 0, must be from 1 to 10000",
            ),
            (
                "shipping.batch_size = 10001",
                "`shipping.batch_size` in FILE is 10001, must be from 1 to 10000",
            ),
            (
                "shipping.max_batch_bytes = \"1 KiB\"",
                "`shipping.max_batch_bytes` in FILE is 1.0 KiB, must be from 64 KiB to 32 MiB",
            ),
            (
                "shipping.max_batch_bytes = \"33 MiB\"",
                "`shipping.max_batch_bytes` in FILE is 33.0 MiB, must be from 64 KiB to 32 MiB",
            ),
            (
                "shipping.flush_interval = \"soon\"",
                "`shipping.flush_interval` in FILE is wrong: `soon` is not a duration \
                 such as \"300s\"",
            ),
            (
                "shipping.flush_interval = 86401",
                "`shipping.flush_interval` in FILE is 1day 1s, must be at most 86400s",
            ),
            (
                "outbox.max_bytes = \"1 MiB\"",
                "`outbox.max_bytes` in FILE is 1.0 MiB, must be at least 32 MiB",
            ),
            (
                "outbox.max_dead_letter_bytes = \"1 KiB\"",
                "`outbox.max_dead_letter_bytes` in FILE is 1.0 KiB, must be at least 1 MiB",
            ),
            (
                "agent.poll_interval = \"59s\"",
                "`agent.poll_interval` in FILE is 59s, must be at least 60s",
            ),
            (
                "agent.poll_interval = \"2days\"",
                "`agent.poll_interval` in FILE is 2days, must be at most 86400s",
            ),
            (
                "agent.state_dir = \"here\"",
                "`agent.state_dir` in FILE is `here`, must be an absolute path or begin with `~/`",
            ),
            (
                "agent.state_dir = 1",
                "`agent.state_dir` in FILE is the number 1, expected a path in quotes",
            ),
            ("agent = true", "`agent` in FILE is `true`, expected a table"),
            ("filter = []", "`filter` in FILE is a list, expected a table"),
            ("filter.meta = true", "`filter.meta` in FILE must be a table, `[filter.meta]`"),
            (
                "filter.meta.enabled = \"yes\"",
                "`filter.meta.enabled` in FILE must be `true` or `false`",
            ),
            (
                "filter.meta.type = 1",
                "`filter.meta.type` in FILE must be the type of a stage, as `\"ignore-types\"`: \
                 `ai-agent stages` lists them",
            ),
            (
                "pipeline.sinks = \"siem\"",
                "`pipeline.sinks` in FILE is the text \"siem\", expected a list in brackets",
            ),
            (
                "pipeline.sinks = [\"siem\", 1]",
                "`pipeline.sinks[1]` in FILE is the number 1, expected a text in quotes",
            ),
            (
                "pipeline.sinks = []",
                "`pipeline.sinks` in FILE names no sink that is enabled: one at least is needed",
            ),
            (
                "pipeline.sources = []",
                "`pipeline.sources` in FILE names no source that is enabled: one at least is \
                 needed",
            ),
            (
                "pipeline.filters = [\"meta\", \"x\", \"meta\"]",
                "`pipeline.filters` in FILE names `meta` twice: a second one needs a name of its \
                 own, and `type = \"meta\"` in its table",
            ),
            (
                "pipeline.filters = [\"My_Filter\"]",
                "`pipeline.filters[0]` in FILE is \"My_Filter\" for a name, must be lower-case \
                 words with hyphens, as `my-stage`",
            ),
            (
                "[filter.My_Filter]",
                "`filter.My_Filter` in FILE has \"My_Filter\" for a name, must be lower-case \
                 words with hyphens, as `my-stage`",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(user(text).error(), expected.replace("FILE", LINE_1), "{text}");
        }
    }

    #[test]
    fn name_every_layer() {
        let wrong = "shipping.batch_size = 0";
        let says = |machine: Machine| machine.error();
        let expected =
            |layer: &str| format!("`shipping.batch_size` in {layer} is 0, must be from 1 to 10000");
        let error = says(Machine::new().machine(wrong));
        assert_eq!(error, expected("the machine's file `DIR/etc/config.toml:1`"));
        let error = says(Machine::new().write("etc/config.d/50-x.toml", wrong));
        assert_eq!(error, expected("the machine's file `DIR/etc/config.d/50-x.toml:1`"));
        let error = says(Machine::new().explicit(wrong));
        assert_eq!(error, expected("the file `DIR/explicit.toml:1` of --config"));
        let shipping = ManagedShipping { batch_size: Some(0), flush_interval_seconds: None };
        let managed = ManagedConfig { version: 1, shipping: Some(shipping), ..Default::default() };
        let error = says(Machine::new().managed(managed));
        assert_eq!(error, expected("the server's managed configuration"));
    }

    /// The layer that is wrong is named, not the one that wrote the table last.
    #[test]
    fn name_the_layer_of_the_value() {
        let machine = Machine::new()
            .machine("[shipping]\nbatch_size = 0")
            .user("[shipping]\nflush_interval = \"1s\"");
        assert!(machine.error().contains("the machine's file `DIR/etc/config.toml:2` is 0"));
    }

    #[test]
    fn name_the_variable() {
        let error = Machine::new().variable("CLAUDE_SIEM_POLL_INTERVAL", "30s").error();
        assert_eq!(
            error,
            "`agent.poll_interval` in the environment variable `CLAUDE_SIEM_POLL_INTERVAL` is 30s, \
             must be at least 60s"
        );
        let error = Machine::new().variable("CLAUDE_SIEM_POLL_INTERVAL", "often").error();
        assert_eq!(
            error,
            "`agent.poll_interval` in the environment variable `CLAUDE_SIEM_POLL_INTERVAL` is \
             wrong: `often` is not a duration such as \"300s\""
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_utf_8() {
        use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

        let machine = Machine::new();
        let value = OsString::from_vec(vec![0xff]);
        let environment = Environment::from_iter([("CLAUDE_SIEM_TOKEN", value)]);
        let inputs = Inputs {
            paths: &machine.paths,
            environment: &environment,
            explicit: None,
            managed: None,
        };
        assert_eq!(
            load(&inputs).unwrap_err().to_string(),
            "`sink.siem.token` in the environment variable `CLAUDE_SIEM_TOKEN` is not valid UTF-8"
        );
    }

    #[test]
    fn say_where_a_file_is_no_toml() {
        let error = user("# ü\n[agent]\npoll_interval = = 3").error();
        let start = format!("{FILE} is no TOML: line 3, column 17: ");
        assert!(error.starts_with(&start), "{error}");
    }

    #[test]
    fn a_file_that_must_be_there() {
        let mut machine = Machine::new();
        machine.explicit = Some(machine.path("none.toml"));
        assert_eq!(machine.error(), "cannot read the file `DIR/none.toml` of --config");
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let machine = Machine::new();
        fs::create_dir(machine.path("etc/config.d/x.toml")).unwrap();
        assert_eq!(machine.error(), "cannot read the machine's file `DIR/etc/config.d/x.toml`");
        let machine = Machine::new().write("home/config.toml", b"a = \"\xff\"");
        assert_eq!(machine.error(), format!("cannot read {FILE}"));
    }

    #[test]
    fn a_byte_order_mark_is_no_error() {
        let settings = user("\u{feff}shipping.batch_size = 3").settings();
        assert_eq!(settings.shipping.batch_size, 3);
    }
}

mod options_of_stages {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Options {
        #[serde(rename = "types")]
        _types: Vec<String>,
        #[serde(rename = "mode")]
        _mode: Mode,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Mode {
        Keep,
        Drop,
    }

    fn explained(text: &str) -> String {
        let machine = user(&format!("pipeline.filters = [\"mine\"]\n[filter.mine]\n{text}"));
        let loaded = machine.load().unwrap();
        let stage = stage(&loaded.settings.pipeline.filters, "mine");
        let error = stage.options.parse::<Options>().unwrap_err();
        machine.plain(&loaded.explain(stage, "filter", *error).to_string())
    }

    #[test]
    fn are_explained_with_layer_and_full_key() {
        let cases = [
            ("typs = []", "unknown key `filter.mine.typs` in FILE: did you mean `types`?"),
            (
                "types = [\"a\", 1]",
                "`filter.mine.types[1]` in FILE is the number 1, expected a text in quotes",
            ),
            (
                "types = \"a\"",
                "`filter.mine.types` in FILE is the text \"a\", expected a list in brackets",
            ),
            (
                "types = []\nmode = \"kep\"",
                "`filter.mine.mode` in FILE is \"kep\", expected `keep` or `drop`: did you \
                 mean `keep`?",
            ),
            ("types = []", "`filter.mine.mode` is missing: add it under `[filter.mine]`"),
        ];
        for (text, expected) in cases {
            let line = if text.contains("\nmode") { 4 } else { 3 };
            let file = format!("the user's file `DIR/home/config.toml:{line}`");
            let expected = expected.replace("FILE", &file);
            assert_eq!(explained(text), expected, "{text}");
        }
        let _ = (Mode::Keep, Mode::Drop);
    }

    #[test]
    fn are_those_of_the_layer_that_wrote_them() {
        let machine = Machine::new()
            .machine("[filter.ignore-types]\ntyps = [1]")
            .user("[filter.ignore-types]\ntypes = []");
        let loaded = machine.load().unwrap();
        let stage = stage(&loaded.settings.pipeline.filters, "ignore-types");
        let error = stage.options.parse::<Options>().unwrap_err();
        assert_eq!(
            machine.plain(&loaded.explain(stage, "filter", *error).to_string()),
            "unknown key `filter.ignore-types.typs` in the machine's file `DIR/etc/config.toml:2`: \
             did you mean `types`?"
        );
    }

    #[test]
    fn can_be_refused_by_others_too() {
        let machine = user("pipeline.filters = [\"mine\"]\n[filter.mine]\ntype = \"ignore-type\"");
        let loaded = machine.load().unwrap();
        let error = loaded.wrong("filter.mine.type", "is \"ignore-type\", which no stage is");
        assert_eq!(
            machine.plain(&error.to_string()),
            "`filter.mine.type` in the user's file `DIR/home/config.toml:3` is \"ignore-type\", \
             which no stage is"
        );
    }
}

mod warnings {
    use super::*;

    #[test]
    fn a_variable_that_nothing_reads() {
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
    fn a_table_that_no_list_names() {
        let machine = user("[filter.mine]\nx = 1\n[enricher.labels]\nteam = \"x\"");
        assert_eq!(
            machine.warnings(),
            [
                "the table `[filter.mine]` in the user's file `DIR/home/config.toml:1` has no \
                 effect: `pipeline.filters` does not name `mine`",
                "the table `[enricher.labels]` in the user's file `DIR/home/config.toml:3` has no \
                 effect: `pipeline.enrichers` does not name `labels`"
            ]
        );
    }

    #[test]
    fn a_table_of_the_defaults_may_be_left_out() {
        assert_eq!(user("pipeline.sinks = [\"stdout\"]").warnings(), Vec::<String>::new());
    }

    #[test]
    fn a_short_secret() {
        let machine = Machine::new().variable("CLAUDE_SIEM_TOKEN", "fifteen-bytes-x");
        assert_eq!(
            machine.warnings(),
            ["`sink.siem.token` in the environment variable `CLAUDE_SIEM_TOKEN` is shorter than \
              16 bytes, so it can be guessed"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_secret_in_a_file_that_all_can_read() {
        use std::os::unix::fs::PermissionsExt as _;

        let machine = user("[sink.siem]\ntoken = \"a-token-of-16-bytes\"");
        assert_eq!(machine.warnings(), Vec::<String>::new());
        let open = fs::Permissions::from_mode(0o644);
        fs::set_permissions(machine.path("home/config.toml"), open).unwrap();
        assert_eq!(
            machine.warnings(),
            ["`sink.siem.token` stands in the user's file `DIR/home/config.toml:2`, which every \
              user of this machine can read: mend it with `chmod o-r`"]
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
    fn one_error_names_all_that_is_missing() {
        let expected = "cannot deliver without the HMAC secret, the endpoint and the token\n  \
            the endpoint: set CLAUDE_SIEM_ENDPOINT, or give `endpoint` under `[sink.siem]`\n  \
            the token: set CLAUDE_SIEM_TOKEN, or give `token` or `token_file` under \
            `[sink.siem]`\n  \
            the HMAC secret: set CLAUDE_SIEM_HMAC_SECRET, or give `hmac_secret` or \
            `hmac_secret_file` under `[sink.siem]`\n\
            configuration file: DIR/home/config.toml or DIR/etc/config.toml";
        assert_eq!(missing(&Machine::new()).unwrap(), expected);
    }

    #[test]
    fn what_is_given_is_not_named() {
        let machine = user("[sink.siem]\ntoken_file = \"/t\"\nendpoint = \" \"")
            .variable("CLAUDE_SIEM_HMAC_SECRET", "a-secret-of-16-bytes");
        let error = missing(&machine).unwrap();
        let first = error.lines().next().unwrap();
        assert_eq!(first, "cannot deliver without the endpoint");
        assert_eq!(missing(&machine.variable("CLAUDE_SIEM_ENDPOINT", "https://x")), None);
    }

    #[test]
    fn a_sink_with_another_name_has_no_variables() {
        let machine =
            user("pipeline.sinks = [\"main\"]\n[sink.main]\ntype = \"http-siem\"\ntoken = \"x\"");
        let error = missing(&machine).unwrap();
        assert!(error.contains("\n  the endpoint: give `endpoint` under `[sink.main]`\n"));
        assert!(!error.contains("CLAUDE_SIEM"), "{error}");
    }

    #[test]
    fn other_sinks_need_nothing() {
        assert_eq!(missing(&user("pipeline.sinks = [\"stdout\"]")), None);
    }

    #[test]
    fn the_higher_of_a_secret_and_its_file_stays() {
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
            "`sink.siem.token_file` in the user's file `DIR/home/config.toml:2` stands beside \
             `token`: give one of them"
        );
    }
}

mod hash {
    use super::*;

    fn hash(text: &str) -> siem_protocol::Digest {
        user(text).settings().config_hash()
    }

    #[test]
    fn is_of_what_decides_about_records() {
        let default = hash("");
        assert_ne!(hash("filter.ignore-types.types = [\"x\"]"), default);
        assert_ne!(hash("filter.meta.enabled = true"), default);
        assert_ne!(hash("pipeline.filters = [\"mine\"]"), default);
        assert_ne!(hash("pipeline.enrichers = []"), default);
        let typed = |stage: &str| {
            hash(&format!("pipeline.filters = [\"mine\"]\n[filter.mine]\ntype = \"{stage}\""))
        };
        assert_ne!(typed("a"), typed("b"));
        let order = |list: &str| hash(&format!("pipeline.filters = [{list}]"));
        assert_ne!(order("\"a\", \"b\""), order("\"b\", \"a\""));
    }

    #[test]
    fn is_of_nothing_else() {
        let default = hash("");
        assert_eq!(hash("shipping.batch_size = 3"), default);
        assert_eq!(hash("[sink.siem]\nendpoint = \"https://x\""), default);
        assert_eq!(hash("filter.meta.enabled = false"), default);
        let options = |text: &str| {
            hash(&format!("pipeline.enrichers = [\"labels\"]\n[enricher.labels]\n{text}"))
        };
        assert_eq!(options("a = 1\nb = 2"), options("b = 2\na = 1"));
        assert_eq!(options("token = \"x\""), options("token = \"y\""));
    }

    /// A receiver sees by this value who judges alike, over versions: a change of it must be meant.
    #[test]
    fn keeps_its_value() {
        assert_eq!(
            hash("").to_string(),
            "dce4ce27e2fc9c5c30a310531c3caf604e3112cbd841f618bbab0962fb3f29b4"
        );
    }
}

mod secrets {
    use proptest::prelude::*;

    use super::*;

    const MARKER: &str = "S3CR3T-MARKER";

    /// Places in which somebody writes a secret, rightly or wrongly; `@` stands for it.
    const PLACES: [&str; 16] = [
        "[sink.siem]\ntoken = \"@\"",
        "[sink.siem]\nhmac_secret = \"@\"",
        "[sink.siem]\ntoken = [\"@\"]",
        "[sink.siem]\ntoken = { value = \"@\" }",
        "[sink.siem]\ntoken = @",
        "[sink.siem]\ntoken = \"@",
        "[sink.siem]\ntoken = '@\"",
        "[sink.siem]\ntoken = \"@\" \"@\"",
        "[sink.siem]\ntoken = \"\\@\"",
        "[sink.siem]\ntokn = \"@\"",
        "[sink]\ntoken = \"@\"",
        "token = \"@\"",
        "[agent]\ntoken = \"@\"",
        "[filter.meta]\napi_key = \"@\"",
        "[sink.other]\npassword = \"@\"",
        "[sink.siem]\ntoken = \"@\"\ntoken = \"@\"",
    ];

    #[derive(Debug, serde::Deserialize)]
    struct Sink {
        #[serde(rename = "token")]
        _token: Secret,
        #[serde(rename = "hmac_secret")]
        _hmac_secret: u64,
    }

    /// Options of stages that are no [`Secret`], though their name says that they hold one.
    #[test]
    fn are_in_no_error_about_an_option_of_another_type() {
        #[derive(Debug, serde::Deserialize)]
        enum Choice {}
        type Read = fn(&StageOptions) -> Box<figment::Error>;
        fn read<T: serde::de::DeserializeOwned>(options: &StageOptions) -> Box<figment::Error> {
            options.parse::<std::collections::BTreeMap<String, T>>().err().unwrap()
        }
        let reads: [(&str, Read); 4] = [
            ("is a text, expected a whole number, 0 or more", read::<u64>),
            ("is a text, expected a list in brackets", read::<Vec<u8>>),
            ("is wrong: `***` is not a duration such as \"300s\"", read::<crate::units::Time>),
            ("is wrong, expected ", read::<Choice>),
        ];
        let text = format!("pipeline.filters = [\"mine\"]\n[filter.mine]\napi_key = \"{MARKER}\"");
        let loaded = user(&text).load().unwrap();
        let stage = stage(&loaded.settings.pipeline.filters, "mine");
        for (expected, read) in reads {
            let error = loaded.explain(stage, "filter", *read(&stage.options));
            let text = error.to_string();
            assert!(
                text.starts_with("`filter.mine.api_key` in ") && text.ends_with(expected),
                "{text}"
            );
            assert!(!format!("{text} {error:?}").contains(MARKER), "{text}");
        }
    }

    /// Everything that can be printed of a configuration.
    fn all_output(machine: &Machine) -> String {
        use std::fmt::Write as _;

        let mut output =
            format!("{:?}", machine.variables.iter().cloned().collect::<Environment>());
        match machine.load() {
            Err(error) => write!(output, "{error} {error:?} {:?}", error_source(&error)).unwrap(),
            Ok(loaded) => {
                write!(output, "{loaded:?} {:?}", loaded.settings).unwrap();
                if let Some(error) = loaded.missing_for_delivery() {
                    write!(output, "{error} {error:?}").unwrap();
                }
                for sink in &loaded.settings.pipeline.sinks {
                    match sink.options.parse::<Sink>() {
                        Ok(options) => write!(output, "{options:?}").unwrap(),
                        Err(error) => {
                            let error = loaded.explain(sink, "sink", *error);
                            write!(output, "{error} {error:?}").unwrap();
                        }
                    }
                }
            }
        }
        output
    }

    fn error_source(error: &ConfigError) -> Option<String> {
        std::error::Error::source(error).map(ToString::to_string)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn are_in_no_output(
            places in proptest::collection::vec(0..PLACES.len(), 1..3),
            by_variable in any::<bool>(),
        ) {
            let mut machine = Machine::new();
            if let Some(place) = places.first() {
                machine = machine.machine(&PLACES[*place].replace('@', MARKER));
            }
            if let Some(place) = places.get(1) {
                machine = machine.user(&PLACES[*place].replace('@', MARKER));
            }
            if by_variable {
                machine = machine
                    .variable("CLAUDE_SIEM_TOKEN", MARKER)
                    .variable("CLAUDE_SIEM_HMAC_SECRET", MARKER)
                    .variable("CLAUDE_SIEM_TOKN", MARKER);
            }
            let output = all_output(&machine);
            prop_assert!(!output.is_empty() && !output.contains(MARKER), "{output}");
        }
    }

    /// Each place alone, so that none hides behind another's error.
    #[test]
    fn are_in_no_output_of_one_layer() {
        for place in PLACES {
            let output = all_output(&user(&place.replace('@', MARKER)));
            assert!(!output.contains(MARKER), "{place}: {output}");
        }
    }
}
