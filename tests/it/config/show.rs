//! `config show`.

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
    let json: Value = serde_json::from_str(&printed(&home, &["config", "show", "--json"])).unwrap();
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
    let expected = format!("\n[shipping]\nflush_interval = \"9s\"  # the user's file `{file}:3`\n");
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
