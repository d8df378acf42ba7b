//! Erasure, holds, retention and the access log, beside a running receiver and without one.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use siem_protocol::{
    Digest,
    statement::{Seal, Statement as _, TrustLevel},
};
use siem_server::{
    FileStore, FileStoreOptions, Limits,
    trust::{Registry, RegistryOptions},
};

use crate::common::{BatchText, Server, TestDevice, files};

const SESSION: &str = "6d1ae0eb-09ca-446a-a362-7b167b280f7a";
const SECRET: &str = "a text that must vanish";

fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-server"));
    command.args(arguments).arg("--data").arg(data).env("SUDO_USER", "auditor");
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs a command beside the receiver of the test, whose tasks must run meanwhile.
async fn run_beside(data: &Path, arguments: &[&str]) -> Output {
    let data = data.to_owned();
    let arguments: Vec<String> = arguments.iter().map(|&it| it.to_owned()).collect();
    let command = move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&data, &arguments)
    };
    tokio::task::spawn_blocking(command).await.unwrap()
}

/// Returns the output of a command that succeeds, or the error of one that fails.
fn text(output: Output, code: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    if code == 0 { String::from_utf8(output.stdout).unwrap() } else { errors }
}

fn line(seq: u64) -> String {
    let (session, text) = if seq.is_multiple_of(2) { (SESSION, SECRET) } else { ("s", "stays") };
    format!(
        r#"{{"seq":{seq},"kind":"record","source":"claude-sessions","path":"/p/{session}.jsonl","generation":"g","offset":{seq},"length":9,"read_at":"2026-11-21T20:00:01.000Z","record":{{"text":"{text}"}}}}"#
    )
}

fn chain(seq: u64) -> Digest {
    (1..=seq).fold(Digest::ZERO, |value, seq| value.chain(Digest::of(line(seq).as_bytes())))
}

fn batch(first: u64, last: u64) -> BatchText {
    let text = BatchText::new(first, last).with(|header| {
        let (before, after) = (chain(first - 1), chain(last));
        header.chain = Some(siem_protocol::Chain { before, after });
    });
    (first..=last).fold(text, |text, seq| text.line(seq, &line(seq)))
}

/// Returns the files below a directory that contain the text.
fn with_secret(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(with_secret(&path));
        } else if String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains(SECRET) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Returns the chain's last value, from lines and the hashes in tombstones.
fn stored_chain(data: &Path) -> Digest {
    let text = std::fs::read_to_string(&files(&data.join("machines"), "ndjson")[0]).unwrap();
    let digest = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        let digest = match entry["kind"].as_str() {
            Some("erased") => serde_json::from_value(entry["line_sha256"].clone()).unwrap(),
            _ => Digest::of(line.as_bytes()),
        };
        (entry["seq"].as_u64().unwrap(), digest)
    };
    let digests: BTreeMap<u64, Digest> = text.lines().map(digest).collect();
    digests.values().fold(Digest::ZERO, |value, digest| value.chain(*digest))
}

