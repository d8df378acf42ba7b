//! Erasure and retention in a store that is open, and what a kill leaves of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
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
        Selector, end_erasure, erasures, execute,
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

/// What is logged by a call.
fn log_of<T>(call: impl FnOnce() -> T) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let log = tracing_subscriber::fmt().with_writer(Mutex::new(file.reopen().unwrap())).finish();
    tracing::subscriber::with_default(log, call);
    fs::read_to_string(file.path()).unwrap()
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
    assert_eq!(erased, done("01", 4, 2));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(stored_chain(root.path(), "epoch-1"), chain(10));
    // Sent again, the lines are duplicates, and later ones continue the chain.
    let receipt = take(&store, &lines("epoch-1", 1, 12)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (2, 10));
    // A request for statistics is answered after the files of the epochs are written.
    stats(&store);
    assert_eq!(with_text(root.path(), SECRET).len(), 2, "entry 12 is new");
    assert_eq!(erase(&root, "02"), done("02", 1, 1));
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

/// What the retention would remove.
fn plan(root: &TempDir, policy: &RetentionPolicy) -> LifeResponse {
    let now = crate::Clock::now(&crate::SystemClock);
    LifeResponse::Removals(crate::life::plan(root.path(), policy, now).unwrap())
}

#[test]
fn removed_epoch_keeps_its_ledger_and_continues() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 5)).unwrap();
    stats(&store);
    let policy = RetentionPolicy { max_age: Some(Duration::from_secs(3600)), max_bytes: None };
    let plan = plan(&root, &policy);
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
        let killed = killed(&root, &files(root.path()));
        drop(store);
        let store = open(&killed);
        assert_eq!(stats(&store).machines, found.machines);
        let read = read_all(&store);
        assert_eq!(read, (6..=8).map(|seq| (seq, line(seq))).collect::<Vec<_>>());
    }
}

/// A batch at a time of the receiver's clock.
#[tokio::main(flavor = "current_thread")]
async fn take_at(store: &FileStore, first: u64, last: u64, at: SystemTime) {
    use super::Storage as _;
    let text = lines("epoch-1", first, last).text();
    let batch = crate::batch::Batch::parse(text.into_bytes(), at).unwrap();
    store.store(batch).await.unwrap();
}

/// 560 batches of one entry, 300 of them from before the limit, the others of now.
fn long_epoch(store: &FileStore) -> RetentionPolicy {
    let now = crate::Clock::now(&crate::SystemClock);
    let old = now - Duration::from_secs(100 * 86_400);
    for seq in 1..=560 {
        let at = if seq <= 300 { old + Duration::from_secs(seq) } else { now };
        take_at(store, seq, seq, at);
    }
    RetentionPolicy { max_age: Some(Duration::from_secs(90 * 86_400)), max_bytes: None }
}

