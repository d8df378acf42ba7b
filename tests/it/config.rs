//! `ai-agent config` and `ai-agent test`, as an administrator uses them.
#![cfg(unix)]

use std::{collections::BTreeMap, fs, path::Path};

use crate::support::{SECRET, TOKEN, files_below, home::Home};
use ai_agent::internals::protocol::Digest;
use serde_json::{Value, json};

const USER: &str = ".config/ai-agent/config.toml";

/// A home directory with `text` as the user's configuration file.
fn home(text: &str) -> Home {
    let home = Home::new();
    write(&home, USER, text);
    home
}

fn write(home: &Home, name: &str, text: &str) -> String {
    let path = home.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Replaces the home directory, which differs from run to run, by `HOME`.
fn plain(home: &Home, text: &str) -> String {
    text.replace(home.path().to_str().unwrap(), "HOME")
}

fn printed(home: &Home, arguments: &[&str]) -> String {
    plain(home, home.agent(arguments).succeed().text())
}

fn error(home: &Home, arguments: &[&str], code: i32) -> String {
    let ended = home.agent(arguments).run();
    assert_eq!(ended.code, Some(code), "{}{}", ended.text(), ended.stderr);
    let start = ended.stderr.find("error: ").unwrap();
    plain(home, &ended.stderr[start..])
}

mod show {
    use super::*;

    #[test]
    fn shown_config_loads_to_the_same_config() {
        let home = home(
            "[agent]\nstate_dir = \"~/there\"\n[filter.ignore-types]\ntypes = [\"a\", \"ü\"]\n\
             [pipeline]\nenrichers = [\"labels\"]\n[enricher.labels.labels]\n\"a b\" = \"c\"\n",
        );
        let shown = printed(&home, &["config", "show"]);
        let table: toml::Table = shown.parse().unwrap();
        assert_eq!(table["filter"]["ignore-types"]["types"][1].as_str(), Some("ü"));
        assert_eq!(table["enricher"]["labels"]["labels"]["a b"].as_str(), Some("c"));
        assert!(table["enricher"].get("host").is_none(), "what no list names has no effect");
        let json: Value =
            serde_json::from_str(&printed(&home, &["config", "show", "--json"])).unwrap();
        assert_eq!(json, serde_json::to_value(&table).unwrap());
        fs::write(home.path().join(USER), &shown).unwrap();
        assert_eq!(printed(&home, &["config", "show"]), shown);
    }

    /// Returns the hash of values as the documentation defines it.
    fn hash(values: &Value) -> String {
        // Members of the test's own dependencies may keep their order.
        fn sorted(value: &Value) -> Value {
            match value {
                Value::Object(members) => {
                    let members: BTreeMap<_, _> =
                        members.iter().map(|(key, value)| (key, sorted(value))).collect();
                    json!(members)
                }
                other => other.clone(),
            }
        }
        Digest::of(sorted(values).to_string().as_bytes()).to_string()
    }

    /// An administrator computes the hashes with other programs.
    #[test]
    fn hashes_in_status_and_heartbeats_are_those_of_shown_values() {
        let home = Home::new();
        home.write("-p/a.jsonl", "{}\n");
        let copy = home.path().join("copy");
        let config = format!(
            "locked = [\"sink\"]\n[pipeline]\nsinks = [\"copy\", \"web\"]\n\
             [sink.copy]\ntype = \"file\"\npath = {copy:?}\n\
             [sink.web]\nenabled = false\ntype = \"http\"\nheaders = {{ X-Key = \"{TOKEN}\" }}\n"
        );
        let agent = |arguments: &[&str]| home.agent(arguments).config(&config);
        agent(&["run", "--once"]).succeed();
        let shown = agent(&["config", "show", "--json"]).succeed();
        let shown: Value = serde_json::from_str(shown.text()).unwrap();
        let status = agent(&["status", "--json"]).run();
        let status: Value = serde_json::from_str(status.text()).unwrap();
        let lines = fs::read_to_string(&copy).unwrap();
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let heartbeat = lines.into_iter().find(|line| line["event"] == "heartbeat").unwrap();
        for applied in [&status["config"]["applied"], &heartbeat["data"]["config"]["applied"]] {
            assert_eq!(applied["hash"], hash(&shown));
            let sections: BTreeMap<&String, String> =
                shown.as_object().unwrap().iter().map(|(key, it)| (key, hash(it))).collect();
            assert_eq!(applied["sections"], json!(sections));
            let layers: Vec<_> = applied["layers"].as_array().unwrap().iter().collect();
            let names: Vec<_> = layers.iter().map(|layer| &layer["layer"]).collect();
            assert_eq!(json!(names), json!(["defaults", "command-line"]));
            assert_eq!(layers[1]["file"], home.path().join("agent.toml").to_str().unwrap());
        }
        let text = agent(&["status"]).run();
        let short = &hash(&shown["pipeline"])[..12];
        assert!(text.text().contains(&format!("pipeline={short}")), "{}", text.text());
    }

    /// It printed the first error and nothing else.
    #[test]
    fn show_with_errors_prints_the_other_values_and_then_all_errors() {
        let home = home("shipping.batch_size = 7\nagent.poll_interval = \"1s\"\n");
        let broken = write(&home, "broken.toml", "[shipping\n");
        for flags in [&[][..], &["--json"], &["--origin"], &["--changed"]] {
            let show = [&["--config", &broken, "config", "show"][..], flags].concat();
            let ended = home.agent(&show).run();
            assert_eq!(ended.code, Some(2), "{flags:?}");
            let shown = ended.text();
            assert!(shown.contains("batch_size"), "{flags:?}: {shown}");
            for file in ["broken.toml", "config.toml:2"] {
                assert!(ended.stderr.contains(file), "{flags:?}: {}", ended.stderr);
            }
            if flags.is_empty() {
                let table: toml::Table = shown.parse().unwrap();
                assert_eq!(table["shipping"]["batch_size"].as_integer(), Some(7));
                assert_eq!(table["agent"]["poll_interval"].as_str(), Some("300s"));
                assert!(shown.starts_with("# no agent is running"), "{shown}");
            }
        }
        // Under a misspelt key, in a layer that can be read, a secret is not recognised.
        write(&home, USER, &format!("[sink.siem]\ntokn = \"{TOKEN}\"\n"));
        let ended = home.agent(&["--config", &broken, "config", "show"]).run();
        assert_eq!((ended.code, ended.text()), (Some(2), ""));
    }

    #[test]
    fn show_with_a_broken_file_prints_what_the_agent_has_in_force() {
        let home = Home::new();
        let copy = home.path().join("copy");
        let config = format!(
            "pipeline.sinks = [\"copy\"]\nshipping.batch_size = 7\n\
             [sink.copy]\ntype = \"file\"\npath = {copy:?}\n"
        );
        let agent = home.agent(&["run"]).config(&config).start_and_wait();
        let file = home.path().join("agent.toml");
        let show = |flag: &str| {
            home.agent(&["config", "show", flag, "--config", file.to_str().unwrap()]).run()
        };
        assert_eq!(show("--json").code, Some(0));
        fs::write(&file, "[shipping\n").unwrap();
        let ended = show("--json");
        assert_eq!(ended.code, Some(2));
        let shown: Value = serde_json::from_str(ended.text()).unwrap();
        assert_eq!(shown["shipping"]["batch_size"], 7);
        assert!(ended.stderr.contains("agent.toml"), "{}", ended.stderr);
        let text = show("--changed");
        let lines: Vec<&str> = text.text().lines().filter(|it| it.contains(" = ")).collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].starts_with("batch_size = 7"), "{lines:?}");
        agent.stop();
    }

    #[test]
    fn changed_values_are_shown_with_their_layer() {
        let home = home("[shipping]\nbatch_size = 1000\nflush_interval = \"9s\"\n");
        let text = printed(&home, &["config", "show", "--changed"]);
        let file = "HOME/.config/ai-agent/config.toml";
        let expected =
            format!("\n[shipping]\nflush_interval = \"9s\"  # the user's file `{file}:3`\n");
        assert_eq!(text, expected);
        let line = printed(&home, &["config", "show", "--changed", "--json"]);
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "key": "shipping.flush_interval", "value": "9s", "layer": "user", "file": file,
                "line": 3,
            })
        );
        assert_eq!(printed(&super::home(""), &["config", "show", "--changed"]), "");
    }

    #[test]
    fn shown_values_name_their_origin() {
        let home = home("[shipping]\nbatch_size = 7\n");
        let text = home
            .agent(&["config", "show", "--origin"])
            .env("CLAUDE_SIEM_POLL_INTERVAL", "100s")
            .succeed();
        let text = plain(&home, text.text());
        let origin = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_once("  # ").unwrap().1.to_owned()
        };
        assert!(origin("batch_size = 7").contains("`HOME/.config/ai-agent/config.toml:2`"));
        assert!(origin("poll_interval = \"100s\"").contains("`CLAUDE_SIEM_POLL_INTERVAL`"));
        assert!(origin("watch = true").contains("default"), "{text}");

        let lines = printed(&home, &["config", "show", "--origin", "--json"]);
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let size = lines.into_iter().find(|line| line["key"] == "shipping.batch_size").unwrap();
        let file = "HOME/.config/ai-agent/config.toml";
        assert_eq!(
            size,
            json!({
                "key": "shipping.batch_size", "value": 7, "layer": "user", "file": file, "line": 2,
            })
        );
    }

    /// Secrets are hidden under any key and in any URL. [`support`] searches the output of every
    /// agent for secrets.
    #[test]
    fn secrets_are_hidden() {
        let text = format!(
            "[pipeline]\nenrichers = [\"labels\"]\n[sink.siem]\ntoken = \"{TOKEN}\"\n\
             hmac_secret = \"{SECRET}\"\nproxy = \"http://user:{TOKEN}@proxy\"\n\
             [enricher.labels.labels]\napi_key = \"{SECRET}\"\n"
        );
        let home = home(&text);
        for arguments in [
            &["config", "show"][..],
            &["config", "show", "--json"],
            &["config", "show", "--json", "--origin"],
            &["config", "explain", "sink.siem.token"],
            &["config", "explain", "sink.siem"],
            &["config", "explain", "enricher.labels.labels"],
            &["config", "explain", "sink.siem.proxy"],
        ] {
            assert!(printed(&home, arguments).contains("***"), "{arguments:?}");
        }
        // Under a misspelt key the value is not known to be a secret.
        for key in ["tokn", "sekret"] {
            let home = super::home(&format!("[sink.siem]\n{key} = \"{TOKEN}\""));
            for command in ["show", "check"] {
                let code = if command == "show" { 2 } else { 1 };
                assert!(error(&home, &["config", command], code).contains(key));
            }
        }
    }
}

