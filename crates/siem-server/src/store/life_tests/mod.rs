//! Erasure and retention in a store that is open, and what a kill leaves of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use memchr::memmem;
use proptest::prelude::*;
use siem_protocol::{Digest, statement::TrustLevel};
use tempfile::TempDir;

use super::{
    EpochLines, FileStore, FileStoreOptions, LineToErase,
    files::tests::{copy, directory, files, stats, take},
};
use crate::{
    life::{
        AccessLog, Hold, Holds, LifeRequest, LifeResponse, Mention, Reason, RetentionPolicy,
        Selector, end_erasure, erasures, execute, unlisted_erasures,
    },
    testing::{BatchText, RECEIVER},
    trust::{Registry, RegistryOptions},
};

mod backup;
mod erasure;
mod recovery;
mod retention;

const SESSION: &str = "6d1ae0eb-09ca-446a";
const SECRET: &str = "the text that must vanish";

/// A record of the session, or of another one.
fn line(seq: u64) -> String {
    let (session, text) =
        if seq.is_multiple_of(3) { (SESSION, SECRET) } else { ("another-session", "stays") };
    format!(
        r#"{{"seq":{seq},"kind":"record","source":"claude-sessions","path":"/p/{session}.jsonl","generation":"g","offset":{seq},"length":9,"read_at":"2026-11-21T20:00:01.000Z","record":{{"text":"{text}"}}}}"#
    )
}

fn chain(seq: u64) -> Digest {
    (1..=seq).fold(Digest::ZERO, |value, seq| value.chain(Digest::of(line(seq).as_bytes())))
}

fn lines(epoch: &str, first: u64, last: u64) -> BatchText {
    let mut text = BatchText::new(first, last).with(|header| {
        header.epoch = epoch.into();
        let (before, after) = (chain(first - 1), chain(last));
        header.chain = Some(siem_protocol::Chain { before, after });
    });
    for seq in first..=last {
        text = text.line(seq, &line(seq));
    }
    text
}

fn registry(root: &Path) -> Arc<Registry> {
    let options = RegistryOptions::new(TrustLevel::Shared);
    Arc::new(Registry::open(&root.join("trust"), options).unwrap())
}

fn open(root: &TempDir) -> FileStore {
    let options = FileStoreOptions::default();
    FileStore::open_with_registry(root.path(), options, registry(root.path())).unwrap()
}

/// A data directory whose receiver has a key.
fn keyed() -> TempDir {
    let root = directory();
    registry(root.path()).create_receiver_key(RECEIVER, [9; 32]).unwrap();
    root
}

fn request(root: &TempDir, id: &str, request: LifeRequest) -> LifeResponse {
    let reason = Reason { who: "operator".into(), why: "asked for".into() };
    let limit = Duration::from_secs(60);
    execute(root.path(), id, request, reason, limit, || Ok(())).unwrap()
}

fn erase(root: &TempDir, id: &str) -> LifeResponse {
    request(root, id, LifeRequest::Erase(Selector::session(SESSION).unwrap()))
}

/// Response about an erasure without mentions in other sessions.
fn done(id: &str, entries: u64, epochs: usize) -> LifeResponse {
    LifeResponse::Erased { id: id.into(), entries, epochs, mentions: Vec::new(), mentioned: 0 }
}

/// Files that contain a text.
fn with_text(root: &Path, text: &str) -> Vec<String> {
    let files = files(root).into_iter();
    let found = files.filter(|(_, bytes)| memmem::find(bytes, text.as_bytes()).is_some());
    found.map(|(path, _)| path.display().to_string()).collect()
}

/// Path of the lines of `epoch-1`.
fn lines_file(root: &TempDir) -> PathBuf {
    files(root.path()).into_keys().find(|it| it.ends_with("epoch-1.ndjson")).unwrap()
}

/// Lines of an epoch to erase, by their text.
fn lines_to_erase(epoch: &EpochLines, is_selected: impl Fn(&[u8]) -> bool) -> Vec<LineToErase> {
    let mut found = Vec::new();
    epoch
        .each_line(|line| {
            if is_selected(line.text) {
                found.push(LineToErase::new(line.seq, line.at, line.text));
            }
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
    found
}

/// What a kill at this moment leaves, without the keys of the receiver.
fn killed(root: &TempDir, left: &BTreeMap<PathBuf, Vec<u8>>) -> TempDir {
    let killed = copy(root.path(), left);
    fs::remove_dir_all(killed.path().join("trust")).unwrap();
    killed
}

/// Recomputes the chain from what is stored of an epoch: lines, and tombstones with their hashes.
fn stored_chain(root: &Path, epoch: &str) -> Digest {
    let files = files(root);
    let path = files.keys().find(|path| path.ends_with(format!("{epoch}.ndjson"))).unwrap();
    let text = String::from_utf8(files[path].clone()).unwrap();
    let digests: BTreeMap<u64, Digest> = text
        .lines()
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).unwrap();
            let digest = match entry["kind"].as_str() {
                Some("erased") => serde_json::from_value(entry["line_sha256"].clone()).unwrap(),
                _ => Digest::of(line.as_bytes()),
            };
            (entry["seq"].as_u64().unwrap(), digest)
        })
        .collect();
    digests.values().fold(Digest::ZERO, |value, digest| value.chain(*digest))
}

fn repeat(root: &TempDir, id: &str) -> (Vec<String>, u64, u64) {
    match request(root, id, LifeRequest::RepeatErasures) {
        LifeResponse::Repeated { erasures, entries, held } => (erasures, entries, held),
        other => panic!("{other:?}"),
    }
}

fn hold(root: &TempDir, selector: Selector) -> u64 {
    let (reason, who, at) = ("court".into(), "counsel".into(), String::new());
    Holds::add(root.path(), Hold { id: 0, selector, reason, who, at }).unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn read_all(store: &FileStore) -> Vec<(u64, String)> {
    use crate::store::Storage as _;
    let key = crate::store::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let range = crate::ledger::Range { first: 1, last: u64::MAX };
    let lines = store.read(key, range, u64::MAX).await.unwrap();
    lines.into_iter().map(|it| (it.seq, String::from_utf8(it.line).unwrap())).collect()
}