/// An agent keeps its epoch for years.
#[test]
fn retention_removes_the_oldest_entries_of_a_running_epoch() {
    let root = keyed();
    let store = open(&root);
    let policy = long_epoch(&store);
    let before = stats(&store).machines[0].epochs[0].clone();
    let plan = plan(&root, &policy);
    let LifeResponse::Removals(planned) = &plan else { panic!("{plan:?}") };
    assert_eq!(planned.len(), 1);
    let end = planned[0].before.unwrap();
    assert_eq!(planned[0].bytes, end);
    // Nothing of an epoch with held entries.
    let id = hold(&root, Selector::Session(SESSION.into()));
    let none = request(&root, "02", LifeRequest::ApplyRetention(policy));
    assert_eq!(none, LifeResponse::Removals(Vec::new()));
    Holds::remove(root.path(), id).unwrap();
    assert_eq!(request(&root, "03", LifeRequest::ApplyRetention(policy)), plan);
    let none = request(&root, "04", LifeRequest::ApplyRetention(policy));
    assert_eq!(none, LifeResponse::Removals(Vec::new()));
    // One row of the index.
    let removed = 256;
    let expected: Vec<_> = (removed + 1..=560).map(|seq| (seq, line(seq))).collect();
    let check = |store: &FileStore, root: &Path| {
        assert!(read_all(store) == expected, "other lines are left");
        let epoch = &stats(store).machines[0].epochs[0];
        assert_eq!(epoch.bytes, before.bytes - end);
        assert_eq!((epoch.entries, &*epoch.gaps), (560, &[][..]));
        assert_eq!(with_text(root, &format!(r#"{{"seq":{removed},"#)), <[String; 0]>::default());
        let mut shown = 0;
        super::read_lines(root, |batch| {
            shown += batch.lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            Ok::<_, super::ReadError>(())
        })
        .unwrap();
        assert_eq!(shown, 560 - removed);
    };
    check(&store, root.path());
    for store in [None, Some(store)] {
        // Once after a kill, once after an orderly end.
        let killed = killed(&root, &files(root.path()));
        drop(store);
        let store = open(&killed);
        check(&store, killed.path());
        let receipt = take(&store, &lines("epoch-1", 1, 4)).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (0, 4));
        let receipt = take(&store, &lines("epoch-1", 559, 562)).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (2, 2));
    }
    // What is left can be erased.
    let store = open(&root);
    assert!(matches!(erase(&root, "05"), LifeResponse::Erased { entries: 101, .. }));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(read_all(&store).len() as u64, 560 - removed);
}

/// The size counts all epochs, and the oldest entries go first.
#[test]
fn size_removes_the_oldest_entries_of_a_running_epoch() {
    let root = keyed();
    let store = open(&root);
    long_epoch(&store);
    let stored = stats(&store).machines[0].epochs[0].bytes;
    let size = |max_bytes| RetentionPolicy { max_age: None, max_bytes: Some(max_bytes) };
    assert_eq!(plan(&root, &size(stored)), LifeResponse::Removals(Vec::new()));
    let LifeResponse::Removals(planned) = plan(&root, &size(stored - 1)) else { panic!() };
    assert_eq!(planned.len(), 1);
    assert_eq!(planned[0].cause, crate::life::RemovalCause::Size);
    let applied = request(&root, "01", LifeRequest::ApplyRetention(size(stored - 1)));
    assert_eq!(applied, LifeResponse::Removals(planned.clone()));
    assert_eq!(stats(&store).machines[0].epochs[0].bytes, stored - planned[0].bytes);
    assert_eq!(read_all(&store).len(), 560 - 256);
    // The last entries stay in any case.
    let is_met = |limit| !log_of(|| plan(&root, &size(limit))).contains("retention_limit_not_met");
    assert!(is_met(stored / 2) && !is_met(0));
    let LifeResponse::Removals(all) = request(&root, "02", LifeRequest::ApplyRetention(size(0)))
    else {
        panic!()
    };
    assert_eq!(all.len(), 1);
    assert_eq!(read_all(&store).len(), 560 - 512);
}

/// Without a running server too: what arrived of an erased session is not erased by a plan.
#[test]
fn plan_changes_nothing() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    erase(&root, "01");
    take(&store, &lines("epoch-1", 5, 6)).unwrap();
    drop(store);
    let before = files(root.path());
    let policy = RetentionPolicy { max_age: Some(Duration::ZERO), max_bytes: None };
    assert!(matches!(plan(&root, &policy), LifeResponse::Removals(found) if found.len() == 1));
    assert_eq!(files(root.path()), before);
}

