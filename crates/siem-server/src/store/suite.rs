//! Tests that every [`Storage`] passes. `storage_suite!` runs them for one implementation.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    EpochKey, FileStore, FileStoreOptions, MemoryStore, Storage, StoreError, StoredBatch,
    files::tests::{copy, directory, files},
};
use crate::{
    batch::Batch,
    fleet::StatsQuery,
    ledger::{Ledger, Range},
    testing::{BatchText, line},
};

/// A store under test, and what survives its process.
trait Subject {
    type Store: Storage;

    /// Opens what is stored, at first nothing.
    fn open(&mut self) -> Self::Store;

    /// Ends the process of `store` without warning, and opens what survived. `point` chooses one of
    /// the states in which a kill may leave the storage.
    fn crash(&mut self, store: Self::Store, point: usize) -> Self::Store;
}

/// A directory, and the length of its files when the store was opened.
struct InFiles {
    root: TempDir,
    opened: BTreeMap<PathBuf, usize>,
    options: FileStoreOptions,
}

impl InFiles {
    fn new() -> Self {
        // Small journals, so that some are closed and deleted.
        let options = FileStoreOptions { journal_bytes: 6000, ..FileStoreOptions::default() };
        Self { root: directory(), opened: BTreeMap::new(), options }
    }
}

impl Subject for InFiles {
    type Store = FileStore;

    fn open(&mut self) -> FileStore {
        let store = FileStore::open_with(self.root.path(), self.options).unwrap();
        let lengths = files(self.root.path()).into_iter();
        self.opened = lengths.map(|(path, bytes)| (path, bytes.len())).collect();
        store
    }

    /// Without a sync of the files below, a power cut may leave any end of what was written to them
    /// since the last checkpoint. The journal is whole up to the last response.
    fn crash(&mut self, store: FileStore, point: usize) -> FileStore {
        let mut left = snapshot(self.root.path());
        let is_journal = |path: &Path| path.extension() == Some("journal".as_ref());
        let mut journals = self.opened.keys().filter(|path| is_journal(path));
        if journals.all(|path| left.contains_key(path)) {
            // No journal was deleted: all since the start is in them.
            for (path, bytes) in &mut left {
                if path.extension().is_some_and(|it| it == "ndjson" || it == "index") {
                    let opened = self.opened.get(path).copied().unwrap_or(0);
                    bytes.truncate(opened + point % (bytes.len() - opened + 1));
                }
            }
        }
        let killed = copy(self.root.path(), &left);
        drop(store);
        self.root = killed;
        self.open()
    }
}

/// All files of a store at one moment, while it writes and deletes some of them.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut before = None;
    loop {
        let now = try_files(root).ok();
        match now {
            Some(files) if before.as_ref() == Some(&files) => return files,
            now => before = now,
        }
    }
}

