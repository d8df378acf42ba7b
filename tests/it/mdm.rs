//! The samples of `config/mdm`, which administrators copy as they are.
#![cfg(unix)]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::home::Home;
use ai_agent::internals::{
    compliance::policy_file::StoredPolicy,
    platform::Timestamp,
    protocol::{Digest, managed::Compliance},
};
use serde_json::{Value, json};
use test_requires::requires;

const EVENTS: [&str; 2] = ["SessionStart", "UserPromptSubmit"];
/// Path of the program in the samples for a whole machine.
const PROGRAM: &str = "/usr/local/bin/ai-agent";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/mdm").join(name)
}

fn sample(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// A sample as Python's `module` reads it, by a statement that makes `value` of the file `f`.
fn read_by_python(name: &str, module: &str, statement: &str) -> Value {
    let code = format!(
        "import json, sys, {module}\nwith open(sys.argv[1], 'rb') as f: {statement}\nprint(json.dumps(value))"
    );
    let output = Command::new("python3").args(["-c", &code]).arg(path(name)).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn plist(name: &str) -> Value {
    read_by_python(name, "plistlib", "value = plistlib.load(f)")
}

fn settings() -> Value {
    serde_json::from_str(&sample("managed-settings.json")).unwrap()
}

/// The hooks of the samples with the program of the machine.
fn hooks_of_the_machine() -> Value {
    let text = sample("managed-settings.json");
    let text = text.replace("$HOME/.local/bin/ai-agent", PROGRAM);
    serde_json::from_str::<Value>(&text).unwrap()["hooks"].take()
}

mod the_machines_file {
    use super::*;

    /// The secrets of the machine's file are on another machine; nothing else has a warning.
    #[track_caller]
    fn assert_only_secrets_are_missing(home: &Home, files: &[&str]) {
        let arguments = [&["config", "check", "--json"], files].concat();
        let report: Value =
            serde_json::from_slice(&home.agent(&arguments).succeed().stdout).unwrap();
        let problems = report["problems"].as_array().unwrap();
        let others: Vec<_> = problems.iter().filter(|it| it["code"] != "file_missing").collect();
        assert!(others.is_empty(), "{others:#?}");
    }

    #[test]
    fn machine_file_is_valid_and_leaves_the_rest_to_the_server() {
        let home = Home::new();
        let machine = path("config.toml");
        let machine = machine.to_str().unwrap();
        home.agent(&["config", "check", machine]).succeed();
        // A filter of the server runs though `pipeline` is locked.
        let managed = json!({
            "version": 1,
            "filters": { "drop_meta": true },
            "shipping": { "batch_size": 500 },
            "compliance": { "permitted_email_domains": ["company.com"] },
            "stages": { "filter": { "modes": { "type": "ignore-types", "types": ["mode"] } } },
            "tests": [{ "name": "t", "lines": [
                { "input": "{\"type\":\"mode\"}", "expect": "drop", "by": "modes" },
                { "input": "{\"isMeta\":true}", "expect": "drop", "by": "meta" },
            ] }],
        });
        let file = home.path().join("managed.json");
        fs::write(&file, managed.to_string()).unwrap();
        let file = file.to_str().unwrap();
        home.agent(&["test", machine, file]).succeed();
        assert_only_secrets_are_missing(&home, &[machine, file]);
    }

    #[test]
    fn machine_file_fits_the_managed_config_of_the_docs() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy.md");
        let page = fs::read_to_string(page).unwrap();
        let managed = page.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
        let home = Home::new();
        let file = home.path().join("config.json");
        fs::write(&file, managed).unwrap();
        let (machine, file) = (path("config.toml"), file.to_str().unwrap().to_owned());
        assert_only_secrets_are_missing(&home, &[machine.to_str().unwrap(), &file]);
    }

    /// The keys in the comments have the right form: administrators replace them by their own.
    #[test]
    fn machine_file_is_valid_with_keys_of_all_kinds() {
        let home = Home::new();
        let file = home.path().join("config.toml");
        let text = sample("config.toml");
        for key in ["keys", "receiver_keys"] {
            assert!(text.contains(&format!("\n# {key} = [\"")), "{key}");
        }
        let text = text.replace("\n# keys = ", "\nkeys = ");
        let text = text.replace("\n# receiver_keys = ", "\nreceiver_keys = ");
        fs::write(&file, &text).unwrap();
        assert_only_secrets_are_missing(&home, &[file.to_str().unwrap()]);
        let plain = text.replace("https://", "http://");
        fs::write(&file, plain).unwrap();
        let error = home.agent(&["config", "check", file.to_str().unwrap()]).fail(1);
        assert!(error.contains("require_tls"), "{error}");
    }

    /// A user who could set these keys could redirect or stop all delivery.
    #[test]
    fn machine_file_locks_sources_and_destinations() {
        let table: toml::Table = sample("config.toml").parse().unwrap();
        let locked: Vec<_> = table["locked"].as_array().unwrap().iter().collect();
        for key in ["agent", "outbox", "pipeline", "source", "sink"] {
            assert!(locked.iter().any(|it| it.as_str() == Some(key)), "{key}");
        }
    }
}

mod hooks {
    use super::*;

    /// A matcher would miss forks, and without a timeout a hanging hook would block a session for
    /// minutes.
    #[test]
    fn hooks_are_called_for_every_session_and_prompt() {
        let settings = settings();
        let hooks = settings["hooks"].as_object().unwrap();
        assert_eq!(hooks.keys().collect::<Vec<_>>(), EVENTS);
        for event in EVENTS {
            let command = format!("\"$HOME/.local/bin/ai-agent\" check --hook {event}");
            let call = json!({ "type": "command", "command": command, "timeout": 10 });
            assert_eq!(hooks[event], json!([{ "hooks": [call] }]));
        }
    }

    /// Run as by the client: in a shell, without this directory in PATH.
    #[test]
    fn hooks_called_by_a_shell_block_a_prompt() {
        let home = tempfile::Builder::new().prefix("with a space").tempdir().unwrap();
        let state = home.path().join(".local/state/ai-agent");
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(home.path().join(".local/bin")).unwrap();
        let link = home.path().join(".local/bin/ai-agent");
        symlink(env!("CARGO_BIN_EXE_ai-agent"), link).unwrap();
        let compliance: Compliance = serde_json::from_value(json!({
            "permitted_email_domains": ["company.com"],
            "action": "block",
        }))
        .unwrap();
        let kept =
            StoredPolicy { compliance, config_hash: Digest::ZERO, at: Timestamp(1), managed: None };
        fs::write(StoredPolicy::path(&state), kept.to_file()).unwrap();
        let account = json!({ "oauthAccount": { "emailAddress": "me@gmail.com" } });
        fs::write(home.path().join(".claude.json"), account.to_string()).unwrap();

        for event in EVENTS {
            let command = &settings()["hooks"][event][0]["hooks"][0]["command"];
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", command.as_str().unwrap()]).env_clear().env("HOME", home.path());
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = shell.spawn().unwrap();
            // The hook may exit before it has read everything.
            drop(child.stdin.take().unwrap().write_all(b"{}\n"));
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{event}: {output:?}");
            assert!(String::from_utf8_lossy(&output.stderr).contains("gmail.com"));
        }
    }
}

mod macos {
    use super::*;

    #[requires(python3)]
    #[test]
    fn profile_has_the_hooks_and_keeps_the_agent_enabled() {
        let profile = plist("ai-agent.mobileconfig");
        assert_eq!(profile["PayloadType"], "Configuration");
        assert_eq!(profile["PayloadScope"], "System");
        let payloads = profile["PayloadContent"].as_array().unwrap();
        let payload = |kind: &str| payloads.iter().find(|it| it["PayloadType"] == kind).unwrap();
        assert_eq!(payload("com.anthropic.claudecode")["hooks"], hooks_of_the_machine());
        let label = &plist("ai-agent.plist")["Label"];
        let rule = &payload("com.apple.servicemanagement")["Rules"][0];
        assert_eq!(rule, &json!({ "RuleType": "Label", "RuleValue": label }));
        let mut ids: Vec<_> = payloads.iter().map(|it| it["PayloadUUID"].to_string()).collect();
        ids.push(profile["PayloadUUID"].to_string());
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), payloads.len() + 1, "a profile with a UUID twice is refused");
    }

    #[requires(root)]
    #[test]
    fn enrollment_token_is_readable_by_the_users_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let root = tempfile::tempdir().unwrap();
        let script = sample("enroll-token.sh");
        assert!(script.contains("chown root:staff "));
        // The system has this group under another name, or not at all.
        let script = script.replace("chown root:staff ", "chown 0:0 ");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, "enroll-token.sh"]).arg(root.path());
        let output = shell.args(["host", "root", "siem_x"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = root.path().join("Library/Application Support/ai-agent/enroll-token");
        assert_eq!(fs::read_to_string(&file).unwrap(), "siem_x\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[requires(python3)]
    #[test]
    fn launch_agent_starts_and_restarts_the_program() {
        let agent = plist("ai-agent.plist");
        assert_eq!(agent["Label"], "ai-agent");
        assert_eq!(agent["RunAtLoad"], true);
        assert_eq!(agent["KeepAlive"], true);
        assert_eq!(agent["ProgramArguments"], json!([PROGRAM, "run"]));
    }
}

mod linux {
    use super::*;
    use crate::support::receiver::binary;

    /// An option of the sink in the machine's file.
    fn table_value(key: &str) -> String {
        let table: toml::Table = sample("config.toml").parse().unwrap();
        table["sink"]["siem"][key].as_str().unwrap().to_owned()
    }

    #[requires(systemd_analyze)]
    #[test]
    fn unit_passes_systemd_analyze() {
        let unit = sample("ai-agent.service");
        assert!(unit.contains(&format!("\nExecStart={PROGRAM} run\n")));
        // `verify` requires the program to exist.
        let unit = unit.replace(PROGRAM, env!("CARGO_BIN_EXE_ai-agent"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ai-agent.service");
        fs::write(&file, unit).unwrap();
        let mut verify = Command::new("systemd-analyze");
        verify.args(["--user", "verify", "--man=no"]).arg(file);
        let output = verify.env("XDG_RUNTIME_DIR", folder.path()).output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !messages.contains("ai-agent.service"), "{messages}");
    }

    #[requires(python3, pyyaml)]
    #[test]
    fn ansible_tasks_install_every_file_and_hide_the_secrets() {
        let tasks = read_by_python("ansible.yml", "yaml", "value = yaml.safe_load(f)");
        let tasks = tasks.as_array().unwrap();
        let copies: Vec<_> = tasks.iter().map(|it| &it["ansible.builtin.copy"]).collect();
        for (source, place, mode) in [
            ("config.toml", "/etc/ai-agent/config.toml", "0644"),
            ("ai-agent.service", "/etc/systemd/user/ai-agent.service", "0644"),
            ("{{ ai_agent_program }}", PROGRAM, "0755"),
        ] {
            let copy = copies.iter().find(|it| it["dest"] == place).unwrap();
            assert_eq!((&copy["src"], &copy["mode"]), (&json!(source), &json!(mode)), "{place}");
            assert_eq!(copy["owner"], "root", "{place}");
        }
        let secrets = tasks.iter().find(|it| it["name"] == "Install the secrets").unwrap();
        assert_eq!(secrets["no_log"], true);
        assert_eq!(secrets["ansible.builtin.copy"]["mode"], "0640");
        let table: toml::Table = sample("config.toml").parse().unwrap();
        let made =
            tasks.iter().find(|it| it["name"] == "Make an enrollment token for this machine");
        let (made, data) = (made.unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(made["no_log"], true);
        let arguments = made["ansible.builtin.command"]["argv"].as_array().unwrap();
        let arguments = arguments.iter().map(|it| match it.as_str().unwrap() {
            "{{ ai_agent_data }}" => data.path().to_str().unwrap(),
            it => it,
        });
        let arguments: Vec<_> = arguments.collect();
        assert_eq!(arguments[0], "siem-server");
        let output = Command::new(binary("siem-server")).args(&arguments[1..]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let token =
            copies.iter().find(|it| it["dest"] == table_value("enroll_token_file")).unwrap();
        assert_eq!(token["mode"], "0640");
        for item in secrets["loop"].as_array().unwrap() {
            let name = item["name"].as_str().unwrap();
            let key = format!("{}_file", name.replace('-', "_"));
            let named = table["sink"]["siem"][&key].as_str().unwrap();
            assert_eq!(named, format!("/etc/ai-agent/{name}"));
        }
    }
}

mod windows {
    use super::*;

    #[requires(pwsh)]
    #[test]
    fn script_parses_as_powershell() {
        let code = "$errors = $null; [void][Management.Automation.Language.Parser]::ParseFile(\
                    $env:SCRIPT, [ref]$null, [ref]$errors); $errors; exit $errors.Count";
        let mut command = Command::new("pwsh");
        command.args(["-NoProfile", "-Command", code]).env("SCRIPT", path("intune.ps1"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// The script registers for all users what `install` registers for one.
    #[test]
    fn task_restarts_and_has_normal_priority() {
        let (script, task) =
            (sample("intune.ps1"), include_str!("../../src/platform/service/cases/task.xml"));
        for (there, here) in [
            ("-RepetitionInterval (New-TimeSpan -Minutes 5)", "<Interval>PT5M</Interval>"),
            ("-RestartCount 999", "<Count>999</Count>"),
            ("-Priority 5", "<Priority>5</Priority>"),
            ("-ExecutionTimeLimit ([TimeSpan]::Zero)", "<ExecutionTimeLimit>PT0S<"),
            ("-RunLevel Limited", "<RunLevel>LeastPrivilege<"),
            ("--headless `\"$exe`\" run", "--headless \""),
        ] {
            assert!(script.contains(there), "{there}");
            assert!(task.contains(here), "{here}");
        }
    }

    /// The script replaces the paths of Linux by those of Windows.
    #[test]
    fn machine_file_is_valid_with_windows_paths() {
        let script = sample("intune.ps1");
        assert!(script.contains("$config.Replace('/etc/ai-agent/', "));
        let text = sample("config.toml");
        let values = text.lines().filter(|line| !line.starts_with('#'));
        let named = values.filter(|line| line.contains("\"/etc/ai-agent/")).count();
        assert_eq!(named, 3);
        let home = Home::new();
        let file = home.path().join("config.toml");
        fs::write(&file, text.replace("/etc/ai-agent/", "C:/ProgramData/ai-agent/")).unwrap();
        home.agent(&["config", "check", file.to_str().unwrap()]).succeed();
    }
}