mod explain {
    use super::*;

    #[test]
    fn explain_shows_value_origin_and_overridden_values() {
        let home = home("[shipping]\nbatch_size = 7\n");
        let explicit = write(&home, "explicit.toml", "shipping.batch_size = 8");
        let text =
            printed(&home, &["--config", &explicit, "config", "explain", "shipping.batch_size"]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "shipping.batch_size = 8");
        for (line, tokens) in [
            (1, &["`HOME/explicit.toml:1`", "--config"][..]),
            (2, &["7", "`HOME/.config/ai-agent/config.toml:2`"]),
            (3, &["1000", "default"]),
        ] {
            assert!(tokens.iter().all(|token| lines[line].contains(token)), "{line}: {text}");
        }
    }

    #[test]
    fn explain_of_an_unset_key_says_so() {
        let text = printed(&home(""), &["config", "explain", "sink.siem.endpoint"]);
        assert!(text.starts_with("sink.siem.endpoint "), "{text}");
        // It said that `managed.allow` lacks the key, which can never be in it.
        assert!(text.contains("may the server change it? no, it may only set filters"), "{text}");
    }

    #[test]
    fn explain_of_an_unknown_key_suggests_the_nearest() {
        let text = error(&home(""), &["config", "explain", "shiping.batch_size"], 2);
        for key in ["`shiping.batch_size`", "`shipping.batch_size`"] {
            assert!(text.contains(key), "{key}: {text}");
        }
    }
}