/// A repair of an epoch whose oldest lines were removed does not take them for lost.
#[test]
fn cut_file_whose_oldest_lines_were_removed_is_repaired() {
    let root = keyed();
    let store = open(&root);
    let policy = long_epoch(&store);
    request(&root, "01", LifeRequest::ApplyRetention(policy));
    drop(store);
    let mut left = files(root.path());
    let path = left.keys().find(|path| path.ends_with("epoch-1.ndjson")).unwrap().clone();
    let bytes = left.get_mut(&path).unwrap();
    bytes.truncate(bytes.len() - line(560).len() - 1);
    let cut = killed(&root, &left);
    let store = open(&cut);
    let epoch = stats(&store).machines[0].epochs[0].clone();
    assert_eq!(epoch.entries, 559);
    assert_eq!(read_all(&store).len(), 559 - 256);
    let receipt = take(&store, &lines("epoch-1", 559, 562)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (3, 1));
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
    let surplus = lines_file(&root).with_extension("surplus");
    fs::write(&surplus, line(3) + "\n").unwrap();
    assert_eq!(erase(&root, "01"), done("01", 0, 0));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
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

/// What an erased session sends later, in the same epoch and in one after the loss of the outbox.
#[test]
fn erasure_of_a_session_covers_entries_that_arrive_later() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    assert_eq!(repeat(&root, "00"), (vec![], 0, 0), "nothing was erased yet");
    assert!(matches!(erase(&root, "01"), LifeResponse::Erased { entries: 1, .. }));
    take(&store, &lines("epoch-1", 5, 7)).unwrap();
    take(&store, &lines("epoch-2", 1, 7)).unwrap();
    stats(&store);
    assert_eq!(with_text(root.path(), SECRET).len(), 3, "the journal and two epochs");
    assert_eq!(repeat(&root, "02"), (vec!["01-2".into()], 3, 0));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(stored_chain(root.path(), "epoch-1"), chain(7));
    assert_eq!(stored_chain(root.path(), "epoch-2"), chain(7));
    assert_eq!(repeat(&root, "03"), (vec![], 0, 0));
    take(&store, &lines("epoch-1", 8, 9)).unwrap();
    drop(store);
    // The next start does it by itself.
    let store = open(&root);
    let keys = vec![registry(root.path()).receiver_keys_view().unwrap().current];
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while erasures(root.path(), &keys).unwrap().len() < 3 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let listed = erasures(root.path(), &keys).unwrap();
    assert_eq!(listed[2].erasure.id, "01-3");
    assert!(listed.iter().all(|it| it.is_signed));
    let repeats: Vec<_> = listed.iter().map(|it| it.erasure.repeats.as_deref()).collect();
    assert_eq!(repeats, [None, Some("01"), Some("01")]);
    let in_force: Vec<_> = listed.iter().map(|it| it.is_in_force).collect();
    assert_eq!(in_force, [true, false, false]);
    assert!(end_erasure(root.path(), "01").unwrap());
    assert!(!end_erasure(root.path(), "01").unwrap());
    take(&store, &lines("epoch-1", 10, 12)).unwrap();
    assert_eq!(repeat(&root, "04"), (vec![], 0, 0));
    assert!(!with_text(root.path(), SECRET).is_empty());
}

/// A user may come back: only entries from before the erasure are erased when they arrive later.
#[test]
fn erasure_of_a_user_covers_later_entries_of_the_time_before() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 2)).unwrap();
    let user = || LifeRequest::Erase(Selector::User("u".into()));
    assert!(matches!(request(&root, "01", user()), LifeResponse::Erased { entries: 2, .. }));
    let future = line(3).replace("2026-11-21", "2126-11-21");
    take(&store, &lines("epoch-2", 1, 4).line(3, &future).chained()).unwrap();
    assert_eq!(repeat(&root, "02"), (vec!["01-2".into()], 3, 0));
    let left = with_text(root.path(), "2126-11-21");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(with_text(root.path(), "another-session"), <[String; 0]>::default());
}

#[test]
fn hold_keeps_later_entries_of_an_erased_session() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    erase(&root, "01");
    let id = hold(&root, Selector::User("u".into()));
    take(&store, &lines("epoch-1", 5, 7)).unwrap();
    for at in ["02", "03"] {
        assert_eq!(repeat(&root, at), (vec![], 0, 1));
    }
    assert!(!with_text(root.path(), SECRET).is_empty());
    Holds::remove(root.path(), id).unwrap().unwrap();
    assert_eq!(repeat(&root, "04"), (vec!["01-2".into()], 1, 0));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
}

