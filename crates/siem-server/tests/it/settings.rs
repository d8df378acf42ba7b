//! `siem-server config check` and `config show`.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs `siem-server config` with the text of a file, and with no other variables.
fn config(text: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SIEM_SERVER_")) {
        command.env_remove(name);
    }
    command.arg("config").args(arguments).arg("--config").arg(&path);
    let secrets = ["CLAUDE_SIEM_TOKEN", "CLAUDE_SIEM_HMAC_SECRET"];
    command.envs(secrets.map(|name| (name, "a value of sufficient length")));
    command.envs(variables.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn config_check_exits_with_0_1_and_2() {
    let code = |text: &str, arguments: &[&str]| config(text, arguments, &[]).status.code();
    assert_eq!(code("", &["check"]), Some(0));
    assert_eq!(code("[http]\nlisten = 1", &["check"]), Some(1));
    assert_eq!(code("", &["check", "--set", "x"]), Some(2));
    assert_eq!(code("[http]\nlisten = 1", &["show"]), Some(1));
}

#[test]
fn config_check_prints_all_problems_as_json() {
    let text = "[http]\nlisten = 1\nheader_timeout = \"0s\"\n[secrets]\ntoken_file = \"/absent\"";
    let output = config(text, &["check", "--json"], &[("SIEM_SERVER_LOG_FORMAT", "xml")]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["valid"], false);
    let problems = report["problems"].as_array().unwrap();
    let keys: Vec<_> = problems.iter().map(|problem| problem["key"].as_str().unwrap()).collect();
    // Of types, values and files.
    assert_eq!(keys, ["http.listen", "log.format", "http.header_timeout", "secrets.token_file"]);
    assert_eq!((&problems[0]["layer"], &problems[0]["line"]), (&"file".into(), &2.into()));
    assert_eq!(problems[1]["variable"], "SIEM_SERVER_LOG_FORMAT");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors, "error: the configuration has 4 problems\n");
}

#[test]
fn config_show_prints_values_with_their_origin() {
    let output = config("[log]\nlevel = \"warn\"", &["show", "--listen", "[::1]:9"], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("http.listen"), r#"http.listen = "[::1]:9" # the argument `--listen`"#);
    assert!(line("log.level").contains(r#"log.level = "warn" # `"#));
    assert!(line("log.level").ends_with("config.toml:2`"));
    assert!(text.parse::<toml::Table>().is_ok(), "the output is TOML");
}

/// Such a variable was left out, so that the receiver ran with the default.
#[cfg(unix)]
#[test]
fn variable_that_is_not_text_is_a_problem() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, "").unwrap();
    let problems = |name: &[u8], value: &[u8]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
        command.args(["config", "check", "--json", "--config"]).arg(&path);
        let secrets = ["CLAUDE_SIEM_TOKEN", "CLAUDE_SIEM_HMAC_SECRET"];
        command.env_clear().envs(secrets.map(|name| (name, "a value of sufficient length")));
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        let output = command.stdin(Stdio::null()).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let problems = report["problems"].as_array().unwrap().iter();
        problems.map(|it| (text(&it["code"]), text(&it["variable"]))).collect::<Vec<_>>()
    };
    let code = || "variable_unreadable".to_owned();
    for name in ["SIEM_SERVER_HTTP_LISTEN", "SIEM_SERVER_HTTP_LISTN", "CLAUDE_SIEM_TOKEN"] {
        assert_eq!(problems(name.as_bytes(), b"a\xff"), [(code(), name.to_owned())], "{name}");
    }
    let name = "SIEM_SERVER_\u{fffd}".to_owned();
    assert_eq!(problems(b"SIEM_SERVER_\xff", b"x"), [(code(), name)]);
    assert_eq!(problems(b"OTHER_\xff", b"\xff"), []);
}

/// Every agent refused such a file whole, and the check said that it is valid.
#[test]
fn config_check_reports_what_every_agent_refuses() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join("configs")).unwrap();
    let wrong = r#"{
        "version": 1, "audience": { "os": ["linux"] },
        "compliance": {
            "permitted_email_domains": ["@a.example"], "permitted_org_ids": [""],
            "transcript_within_seconds": 604801
        },
        "stages": { "sink": {}, "filter": { "x": { "types": null } } }, "tests": {}
    }"#;
    let right = r#"{"version":1,"compliance":{"transcript_within_seconds":604800}}"#;
    for (name, text) in [("configs/wrong.json", wrong), ("config.json", right)] {
        std::fs::write(data.path().join(name), text).unwrap();
    }
    let text = format!("[store]\ndirectory = '{}'\n", data.path().display());
    let output = config(&text, &["check", "--json"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["problems"].as_array().unwrap();
    let of_wrong = |it: &&Value| it["file"] == "wrong.json" && it["code"] == "invalid";
    let found: Vec<&Value> = problems.iter().filter(of_wrong).collect();
    assert_eq!((found.len(), problems.len()), (6, 6), "{report:#}");
    for key in [
        "compliance.permitted_email_domains.0",
        "compliance.permitted_org_ids.0",
        "compliance.transcript_within_seconds",
        "stages.filter.x.types",
        "stages.sink",
        "tests",
    ] {
        let names = |it: &&&Value| it["message"].as_str().unwrap().contains(&format!("`{key}`"));
        assert_eq!(found.iter().filter(names).count(), 1, "{key}: {report:#}");
    }
}
