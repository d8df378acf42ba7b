use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicU64, Ordering},
    time::UNIX_EPOCH,
};

use siem_protocol::Receipt;

use super::*;
use crate::{
    ledger::{Difference, Figure, Range},
    stats::CloneKind,
    testing::{BatchText, Outbox, line},
};

/// Name of the files of the only epoch of [`BatchText`].
const LINES: &str = "machines/m-1~";

pub(in crate::store) fn batch(text: &BatchText) -> Batch {
    Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap()
}

#[tokio::main(flavor = "current_thread")]
pub(in crate::store) async fn take(
    store: &FileStore,
    text: &BatchText,
) -> Result<Receipt, StoreError> {
    store.store(batch(text)).await.map(|stored| stored.receipt)
}

#[tokio::main(flavor = "current_thread")]
pub(in crate::store) async fn stats(store: &FileStore) -> Stats {
    store.stats(StatsQuery::all(UNIX_EPOCH)).await.unwrap()
}

/// All files below `root` with their bytes.
pub(in crate::store) fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

/// All files, without the zeros after the frames of a journal.
fn written(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = files(root);
    for (_, bytes) in
        files.iter_mut().filter(|(path, _)| path.extension() == Some("journal".as_ref()))
    {
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
    }
    files
}

/// A directory in memory, if the system has one: these tests sync thousands of times.
pub(in crate::store) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Copies a snapshot of a store's files into a new directory.
pub(in crate::store) fn copy(from: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> tempfile::TempDir {
    let to = directory();
    for (path, bytes) in files {
        let path = to.path().join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    to
}

fn find(root: &Path, ending: &str) -> PathBuf {
    let found: Vec<_> = files(root)
        .into_keys()
        .filter(|path| path.extension().is_some_and(|extension| extension == ending))
        .collect();
    assert_eq!(found.len(), 1, "{ending}: {found:?}");
    found[0].clone()
}

fn stored(root: &Path) -> String {
    fs::read_to_string(find(root, "ndjson")).unwrap()
}

fn lines(seqs: impl IntoIterator<Item = u64>) -> String {
    seqs.into_iter().map(|seq| line(seq) + "\n").collect()
}

#[test]
fn lines_are_stored_unchanged_and_once() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    let receipt = take(&store, &BatchText::new(1, 5)).unwrap();
    assert_eq!((receipt.last_seq, receipt.accepted, receipt.duplicates), (Some(5), 5, 0));
    let receipt = take(&store, &BatchText::new(4, 8)).unwrap();
    assert_eq!((receipt.last_seq, receipt.accepted, receipt.duplicates), (Some(8), 3, 2));
    drop(store);
    assert_eq!(stored(root.path()), lines(1..=8));
    assert!(find(root.path(), "ndjson").to_str().unwrap().contains(LINES));
}

#[test]
fn conflict_is_counted_and_stores_nothing() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 5)).unwrap();
    let other = BatchText::new(5, 9).line(5, r#"{"seq":5,"kind":"event","x":1}"#);
    let refused = take(&store, &other);
    assert!(matches!(refused, Err(StoreError::Conflict { expected_seq: 6 })), "{refused:?}");
    let copied = BatchText::new(4, 5).line(4, r#"{"seq":4,"kind":"event","x":1}"#);
    let refused = take(&store, &copied.with(|header| header.hostname = "copy".into()));
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    let found = stats(&store);
    assert_eq!(found.machines[0].epochs[0].conflicts, 2);
    assert_eq!(found.machines[0].clones[0].kind, CloneKind::TwoHostnames);
    assert_eq!(found.machines[0].identity.hostname, "laptop");
    // Both a kill and an orderly restart keep the count.
    let killed = copy(root.path(), &files(root.path()));
    drop(store);
    for root in [&root, &killed] {
        let store = FileStore::open(root.path()).unwrap();
        assert_eq!(stats(&store), found);
        drop(store);
        assert_eq!(stored(root.path()), lines(1..=5));
    }
}

/// All of them wait when the writer starts, so that they would share a group.
#[test]
fn concurrent_batches_of_an_epoch_are_planned_in_turn() {
    let root = directory();
    let (jobs, writer) = prepare(root.path(), FileStoreOptions::default(), None).unwrap();
    let texts = [BatchText::new(1, 50), BatchText::new(1, 50), BatchText::new(20, 60)];
    let responses = texts.map(|text| {
        let (responder, response) = oneshot::channel();
        jobs.try_send(Job::Store(Box::new(batch(&text)), responder)).unwrap();
        response
    });
    drop(jobs);
    writer.run();
    let counts = responses.map(|response| {
        let receipt = response.blocking_recv().unwrap().unwrap().receipt;
        (receipt.accepted, receipt.duplicates)
    });
    assert_eq!(counts, [(50, 0), (0, 50), (10, 31)]);
    assert_eq!(stored(root.path()), lines(1..=60));
}

#[test]
fn reopened_store_is_unchanged() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 6).dead(&[3, 4])).unwrap();
    take(&store, &BatchText::new(5, 8)).unwrap();
    take(&store, &BatchText::redelivery(&[4])).unwrap();
    take(&store, &BatchText::new(1, 2).with(|header| header.hostname = "copy".into())).unwrap();
    let before = stats(&store);
    drop(store);
    let store = FileStore::open(root.path()).unwrap();
    assert_eq!(stats(&store), before);
    let epoch = &before.machines[0].epochs[0];
    assert_eq!(epoch.holes, [Range { first: 3, last: 3 }]);
    assert_eq!((epoch.duplicates, before.machines[0].clones.len()), (4, 1));
    let receipt = take(&store, &BatchText::new(1, 9).dead(&[3])).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (1, 7));
}