/// A process that was killed between two steps of an erasure, and a hold that was added before the
/// next start: what is left stays, and what was erased is listed.
#[test]
fn resumed_erasure_respects_a_hold_and_lists_what_it_erased() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 6)).unwrap();
    let handle = store.handle();
    handle.settle().unwrap();
    let epoch = handle.epochs(None).unwrap().next().unwrap().unwrap();
    let found = lines_to_erase(&epoch, |text| text == line(3).as_bytes());
    let at = crate::clock::text(UNIX_EPOCH);
    handle.erase(epoch.key().unwrap(), "01".into(), at, found).unwrap();
    hold(&root, Selector::Session(SESSION.into()));
    let LifeResponse::Refused(why) = erase(&root, "01") else { panic!("erased a held entry") };
    assert!(why.contains("hold 1 covers entry 6") && why.contains("1 entries"), "{why}");
    assert_eq!(read_all(&store)[5], (6, line(6)));
    let keys = vec![registry(root.path()).receiver_keys_view().unwrap().current];
    let listed = erasures(root.path(), &keys).unwrap();
    assert_eq!(listed.len(), 1);
    let one = &listed[0];
    assert_eq!((one.erasure.entries, one.erasure.stopped_by_hold), (1, Some(1)));
    assert_eq!((one.is_signed, one.is_in_force), (true, false));
}

#[test]
fn held_lines_that_a_repair_moved_aside_stay() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    stats(&store);
    let surplus = lines_file(&root).with_extension("surplus");
    let (selected, other) =
        (line(6) + "\n", line(7).replace("another-session", "held-session") + "\n");
    fs::write(&surplus, selected.clone() + &other).unwrap();
    // Both selected and held: nothing is erased.
    let id = hold(&root, Selector::Session(SESSION.into()));
    assert!(matches!(erase(&root, "01"), LifeResponse::Refused(_)));
    Holds::remove(root.path(), id).unwrap();
    hold(&root, Selector::Session("held-session".into()));
    // The retention removes no epoch with held lines beside it.
    let policy = RetentionPolicy { max_age: Some(Duration::from_secs(3600)), max_bytes: None };
    let plan = request(&root, "02", LifeRequest::ApplyRetention(policy));
    assert_eq!(plan, LifeResponse::Removals(Vec::new()));
    assert!(matches!(erase(&root, "03"), LifeResponse::Erased { entries: 1, .. }));
    assert_eq!(fs::read_to_string(&surplus).unwrap(), other);
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    // A damaged journal has lines of both.
    let damaged = root.path().join("journal/000000000001.damaged");
    let both = selected.replace(SECRET, "held-session");
    fs::write(&damaged, both.clone() + &other).unwrap();
    let LifeResponse::Refused(why) = erase(&root, "04") else { panic!("erased a held line") };
    assert!(why.contains("000000000001.damaged"), "{why}");
    fs::write(&damaged, selected.clone() + &other).unwrap();
    assert!(matches!(erase(&root, "05"), LifeResponse::Erased { entries: 0, .. }));
    let blank = " ".repeat(selected.len() - 1) + "\n";
    assert_eq!(fs::read_to_string(&damaged).unwrap(), blank + &other);
}

/// What a recovery leaves after an erasure is searched without a later entry of its subject.
#[test]
fn lines_of_a_recovery_are_erased_without_a_later_entry() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    assert!(matches!(erase(&root, "01"), LifeResponse::Erased { entries: 1, .. }));
    assert_eq!(repeat(&root, "02"), (vec![], 0, 0));
    let surplus = lines_file(&root).with_extension("surplus");
    let damaged = root.path().join("journal/000000000009.damaged");
    let text = line(6) + "\n" + &line(7) + "\n";
    fs::write(&surplus, &text).unwrap();
    fs::write(&damaged, &text).unwrap();
    let id = hold(&root, Selector::Session(SESSION.into()));
    assert_eq!(repeat(&root, "03"), (vec![], 0, 2), "held");
    Holds::remove(root.path(), id).unwrap();
    assert_eq!(repeat(&root, "04"), (vec!["01-2".into()], 0, 0));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    // The lines of the other session are still there.
    assert_eq!(fs::read_to_string(&surplus).unwrap(), line(7) + "\n");
    assert!(fs::read_to_string(&damaged).unwrap().ends_with(&(line(7) + "\n")));
    assert_eq!(repeat(&root, "05"), (vec![], 0, 0));
}

