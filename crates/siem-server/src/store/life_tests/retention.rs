//! Removal of epochs and of the oldest entries.

use super::*;
use crate::log::log_of;

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
    use crate::store::Storage as _;
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
        crate::store::read_lines(root, |batch| {
            shown += batch.lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            Ok::<_, crate::store::ReadError>(())
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
    let key = crate::store::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
    let remove = |bytes: u64| {
        let at = crate::clock::text(UNIX_EPOCH);
        store.handle().remove(vec![(key.clone(), bytes)], at).unwrap()
    };
    assert_eq!(remove(planned), []);
    assert_eq!(read_all(&store).len(), 7);
    assert_eq!(remove(grown), std::slice::from_ref(&key));
    assert_eq!(read_all(&store).len(), 0);
}
