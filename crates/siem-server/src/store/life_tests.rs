//! Erasure and retention in a store that is open, and what a kill leaves of them.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use memchr::memmem;
use proptest::prelude::*;
use siem_protocol::{Digest, statement::TrustLevel};
use tempfile::TempDir;

use super::{
    FileStore, FileStoreOptions,
    files::tests::{copy, directory, files, stats, take},
};
use crate::{
    life::{
        AccessLog, Hold, Holds, LifeRequest, LifeResponse, Reason, RetentionPolicy, Selector,
        erasures, execute,
    },
    testing::{BatchText, RECEIVER},
    trust::{Registry, RegistryOptions},
};

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

/// Files that contain a text.
fn with_text(root: &Path, text: &str) -> Vec<String> {
    let files = files(root).into_iter();
    let found = files.filter(|(_, bytes)| memmem::find(bytes, text.as_bytes()).is_some());
    found.map(|(path, _)| path.display().to_string()).collect()
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

#[test]
fn erased_text_is_in_no_file_and_the_chain_still_verifies() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    take(&store, &lines("epoch-1", 6, 10)).unwrap();
    take(&store, &lines("epoch-2", 1, 4)).unwrap();
    let before = stats(&store);
    assert!(!with_text(root.path(), SECRET).is_empty());
    let erased = erase(&root, "01");
    assert_eq!(erased, LifeResponse::Erased { id: "01".into(), entries: 4, epochs: 2 });
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(stored_chain(root.path(), "epoch-1"), chain(10));
    // Sent again, the lines are duplicates, and later ones continue the chain.
    let receipt = take(&store, &lines("epoch-1", 1, 12)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (2, 10));
    // A request for statistics is answered after the files of the epochs are written.
    stats(&store);
    assert_eq!(with_text(root.path(), SECRET).len(), 2, "entry 12 is new");
    assert_eq!(erase(&root, "02"), LifeResponse::Erased { id: "02".into(), entries: 1, epochs: 1 });
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(stats(&store).machines[0].last_seen, before.machines[0].last_seen);
    drop(store);
    let store = open(&root);
    assert_eq!(stats(&store).machines[0].entries, before.machines[0].entries + 2);
    assert_eq!(stats(&store).machines[0].epochs[0].gaps, []);
    let receipt = take(&store, &lines("epoch-1", 1, 12)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (0, 12));
    drop(store);
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(stored_chain(root.path(), "epoch-1"), chain(12));
    let keys = vec![registry(root.path()).receiver_keys_view().unwrap().current];
    let listed = erasures(root.path(), &keys).unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|view| view.is_signed && view.erasure.who == "operator"));
    assert_eq!(listed[0].erasure.epochs.iter().map(|it| it.seqs.len()).sum::<usize>(), 4);
    assert!(!erasures(root.path(), &[]).unwrap()[0].is_signed);
    assert_eq!(AccessLog::new(root.path()).verify().unwrap().len(), 2);
}

#[test]
fn hold_refuses_an_erasure_and_receiver_without_key_too() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    let hold = Hold {
        id: 0,
        selector: Selector::User("u".into()),
        reason: "court".into(),
        who: "counsel".into(),
        at: String::new(),
    };
    let id = Holds::add(root.path(), hold).unwrap();
    let LifeResponse::Refused(why) = erase(&root, "01") else {
        panic!("erased in spite of a hold")
    };
    assert!(why.contains("hold 1"), "{why}");
    assert!(!with_text(root.path(), SECRET).is_empty());
    Holds::remove(root.path(), id).unwrap().unwrap();
    assert!(matches!(erase(&root, "02"), LifeResponse::Erased { entries: 1, .. }));
    drop(store);
    let root = directory();
    let _store = open(&root);
    assert!(matches!(erase(&root, "01"), LifeResponse::Refused(_)));
}

