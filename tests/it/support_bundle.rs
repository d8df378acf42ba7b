//! `ai-agent support-bundle`: what it contains, and what it must not contain.
#![cfg(unix)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
};

use crate::support::{
    SECRET, TOKEN, files_below,
    home::Home,
    scripted_receiver::{Answer, ScriptedReceiver},
};
use serde_json::Value;

/// Extracts an archive, and returns its files by name, without their directory.
fn extract(archive: &Path, to: &Path) -> BTreeMap<String, String> {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(to).status();
    assert!(status.unwrap().success());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = files_below(to);
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// Runs an agent that logs and stores as much as possible of what a bundle must not contain.
fn run_with_planted_secrets(home: &Home, config: &str) {
    let line = "{\"type\":\"user\",\"text\":\"planted-content\"}\n";
    home.write("-work-planted-project/planted-session.jsonl", line);
    // The log names a link that is not followed.
    let link = home.projects().join("-work-planted-project/planted-link.jsonl");
    drop(fs::remove_file(&link));
    symlink("/dev/null", link).unwrap();
    let account = "{\"oauthAccount\":{\"emailAddress\":\"planted-person@example.com\"}}";
    fs::write(home.path().join(".claude.json"), account).unwrap();
    // A receiver that quotes records in its answers.
    let quoted = "{\"type\":\"a\",\"title\":\"t\",\"status\":422,\"detail\":\"planted-content\"}";
    let receiver = ScriptedReceiver::start([
        Answer::Status(503, &[("Retry-After", "0")], quoted),
        Answer::Status(422, &[], quoted),
        Answer::Status(422, &[], quoted),
        Answer::Status(422, &[], quoted),
        Answer::Status(422, &[], quoted),
    ]);
    let agent = home.agent(&["run", "--once"]).config(config).ships_to(&receiver.url());
    let ended = agent.run();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let log = fs::read_to_string(home.state_dir().join("logs/agent.log")).unwrap();
    for planted in ["planted-content", "planted-link", "planted-project"] {
        assert!(log.contains(planted), "the log must contain {planted}: {log}");
    }
}

#[test]
fn support_bundle_contains_no_secrets_and_no_content() {
    for format in ["text", "json"] {
        let home = Home::new();
        let token_file = home.path().join("token");
        fs::write(&token_file, "planted-file-token\n").unwrap();
        fs::set_permissions(&token_file, fs::Permissions::from_mode(0o600)).unwrap();
        let config = format!(
            "[agent]\nlog_format = \"{format}\"\n\
             [pipeline]\nsinks = [\"siem\", \"hec\", \"file\"]\n\
             [sink.file]\ntype = \"splunk-hec\"\nendpoint = \"https://127.0.0.1:9\"\n\
             token_file = '{}'\n\
             [sink.hec]\ntype = \"splunk-hec\"\nendpoint = \"https://planted-user:planted-pass@127.0.0.1:9\"\n\
             token = \"planted-plain-token\"\n\
             [[test]]\nname = \"t\"\nlines = [{{ input = '{{\"text\":\"planted-test\"}}', expect = \"keep\" }}]\n",
            token_file.display()
        );
        let once = config.replace("\"siem\", \"hec\", \"file\"", "\"siem\"");
        run_with_planted_secrets(&home, &once);
        let log = home.state_dir().join("logs/agent.log");
        let leaked = fs::read_to_string(&log).unwrap();
        let leaked = format!("{leaked}a bug wrote {TOKEN} and planted-file-token here\n");
        fs::write(&log, leaked).unwrap();
        let archive = home.path().join("bundle.tar.gz");
        let bundle = home.agent(&["support-bundle", "--to", archive.to_str().unwrap()]);
        let bundle = bundle.config(&config).ships_to("http://127.0.0.1:9");
        let ended =
            bundle.env("HTTPS_PROXY", "http://planted-proxy:planted-word@127.0.0.1:9").run();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);

        let mode = fs::metadata(&archive).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let files = extract(&archive, &home.path().join("extracted"));
        let names = [
            "agent.log",
            "config.json",
            "contents.json",
            "doctor.json",
            "status.json",
            "update.json",
        ];
        assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), names);
        let home_path = home.path().to_str().unwrap();
        for (name, text) in &files {
            assert!(ended.text().contains(name.as_str()), "{name} is not listed: {}", ended.text());
            for planted in ["planted", TOKEN, SECRET, home_path] {
                let line = text.lines().find(|line| line.contains(planted));
                assert_eq!(line, None, "{name} contains {planted}");
            }
            if name.ends_with(".json") {
                let value: Value = serde_json::from_str(text).unwrap();
                assert_eq!(value["version"], 1, "{name}");
            }
        }
        // It still says what happened.
        for code in ["agent_started", "delivery_postponed", "entry_refused", "file_unreadable"] {
            assert!(files["agent.log"].contains(code), "{code}: {}", files["agent.log"]);
        }
        assert!(files["agent.log"].contains("responded with 503"), "{}", files["agent.log"]);
        assert!(files["config.json"].contains("sink.hec.endpoint"), "{}", files["config.json"]);
        assert!(files["status.json"].contains("\"dead_letters\": 1"), "{}", files["status.json"]);
    }
}