#[tokio::test(flavor = "multi_thread")]
async fn erasure_beside_a_receiver_leaves_the_seals_valid() {
    let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
    let device = TestDevice::new(1);
    server.confirm(&device).await;
    server.take(&batch(1, 4).seal(&device)).await;
    let sealed = batch(5, 8).seal(&device);
    server.take(&sealed).await;
    let data = server.data.path().to_owned();
    let erase = ["erase", "--session", SESSION, "--reason", "request 7"];
    let held = ["hold", "add", "--user", "u", "--reason", "case 3"];
    assert_eq!(text(run_beside(&data, &held).await, 0), "hold 1\n");
    assert!(text(run_beside(&data, &erase).await, 1).contains("hold 1 covers entry 2"));
    assert!(!with_secret(&data).is_empty());
    text(run_beside(&data, &["hold", "remove", "1", "--reason", "closed"]).await, 0);
    let erased = text(run_beside(&data, &erase).await, 0);
    assert!(erased.starts_with("erased 4 entries of 1 epoch, erasure "), "{erased}");
    assert_eq!(with_secret(&data), <[String; 0]>::default());
    // The agent sends them again, and continues.
    let again = server.take(&batch(1, 8).seal(&device)).await;
    assert_eq!((again.accepted, again.duplicates), (0, 8));
    assert_eq!(server.take(&batch(9, 9).seal(&device)).await.accepted, 1);
    let data = server.end().await;
    assert_eq!(with_secret(data.path()), <[String; 0]>::default());
    assert_eq!(stored_chain(data.path()), chain(9));
    let seal = sealed.header.seal.unwrap();
    use siem_protocol::note::NoteSigner as _;
    let seal = Seal::open(&seal, &[device.key.key().clone()]).unwrap().statement;
    assert_eq!((seal.last_seq, seal.chain), (8, chain(8)));
    let listed: Value =
        serde_json::from_str(&text(run(data.path(), &["erasures", "list", "--json"]), 0)).unwrap();
    let one = &listed[0];
    assert_eq!((&one["is_signed"], &one["entries"]), (&true.into(), &4.into()));
    assert_eq!(one["reason"], "request 7");
    // The user of the process first: the environment claims only.
    let who = one["who"].as_str().unwrap();
    assert!(who.ends_with(" SUDO_USER=auditor") && !who.starts_with("SUDO_USER"), "{who}");
    let log: Value =
        serde_json::from_str(&text(run(data.path(), &["access-log", "--json"]), 0)).unwrap();
    let actions: Vec<_> =
        log.as_array().unwrap().iter().map(|it| it["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["hold_add", "hold_remove", "erase"]);
    // Without the list, the epochs still name the erasure.
    std::fs::remove_file(data.path().join("life/erasures.ndjson")).unwrap();
    let error = text(run(data.path(), &["erasures", "list"]), 1);
    assert!(error.contains(&format!("{} (4 entries)", one["id"].as_str().unwrap())), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_access_log_is_not_the_one_that_was_noted() {
    let server = Server::with_devices(TrustLevel::Shared, Limits::default()).await;
    let data = server.end().await;
    let hold =
        |reason| text(run(data.path(), &["hold", "add", "--user", "u", "--reason", reason]), 0);
    let log = |noted: &[&str]| run(data.path(), &[&["access-log"], noted].concat());
    hold("case 1");
    hold("case 2");
    let last = String::from_utf8(log(&[]).stderr).unwrap();
    let noted = last.trim().rsplit(' ').next().unwrap();
    assert!(noted.starts_with("2:"), "{last}");
    hold("case 3");
    text(log(&["--noted", noted]), 0);
    // Without its last lines, the log does not fit to the hash that is kept beside it.
    let files =
        ["access.ndjson", "access-head.json"].map(|name| data.path().join("life").join(name));
    let lines = std::fs::read_to_string(&files[0]).unwrap();
    std::fs::write(&files[0], lines.lines().next().unwrap().to_owned() + "\n").unwrap();
    text(log(&[]), 1);
    // With both files replaced, only what was noted shows it.
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
    hold("case 1");
    hold("case 2");
    text(log(&[]), 0);
    text(log(&["--noted", noted]), 1);
    for wrong in ["2", "0:", "2:xyz", &noted.replace("2:", "0:")] {
        text(log(&["--noted", wrong]), 2);
    }
    let elsewhere = data.path().join("none");
    text(run(&elsewhere, &["access-log"]), 2);
    text(run(&elsewhere, &["hold", "list"]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_without_a_receiver_plans_and_applies() {
    let server = Server::with_devices(TrustLevel::Shared, Limits::default()).await;
    server.take(&batch(1, 4)).await;
    let data = server.end().await;
    let plan = |limit: &[&str]| {
        let arguments = [&["retention", "plan", "--json"], limit].concat();
        let planned: Value = serde_json::from_str(&text(run(data.path(), &arguments), 0)).unwrap();
        planned["removals"].as_array().or(planned.as_array()).unwrap().len()
    };
    assert_eq!(plan(&["--max-age", "1h"]), 0);
    assert_eq!(plan(&["--max-age", "0s"]), 1);
    assert_eq!(plan(&["--max-bytes", "1"]), 0, "the current epoch stays");
    assert!(!with_secret(data.path()).is_empty());
    let applied = text(run(data.path(), &["retention", "apply", "--max-age", "0s"]), 0);
    assert!(applied.contains("age"), "{applied}");
    assert_eq!(with_secret(data.path()), <[String; 0]>::default());
    assert_eq!(plan(&["--max-age", "0s"]), 0);
    let config = data.path().join("config.toml");
    std::fs::write(&config, "[retention]\nmax_age = \"30days\"\n").unwrap();
    assert_eq!(plan(&["--config", config.to_str().unwrap()]), 0);
    let usage = run(data.path(), &["retention", "plan"]);
    assert_eq!(usage.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_a_command_in_a_file_has_no_colours() {
    let data = Server::with_devices(TrustLevel::Shared, Limits::default()).await.end().await;
    let copies = tempfile::tempdir().unwrap();
    let [backup, target] = ["backup", "data"].map(|name| copies.path().join(name));
    text(run(data.path(), &["backup", backup.to_str().unwrap()]), 0);
    let restored = run(&target, &["restore", backup.to_str().unwrap()]);
    let log = String::from_utf8(restored.stderr).unwrap();
    assert!(log.contains("copied a journal") && !log.contains('\u{1b}'), "{log}");
}

/// An operator who discarded a stolen key could not tell a wrong signature from one of that key any more, and
/// `erasures list` failed for good.
#[tokio::test(flavor = "multi_thread")]
async fn erasure_signed_by_a_discarded_key_is_no_failure() {
    let server = Server::with_devices(TrustLevel::Shared, Limits::default()).await;
    server.take(&batch(1, 4)).await;
    let data = server.end().await;
    text(run(data.path(), &["erase", "--session", SESSION, "--reason", "r"]), 0);
    let options = RegistryOptions::new(TrustLevel::Shared);
    let registry = Registry::open(&data.path().join("trust"), options).unwrap();
    let signed = |code| {
        let output = run(data.path(), &["erasures", "list", "--json"]);
        assert_eq!(output.status.code(), Some(code));
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
        [&listed[0]["is_signed"], &listed[0]["is_signed_by_discarded"]]
            .map(|it| it.as_bool().unwrap())
    };
    // More rotations than keys that are kept to sign the list of keys.
    for seed in 20..40 {
        registry.rotate_receiver_key([seed; 32], false).unwrap();
    }
    assert_eq!(signed(0), [true, false]);
    for _ in 0..2 {
        text(run(data.path(), &["keys", "rotate", "--discard-old"]), 0);
    }
    assert_eq!(signed(0), [false, true]);
    let table = text(run(data.path(), &["erasures", "list"]), 0);
    assert!(table.contains("  discarded  "), "{table}");
    let list = data.path().join("life/erasures.ndjson");
    let listed = std::fs::read_to_string(&list).unwrap();
    let altered = listed.replace(r#"\"entries\":2"#, r#"\"entries\":1"#);
    assert_ne!(altered, listed);
    std::fs::write(&list, altered).unwrap();
    assert_eq!(signed(1), [false, false]);
}

/// A receiver with files of all kinds, and copies of its data directory.
struct Copies {
    data: tempfile::TempDir,
    copies: tempfile::TempDir,
    number: usize,
}

impl Copies {
    async fn new() -> Self {
        let server = Server::with_devices(TrustLevel::FirstUse, Limits::default()).await;
        let device = TestDevice::new(1);
        server.confirm(&device).await;
        server.take(&batch(1, 4).seal(&device)).await;
        let data = server.end().await;
        text(run(data.path(), &["erase", "--session", SESSION, "--reason", "r"]), 0);
        Self { data, copies: tempfile::tempdir().unwrap(), number: 0 }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.data.path().join(name)
    }

    /// Backs up and restores, and returns the outputs, or the errors with exit code 1.
    fn copy(&mut self, codes: [i32; 2]) -> [String; 2] {
        self.number += 1;
        let [backup, target] = ["backup", "data"]
            .map(|name| self.copies.path().join(format!("{name}{}", self.number)));
        let backup = backup.to_str().unwrap();
        let backed_up = text(run(self.data.path(), &["backup", backup]), codes[0]);
        [backed_up, text(run(&target, &["restore", backup]), codes[1])]
    }

    /// Checks that both commands name a file that has another content, or none.
    fn check(&mut self, name: &str, content: Option<&[u8]>) {
        let path = self.path(name);
        let before = std::fs::read(&path).unwrap();
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        for output in self.copy([1, 1]) {
            assert!(output.contains(name), "{name}: {output}");
        }
        std::fs::write(&path, before).unwrap();
    }
}

/// A damaged file was copied and restored with exit code 0, without a word.
#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_name_damaged_devices() {
    let mut copies = Copies::new().await;
    copies.copy([0, 0]);
    let name = "trust/devices.ndjson";
    let devices = std::fs::read(copies.path(name)).unwrap();
    copies.check(name, Some(&devices[..devices.len() - 5]));
    copies.check(name, Some(&[b"{\"op\":\"x\"}\n", devices.as_slice()].concat()));
    copies.check(name, None);
    // A receiver without the file would let a revoked device enroll again.
    let path = copies.path(name);
    let start = || {
        let options = RegistryOptions::new(TrustLevel::FirstUse);
        let registry = Registry::open(&copies.path("trust"), options).unwrap();
        let options = FileStoreOptions::default();
        FileStore::open_with_registry(copies.data.path(), options, registry.into())
    };
    std::fs::remove_file(&path).unwrap();
    let error = start().unwrap_err();
    let causes = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(causes.contains(name), "{causes}");
    std::fs::write(&path, "").unwrap();
    start().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_name_damaged_files() {
    let mut copies = Copies::new().await;
    text(run(copies.data.path(), &["hold", "add", "--user", "x", "--reason", "r"]), 0);
    copies.check("life/holds.json", Some(b"{"));
    copies.check("life/erasures.ndjson", None);
    let indexes = files(&copies.path("machines"), "index");
    let name = indexes[0].strip_prefix(copies.data.path()).unwrap().to_str().unwrap();
    // In the first of several records, and in the last one, which a copy of a running receiver may lack.
    let mut damaged = std::fs::read(&indexes[0]).unwrap();
    damaged[40] ^= 1;
    copies.check(name, Some(&damaged));
    std::fs::remove_file(copies.path("life/erasures.ndjson")).unwrap();
    std::fs::write(&indexes[0], b"").unwrap();
    for output in copies.copy([1, 1]) {
        assert!(output.contains("lines that its index lacks"), "{output}");
    }
}