/// Counts are stored in the notes, beside the numbers that they describe: neither a restart nor the
/// replay of a journal may lose or double them.
#[test]
fn counts_survive_restart_and_kill() {
    let mut outbox = Outbox::new("e-1");
    outbox.record("g", 0, 40).part("h", 0, 1).event().heartbeat();
    outbox.record("g", 41, 50).record("g", 92, 60).heartbeat_of(151).event();
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &outbox.batch(1, 4)).unwrap();
    assert_eq!(stats(&store).unexplained, 0);
    // The store is still open: the copy equals the state after a kill.
    let killed = copy(root.path(), &files(root.path()));
    let store = FileStore::open(killed.path()).unwrap();
    take(&store, &outbox.batch(3, 5)).unwrap();
    take(&store, &outbox.batch(4, 8)).unwrap();
    let expected = stats(&store);
    drop(store);
    let store = FileStore::open(killed.path()).unwrap();
    assert_eq!(stats(&store), expected);
    assert_eq!(expected.unexplained, 1);
    let found = expected.machines[0].epochs[0].claims.clone().unwrap();
    assert_eq!((found.below, found.difference), (7, Difference::Unexplained));
    assert_eq!(found.wrong, [Figure::RecordBytes]);
    assert_eq!((found.claimed.record_bytes, found.held.record_bytes), (151, 150));
    assert_eq!(found.not_compared.events, 2);
}

#[test]
fn synced_journals_are_deleted() {
    let root = directory();
    let options = FileStoreOptions { journal_bytes: 1000, ..FileStoreOptions::default() };
    let store = FileStore::open_with(root.path(), options).unwrap();
    for first in (1..400).step_by(4) {
        take(&store, &BatchText::new(first, first + 3)).unwrap();
    }
    drop(store);
    let journals = fs::read_dir(root.path().join("journal")).unwrap();
    let lengths: Vec<_> = journals.map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    assert_eq!(lengths, [0]);
    assert_eq!(stored(root.path()), lines(1..=400));
}

#[test]
fn second_store_in_a_directory_is_refused() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    assert!(matches!(FileStore::open(root.path()), Err(OpenError::InUse { .. })));
    drop(store);
    FileStore::open(root.path()).unwrap();
}