mod check {
    use super::*;

    #[test]
    fn stage_errors_name_file_line_and_key() {
        let home = home("");
        let file = write(
            &home,
            "roll-out.toml",
            "[filter.meta]\nenabld = true\n\n[filter.ignore-types]\ntypes = \"x\"\n\n[sink.siem]\n\
             acknowledgement = \"reciept\"\n",
        );
        let text = error(&home, &["config", "check", &file], 1);
        let errors: Vec<&str> = text.lines().collect();
        for (error, tokens) in errors.iter().zip([
            ["`filter.ignore-types.types`", "`HOME/roll-out.toml:5`", "\"x\""],
            ["`sink.siem.acknowledgement`", "`HOME/roll-out.toml:8`", "`receipt`"],
            ["`filter.meta.enabld`", "`HOME/roll-out.toml:2`", "`enabled`"],
        ]) {
            assert!(tokens.iter().all(|token| error.contains(token)), "{tokens:?}: {text}");
        }
        assert_eq!(errors.len(), 3, "{text}");
        home.agent(&["config", "check"]).ships_to("http://127.0.0.1:9").succeed();
    }

    /// A file for a rollout must not be valid only because of other files on this machine.
    #[test]
    fn check_of_files_uses_only_these_files() {
        let home = home("shipping.batch_size = 0");
        let one = write(&home, "1.toml", "pipeline.filters = [\"mine\"]");
        let two = write(&home, "2.toml", "[filter.mine]\ntype = \"ignore-types\"");
        let text = error(&home, &["config", "check", &one], 1);
        for token in ["`pipeline.filters`", "`HOME/1.toml:1`", "`mine`"] {
            assert!(text.contains(token), "{token}: {text}");
        }
        printed(&home, &["config", "check", &one, &two]);
        assert!(error(&home, &["config", "check"], 1).contains("config.toml:1`"));
    }