#[test]
fn entries_that_mention_an_erased_session_stay_and_are_counted() {
    let root = keyed();
    let store = open(&root);
    let mention = line(2).replace("stays", &format!("see {SESSION}"));
    take(&store, &lines("epoch-1", 1, 3).line(2, &mention).chained()).unwrap();
    let LifeResponse::Erased { entries, mentions, mentioned, .. } = erase(&root, "01") else {
        panic!("not erased")
    };
    let of = "another-session".to_owned();
    let expected = [Mention { machine: "m-1".into(), of, entries: 1 }];
    assert_eq!((entries, &*mentions, mentioned), (1, &expected[..], 1));
    assert_eq!(read_all(&store)[1], (2, mention));
    // The operator may decide that they are erased too.
    let all = LifeRequest::Erase(Selector::Mentions(SESSION.into()));
    assert_eq!(request(&root, "02", all), done("02", 1, 1));
    assert_eq!(with_text(root.path(), &format!("see {SESSION}")), <[String; 0]>::default());
}

#[tokio::main(flavor = "current_thread")]
async fn read_all(store: &FileStore) -> Vec<(u64, String)> {
    use super::Storage as _;
    let key = super::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let range = crate::ledger::Range { first: 1, last: u64::MAX };
    let lines = store.read(key, range, u64::MAX).await.unwrap();
    lines.into_iter().map(|it| (it.seq, String::from_utf8(it.line).unwrap())).collect()
}

/// Damage between a batch and the erasure of its lines in one journal: the replay writes the batch
/// again, and must not bring the text back.
#[test]
fn erased_line_stays_erased_with_damage_before_its_erasure() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 3)).unwrap();
    let handle = store.handle();
    handle.settle().unwrap();
    let journal = files(root.path()).into_keys().find(|it| it.ends_with("000000000001.journal"));
    let journal = journal.unwrap();
    let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let damaged_at = used(&files(root.path())[&journal]) + 100;
    take(&store, &lines("epoch-2", 1, 1)).unwrap();
    handle.settle().unwrap();
    let before = files(root.path());
    let key = super::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let epoch = handle.epochs(Some(std::slice::from_ref(&key))).unwrap().next().unwrap().unwrap();
    let found = lines_to_erase(&epoch, |text| text == line(3).as_bytes());
    handle.erase(key, "01".into(), crate::clock::text(UNIX_EPOCH), found).unwrap();
    handle.settle().unwrap();
    let after = files(root.path());
    drop(store);
    let mut bytes = after[&journal].clone();
    bytes[damaged_at] ^= 1;
    // The files of the epoch without the erasure, and with it.
    for mut left in [before, after] {
        left.insert(journal.clone(), bytes.clone());
        let killed = copy(root.path(), &left);
        drop(FileStore::open(killed.path()).unwrap());
        let with = with_text(killed.path(), SECRET);
        assert!(with.iter().all(|path| path.ends_with(".damaged")), "{with:?}");
        assert_eq!(stored_chain(killed.path(), "epoch-1"), chain(3));
        let store = FileStore::open(killed.path()).unwrap();
        let epoch = store.handle().epochs(None).unwrap().next().unwrap().unwrap();
        assert_eq!(epoch.erased_under("01"), [crate::ledger::Range { first: 3, last: 3 }]);
        let receipt = take(&store, &lines("epoch-1", 1, 5)).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (2, 3));
    }
}

/// A reader at the time at which a part of a line is overwritten.
#[test]
fn reader_sees_the_tombstone_of_a_line_that_is_half_replaced() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 3)).unwrap();
    stats(&store);
    let path = lines_file(&root);
    let old = fs::read(&path).unwrap();
    let handle = store.handle();
    let (to, located) = tokio::sync::oneshot::channel();
    let key = ("m-1".to_owned(), "epoch-1".to_owned());
    let range = crate::ledger::Range { first: 1, last: 9 };
    handle
        .jobs
        .upgrade()
        .unwrap()
        .blocking_send(super::writer::Job::Locate(key, range, to))
        .unwrap();
    let located = located.blocking_recv().unwrap().unwrap();
    assert!(matches!(erase(&root, "01"), LifeResponse::Erased { entries: 1, .. }));
    let erased = fs::read(&path).unwrap();
    let start = (line(1).len() + line(2).len() + 2) as u64;
    for parts in [start as usize + 120..old.len(), start as usize..start as usize + 120] {
        let mut half = erased.clone();
        half[parts.clone()].copy_from_slice(&old[parts]);
        fs::write(&path, half).unwrap();
        let mut shown = Vec::new();
        super::read_lines(root.path(), |batch| {
            shown.extend_from_slice(batch.lines);
            Ok::<_, super::ReadError>(())
        })
        .unwrap();
        assert_eq!(shown, erased);
        let read = located.read(&root.path().join("machines"), u64::MAX).unwrap();
        let read: Vec<_> =
            read.into_iter().flat_map(|it| [it.line, b"\n".to_vec()].concat()).collect();
        assert_eq!(read, erased);
    }
}