#[test]
fn full_disk_stores_no_partial_batch_and_recovers() {
    let space: &AtomicU64 = Box::leak(Box::new(AtomicU64::new(2500)));
    let root = directory();
    let options = FileStoreOptions { space: Some(space), ..FileStoreOptions::default() };
    let store = FileStore::open_with(root.path(), options).unwrap();
    take(&store, &BatchText::new(1, 5)).unwrap();
    // Responses are sent before the files of the epochs are written; a request for statistics is
    // answered after that.
    let before = (stats(&store), written(root.path()));
    let refused = take(&store, &BatchText::new(3, 40));
    assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    assert!((stats(&store), written(root.path())) == before, "something of it was stored");
    space.store(u64::MAX, Ordering::SeqCst);
    let receipt = take(&store, &BatchText::new(3, 40)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (35, 3));
    drop(store);
    assert_eq!(stored(root.path()), lines(1..=40));
}

/// Acknowledged entries must not be lost; and while they cannot be copied to their file, no more
/// batches are accepted.
#[test]
fn unwritable_epoch_file_rejects_batches_until_fixed() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 2)).unwrap();
    stats(&store);
    let path = find(root.path(), "ndjson");
    let other = BatchText::new(1, 3).with(|header| header.epoch = "epoch-b".into());
    let directory = path.with_file_name("epoch-b.ndjson");
    fs::create_dir(&directory).unwrap();
    take(&store, &other).unwrap();
    assert_eq!(stats(&store).machines[0].entries, 5);
    let refused = take(&store, &BatchText::new(3, 4));
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    let killed = copy(root.path(), &files(root.path()));
    fs::remove_dir(&directory).unwrap();
    take(&store, &BatchText::new(3, 4)).unwrap();
    drop(store);
    assert_eq!(fs::read_to_string(&path).unwrap(), lines(1..=4));
    assert_eq!(fs::read_to_string(&directory).unwrap(), lines(1..=3));
    let store = FileStore::open(killed.path()).unwrap();
    assert_eq!(stats(&store).machines[0].entries, 5);
}

/// The version is only a file, and a journal is the only place of acknowledged batches.
#[test]
fn conversion_keeps_journals_of_this_version() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 5)).unwrap();
    let killed = copy(root.path(), &files(root.path()));
    fs::write(killed.path().join("format"), r#"{"format":2}"#).unwrap();
    let store = FileStore::open(killed.path()).unwrap();
    assert_eq!(stats(&store).machines[0].entries, 5);
}

/// A kill may tear the end of the last journal written to, while the next one may already exist.
#[test]
fn torn_journal_is_damage_unless_it_is_the_last() {
    for zeros_only in [true, false] {
        let root = directory();
        let store = FileStore::open(root.path()).unwrap();
        take(&store, &BatchText::new(1, 3)).unwrap();
        let mut left = files(root.path());
        drop(store);
        let (first, bytes) = left
            .iter()
            .find(|(path, bytes)| path.extension() == Some("journal".as_ref()) && !bytes.is_empty())
            .map(|(path, bytes)| (path.clone(), bytes.clone()))
            .unwrap();
        let second = first.with_file_name("000000000099.journal");
        left.insert(second, if zeros_only { vec![0; 9000] } else { bytes.clone() });
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        left.insert(first.clone(), [&bytes[..=end], b"torn".as_slice()].concat());
        let copy = copy(root.path(), &left);
        drop(FileStore::open(copy.path()).unwrap());
        let aside =
            files(copy.path()).into_keys().any(|path| path.extension() == Some("damaged".as_ref()));
        assert_eq!(aside, !zeros_only);
        assert_eq!(stored(copy.path()), lines(1..=3));
    }
}

