//! The `siem-server` program, beside a running receiver.

use std::{
    io,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use siem_protocol::statement::{DeviceState, TrustLevel};
use siem_server::DataFormat;

use crate::common::trust::{TrustServer, device_key, enrollment};

/// Runs `siem-server` on a data directory.
fn run(data: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_siem-server"))
        .args(arguments)
        .arg("--data")
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Returns the standard output of a command that succeeds.
fn succeed(data: &Path, arguments: &[&str]) -> String {
    let output = run(data, arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn succeed_json(data: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(data, arguments)).unwrap()
}

/// Returns the error of a command that fails, without its `error: `.
fn fail(data: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(data, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    errors.strip_prefix("error: ").unwrap_or_else(|| panic!("{errors}")).to_owned()
}

#[test]
fn keys_are_made_listed_and_rotated() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().join("new");
    let key = succeed(&data, &["keys", "new", "--name", "siem.example.com"]);
    assert!(key.starts_with("siem.example.com+"), "{key}");
    assert!(fail(&data, &["keys", "new", "--name", "x"], 1).contains("keys rotate"));
    let list = || succeed_json(&data, &["keys", "list", "--json"]);
    assert_eq!((list()["current"].as_str(), &list()["next"]), (Some(key.trim()), &Value::Null));
    succeed(&data, &["keys", "rotate"]);
    let next = list()["next"].as_str().unwrap().to_owned();
    assert_eq!(list()["current"], key.trim());
    let table = succeed(&data, &["keys", "rotate"]);
    assert!(table.contains(&format!("current  {next}")), "{table}");
    assert!(table.contains(&format!("retired  {}", key.trim())), "{table}");
    assert_eq!(list()["current"], next);
    assert!(!table.contains("PRIVATE") && !list().to_string().contains("PRIVATE"));
}

/// The key was rotated, and the command aborted with a backtrace, as if it was not.
#[test]
fn closed_standard_error_does_not_fail_a_command() {
    let data = tempfile::tempdir().unwrap();
    succeed(data.path(), &["keys", "new", "--name", "siem.example.com"]);
    let without_errors = |arguments: &[&str]| {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
        command.args(arguments).arg("--data").arg(data.path());
        command.stdin(Stdio::null()).stderr(writer).output().unwrap()
    };
    let output = without_errors(&["keys", "rotate"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().contains("next "));
    assert_eq!(without_errors(&["devices", "show", "00000000"]).status.code(), Some(1));
}

/// A list with such a text aborted from then on.
#[test]
fn lists_show_a_text_of_any_length() {
    let data = tempfile::tempdir().unwrap();
    let long = "x".repeat(70_000);
    succeed(data.path(), &["tokens", "new", "--scope", "ingest", "--name", &long]);
    succeed(data.path(), &["tokens", "new", "--scope", "ingest", "--name", "short"]);
    assert!(succeed(data.path(), &["tokens", "list"]).contains(&long));
}

/// `--machine "$MACHINE"` in a script in which the variable is not set: a hold that covered nothing, and a token that no
/// machine could use, were made.
#[test]
fn empty_machine_is_wrong_usage() {
    let data = tempfile::tempdir().unwrap();
    succeed(data.path(), &["keys", "new", "--name", "siem.example.com"]);
    for command in [
        &["tokens", "new", "--scope", "enroll", "--machine", ""][..],
        &["hold", "add", "--machine", "", "--reason", "court"],
        &["devices", "allow-shared", ""],
    ] {
        fail(data.path(), command, 2);
    }
    assert_eq!(succeed_json(data.path(), &["tokens", "list", "--json"]), Value::Array(Vec::new()));
}

/// A sender chooses the names of epochs, machines and users that errors repeat.
#[test]
fn errors_do_not_control_the_terminal() {
    let data = tempfile::tempdir().unwrap();
    let text = fail(data.path(), &["devices", "show", "\u{1b}[2J\u{202e}"], 2);
    assert!(text.contains("\\u{1b}[2J\\u{202e}"), "{text:?}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
}

#[test]
fn wrong_arguments_are_exit_code_2() {
    let data = tempfile::tempdir().unwrap();
    let absent = data.path().join("absent");
    for command in [["keys", "list"], ["devices", "list"], ["tokens", "list"], ["keys", "rotate"]] {
        let text = fail(&absent, &command, 2);
        assert!(text.contains("absent") && text.contains("--data"), "{text}");
    }
    assert!(!absent.try_exists().unwrap());
    let data = data.path();
    assert!(fail(data, &["keys", "new", "--name", "a b"], 2).contains("a b"));
    assert!(fail(data, &["tokens", "new", "--scope", "all"], 2).contains("ingest"));
    assert!(fail(data, &["tokens", "new", "--scope", "enroll"], 2).contains("--expires"));
    let single = ["tokens", "new", "--scope", "enroll,read", "--single-use"];
    assert!(fail(data, &single, 2).contains("single-use"));
    assert!(fail(data, &["devices", "show", "xyz"], 2).contains("xyz"));
}

#[test]
fn missing_keys_devices_and_tokens_are_exit_code_1() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    assert!(fail(data, &["keys", "list"], 1).contains("keys new"));
    assert!(fail(data, &["keys", "rotate"], 1).contains("keys new"));
    for command in ["show", "approve", "revoke"] {
        assert!(fail(data, &["devices", command, "abcdef"], 1).contains("devices list"));
    }
    assert!(fail(data, &["tokens", "revoke", "abcdef"], 1).contains("tokens list"));
    assert_eq!(succeed(data, &["devices", "list"]), "");
    assert_eq!(succeed_json(data, &["devices", "list", "--json"]), Value::Array(Vec::new()));
    std::fs::write(data.join("trust/devices.ndjson"), "{\"op\":\"later\"}\n").unwrap();
    assert!(fail(data, &["devices", "list"], 1).contains("line 1"));
}

#[test]
fn token_is_printed_once() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path();
    let output = run(data, &["tokens", "new", "--scope", "ingest", "--name", "fleet"]);
    let token = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(token.starts_with("siem_") && token.len() == 48, "{token}");
    assert!(!String::from_utf8(output.stderr).unwrap().contains(&token[5..]));
    let made = succeed_json(
        data,
        &["tokens", "new", "--scope", "enroll", "--single-use", "--expires", "1day", "--json"],
    );
    assert!(made["token"].as_str().unwrap().starts_with("siem_") && made["expires"].is_string());
    let list = succeed_json(data, &["tokens", "list", "--json"]);
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&"fleet".into(), &"valid".into()));
    assert_eq!((&list[1]["id"], &list[1]["single_use"]), (&made["id"], &true.into()));
    let stored = std::fs::read_to_string(data.join("trust/tokens.ndjson")).unwrap();
    let table = succeed(data, &["tokens", "list"]);
    for secret in [&token[5..], &made["token"].as_str().unwrap()[5..]] {
        for text in [&list.to_string(), &stored, &table] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    let id = list[0]["id"].as_str().unwrap();
    succeed(data, &["tokens", "revoke", id]);
    assert_eq!(succeed_json(data, &["tokens", "list", "--json"])[0]["state"], "revoked");
}

#[tokio::test]
async fn commands_act_on_a_running_receiver() {
    let server = TrustServer::start(TrustLevel::Enrolled).await;
    let data = server.data();
    let device = server.enroll_with_fleet_token(&enrollment(1)).await;
    assert_eq!(device.state, DeviceState::Pending);
    let key = device_key(1);
    // As `demo-server --trust enrolled` does.
    DataFormat::ensure(data).unwrap().remember_level(data, TrustLevel::Enrolled).unwrap();
    let listed = succeed_json(data, &["devices", "list", "--json"]);
    assert_eq!(listed[0]["key"], key.to_string());
    assert_eq!(listed[0]["state"], "pending", "as the agent and `/stats` call it");
    assert!(succeed(data, &["devices", "list"]).contains(&key.to_string()[..16]));
    succeed(data, &["devices", "approve", &key.to_string()[..16]]);
    let device = server.enroll_with_fleet_token(&enrollment(1)).await;
    assert_eq!(device.state, DeviceState::Confirmed);
    let verifier = key.verifier().unwrap().to_string();
    let shown = succeed(data, &["devices", "show", &verifier]);
    assert!(shown.contains("confirmed by  operator"), "{shown}");
    assert!(succeed(data, &["devices", "allow-shared", "m-1"]).contains("accepted"));
    assert!(server.registry().is_shared_allowed("m-1"));
    succeed(data, &["devices", "allow-shared", "m-1", "--undo"]);
    assert!(!server.registry().is_shared_allowed("m-1"));
    succeed(data, &["devices", "revoke", &key.to_string()]);
    let device = server.enroll_with_fleet_token(&enrollment(1)).await;
    assert_eq!(device.state, DeviceState::Revoked);
    assert!(fail(data, &["devices", "approve", &key.to_string()], 1).contains("revoked"));
}

/// Files of root would be unreadable for a receiver that runs as another user.
#[cfg(unix)]
#[test_requires::requires(root, unprivileged)]
#[test]
fn commands_of_root_work_as_the_owner_of_the_data_directory() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    const UNPRIVILEGED: u32 = 65_534;
    let data = tempfile::tempdir().unwrap();
    chown(data.path(), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    succeed(data.path(), &["keys", "new", "--name", "siem.example.com"]);
    succeed(data.path(), &["tokens", "new", "--scope", "read"]);
    let key = data.path().join("trust/keys/receiver.json");
    let owners =
        [data.path().join("trust"), key].map(|path| std::fs::metadata(path).unwrap().uid());
    assert_eq!(owners, [UNPRIVILEGED; 2]);
    // Also below a directory that does not exist yet, which root makes for itself.
    succeed(&data.path().join("new"), &["keys", "new", "--name", "x"]);
}

#[test]
fn reverted_rollout_names_the_file_that_it_makes_superfluous() {
    let data = tempfile::tempdir().unwrap();
    succeed(data.path(), &["keys", "new", "--name", "siem.example.com"]);
    let configs = data.path().join("configs");
    std::fs::create_dir(&configs).unwrap();
    let write = |name: &str, text: &str| std::fs::write(configs.join(name), text).unwrap();
    write("linux.json", r#"{"version":1,"serial":12,"revision":"old"}"#);
    write("linux-13.json", r#"{"version":1,"serial":13,"revision":"new"}"#);
    write("linux-13.json.rollout", r#"{"percent":50}"#);
    let reverted = succeed(data.path(), &["config", "revert", "linux-13.json"]);
    assert!(reverted.contains("serial 14"), "{reverted}");
    assert!(reverted.contains("then remove `linux.json`"), "{reverted}");
    let check = || fail(data.path(), &["config", "check"], 1);
    assert!(check().starts_with("[tie] linux-13.json: "));
    std::fs::remove_file(configs.join("linux.json")).unwrap();
    // The directory has no secrets.
    assert!(check().starts_with("no token"));
    let again =
        succeed(data.path(), &["config", "revert", "linux-13.json", "--to", "linux-13.json"]);
    assert!(!again.contains("remove"), "{again}");
}