/// The frames of a damaged journal stay frames, of which the senders are known.
#[test]
fn erased_lines_in_a_damaged_journal_leave_the_others_alone() {
    let root = keyed();
    let store = open(&root);
    let mention = line(2).replace("stays", &format!("see {SESSION}"));
    take(&store, &lines("epoch-1", 1, 4).line(2, &mention).chained()).unwrap();
    take(&store, &lines("epoch-2", 1, 4).with(|header| header.user = "other".into())).unwrap();
    stats(&store);
    let journal = fs::read(root.path().join("journal/000000000001.journal")).unwrap();
    let damaged = root.path().join("journal/000000000009.damaged");
    fs::write(&damaged, journal).unwrap();
    let frames = || {
        let mut frames = 0;
        super::journal::parts(&damaged, 0, |part| {
            frames += u32::from(matches!(part, super::journal::JournalPart::Frame(..)));
            Ok(())
        })
        .unwrap();
        frames
    };
    erase(&root, "01");
    for id in ["02", "03"] {
        assert_eq!(repeat(&root, id), (vec![], 0, 0));
    }
    let text = String::from_utf8_lossy(&fs::read(&damaged).unwrap()).into_owned();
    assert!(!text.contains(SECRET) && text.contains(&mention));
    assert_eq!(frames(), 2);
    request(&root, "04", LifeRequest::Erase(Selector::User("u".into())));
    for id in ["05", "06"] {
        assert_eq!(repeat(&root, id), (vec![], 0, 0));
    }
    let text = String::from_utf8_lossy(&fs::read(&damaged).unwrap()).into_owned();
    assert!(!text.contains(&mention));
    let others = [1, 2, 4].map(|seq| text.matches(&line(seq)).count());
    assert_eq!((others, frames()), ([1; 3], 2));
}

/// A damaged frame with lines from before and after the erasure of its user.
#[test]
fn erased_lines_of_damage_leave_the_name_of_its_sender() {
    let root = keyed();
    let store = open(&root);
    let later = line(2).replace("2026-11-21", "2126-11-21");
    let batch = lines("epoch-1", 1, 3).line(2, &later).chained();
    take(&store, &batch.with(|header| header.user = "other".into())).unwrap();
    stats(&store);
    let mut journal = fs::read(root.path().join("journal/000000000001.journal")).unwrap();
    journal.truncate(journal.iter().rposition(|byte| *byte != 0).unwrap());
    let damaged = root.path().join("journal/000000000009.damaged");
    let has = |text: &str| memmem::find(&fs::read(&damaged).unwrap(), text.as_bytes()).is_some();
    let user = || LifeRequest::Erase(Selector::User("other".into()));
    request(&root, "01", user());
    fs::write(&damaged, journal).unwrap();
    assert_eq!(repeat(&root, "02"), (vec!["01-2".into()], 0, 0));
    assert!(!has("2026-11-21T20:00:01") && has(&later));
    request(&root, "03", user());
    assert!(!has("2126-11-21"));
    assert_eq!(repeat(&root, "04"), (vec![], 0, 0));
}