/// The frames behind damage may have been acknowledged: the only copy of them must not be deleted.
#[test]
fn damage_inside_the_last_journal_keeps_a_copy_of_it() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    let opened = files(root.path());
    take(&store, &BatchText::new(1, 3)).unwrap();
    let journal = find(root.path(), "journal");
    let first = written(root.path())[&journal].len();
    take(&store, &BatchText::new(4, 5)).unwrap();
    take(&store, &BatchText::new(6, 8)).unwrap();
    stats(&store);
    let applied = files(root.path());
    drop(store);
    let mut bytes = applied[&journal].clone();
    bytes[first + 100] ^= 1;
    // The files of the epochs without any of the batches, and with all of them.
    for (mut left, held) in [(opened, 3), (applied, 8)] {
        left.insert(journal.clone(), bytes.clone());
        let copy = copy(root.path(), &left);
        for _ in 0..2 {
            let store = FileStore::open(copy.path()).unwrap();
            assert_eq!(stats(&store).machines[0].entries, held);
            drop(store);
            assert_eq!(fs::read(find(copy.path(), "damaged")).unwrap(), bytes);
            assert_eq!(stored(copy.path()), lines(1..=held));
        }
        let store = FileStore::open(copy.path()).unwrap();
        let receipt = take(&store, &BatchText::new(1, 9)).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (9 - held, held));
        drop(store);
        left.retain(|path, _| path.extension() == Some("journal".as_ref()));
        let name = |path: &Path| copy.path().join(path.strip_prefix(root.path()).unwrap());
        let ends = |path: &PathBuf| path.extension() == Some("damaged".as_ref());
        // The same journal, as after a start that failed, and another one with its number.
        for copies in [1, 2] {
            left.iter().for_each(|(path, bytes)| fs::write(name(path), bytes).unwrap());
            drop(FileStore::open(copy.path()).unwrap());
            assert_eq!(files(copy.path()).into_keys().filter(ends).count(), copies);
            left.get_mut(&journal).unwrap()[first + 101] ^= 1;
        }
    }
}

/// Damage in one journal says nothing against what others wrote to the files: the frames that cannot be read
/// may be of any epoch.
#[test]
fn damage_in_a_journal_cuts_no_file_that_an_earlier_one_wrote() {
    let other = |seq| BatchText::new(seq, seq).with(|header| header.epoch = "other".into());
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    let journal = |number: u64| root.path().join(format!("journal/{number:012}.journal"));
    let mut journals = BTreeMap::new();
    let mut keep = |number: u64| {
        stats(&store);
        journals.insert(journal(number), files(root.path())[&journal(number)].clone());
        store.handle().rotate().unwrap();
    };
    take(&store, &BatchText::new(1, 3)).unwrap();
    keep(1);
    take(&store, &other(1)).unwrap();
    let first = written(root.path())[&journal(2)].len();
    take(&store, &other(2)).unwrap();
    take(&store, &BatchText::new(4, 5)).unwrap();
    let last = written(root.path())[&journal(2)].len();
    let mut states = Vec::new();
    stats(&store);
    states.push((files(root.path()), 5, 2));
    keep(2);
    take(&store, &other(3)).unwrap();
    stats(&store);
    states.push((files(root.path()), 5, 3));
    take(&store, &BatchText::new(6, 8)).unwrap();
    stats(&store);
    states.push((files(root.path()), 8, 3));
    drop(store);
    // Damage before the last frame of the second journal, and in it.
    for damaged in [first + 100, last - 1] {
        for (left, held, others) in &states {
            if damaged > first + 100 && *others == 2 {
                // As after an interrupted write, which was not acknowledged.
                continue;
            }
            let mut left = left.clone();
            for (path, bytes) in &journals {
                left.entry(path.clone()).or_insert_with(|| bytes.clone());
            }
            left.get_mut(&journal(2)).unwrap()[damaged] ^= 1;
            let copy = copy(root.path(), &left);
            let store = FileStore::open(copy.path()).unwrap();
            let found = &stats(&store).machines[0];
            let entries = |name| found.all_epochs().find(|it| it.epoch == name).unwrap().entries;
            assert_eq!((entries("e-1"), entries("other")), (*held, *others), "{damaged}");
            let receipt = take(&store, &BatchText::new(1, 9)).unwrap();
            assert_eq!((receipt.accepted, receipt.duplicates), (9 - held, *held), "{damaged}");
            stats(&store);
            let all: Vec<_> = files(copy.path()).into_values().collect();
            assert!(all.contains(&lines(1..=9).into_bytes()), "{damaged}");
        }
    }
}