fn try_files(root: &Path) -> std::io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(try_files(&path)?);
        } else {
            let bytes = fs::read(&path)?;
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

#[derive(Default)]
struct InMemory(MemoryStore);

impl Subject for InMemory {
    type Store = MemoryStore;

    fn open(&mut self) -> MemoryStore {
        self.0.clone()
    }

    fn crash(&mut self, store: MemoryStore, _: usize) -> MemoryStore {
        drop(store);
        self.open()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn wait<T>(future: impl Future<Output = T>) -> T {
    future.await
}

fn take(store: &impl Storage, text: &BatchText) -> Result<StoredBatch, StoreError> {
    let batch = Batch::parse(text.text().into_bytes(), UNIX_EPOCH).unwrap();
    wait(store.store(batch))
}

fn of(epoch: &str, text: BatchText) -> BatchText {
    text.with(|header| header.epoch = epoch.into())
}

fn key(epoch: &str) -> EpochKey {
    EpochKey { machine: "m-1".into(), epoch: epoch.into() }
}

fn ledger(store: &impl Storage, epoch: &str) -> Option<Ledger> {
    wait(store.ledger(key(epoch))).unwrap()
}

/// Numbers and lines of a range, read in pages of about `page` bytes.
fn read(store: &impl Storage, epoch: &str, mut range: Range, page: u64) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    while range.first <= range.last {
        let lines = wait(store.read(key(epoch), range, page)).unwrap();
        let Some(last) = lines.last() else { break };
        range.first = last.seq + 1;
        assert!(lines.iter().all(|line| line.received_at.starts_with("1970-01-01T00:00:00")));
        let before_last: usize = lines[..lines.len() - 1].iter().map(|it| it.line.len()).sum();
        assert!((before_last as u64) < page, "more lines than asked for");
        let lines = lines.into_iter();
        found.extend(lines.map(|it| (it.seq, String::from_utf8(it.line).unwrap())));
    }
    found
}

fn lines(seqs: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    seqs.into_iter().map(|seq| (seq, line(seq))).collect()
}

const ALL: Range = Range { first: 1, last: u64::MAX };

fn batch_is_stored_once_with_its_ledger(mut subject: impl Subject) {
    let store = subject.open();
    assert!(ledger(&store, "e-1").is_none());
    assert_eq!(read(&store, "e-1", ALL, 1000), []);
    let receipt = take(&store, &BatchText::new(1, 5)).unwrap().receipt;
    assert_eq!((receipt.last_seq, receipt.accepted, receipt.duplicates), (Some(5), 5, 0));
    let receipt = take(&store, &BatchText::new(4, 8)).unwrap().receipt;
    assert_eq!((receipt.last_seq, receipt.accepted, receipt.duplicates), (Some(8), 3, 2));
    let held = ledger(&store, "e-1").unwrap();
    assert_eq!((held.next_seq(), held.held(), held.duplicates()), (9, 8, 2));
    assert_eq!(read(&store, "e-1", ALL, 1000), lines(1..=8));
    let store = subject.crash(store, 77);
    assert_eq!(ledger(&store, "e-1"), Some(held));
    assert_eq!(read(&store, "e-1", ALL, 1), lines(1..=8));
}

fn conflict_stores_nothing(mut subject: impl Subject) {
    let store = subject.open();
    take(&store, &BatchText::new(1, 5)).unwrap();
    let other = BatchText::new(5, 9).line(5, r#"{"seq":5,"kind":"event","x":1}"#);
    let refused = take(&store, &other);
    assert!(matches!(refused, Err(StoreError::Conflict { expected_seq: 6 })), "{refused:?}");
    let store = subject.crash(store, 3);
    assert_eq!(read(&store, "e-1", ALL, 1000), lines(1..=5));
    assert_eq!(
        wait(store.stats(StatsQuery::all(UNIX_EPOCH))).unwrap().machines[0].epochs[0].conflicts,
        1
    );
}

fn late_and_redelivered_lines_are_read_in_order(mut subject: impl Subject) {
    let store = subject.open();
    take(&store, &BatchText::new(1, 6).dead(&[2, 5])).unwrap();
    take(&store, &BatchText::new(7, 9)).unwrap();
    assert_eq!(read(&store, "e-1", ALL, 1), lines([1, 3, 4, 6, 7, 8, 9]));
    take(&store, &BatchText::redelivery(&[5])).unwrap();
    assert_eq!(read(&store, "e-1", Range { first: 3, last: 7 }, 1 << 20), lines(3..=7));
    let store = subject.crash(store, 1234);
    take(&store, &BatchText::new(2, 3)).unwrap();
    assert_eq!(read(&store, "e-1", ALL, 100), lines(1..=9));
}

fn gap_is_refused_without_a_device(mut subject: impl Subject) {
    let store = subject.open();
    let refused = take(&store, &BatchText::new(2, 3));
    assert!(matches!(refused, Err(StoreError::Conflict { expected_seq: 1 })), "{refused:?}");
    assert_eq!(wait(store.scan(None, 10)).unwrap(), []);
    take(&store, &BatchText::new(1, 3)).unwrap();
    let refused = take(&store, &BatchText::new(5, 6));
    assert!(matches!(refused, Err(StoreError::Conflict { expected_seq: 4 })), "{refused:?}");
    let store = subject.crash(store, 9);
    assert_eq!(read(&store, "e-1", ALL, 100), lines(1..=3));
}

fn scan_lists_each_epoch_once(mut subject: impl Subject) {
    let store = subject.open();
    let mut expected = BTreeSet::new();
    for (machine, epoch) in [("m-2", "b"), ("m-1", "c"), ("m-2", "a"), ("m-10", "a"), ("m-1", "a")]
    {
        let text = of(epoch, BatchText::new(1, 1)).with(|it| it.machine_id = machine.into());
        take(&store, &text).unwrap();
        expected.insert(EpochKey { machine: machine.into(), epoch: epoch.into() });
    }
    let store = subject.crash(store, 5);
    for limit in [1, 2, 5, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = wait(store.scan(after, limit)).unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            found.extend(page);
        }
        assert_eq!(found, expected.iter().cloned().collect::<Vec<_>>(), "{limit}");
    }
}

/// Numbers of an epoch as they must be held.
#[derive(Default)]
struct Expected {
    lines: BTreeSet<u64>,
    holes: BTreeSet<u64>,
}

impl Expected {
    /// The number after the highest one.
    fn next(&self) -> u64 {
        self.lines.last().max(self.holes.last()).map_or(1, |last| last + 1)
    }
}

/// A step of a random test.
#[derive(Clone, Debug)]
enum Step {
    /// Append numbers, from so many before the one after the next on, of which those divisible by the
    /// third value are dead-lettered. Without a step back there is a gap.
    Append(u64, u64, u64),
    /// As `Append`, from a number on.
    Send(u64, u64, u64),
    /// Redeliver numbers.
    Redeliver(BTreeSet<u64>),
    /// Send the batch before the last one again.
    Repeat,
    /// Read a range in pages.
    Read(u64, u64, u64),
    /// End the process.
    Crash(usize),
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let step = prop_oneof![
        6 => (0u64..9, 0u64..9, 2u64..12).prop_map(|(back, more, dead)| Step::Append(back, more, dead)),
        2 => prop::collection::btree_set(1u64..70, 1..4).prop_map(Step::Redeliver),
        2 => Just(Step::Repeat),
        2 => (1u64..70, 0u64..70, 1u64..2000).prop_map(|(first, more, page)| Step::Read(first, more, page)),
        1 => any::<usize>().prop_map(Step::Crash),
    ];
    prop::collection::vec((0usize..3, step), 1..40)
}

/// Compares with plain sets: any appends, repetitions, redeliveries and crashes, in any order.
fn any_history_equals_plain_sets(mut subject: impl Subject, steps: Vec<(usize, Step)>) {
    const EPOCHS: [&str; 3] = ["epoch-a", "epoch-b", "epoch-c"];
    let mut store = subject.open();
    let mut expected: HashMap<&str, Expected> = HashMap::new();
    let mut sent: Vec<(usize, u64, u64, u64)> = Vec::new();
    for (number, step) in steps {
        let mut step = step;
        let mut number = number;
        if let Step::Repeat = step {
            let Some(at) = sent.len().checked_sub(2) else { continue };
            let (of, first, last, dead) = sent[at];
            (number, step) = (of, Step::Send(first, last - first, dead));
        }
        let epoch = EPOCHS[number];
        let next = expected.entry(epoch).or_default().next();
        if let Step::Append(back, more, dead) = step {
            step = Step::Send((next + 1).saturating_sub(back).max(1), more, dead);
        }
        match step {
            Step::Send(first, more, dead) => {
                let last = first + more;
                let dead_seqs: Vec<_> = (first..=last).filter(|seq| seq % dead == 0).collect();
                let text = of(epoch, BatchText::new(first, last).dead(&dead_seqs));
                if first > next {
                    let refused = take(&store, &text);
                    let expected_seq = next;
                    assert!(
                        matches!(refused, Err(StoreError::Conflict { expected_seq: it }) if it == expected_seq),
                        "{refused:?}"
                    );
                    continue;
                }
                let receipt = take(&store, &text).unwrap().receipt;
                let held = expected.entry(epoch).or_default();
                let mut counts = (0, 0);
                for seq in first..=last {
                    let is_dead = dead_seqs.contains(&seq);
                    let is_known = held.lines.contains(&seq);
                    match (is_dead, is_known) {
                        (true, false) => drop(held.holes.insert(seq)),
                        (true, true) => {}
                        (false, true) => counts.1 += 1,
                        (false, false) => {
                            counts.0 += 1;
                            held.holes.remove(&seq);
                            held.lines.insert(seq);
                        }
                    }
                }
                assert_eq!((receipt.accepted, receipt.duplicates), counts);
                sent.push((number, first, last, dead));
            }
            Step::Redeliver(seqs) => {
                let seqs: Vec<_> = seqs.into_iter().collect();
                let text = of(epoch, BatchText::redelivery(&seqs));
                let receipt = take(&store, &text).unwrap().receipt;
                let held = expected.entry(epoch).or_default();
                for seq in &seqs {
                    if held.holes.remove(seq) {
                        held.lines.insert(*seq);
                    }
                }
                let stored = seqs.into_iter().filter(|seq| held.lines.contains(seq));
                assert_eq!(receipt.accepted_seqs, Some(stored.collect()));
            }
            Step::Repeat | Step::Append(..) => {}
            Step::Read(first, more, page) => {
                let range = Range { first, last: first + more };
                let held = expected.entry(epoch).or_default();
                let found = read(&store, epoch, range, page);
                assert_eq!(found, lines(held.lines.range(first..=first + more).copied()));
            }
            Step::Crash(point) => store = subject.crash(store, point),
        }
    }
    store = subject.crash(store, 0);
    for (epoch, held) in expected {
        assert_eq!(read(&store, epoch, ALL, 700), lines(held.lines.iter().copied()));
        let found = ledger(&store, epoch).unwrap_or_default();
        let holes: BTreeSet<_> = found.holes().map(|hole| hole.seq).collect();
        assert_eq!((found.held(), &holes), (held.lines.len() as u64, &held.holes));
    }
}

/// Runs all tests with a store.
macro_rules! storage_suite {
    ($name:ident, $subject:expr) => {
        mod $name {
            use proptest::prelude::*;

            use super::*;

            #[test]
            fn batch_is_stored_once_with_its_ledger() {
                super::batch_is_stored_once_with_its_ledger($subject);
            }

            #[test]
            fn conflict_stores_nothing() {
                super::conflict_stores_nothing($subject);
            }

            #[test]
            fn late_and_redelivered_lines_are_read_in_order() {
                super::late_and_redelivered_lines_are_read_in_order($subject);
            }

            #[test]
            fn gap_is_refused_without_a_device() {
                super::gap_is_refused_without_a_device($subject);
            }

            #[test]
            fn scan_lists_each_epoch_once() {
                super::scan_lists_each_epoch_once($subject);
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(64))]

                #[test]
                fn any_history_equals_plain_sets(steps in steps()) {
                    super::any_history_equals_plain_sets($subject, steps);
                }
            }
        }
    };
}

storage_suite!(in_files, InFiles::new());
storage_suite!(in_memory, InMemory::default());