#[test]
fn support_bundle_works_without_a_valid_config() {
    let home = Home::new();
    let path = home.path().join("broken.toml");
    fs::write(&path, "[sink.siem]\ntokn = \"planted-misspelt\"\n").unwrap();
    let archive = home.path().join("bundle.tar.gz");
    let arguments = ["support-bundle", "--to", archive.to_str().unwrap()];
    let agent = || home.agent(&arguments).arg("--config").arg(&path);
    agent().succeed();
    let files = extract(&archive, &home.path().join("extracted"));
    assert!(files["config.json"].contains("tokn"), "{}", files["config.json"]);
    assert!(files.values().all(|text| !text.contains("planted")), "{files:?}");
    // An existing file is never replaced.
    let error = agent().fail(1);
    assert!(error.contains("bundle.tar.gz"), "{error}");
}

/// Names below a root that only the configuration names are those of sessions, too.
#[test]
fn support_bundle_hides_names_below_configured_roots() {
    let home = Home::new();
    let (root, link) = (home.path().join("elsewhere"), home.path().join("link"));
    fs::create_dir_all(&root).unwrap();
    symlink(&root, &link).unwrap();
    let logs = home.state_dir().join("logs");
    fs::create_dir_all(&logs).unwrap();
    fs::set_permissions(home.state_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let named = |root: &Path| format!("{}/planted-project/a.jsonl\n", root.display());
    fs::write(logs.join("agent.log"), named(&root) + &named(&link) + "kept\n").unwrap();
    let archive = home.path().join("bundle.tar.gz");
    let config = format!("[source.claude-sessions]\nroots = ['{}']\n", link.display());
    let bundle = home.agent(&["support-bundle", "--to", archive.to_str().unwrap()]);
    bundle.config(&config).ships_to("http://127.0.0.1:9").succeed();
    let files = extract(&archive, &home.path().join("extracted"));
    let log = &files["agent.log"];
    assert!(log.contains("kept") && !log.contains("planted"), "{log}");
    let contents: Value = serde_json::from_str(&files["contents.json"]).unwrap();
    let left_out = contents["left_out"].as_array().unwrap();
    for kind in ["secrets", "content of sessions", "names of sessions", "answers", "e-mail"] {
        let is_named = |it: &&Value| it.as_str().unwrap().contains(kind);
        assert_eq!(left_out.iter().filter(is_named).count(), 1, "{kind}: {contents}");
    }
    assert!(!left_out.iter().any(|it| it.as_str().unwrap().starts_with("the log")), "{contents}");
}

/// The directories that an option with an error named are unknown, and so are the names in the log.
#[test]
fn support_bundle_with_wrong_roots_has_no_names() {
    let home = Home::new();
    let root = home.path().join("elsewhere");
    let logs = home.state_dir().join("logs");
    fs::create_dir_all(&logs).unwrap();
    fs::set_permissions(home.state_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let line = format!("{}/planted-project/a.jsonl\n", root.display());
    fs::write(logs.join("agent.log"), line).unwrap();
    let wrong = format!("roots = ['{}', 5]", root.display());
    let misspelt = format!("root = ['{}']", root.display());
    for (n, option) in [wrong, misspelt].into_iter().enumerate() {
        let archive = home.path().join(format!("bundle-{n}.tar.gz"));
        let config = format!("[source.claude-sessions]\n{option}\n");
        let bundle = home.agent(&["support-bundle", "--to", archive.to_str().unwrap()]);
        bundle.config(&config).ships_to("http://127.0.0.1:9").succeed();
        let files = extract(&archive, &home.path().join(format!("extracted-{n}")));
        assert!(files.values().all(|text| !text.contains("planted")), "{option}: {files:?}");
    }
}

#[test]
fn support_bundle_of_a_broken_config_is_redacted() {
    let home = Home::new();
    run_with_planted_secrets(&home, "[agent]\nlog_format = \"text\"\n");
    let log = home.state_dir().join("logs/agent.log");
    let text = fs::read_to_string(&log).unwrap();
    let root = home.path().join(".config/claude/projects");
    let leaked = format!("{text}planted-plain-token\n{}/planted-project\n", root.display());
    fs::write(&log, leaked).unwrap();
    let path = home.path().join("broken.toml");
    let bundle = |name: &str, config: &str| {
        fs::write(&path, config).unwrap();
        let archive = home.path().join(name);
        let arguments = ["support-bundle", "--to", archive.to_str().unwrap()];
        home.agent(&arguments).arg("--config").arg(&path).succeed();
        extract(&archive, &home.path().join(format!("{name}-extracted")))
    };
    let sink = "[sink.hec]\ntype = \"splunk-hec\"\ntoken = \"planted-plain-token\"\n";
    let files = bundle("wrong-key", &format!("{sink}[agent]\nwrong = 1\n"));
    assert!(files["agent.log"].contains("entry_refused"), "{}", files["agent.log"]);
    assert!(files.values().all(|text| !text.contains("planted")), "{files:?}");
    // The secrets in a file that cannot be parsed are unknown.
    let files = bundle("wrong-syntax", &format!("{sink}[agent"));
    assert!(!files.contains_key("agent.log"), "{files:?}");
    assert!(files["contents.json"].contains("the log: "), "{}", files["contents.json"]);
    assert!(files.values().all(|text| !text.contains("planted")), "{files:?}");
}