    #[test]
    fn check_of_invalid_toml_or_a_missing_file_fails() {
        let home = home("");
        let torn = write(&home, "torn.toml", "[shipping]\nbatch_size = \n");
        let text = error(&home, &["config", "check", &torn], 1);
        assert!(text.contains("`HOME/torn.toml`"), "{text}");
        assert!(text.contains("line 2, column 14"), "{text}");
        let text = error(&home, &["config", "check", "/no/such.toml"], 1);
        assert!(text.contains("/no/such.toml"), "{text}");
    }

    /// A misspelt lock locks nothing, without any other sign.
    #[test]
    fn check_warns_of_a_lock_on_an_unknown_key() {
        let home = home("");
        let text =
            "locked = [\"sink.siem.endpont\", \"sink\", \"filter.*.enabled\", \"compliance\"]";
        let file = write(&home, "machine.toml", text);
        let messages = home.agent(&["config", "check", &file]).succeed().stderr;
        let warnings = messages.lines().filter(|line| line.contains("`locked`"));
        let [warning] = &warnings.collect::<Vec<_>>()[..] else { panic!("{messages}") };
        for key in ["`sink.siem.endpont`", "`sink.siem.endpoint`"] {
            assert!(warning.contains(key), "{key}: {messages}");
        }
    }

