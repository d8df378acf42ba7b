//! `ai-agent config` and `ai-agent test`, as an administrator uses them.
#![cfg(unix)]

use std::{collections::BTreeMap, fs, path::Path};

use crate::support::{SECRET, TOKEN, files_below, home::Home};
use ai_agent::internals::protocol::Digest;
use serde_json::{Value, json};

mod candidate;
mod check;
mod schema;
mod show;

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

    /// The table of the last layer was shown alone, and as overriding those of the others.
    #[test]
    fn explain_of_a_table_shows_what_all_layers_set() {
        let home = home("[shipping]\nbatch_size = 7\n");
        let explicit = write(&home, "explicit.toml", "shipping.flush_interval = \"1s\"");
        let text = printed(&home, &["--config", &explicit, "config", "explain", "shipping"]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("batch_size = 7") && lines[0].contains("\"1s\""), "{text}");
        assert!(lines[1].contains("flush_interval = \"1s\"") && lines[1].contains("explicit.toml"));
        assert!(lines[2].contains("batch_size = 7") && lines[2].contains("config.toml"), "{text}");
        assert!(!lines[..4].iter().any(|line| line.contains("overrides")), "{text}");
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
