//! `ai-agent config check`: finds all that `run` would refuse.
#![cfg(unix)]

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use crate::support::{SECRET, TOKEN, home::Home, receiver::Receiver};
use serde_json::{Value, json};

/// Endpoint, token and secret.
fn complete() -> String {
    format!(
        "[sink.siem]\nendpoint = \"http://127.0.0.1:9\"\ntoken = \"{TOKEN}\"\nhmac_secret = \"{SECRET}\"\n"
    )
}

fn write(home: &Home, name: &str, text: &str, mode: u32) -> String {
    let path = home.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs `config check --json` on a file, and returns the report.
fn report(home: &Home, text: &str, arguments: &[&str]) -> Value {
    let arguments = [&["config", "check", "--json"], arguments].concat();
    let ended = home.agent(&arguments).config(text).run();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(ended.code, Some(i32::from(report["valid"] == json!(false))), "{report:#}");
    report
}

/// Returns code, key and line of each problem.
fn problems(report: &Value) -> Vec<(&str, &str, u64)> {
    let problems = report["problems"].as_array().unwrap().iter();
    problems
        .map(|it| {
            let text = |member: &str| it[member].as_str().unwrap_or_default();
            (text("code"), text("key"), it["line"].as_u64().unwrap_or_default())
        })
        .collect()
}

#[test]
fn check_finds_what_run_refuses() {
    let home = Home::new();
    let read_by_all = write(&home, "token-0644", TOKEN, 0o644);
    let own = write(&home, "secret-0600", SECRET, 0o600);
    let endpoint = "[sink.siem]\nendpoint = \"http://127.0.0.1:9\"\n";
    let test = "[[test]]\nname = \"t\"\nlines = [{ input = '{}', expect = \"drop\" }]\n";
    let url = |url: &str| complete().replace("http://127.0.0.1:9", url);
    let secrets = |token: &str, secret: &str| {
        format!("{endpoint}token_file = '{token}'\nhmac_secret_file = '{secret}'\n")
    };
    for (text, code, key) in [
        (String::new(), "setting_missing", "sink.siem.endpoint"),
        (endpoint.to_owned(), "setting_missing", "sink.siem.token"),
        (url("siem.example.com"), "value_invalid", "sink.siem.endpoint"),
        (url("htp://siem.example.com"), "value_invalid", "sink.siem.endpoint"),
        (complete() + "ca_file = '/no/such.pem'\n", "file_unusable", "sink.siem.ca_file"),
        (secrets("/no/such/token", &own), "file_unusable", "sink.siem.token_file"),
        (secrets(&read_by_all, &own), "file_unusable", "sink.siem.token_file"),
        (secrets(&own, &read_by_all), "file_unusable", "sink.siem.hmac_secret_file"),
        (complete() + "proxy = 'proxy:3128'\n", "value_invalid", "sink.siem.proxy"),
        (complete() + test, "test_failed", ""),
        (complete() + "colour = 1\n", "key_unknown", "sink.siem.colour"),
        (complete() + "[shipping]\nbatch_size = 0\n", "value_invalid", "shipping.batch_size"),
        (complete() + "[shipping\n", "syntax_invalid", ""),
        (
            complete() + "[filter.path]\ndrop_cwd = ['[']\n[pipeline]\nfilters = ['path']\n",
            "value_invalid",
            "filter.path.drop_cwd",
        ),
    ] {
        let report = report(&home, &text, &[]);
        let errors: Vec<_> = problems(&report).iter().map(|it| (it.0, it.1)).collect();
        assert_eq!(errors.first(), Some(&(code, key)), "{text}: {report:#}");
        // The agent refuses it with the same words.
        let refused = home.agent(&["run", "--once"]).config(&text).fail(2);
        let message = report["problems"][0]["message"].as_str().unwrap();
        assert!(refused.contains(message), "{text}: {refused} does not contain {message}");
        home.agent(&["config", "check"]).config(&text).run();
    }
}

/// The agent could not use these paths, or would have used them in vain.
#[test]
fn check_finds_paths_that_cannot_be_used() {
    let home = Home::new();
    let file = write(&home, "file", "", 0o600);
    let dir = home.path().join("dir");
    fs::create_dir_all(dir.join("open")).unwrap();
    fs::set_permissions(dir.join("open"), fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink("/no/such/directory", dir.join("dangling")).unwrap();
    for own in ["logs", "spool"] {
        let state = dir.join(own);
        fs::create_dir(&state).unwrap();
        fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(state.join(own), "").unwrap();
    }
    let dir = dir.to_str().unwrap();
    let state = |path: &str| format!("[agent]\nstate_dir = '{path}'\n{}", complete());
    let sink = |path: &str| {
        format!(
            "{}[pipeline]\nsinks = ['o']\n[sink.o]\ntype = 'file'\npath = '{path}'\n",
            complete()
        )
    };
    let metrics = |path: &str| format!("[metrics]\nlisten = 'unix:{path}'\n{}", complete());
    let root = |path: &str| format!("[source.claude-sessions]\nroots = ['{path}']\n{}", complete());
    for (text, code, key, line) in [
        (state(&file), "value_invalid", "agent.state_dir", 2),
        (state(&format!("{file}/a/b")), "value_invalid", "agent.state_dir", 2),
        (state(&format!("{dir}/dangling")), "value_invalid", "agent.state_dir", 2),
        (state(&format!("{dir}/open")), "value_invalid", "agent.state_dir", 2),
        (state(&format!("{dir}/logs")), "value_invalid", "agent.state_dir", 2),
        (state(&format!("{dir}/spool")), "value_invalid", "agent.state_dir", 2),
        (sink(&format!("{file}/a")), "value_invalid", "sink.o.path", 9),
        (sink(dir), "value_invalid", "sink.o.path", 9),
        (sink("/dev/null"), "value_invalid", "sink.o.path", 9),
        (sink(&format!("{dir}/no/a")), "directory_missing", "sink.o.path", 9),
        (metrics(&format!("{file}/m/s")), "value_invalid", "metrics.listen", 2),
        (root(&file), "value_invalid", "source.claude-sessions.roots", 2),
        (root(&format!("{file}/a")), "value_invalid", "source.claude-sessions.roots", 2),
    ] {
        let report = report(&home, &text, &[]);
        let mut found = problems(&report);
        let unrelated = ["table_unlisted", "managed_config_unreadable", "secret_exposed"];
        found.retain(|(code, ..)| !unrelated.contains(code));
        assert_eq!(found, [(code, key, line)], "{text}: {report:#}");
    }
    for text in [
        state(&format!("{dir}/new/state")),
        sink(&format!("{dir}/new")),
        sink(&file),
        root(&format!("{dir}/dangling")),
        root("~/none"),
    ] {
        assert_eq!(report(&home, &text, &[])["errors"], json!(0), "{text}");
    }
}

/// The agent only found out when it delivered. Root may write all files.
#[test_requires::requires(unprivileged)]
#[test]
fn check_finds_files_of_sinks_that_cannot_be_written() {
    const UNPRIVILEGED: u32 = 65_534;

    let home = Home::new();
    let closed = home.path().join("closed");
    fs::create_dir(&closed).unwrap();
    write(&home, "closed/file", "", 0o400);
    write(&home, "closed/open", "", 0o600);
    write(&home, "file", "", 0o400);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let found = |name: &str| {
        let path = home.path().join(name);
        let sink = format!("[sink.o]\ntype = 'file'\npath = '{}'\n", path.display());
        let text = format!("[pipeline]\nsinks = ['o']\n{sink}");
        let check = home.agent(&["config", "check", "--json"]).config(&text);
        let check = if is_root {
            home.give_to(UNPRIVILEGED);
            check.user(UNPRIVILEGED)
        } else {
            check
        };
        let report: Value = serde_json::from_slice(&check.run().stdout).unwrap();
        let errors = report["problems"].as_array().unwrap().iter();
        errors
            .map(|it| format!("{} {}", it["code"], it["key"]).replace('"', ""))
            .collect::<Vec<_>>()
    };
    let unwritable = ["value_invalid sink.o.path"];
    for name in ["file", "closed/file", "closed/new"] {
        assert_eq!(found(name), unwritable, "{name}");
    }
    for name in ["new", "closed/open"] {
        assert_eq!(found(name), [""; 0], "{name}");
    }
    assert!(!home.path().join("new").try_exists().unwrap(), "a check changes nothing");
}

/// A file that a shell finds beside itself is not there for the service, which starts in another
/// directory.
#[test]
fn relative_paths_of_files_are_refused() {
    let home = Home::new();
    for name in ["token", "secret", "ca.pem"] {
        write(&home, name, TOKEN, 0o600);
    }
    let endpoint = "[sink.siem]\nendpoint = \"http://127.0.0.1:9\"\n";
    let with_secret = format!("{endpoint}hmac_secret = '{SECRET}'\n");
    for (text, key) in [
        (format!("{with_secret}token_file = 'token'\n"), "sink.siem.token_file"),
        (format!("{with_secret}token_file = './token'\n"), "sink.siem.token_file"),
        (format!("{with_secret}token_file = '~user/token'\n"), "sink.siem.token_file"),
        (complete() + "ca_file = 'ca.pem'\n", "sink.siem.ca_file"),
        (complete() + "enroll_token_file = 'token'\n", "sink.siem.enroll_token_file"),
        (complete() + "client_key_file = 'token'\n", "sink.siem.client_key_file"),
        (complete() + "proxy_password_file = 'token'\n", "sink.siem.proxy_password_file"),
    ] {
        let checked = report(&home, &text, &[]);
        assert_eq!(problems(&checked).first().map(|it| it.1), Some(key), "{text}: {checked:#}");
        home.agent(&["run", "--once"]).config(&text).fail(2);
        // For another machine, too.
        let file = write(&home, "roll-out.toml", &text, 0o600);
        let checked = report(&home, "", &[&file]);
        assert_eq!(checked["problems"][0]["level"], "error", "{text}: {checked:#}");
    }
    let windows = write(&home, "windows.toml", &(complete() + "ca_file = 'C:\\ca.pem'\n"), 0o600);
    let checked = report(&home, "", &[&windows]);
    assert_eq!((&checked["errors"], problems(&checked)[0].0), (&json!(0), "file_missing"));
}

/// Zero disabled what the option is for, and a long time was accepted without effect.
#[test]
fn times_and_numbers_out_of_range_are_refused() {
    let home = Home::new();
    let other =
        |options: &str| format!("{}[pipeline]\nsinks = ['o']\n[sink.o]\n{options}", complete());
    let token = write(&home, "token", TOKEN, 0o600);
    let splunk =
        format!("type = 'splunk-hec'\nendpoint = 'http://127.0.0.1:9'\ntoken_file = '{token}'\n");
    let [http, elasticsearch, otlp, syslog] = [
        "type = 'http'\nendpoint = 'http://127.0.0.1:9'\n",
        "type = 'elasticsearch'\nendpoint = 'http://127.0.0.1:9'\n",
        "type = 'otlp'\nendpoint = 'http://127.0.0.1:9'\n",
        "type = 'syslog'\naddress = '127.0.0.1:9'\ntransport = 'tcp'\n",
    ];
    for (text, key, values) in [
        (complete(), "sink.siem.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(http), "sink.o.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(elasticsearch), "sink.o.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(otlp), "sink.o.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(syslog), "sink.o.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(&splunk), "sink.o.timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (other(&splunk), "sink.o.acknowledgement_timeout", ["'0s'", "'99ms'", "'999999999999h'"]),
        (
            complete() + "[compliance]\n",
            "compliance.transcript_within_seconds",
            ["0", "604801", "9223372036854775807"],
        ),
    ] {
        for value in values {
            let text = format!("{text}{} = {value}\n", key.rsplit_once('.').unwrap().1);
            let line = text.lines().count() as u64;
            let report = report(&home, &text, &[]);
            let found = problems(&report);
            assert!(found.contains(&("value_invalid", key, line)), "{text}: {report:#}");
        }
    }
    // Digits may be a secret.
    let text = "[sink.siem]\ntoken = 99999999999999999999999\n";
    let report = report(&home, text, &[]);
    assert_eq!(problems(&report), [("syntax_invalid", "", 2)]);
    let message = report["problems"][0]["message"].as_str().unwrap();
    assert!(message.contains("`sink.siem.token`") && !message.contains("99999"), "{message}");
}

/// Such a proxy was ignored, and the agent connected directly.
#[test]
fn variable_that_is_not_text_is_reported() {
    let home = Home::new();
    let found = |name: &[u8], value: &[u8]| {
        let check = home.agent(&["config", "check", "--json"]).config(&complete());
        let ended = check.env(OsStr::from_bytes(name), OsStr::from_bytes(value)).run();
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        let text = |it: &Value, member: &str| it[member].as_str().unwrap_or_default().to_owned();
        let problems = report["problems"].as_array().unwrap().iter();
        let of_variables = problems.filter(|it| text(it, "message").contains("variable"));
        of_variables
            .map(|it| [text(it, "level"), text(it, "code"), text(it, "variable")])
            .collect::<Vec<_>>()
    };
    let problem =
        |level: &str, code: &str, variable: &str| vec![[level, code, variable].map(str::to_owned)];
    let (unreadable, unknown) = ("variable_unreadable", "variable_unknown");
    for name in ["HTTPS_PROXY", "no_proxy"] {
        let expected = problem("warning", unreadable, name);
        assert_eq!(found(name.as_bytes(), b"http://p\xff:1"), expected, "{name}");
    }
    assert_eq!(found(b"CLAUDE_SIEM_\xff", b"x"), problem("warning", unreadable, ""));
    assert_eq!(found(b"CLAUDE_SIEM_TOKN", b"\xff"), problem("warning", unknown, ""));
    let token = "CLAUDE_SIEM_TOKEN";
    assert_eq!(found(token.as_bytes(), b"\xff"), problem("error", "value_invalid", token));
    for (name, value) in [(&b"OTHER_\xff"[..], &b"\xff"[..]), (b"HTTPS_PROXY", b"http://p:1")] {
        assert_eq!(found(name, value), [[""; 3]; 0], "{name:?}");
    }
}

#[test]
fn check_accepts_what_run_accepts() {
    let (home, receiver) = (Home::new(), Receiver::start());
    let text = complete().replace("http://127.0.0.1:9", &receiver.url());
    assert_eq!(report(&home, &text, &[])["errors"], json!(0));
    home.agent(&["run", "--once"]).config(&text).succeed();
}

/// The error was found again in what had replaced the stage, and reported a hundred times.
#[test]
fn enricher_with_a_reserved_name_is_reported_once() {
    let home = Home::new();
    for name in ["user", "altered"] {
        let text =
            format!("[pipeline]\nenrichers = ['{name}']\n[enricher.{name}]\ntype = 'labels'\n");
        let options = "labels = { a = 'b' }\ncolour = 1\n";
        let report = report(&home, &format!("{text}{options}{}", complete()), &[]);
        let key = format!("enricher.{name}");
        let unknown = format!("{key}.colour");
        let mut found = problems(&report);
        found.retain(|(_, key, _)| key.starts_with("enricher"));
        assert_eq!(found, [("key_unknown", &*unknown, 6), ("value_invalid", &*key, 3)]);
    }
}

/// The first error once hid the others.
#[test]
fn all_problems_are_reported_at_once() {
    let home = Home::new();
    let text = "\
colour = 1
[agent]
poll_interval = 5
[shipping]
batch_size = 0
max_batch_bytes = true
[compliance]
permitted_email_domains = ['a.example', '@b', 'c.example', '@d']
[pipeline]
filters = ['mine', 'other']
sinks = ['siem', 'archive']
[filter.mine]
type = 'ignore-tipes'
[filter.other]
type = 'path'
drop_cwd = ['[']
keep_cwd = 1
[sink.siem]
endpoint = 'siem.example.com'
timeout = 7
ca_file = '/no/such.pem'
token_file = '/no/such/token'
[sink.archive]
type = 'file'
pathh = 1
path = 'archive.ndjson'
[[test]]
name = 'a'
lines = []
[[test]]
name = 'b'
lines = [{ input = '', expect = 'kep' }]
";
    let report = report(&home, text, &[]);
    let mut found = problems(&report);
    found.sort_by_key(|it| it.2);
    let expected = [
        ("setting_missing", "sink.siem.hmac_secret", 0),
        ("key_unknown", "colour", 1),
        ("value_invalid", "agent.poll_interval", 3),
        ("value_invalid", "shipping.batch_size", 5),
        ("value_invalid", "shipping.max_batch_bytes", 6),
        ("value_invalid", "compliance.permitted_email_domains[1]", 8),
        ("value_invalid", "compliance.permitted_email_domains[3]", 8),
        ("value_invalid", "filter.mine.type", 13),
        ("value_invalid", "filter.other.drop_cwd", 16),
        ("key_unknown", "filter.other.keep_cwd", 17),
        ("value_invalid", "sink.siem.endpoint", 19),
        ("value_invalid", "sink.siem.timeout", 20),
        ("file_unusable", "sink.siem.ca_file", 21),
        ("file_unusable", "sink.siem.token_file", 22),
        ("key_unknown", "sink.archive.pathh", 25),
        ("value_invalid", "sink.archive.path", 26),
        ("value_invalid", "test[0]", 27),
        ("value_invalid", "test[1].lines[0].expect", 32),
    ];
    assert_eq!(found, expected, "{report:#}");
    assert_eq!(report["errors"], json!(expected.len()));
    let one = &report["problems"].as_array().unwrap().iter().find(|it| it["key"] == "colour");
    let file = home.path().join("agent.toml");
    let one = one.unwrap();
    assert_eq!((&one["level"], &one["layer"]), (&json!("error"), &json!("command-line")));
    assert_eq!(one["file"], json!(file.to_str().unwrap()));
    // Each is a line of its own for people.
    let ended = home.agent(&["config", "check"]).config(text).run();
    let lines = ended.stderr.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(lines.count(), expected.len(), "{}", ended.stderr);
}

/// The same error was reported a hundred times, since the stage that replaced the wrong one had it too.
#[test]
fn error_of_a_missing_option_is_reported_once() {
    let home = Home::new();
    for (options, key) in [
        ("proxy_user = 'u'", "sink.siem.proxy"),
        ("proxy_password = 'p'", "sink.siem.proxy"),
        ("proxy = 'http://p'\nproxy_password = 'p'", "sink.siem.proxy_user"),
        ("proxy = 'http://u:p@p'\nproxy_user = 'u'", "sink.siem.proxy"),
        ("client_certificate_file = '/etc/hostname'", "sink.siem.client_key_file"),
        ("client_key_file = '/etc/hostname'", "sink.siem.client_certificate_file"),
    ] {
        let text = format!("{}{options}\nca_file = '/no/such.pem'\n", complete());
        let report = report(&home, &text, &[]);
        let found = problems(&report).into_iter().map(|(_, key, _)| key);
        let mut found: Vec<_> = found.filter(|key| !key.ends_with("token")).collect();
        found.retain(|key| !key.ends_with("hmac_secret"));
        found.sort_unstable();
        let mut expected = [key, "sink.siem.ca_file"];
        expected.sort_unstable();
        assert_eq!(found, expected, "{options}: {report:#}");
    }
    let names = "[pipeline]\nenrichers = ['at']\n[enricher.at]\ntype = 'labels'\n";
    let report = report(&home, &(complete() + names), &[]);
    let errors = problems(&report).into_iter().filter(|(_, key, _)| *key == "enricher.at");
    assert_eq!(errors.count(), 1, "{report:#}");
}

/// The layers are merged again after each error.
#[test]
fn thousands_of_errors_end_the_check_in_time() {
    let home = Home::new();
    let keys: String = (0..20_000).map(|number| format!("key-{number} = 1\n")).collect();
    let report = report(&home, &keys, &[]);
    assert!((1..=100).contains(&report["errors"].as_u64().unwrap()), "{}", report["errors"]);
}

#[test]
fn unreadable_files_do_not_hide_errors_of_others() {
    let home = Home::new();
    let user = home.path().join(".config/ai-agent/config.toml");
    fs::create_dir_all(user.parent().unwrap()).unwrap();
    fs::write(&user, "[shipping\n").unwrap();
    let report = report(&home, "[outbox]\nmax_bytes = 1\n", &[]);
    let expected = [("syntax_invalid", "", 1), ("value_invalid", "outbox.max_bytes", 2)];
    assert_eq!(problems(&report), expected, "{report:#}");
    assert_eq!(report["problems"][0]["layer"], json!("user"));
}

#[test]
fn strict_makes_failures_of_warnings() {
    let home = Home::new();
    let machine = format!("locked = [\"snk\"]\n{}", complete());
    let machine = write(&home, "machine.toml", &machine, 0o600);
    let managed = r#"{"version":1,"filtrs":{},"shipping":{"batch_sise":1}}"#;
    let managed = write(&home, "managed.json", managed, 0o600);
    let check = |strict: &[&str]| {
        let arguments = [&["config", "check", &machine, &managed], strict].concat();
        home.agent(&arguments)
    };
    let lenient = check(&[]).succeed();
    for name in ["`snk`", "`sink`", "`filtrs`", "`filters`", "`shipping.batch_sise`"] {
        assert!(lenient.stderr.contains(name), "{name}: {}", lenient.stderr);
    }
    let strict = check(&["--strict"]).run();
    assert_eq!(strict.code, Some(1));
    for (json, code, level) in [
        (check(&["--json"]).run(), 0, "warning"),
        (check(&["--json", "--strict"]).run(), 1, "error"),
    ] {
        let report: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json.code, Some(code));
        let problems = report["problems"].as_array().unwrap();
        let found: Vec<_> = problems
            .iter()
            .map(|it| (it["code"].as_str().unwrap(), &it["key"], &it["layer"]))
            .collect();
        let expected = [
            ("managed_member_unknown", &json!("filtrs"), &json!("managed")),
            ("managed_member_unknown", &json!("shipping.batch_sise"), &json!("managed")),
            ("locked_key_unknown", &json!("locked"), &json!("machine")),
        ];
        assert_eq!(found, expected, "{report:#}");
        assert!(problems.iter().all(|it| it["level"] == level), "{report:#}");
    }
}

/// Files are checked on another machine than theirs, or before the secrets are installed.
#[test]
fn files_for_other_machines_may_name_absent_files() {
    let home = Home::new();
    let text =
        "[sink.siem]\nendpoint = 'https://siem.example.com'\ntoken_file = '/no/such/token'\n";
    let file = write(&home, "roll-out.toml", text, 0o644);
    let checked = home.agent(&["config", "check", &file]).succeed();
    for key in ["sink.siem.token_file", "hmac_secret"] {
        assert!(checked.stderr.contains(key), "{key}: {}", checked.stderr);
    }
    assert_eq!(home.agent(&["config", "check", "--strict", &file]).run().code, Some(1));
    // A file that is there is checked.
    let exposed = write(&home, "token", TOKEN, 0o644);
    let file = write(&home, "roll-out.toml", &text.replace("/no/such/token", &exposed), 0o644);
    let refused = home.agent(&["config", "check", &file]).fail(1);
    assert!(refused.contains("sink.siem.token_file"), "{refused}");
    assert!(Path::new(&exposed).is_file());
}