/// State after a kill: the journal is complete, and the files of the epochs are in any state since
/// the last checkpoint. Here each file is cut at each byte that the last two batches wrote.
#[test]
fn acknowledged_batches_survive_any_cut_of_the_files() {
    let root = directory();
    let mut outbox = Outbox::new("e-1");
    outbox.record("g", 0, 4).heartbeat().event().part("h", 0, 1).heartbeat();
    outbox.record("g", 5, 6).event().heartbeat();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &outbox.batch(1, 3)).unwrap();
    drop(store);
    let store = FileStore::open(root.path()).unwrap();
    let checkpointed = files(root.path());
    take(&store, &outbox.batch(4, 5)).unwrap();
    take(&store, &outbox.batch(3, 7)).unwrap();
    // Responses are sent before the files of the epochs are written; a request for statistics is
    // answered after that.
    let mut expected = stats(&store);
    take(&store, &BatchText::new(1, 1).with(|header| header.epoch = "other".into())).unwrap();
    expected.machines[0].epochs[0].current = false;
    let written = files(root.path());
    drop(store);
    let mut tried = 0;
    for ending in ["ndjson", "index"] {
        let path = written.keys().find(|path| {
            path.extension().is_some_and(|it| it == ending) && checkpointed.contains_key(*path)
        });
        let path = path.unwrap();
        for length in checkpointed[path].len()..=written[path].len() {
            let mut left = written.clone();
            left.get_mut(path).unwrap().truncate(length);
            let copy = copy(root.path(), &left);
            let store = FileStore::open(copy.path()).unwrap();
            let found = stats(&store);
            assert_eq!(
                found.machines[0].epochs[0], expected.machines[0].epochs[0],
                "{ending} {length}"
            );
            let receipt = take(&store, &outbox.batch(1, 8)).unwrap();
            assert_eq!((receipt.accepted, receipt.duplicates), (1, 7), "{ending} {length}");
            let found = stats(&store).machines[0].epochs[0].claims.clone().unwrap();
            assert_eq!((found.below, found.difference), (8, Difference::None));
            drop(store);
            let lines_path =
                copy.path().join(path.strip_prefix(root.path()).unwrap()).with_extension("ndjson");
            let expected = outbox.lines().join("\n") + "\n";
            assert_eq!(fs::read_to_string(lines_path).unwrap(), expected, "{ending} {length}");
            tried += 1;
        }
    }
    assert!(tried > 300, "{tried}");
}

/// State after a kill during a write of the journal: the last batch was not acknowledged, and
/// counts completely or not at all.
#[test]
fn torn_end_of_the_journal_is_rolled_back() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    let checkpointed = files(root.path());
    take(&store, &BatchText::new(1, 3)).unwrap();
    let journal = find(root.path(), "journal");
    let first = written(root.path())[&journal].len();
    take(&store, &BatchText::new(4, 5)).unwrap();
    let whole = written(root.path()).remove(&journal).unwrap();
    drop(store);
    assert!(checkpointed.contains_key(&journal) && first > 0);
    for (length, zeros) in (first..=whole.len()).flat_map(|length| [(length, 0), (length, 5000)]) {
        let mut left = checkpointed.clone();
        left.insert(journal.clone(), [&whole[..length], &vec![0; zeros]].concat());
        let copy = copy(root.path(), &left);
        let store = FileStore::open(copy.path()).unwrap();
        let held = if length == whole.len() { 5 } else { 3 };
        assert_eq!(stats(&store).machines[0].entries, held, "{length}");
        let receipt = take(&store, &BatchText::new(1, 8)).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (8 - held, held), "{length}");
        drop(store);
        assert_eq!(stored(copy.path()), lines(1..=8), "{length}");
    }
}