    /// Filters without side effects may come from the server, and its tests run through them.
    #[test]
    fn managed_config_may_add_filters_with_tests() {
        let home = home("");
        let allows = write(&home, "machine.toml", "managed.allow = [\"filter.*\"]");
        let line = |input: &str, by: &str| json!({"input": input, "by": by, "expect": "drop"});
        let managed = json!({
            "version": 1,
            "stages": {"filter": {
                "images": {"type": "expression", "drop_when": "record.type == 'image'"},
                "private": {"type": "path", "drop_cwd": ["**/private"]},
                "mask": {"patterns": ["jwt"], "own": {"ticket": "T-[0-9]+"}},
            }},
            "tests": [{"name": "all three", "lines": [
                line(r#"{"type":"image"}"#, "images"),
                line(r#"{"cwd":"/private/a"}"#, "private"),
                {"input": r#"{"a":"T-1"}"#, "expect": "edit", "by": "mask", "output": r#"{"a":"[masked:ticket]"}"#},
            ]}],
        });
        let managed = write(&home, "managed.json", &managed.to_string());
        printed(&home, &["config", "check", &allows, &managed]);
        printed(&home, &["test", &allows, &managed]);
    }

    #[test]
    fn managed_config_is_checked_as_on_a_machine() {
        let home = home("");
        let allows = write(&home, "machine.toml", "managed.allow = [\"filter.*\"]");
        let stages = |stages: Value| json!({ "version": 1, "stages": stages }).to_string();
        let cases = [
            (stages(json!({"filter": {"x": {"type": "ignor-types"}}})), "`ignore-types`"),
            (stages(json!({"filter": {"x": {"type": "meta", "y": 1}}})), "`filter.x.y`"),
            (stages(json!({"filter": {"x": {"type": "nope", "enabled": false}}})), "`nope`"),
            (
                stages(json!({"filter": {"x": {"type": "expression", "drop_when": "recrod.a"}}})),
                "line 1, column 1",
            ),
            (stages(json!({"filter": {"x": {"type": "path", "drop_cwd": ["/a/[b"]}}})), "`/a/[b`"),
            (stages(json!({"filter": {"x": {"type": "mask", "own": {"t": "(a"}}}})), "`t`"),
            (stages(json!({"enricher": {"labels": {}}})), "`stages.enricher.labels`"),
            (stages(json!({"sink": {"x": {"type": "stdout"}}})), "`stages.sink`"),
            (
                json!({"version": 1, "shipping": {"batch_size": 10_001}}).to_string(),
                "`shipping.batch_size`",
            ),
            (
                json!({"version": 1, "filters": {"drop_meta": "yes"}}).to_string(),
                "`filters.drop_meta`",
            ),
            (
                json!({"version": 1, "tests": [
                    {"name": "t", "lines": [{"input": "{}", "expect": "drop"}]}]})
                .to_string(),
                "`t`",
            ),
        ];
        for (text, expected) in cases {
            let file = write(&home, "managed.json", &text);
            let messages = error(&home, &["config", "check", &allows, &file], 1);
            assert!(messages.contains(expected), "{text}: {messages}");
        }
        let right = stages(json!({"filter": {"x": {"type": "meta"}}}));
        let file = write(&home, "managed.json", &right);
        printed(&home, &["config", "check", &allows, &file]);
        assert!(error(&home, &["config", "check", &file], 1).contains("filter.x"));
    }
}

mod schema {
    use super::*;

    fn as_json(text: &str) -> Value {
        serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
    }

    fn validator() -> jsonschema::Validator {
        let schema: Value =
            serde_json::from_str(&printed(&home(""), &["config", "schema"])).unwrap();
        jsonschema::meta::validate(&schema).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    }

    #[track_caller]
    fn assert_right(validator: &jsonschema::Validator, text: &str) {
        if let Err(error) = validator.validate(&as_json(text)) {
            panic!("{error} at {}:\n{text}", error.instance_path());
        }
    }

    #[test]
    fn schema_accepts_the_defaults_and_every_sample() {
        let validator = validator();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_right(&validator, &fs::read_to_string(root.join("config/default.toml")).unwrap());
        let all = ai_agent::internals::stages::all();
        assert!(all.len() >= 12);
        for stage in all {
            let named = format!("[{}.{}]\n{}", stage.kind, stage.name, stage.sample);
            assert_right(&validator, &named);
            let typed =
                format!("[{}.mine]\ntype = \"{}\"\n{}", stage.kind, stage.name, stage.sample);
            assert_right(&validator, &typed);
        }
    }

    #[test]
    fn schema_rejects_what_the_agent_rejects() {
        let validator = validator();
        for text in [
            "",
            "shipping.flush_interval = \"5s\"",
            "[sink.siem]\nendpoint = \"https://x\"",
            "[sink.siem]\ntype = \"stdout\"",
            "[filter.mine]\nenabled = false",
            "[filter.mine]\ntype = \"ignore-types\"\ntypes = []",
            "locked = [\"sink\"]\nmanaged.allow = [\"filter.*\"]",
            "[[test]]\nname = \"a\"\nlines = [{ input = \"\", expect = \"keep\" }]",
        ] {
            assert_right(&validator, text);
        }
        let globs = format!("[filter.path]\ndrop_cwd = {:?}", vec!["/a"; 1001]);
        let filters: Vec<_> = (0..257).map(|n| format!("f{n}")).collect();
        let stages = format!("pipeline.filters = {filters:?}");
        for text in [
            &*globs,
            &stages,
            "colour = 1",
            "shipping.bach_size = 1",
            "shipping.batch_size = \"many\"",
            "shipping.flush_interval = true",
            "shipping.flush_interval = 5",
            "shipping.flush_interval = \"5\"",
            "pipeline.sinks = \"siem\"",
            "[filter.mine]\ntype = \"no-such\"",
            "[filter.ignore-types]\ntyps = []",
            "[filter.mine]\ntype = \"ignore-types\"\ntyps = []",
            "[filter.mine]\ntype = \"meta\"\ntypes = []",
            "[filter.tool-call]\non_oversize = \"kep\"",
            "[sink.siem]\nendpont = \"https://x\"",
            "[sink.siem]\ntype = \"stdout\"\nendpoint = \"https://x\"",
            "[filter.meta]\nenabled = \"yes\"",
            "[[test]]\nname = \"a\"",
            "[[test]]\nname = \"a\"\nlines = [{ input = \"\", expect = \"kep\" }]",
        ] {
            assert!(!validator.is_valid(&as_json(text)), "{text}");
        }
    }
}

mod init {
    use super::*;

    #[test]
    fn init_writes_a_valid_config_that_changes_nothing() {
        let home = home("");
        let before = printed(&home, &["config", "show"]);
        let path = home.path().join("new.toml");
        let path = path.to_str().unwrap();
        home.agent(&["config", "init", path]).succeed();
        printed(&home, &["config", "check", path]);
        assert_eq!(printed(&home, &["config", "show", "--config", path]), before);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("# batch_size = 1000\n") && text.contains("[sink.siem]\n"));
        let again = error(&home, &["config", "init", path], 1);
        assert!(again.contains(&plain(&home, path)), "no file is overwritten: {again}");
        assert_eq!(printed(&home, &["config", "init", "-"]), text);
    }

    #[test]
    fn init_for_a_siem_writes_a_config_with_its_sink() {
        for (siem, stage, secret) in [
            ("splunk", "splunk-hec", "token_file"),
            ("elastic", "elasticsearch", "api_key_file"),
            ("otel", "otlp", "# headers_file"),
            ("syslog", "syslog", "# client_key_file"),
        ] {
            let home = home("");
            let path = home.path().join("new.toml");
            let path = path.to_str().unwrap();
            home.agent(&["config", "init", "--for", siem, path]).succeed();
            printed(&home, &["config", "check", path]);
            let text = fs::read_to_string(path).unwrap();
            let shown = printed(&home, &["config", "show", "--config", path]);
            let sinks = format!("sinks = [\"{siem}\"]");
            assert!(text.contains(&sinks) && shown.contains(&sinks), "{shown}");
            assert!(shown.contains(&format!("type = \"{stage}\"")), "{shown}");
            assert!(text.contains(&format!("\n{secret} = '")), "{text}");
            // Each option that is a comment has a valid value too.
            let is_key = |key: &str| key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let set = |line: &str| {
                let option = line.strip_prefix("# ").unwrap_or(line);
                let is_option = option.split_once(" = ").is_some_and(|(key, _)| is_key(key));
                format!("{}\n", if is_option { option } else { line })
            };
            let all: String = text.lines().map(set).collect();
            assert_ne!(all, text);
            printed(&home, &["config", "check", &write(&home, "all.toml", &all)]);
        }
    }

    #[test]
    fn init_for_an_unknown_siem_fails_with_the_known_ones() {
        let home = home("");
        let path = home.path().join("new.toml");
        let error = error(&home, &["config", "init", "--for", "qradar", path.to_str().unwrap()], 2);
        for word in ["qradar", "splunk", "elastic", "otel", "syslog"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!path.try_exists().unwrap());
    }
}

mod tests_in_toml {
    use super::*;

    const TESTS: &str = "[[test]]\nname = \"bookkeeping is dropped\"\nlines = [\n  \
        { input = '{\"type\":\"progress\"}', expect = \"drop\", by = \"ignore-types\" },\n  \
        { input = '{\"type\":\"user\"}', expect = \"keep\" },\n]\n";

    #[test]
    fn passing_tests_are_listed() {
        let home = home(TESTS);
        let text = printed(&home, &["test"]);
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("ok ") && first.ends_with("bookkeeping is dropped"), "{text}");
    }

    #[test]
    fn failing_test_shows_the_difference() {
        let home = home("");
        let call = r#"{"message":{"content":[{"type":"tool_use"},{"type":"text"}]}}"#;
        let text = format!(
            "[filter.tool-call]\nenabled = true\n{TESTS}[[test]]\nname = \"calls are cut\"\n\
             lines = [{{ input = '{call}', expect = \"edit\", output = '{{\"message\":1}}' }}, \
             {{ input = '{{}}', expect = \"drop\" }}]\n"
        );
        let file = write(&home, "roll-out.toml", &text);
        let ended = home.agent(&["test", &file]).run();
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("error: "), "{}", ended.stderr);
        let text = plain(&home, ended.text());
        for token in [
            "bookkeeping is dropped",
            "calls are cut",
            "`HOME/roll-out.toml:9`",
            "edit by tool-call",
            "- {\"message\":1}",
            "+ {\"message\":{\"content\":[{\"type\":\"text\"}]}}",
        ] {
            assert!(text.contains(token), "{token}: {text}");
        }
        assert_eq!(text.matches("expected ").count(), 2, "{text}");
    }