#[test]
fn removed_epoch_keeps_its_ledger_and_continues() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    let policy = RetentionPolicy { max_age: Some(Duration::from_secs(3600)), max_bytes: None };
    let plan = request(&root, "01", LifeRequest::PlanRetention(policy));
    let LifeResponse::Removals(planned) = &plan else { panic!("{plan:?}") };
    assert_eq!(planned.len(), 1);
    assert!(!with_text(root.path(), SECRET).is_empty(), "a plan removed something");
    assert_eq!(request(&root, "02", LifeRequest::ApplyRetention(policy)), plan);
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    let receipt = take(&store, &lines("epoch-1", 1, 8)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (3, 5));
    let found = stats(&store);
    for store in [None, Some(store)] {
        // Once after a kill, once after an orderly end.
        let killed = copy(root.path(), &files(root.path()));
        drop(store);
        fs::remove_dir_all(killed.path().join("trust")).unwrap();
        let store = open(&killed);
        assert_eq!(stats(&store).machines, found.machines);
        let read = read_all(&store);
        assert_eq!(read, (6..=8).map(|seq| (seq, line(seq))).collect::<Vec<_>>());
    }
}

#[test]
fn epoch_that_grew_since_the_plan_stays() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    let planned = stats(&store).machines[0].epochs[0].bytes;
    take(&store, &lines("epoch-1", 6, 7)).unwrap();
    let grown = stats(&store).machines[0].epochs[0].bytes;
    let key = super::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let remove = |bytes: u64| {
        let at = crate::clock::text(UNIX_EPOCH);
        store.handle().remove(vec![(key.clone(), bytes)], at).unwrap()
    };
    assert_eq!(remove(planned), []);
    assert_eq!(read_all(&store).len(), 7);
    assert_eq!(remove(grown), std::slice::from_ref(&key));
    assert_eq!(read_all(&store).len(), 0);
}

#[test]
fn surplus_of_another_epoch_is_removed_with_its_session() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 2)).unwrap();
    stats(&store);
    let lines = files(root.path()).into_keys().find(|it| it.ends_with("epoch-1.ndjson")).unwrap();
    let surplus = root.path().join(lines).with_extension("surplus");
    fs::write(&surplus, line(3) + "\n").unwrap();
    assert_eq!(erase(&root, "01"), LifeResponse::Erased { id: "01".into(), entries: 0, epochs: 0 });
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
}

#[tokio::main(flavor = "current_thread")]
async fn read_all(store: &FileStore) -> Vec<(u64, String)> {
    use super::Storage as _;
    let key = super::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let range = crate::ledger::Range { first: 1, last: u64::MAX };
    let lines = store.read(key, range, u64::MAX).await.unwrap();
    lines.into_iter().map(|it| (it.seq, String::from_utf8(it.line).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A kill at any time after the note of an erasure was written, with any part of the epoch's files,
    /// leaves no text once the store was opened.
    #[test]
    fn erasure_survives_a_kill(batches in prop::collection::vec(1u64..6, 1..6), cut in any::<usize>()) {
        let root = keyed();
        let store = open(&root);
        let opened = files(root.path());
        let mut last = 0;
        for count in batches {
            take(&store, &lines("epoch-1", last + 1, last + count)).unwrap();
            last += count;
        }
        let handle = store.handle();
        handle.settle().unwrap();
        let epoch = handle.epochs().unwrap().next().unwrap().unwrap();
        let mut found = Vec::new();
        epoch.each_line(|_, at, seq, line| {
            if memmem::find(line, SECRET.as_bytes()).is_some() {
                found.push(super::LineToErase::new(seq, at, line));
            }
        }).unwrap();
        handle.erase(epoch.key().unwrap(), "01".into(), crate::clock::text(UNIX_EPOCH), found).unwrap();
        let mut left = files(root.path());
        for (path, bytes) in &mut left {
            if path.extension().is_some_and(|it| it == "ndjson" || it == "index") {
                let from = opened.get(path).map_or(0, Vec::len);
                bytes.truncate(from + cut % (bytes.len() - from + 1));
            }
        }
        let killed = copy(root.path(), &left);
        drop(store);
        fs::remove_dir_all(killed.path().join("trust")).unwrap();
        drop(open(&killed));
        prop_assert_eq!(with_text(killed.path(), SECRET), Vec::<String>::new());
        prop_assert_eq!(stored_chain(killed.path(), "epoch-1"), chain(last));
    }
}
