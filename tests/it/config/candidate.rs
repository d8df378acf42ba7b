//! `config try`.

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
    assert_eq!((&less[0]["stage"], &less[0]["type"]), (&json!("sidechain"), &json!("assistant")));
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