    /// Each test starts with fresh filters: a uuid of another test is not a duplicate.
    #[test]
    fn tests_start_with_fresh_filters() {
        let test = "[[test]]\nname = \"a\"\nlines = [{ input = '{\"uuid\":\"u\"}', expect = \"keep\" }, \
                    { input = '{\"uuid\":\"u\"}', expect = \"drop\", by = \"dedupe\" }]\n";
        let home = home(&test.repeat(2));
        assert_eq!(printed(&home, &["test"]).matches("ok ").count(), 2);
    }
}

mod candidate {
    use super::*;

    /// Two records of each of four types, one type marked as meta.
    fn sessions() -> Home {
        let home = home("[filter.sidechain]\nenabled = true");
        for file in ["-work/a.jsonl", "-work/b.jsonl"] {
            home.write(
                file,
                "{\"type\":\"user\",\"isMeta\":true}\n{\"type\":\"progress\"}\n\n\
                 {\"type\":\"assistant\",\"isSidechain\":true}\n\
                 {\"message\":{\"content\":[{\"type\":\"tool_use\"},{\"type\":\"text\"}]}}\n",
            );
        }
        home
    }

    fn tried(home: &Home, file: &str, text: &str) -> Value {
        let file = write(home, file, text);
        serde_json::from_str(&printed(home, &["config", "try", "--json", &file])).unwrap()
    }