/// Damage that names an erased user in a line that stays.
#[test]
fn erased_damage_is_not_erased_again_for_a_later_line() {
    let root = keyed();
    let _store = open(&root);
    let damaged = root.path().join("journal/000000000009.damaged");
    let of_bob = |seq| line(seq).replace("/p/", "/home/bob/") + "\n";
    let later = of_bob(2).replace("2026-11-21", "2126-11-21");
    request(&root, "01", LifeRequest::Erase(Selector::User("bob".into())));
    fs::write(&damaged, of_bob(1) + &later).unwrap();
    assert_eq!(repeat(&root, "02"), (vec!["01-2".into()], 0, 0));
    assert_eq!(repeat(&root, "03"), (vec![], 0, 0));
    assert_eq!(fs::read_to_string(&damaged).unwrap().trim_start(), later);
}

/// A held line that a recovery left must not keep the later entries that no hold covers.
#[test]
fn held_line_of_a_recovery_leaves_later_entries_to_be_erased() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 4)).unwrap();
    assert!(matches!(erase(&root, "01"), LifeResponse::Erased { entries: 1, .. }));
    let damaged = root.path().join("journal/000000000009.damaged");
    let held = line(6).replace(SECRET, "held-session") + "\n";
    fs::write(&damaged, &held).unwrap();
    hold(&root, Selector::Session("held-session".into()));
    take(&store, &lines("epoch-1", 5, 7)).unwrap();
    assert_eq!(repeat(&root, "02"), (vec!["01-2".into()], 1, 1));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    assert_eq!(fs::read_to_string(&damaged).unwrap(), held);
}

/// A line that a kill left half overwritten, while the frame of its erasure is behind damage.
#[test]
fn half_erased_line_is_erased_with_damage_before_its_erasure() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 3)).unwrap();
    let handle = store.handle();
    handle.rotate().unwrap();
    let before = files(root.path());
    take(&store, &lines("epoch-2", 1, 1)).unwrap();
    let key = super::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let epoch = handle.epochs(Some(std::slice::from_ref(&key))).unwrap().next().unwrap().unwrap();
    let found = lines_to_erase(&epoch, |line| memmem::find(line, SECRET.as_bytes()).is_some());
    handle.erase(key, "01".into(), crate::clock::text(UNIX_EPOCH), found).unwrap();
    handle.settle().unwrap();
    let after = files(root.path());
    drop(store);
    let path = lines_file(&root);
    let index = path.with_extension("index");
    let start = line(1).len() + line(2).len() + 2;
    // The note of the erasure in the index, and in the journal only.
    for index_bytes in [&after[&index], &before[&index]] {
        for cut in [18, 24, 60, 140, 200] {
            let mut left = after.clone();
            left.insert(index.clone(), index_bytes.clone());
            let text = left.get_mut(&path).unwrap();
            text[start + cut..].copy_from_slice(&before[&path][start + cut..]);
            for (_, journal) in
                left.iter_mut().filter(|(path, _)| path.ends_with("000000000002.journal"))
            {
                journal[100] ^= 1;
            }
            let killed = copy(root.path(), &left);
            drop(FileStore::open(killed.path()).unwrap());
            let with = with_text(killed.path(), "that must vanish");
            assert_eq!(with, <[String; 0]>::default(), "{cut}");
            assert_eq!(stored_chain(killed.path(), "epoch-1"), chain(3), "{cut}");
            let store = FileStore::open(killed.path()).unwrap();
            let receipt = take(&store, &lines("epoch-1", 1, 5)).unwrap();
            assert_eq!((receipt.accepted, receipt.duplicates), (2, 3), "{cut}");
        }
    }
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
        let epoch = handle.epochs(None).unwrap().next().unwrap().unwrap();
        let found = lines_to_erase(&epoch, |text| memmem::find(text, SECRET.as_bytes()).is_some());
        handle.erase(epoch.key().unwrap(), "01".into(), crate::clock::text(UNIX_EPOCH), found).unwrap();
        let mut left = files(root.path());
        for (path, bytes) in &mut left {
            if path.extension().is_some_and(|it| it == "ndjson" || it == "index") {
                let from = opened.get(path).map_or(0, Vec::len);
                bytes.truncate(from + cut % (bytes.len() - from + 1));
            }
        }
        let killed = killed(&root, &left);
        drop(store);
        drop(open(&killed));
        prop_assert_eq!(with_text(killed.path(), SECRET), Vec::<String>::new());
        prop_assert_eq!(stored_chain(killed.path(), "epoch-1"), chain(last));
    }
}