/// Not the effect of a crash, but of a careless copy: the file of lines is shorter than at the last
/// checkpoint. The rest is kept, and the missing lines are reported as a gap.
#[test]
fn cut_lines_file_is_repaired_to_lines_and_a_gap() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 6).dead(&[2])).unwrap();
    drop(store);
    let healthy = files(root.path());
    let path = find(root.path(), "ndjson");
    for length in 0..healthy[&path].len() {
        let mut left = healthy.clone();
        left.get_mut(&path).unwrap().truncate(length);
        let kept = left[&path].iter().filter(|byte| **byte == b'\n').count() as u64;
        let copy = copy(root.path(), &left);
        let store = FileStore::open(copy.path()).unwrap();
        assert_eq!(stats(&store).machines[0].entries, kept, "{length}");
        assert!(!stats(&store).machines[0].epochs[0].gaps.is_empty(), "{length}");
        drop(store);
        // Repaired files stay repaired, and the numbers can arrive again.
        let store = FileStore::open(copy.path()).unwrap();
        let receipt = take(&store, &BatchText::new(1, 7).dead(&[2])).unwrap();
        assert_eq!((receipt.accepted, receipt.duplicates), (6 - kept, kept), "{length}");
        assert_eq!(stats(&store).machines[0].epochs[0].breaks, [], "{length}");
        drop(store);
        let mut seqs: Vec<_> = stored(copy.path()).lines().map(str::to_owned).collect();
        seqs.sort();
        assert_eq!(seqs.join("\n") + "\n", lines([1, 3, 4, 5, 6, 7]), "{length}");
    }
}

/// A frame of the journal builds upon lost lines.
#[test]
fn lines_missing_before_the_journal_are_a_gap() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(1, 4)).unwrap();
    drop(store);
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &BatchText::new(5, 6)).unwrap();
    let left = files(root.path());
    drop(store);
    let path = find(root.path(), "ndjson");
    let mut cut = left.clone();
    cut.get_mut(&path).unwrap().truncate(lines(1..=2).len() + 3);
    let copy = copy(root.path(), &cut);
    let store = FileStore::open(copy.path()).unwrap();
    assert_eq!(stats(&store).machines[0].epochs[0].gaps, [Range { first: 3, last: 4 }]);
    let receipt = take(&store, &BatchText::new(1, 6)).unwrap();
    assert_eq!((receipt.accepted, receipt.duplicates), (2, 4));
    drop(store);
    let text = stored(copy.path());
    let kept: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(kept.join("\n") + "\n", lines([1, 2, 5, 6, 3, 4]));
}

/// A fleet of 10,000 machines once took 50,000 files.
#[test]
fn machine_takes_a_directory_and_two_files() {
    let root = tempfile::tempdir().unwrap();
    let store = FileStore::open(root.path()).unwrap();
    for machine in 0..20 {
        let text = BatchText::new(1, 10).with(|header| header.machine_id = format!("m-{machine}"));
        take(&store, &text).unwrap();
    }
    drop(store);
    let names = |path: &Path| {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.collect::<Vec<_>>()
    };
    let machines = names(&root.path().join("machines"));
    assert_eq!(machines.len(), 20);
    assert_eq!(machines.iter().flat_map(|path| names(path)).count(), 40, "{machines:?}");
}

#[test]
fn store_on_a_disk_that_hangs_is_not_closed_and_stays_locked() {
    let root = directory();
    let close_within = Duration::from_millis(100);
    let options = FileStoreOptions { close_within, ..FileStoreOptions::default() };
    let store = FileStore::open_with(root.path(), options).unwrap();
    take(&store, &BatchText::new(1, 3)).unwrap();
    let (hangs, until) = std::sync::mpsc::channel();
    store.send(Job::Hang(until)).unwrap();
    let begun = Instant::now();
    drop(store);
    assert!(begun.elapsed() >= close_within);
    assert!(matches!(FileStore::open(root.path()), Err(OpenError::InUse { .. })));
    drop(hangs);
    // Another machine has the disk now, or the process ended.
    let left = copy(root.path(), &files(root.path()));
    assert_eq!(stats(&FileStore::open(left.path()).unwrap()).machines[0].entries, 3);
}