    #[test]
    fn try_shows_changed_drops_by_stage_and_type() {
        let home = sessions();
        let found = tried(
            &home,
            "candidate.toml",
            "[filter.meta]\nenabled = true\n[filter.sidechain]\nenabled = false\n\
             [filter.tool-call]\nenabled = true",
        );
        let (lines, bytes) = (2, 2 * "{\"type\":\"user\",\"isMeta\":true}".len());
        assert_eq!(
            found["dropped_more"],
            json!([{"stage": "meta", "reason": "meta", "type": "user", "lines": lines, "bytes": bytes}])
        );
        let less = &found["dropped_less"];
        assert_eq!(less.as_array().unwrap().len(), 1, "{less}");
        assert_eq!(
            (&less[0]["stage"], &less[0]["type"]),
            (&json!("sidechain"), &json!("assistant"))
        );
        assert_eq!(found["read"]["lines"], 8);
        assert_eq!(found["shipped_now"]["lines"], 4);
        assert_eq!(found["shipped_candidate"]["lines"], 4);
        assert_eq!(found["cut"][0]["stage"], "tool-call");
        assert_eq!(found["cut"][0]["bytes_now"], 0);
        assert!(files_below(home.path()).iter().all(|file| !file.ends_with("outbox.redb")));
    }

