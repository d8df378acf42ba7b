//! `siem-server verify`, and what `backup` and `restore` say about missing and damaged entries.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use siem_protocol::statement::TrustLevel;
use siem_server::Limits;

use crate::common::{BatchText, Server, TestDevice, files};

fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    command.args(arguments).arg("--data").arg(data).stdin(Stdio::null()).output().unwrap()
}

/// Runs a command with `--json`, and returns its output.
fn json_of(data: &Path, arguments: &[&str], code: i32) -> Value {
    let output = run(data, &[arguments, &["--json"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The data directory of a receiver that has ended, with five sealed entries in two batches.
async fn stored() -> tempfile::TempDir {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let device = TestDevice::new(1);
    server.confirm(&device).await;
    server.take(&BatchText::new(1, 3).seal(&device)).await;
    server.take(&BatchText::new(4, 5).seal(&device)).await;
    server.end().await
}

fn only(data: &Path, ending: &str) -> PathBuf {
    files(&data.join("machines"), ending).remove(0)
}

/// Path below the data directory, as a command shows it.
fn shown(data: &Path, path: &Path) -> String {
    path.strip_prefix(data).unwrap().to_str().unwrap().to_owned()
}

/// Backs up and restores with `--json`.
fn copy(data: &Path, copies: &Path, codes: [i32; 2]) -> [Value; 2] {
    let [backup, target] = ["backup", "data"].map(|name| copies.join(name));
    let backup = backup.to_str().unwrap();
    [json_of(data, &["backup", backup], codes[0]), json_of(&target, &["restore", backup], codes[1])]
}

fn entries(first: u64, last: u64, problem: &str) -> Value {
    json!([{ "machine": "m-1", "epoch": "e-1", "first": first, "last": last, "problem": problem }])
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_data_is_verified_with_exit_code_0() {
    let (data, copies) = (stored().await, tempfile::tempdir().unwrap());
    let found = json_of(data.path(), &["verify"], 0);
    let figures = ["machines", "epochs", "entries", "sealed", "erased", "gaps", "damaged_entries"];
    assert_eq!(figures.map(|name| found[name].as_u64().unwrap()), [1, 1, 5, 5, 0, 0, 0]);
    let [_, restored] = copy(data.path(), copies.path(), [0, 0]);
    assert_eq!(restored["verified"]["sealed"], 5);
    let backup = run(&copies.path().join("backup"), &["verify"]);
    assert_eq!(backup.status.code(), Some(2), "a backup is verified by restoring it");
    assert_eq!(run(copies.path(), &["verify"]).status.code(), Some(1), "it is no data directory");
}

/// The lines that a start lost were only in the log of that start, and the exit code was 0.
#[tokio::test(flavor = "multi_thread")]
async fn restore_without_some_lines_names_them_and_fails() {
    let (data, copies) = (stored().await, tempfile::tempdir().unwrap());
    let lines = only(data.path(), "ndjson");
    let text = fs::read(&lines).unwrap();
    fs::write(&lines, &text[..text.len() - 3]).unwrap();
    let [backed_up, restored] = copy(data.path(), copies.path(), [1, 1]);
    assert_eq!(backed_up["damaged"][0]["path"], shown(data.path(), &lines).as_str());
    assert_eq!(restored["entries_damaged"], entries(5, 5, "lost"));
    assert_eq!(restored["verified"]["entries"], 4, "the others are restored");
    // A later backup of the restored data says so too.
    let again = copies.path().join("again");
    let again = json_of(&copies.path().join("data"), &["backup", again.to_str().unwrap()], 1);
    assert!(again["damaged"][0]["problem"].as_str().unwrap().contains("entries 5:"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_names_lines_that_it_moved_aside() {
    let (data, copies) = (stored().await, tempfile::tempdir().unwrap());
    let index = only(data.path(), "index");
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() - 3]).unwrap();
    let [backed_up, restored] = copy(data.path(), copies.path(), [1, 1]);
    assert_eq!(backed_up["damaged"].as_array().unwrap().len(), 1);
    let surplus = shown(data.path(), &index).replace(".index", ".surplus");
    assert_eq!(restored["damaged"][0]["path"], surplus.as_str());
    assert_eq!(restored["verified"]["entries"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_names_a_damaged_journal_that_was_kept() {
    let (data, copies) = (stored().await, tempfile::tempdir().unwrap());
    fs::write(data.path().join("journal/000000000001.damaged"), "frames").unwrap();
    for output in copy(data.path(), copies.path(), [1, 1]) {
        assert_eq!(output["damaged"][0]["path"], "journal/000000000001.damaged");
    }
}

/// Changed lines were backed up and restored with exit code 0.
#[tokio::test(flavor = "multi_thread")]
async fn changed_entry_is_named_by_verify_and_restore() {
    let (data, copies) = (stored().await, tempfile::tempdir().unwrap());
    let lines = only(data.path(), "ndjson");
    let text = fs::read_to_string(&lines).unwrap();
    fs::write(&lines, text.replacen("heartbeat", "heartbeet", 1)).unwrap();
    let found = json_of(data.path(), &["verify"], 1);
    assert_eq!(found["entries_damaged"], entries(1, 1, "changed"));
    let [_, restored] = copy(data.path(), copies.path(), [0, 1]);
    assert_eq!(restored["entries_damaged"], entries(1, 1, "changed"));
    let errors = String::from_utf8(run(data.path(), &["verify"]).stderr).unwrap();
    assert!(errors.contains("entry 1 of machine `m-1`, epoch `e-1`"), "{errors}");
}

/// A copy of the file from before the erasure was put back.
#[tokio::test(flavor = "multi_thread")]
async fn erased_text_that_is_there_again_is_reported() {
    let data = stored().await;
    let lines = only(data.path(), "ndjson");
    let text = fs::read(&lines).unwrap();
    let erased = json_of(data.path(), &["erase", "--user", "u", "--reason", "request 7"], 0);
    assert_eq!(erased["erased"]["entries"], 5, "{erased}");
    assert_eq!(json_of(data.path(), &["verify"], 0)["erased"], 5);
    fs::write(&lines, text).unwrap();
    let found = json_of(data.path(), &["verify"], 1);
    assert_eq!(found["entries_damaged"], entries(1, 5, "not_erased"));
    assert_eq!((&found["erased"], &found["damaged_entries"]), (&json!(0), &json!(5)));
}

/// The verification ended at the first index that could not be read.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn unreadable_epoch_keeps_no_other_from_being_verified() {
    let data = stored().await;
    let other = only(data.path(), "index").with_file_name("0.index");
    std::os::unix::fs::symlink("/dev/null", other).unwrap();
    let found = json_of(data.path(), &["verify"], 1);
    assert_eq!((&found["entries"], &found["damaged_entries"]), (&json!(5), &json!(0)));
    let mut named = found["damaged"].as_array().unwrap().iter();
    assert!(named.any(|it| it["path"].as_str().unwrap().ends_with("0.index")), "{found}");
}
