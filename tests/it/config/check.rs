//! `config check`.

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
    let text = "locked = [\"sink.siem.endpont\", \"sink\", \"filter.*.enabled\", \"compliance\"]";
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

/// On the machine of a receiver there is no agent that has an endpoint.
#[test]
fn managed_config_is_checked_without_settings_of_a_machine() {
    let home = home("");
    let check = |within: u64| {
        let text = json!({ "version": 1, "compliance": { "transcript_within_seconds": within } });
        let file = write(&home, "managed.json", &text.to_string());
        home.agent(&["config", "check", &file, "--json"]).run()
    };
    assert_eq!(check(604_800).code, Some(0));
    let refused = check(604_801);
    let report: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((refused.code, &report["errors"]), (Some(1), &json!(1)), "{report:#}");
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
        (json!({"version": 1, "filters": {"drop_meta": "yes"}}).to_string(), "`filters.drop_meta`"),
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