    #[test]
    fn try_accepts_a_managed_config() {
        let home = sessions();
        let managed = "{\"version\":1,\"filters\":{\"ignore_types\":[\"user\"]}}";
        let found = tried(&home, "managed.json", managed);
        assert_eq!(found["dropped_more"][0]["type"], "user");
        assert_eq!(found["dropped_less"][0]["type"], "progress");
        let same = write(&home, "same.json", "{\"version\":1}");
        printed(&home, &["config", "try", &same]);
    }

    /// The comparison showed no difference, and said nothing of the reason.
    #[test]
    fn try_names_values_that_a_higher_layer_hides() {
        let home = sessions();
        let text = "[sink.siem]\nendpoint = \"https://new.example.com\"\n[agent]\n\
                    poll_interval = \"61s\"\n";
        let file = write(&home, "candidate.toml", text);
        let run = |arguments: &[&str]| {
            let arguments = [&["config", "try"][..], arguments, &[&*file]].concat();
            let ended = home.agent(&arguments).env("CLAUDE_SIEM_POLL_INTERVAL", "99s").succeed();
            plain(&home, ended.text())
        };
        let expected = "no effect: `agent.poll_interval` in the file `HOME/candidate.toml:4` given \
                        with --config, since the environment variable `CLAUDE_SIEM_POLL_INTERVAL` \
                        sets `\"99s\"`\n";
        let text = run(&[]);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.matches("no effect").count(), 1, "{text}");
        let found: Value = serde_json::from_str(&run(&["--json"])).unwrap();
        assert_eq!(found["without_effect"][0]["key"], "agent.poll_interval");
        assert_eq!(found["without_effect"][0]["line"], 4);
    }

    #[test]
    fn try_of_an_invalid_candidate_fails() {
        let home = sessions();
        let file = write(&home, "candidate.toml", "filter.meta.enabld = true");
        assert!(error(&home, &["config", "try", &file], 1).contains("`enabled`"));
    }
}

mod docs {
    use super::*;

    /// Returns the code blocks of a language on a page.
    fn blocks(page: &str, language: &str) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(root.join(page)).unwrap();
        let start = format!("```{language}\n");
        let parts = text.split(&start).skip(1);
        parts.map(|part| part.split("```").next().unwrap().to_owned()).collect()
    }

    /// Users copy the examples as they are.
    #[test]
    fn examples_in_docs_are_valid_and_their_tests_pass() {
        let home = home("");
        for (page, count) in [("README.md", 1), ("docs/configuration.md", 8)] {
            let examples = blocks(page, "toml");
            assert_eq!(examples.len(), count, "{page}");
            for example in examples {
                let file = write(&home, "example.toml", &example);
                printed(&home, &["config", "check", &file]);
                let passed = printed(&home, &["test", &file]);
                assert_eq!(passed.matches("ok  ").count(), example.matches("[[test]]").count());
            }
        }
        let mut examples = blocks("docs/configuration.md", "toml").into_iter();
        let locking = examples.find(|example| example.starts_with("locked = ")).unwrap();
        let machine = write(&home, "machine.toml", &locking);
        let managed = write(&home, "managed.json", &blocks("docs/configuration.md", "json")[0]);
        printed(&home, &["config", "check", &machine, &managed]);
        printed(&home, &["test", &machine, &managed]);
    }

    const SIEM_PAGES: [&str; 7] =
        ["direct-or-relay", "elastic", "logscale", "otel", "rsyslog", "sentinel", "splunk"];

    /// Administrators paste the first block of a page.
    #[test]
    fn pages_for_siems_start_with_a_valid_config() {
        let home = home("");
        let index = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/siem/README.md");
        let index = fs::read_to_string(index).unwrap();
        for name in SIEM_PAGES {
            assert!(index.contains(&format!("({name}.md)")), "{name} is not in the index");
            let page = format!("docs/siem/{name}.md");
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let text = fs::read_to_string(root.join(&page)).unwrap();
            assert!(text.lines().nth(2).unwrap().starts_with("```toml"), "{page}");
            for example in blocks(&page, "toml") {
                let file = write(&home, "example.toml", &example);
                printed(&home, &["config", "check", &file]);
            }
        }
    }
}
