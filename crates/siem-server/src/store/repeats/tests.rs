use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proptest::prelude::*;
use tokio::sync::oneshot;

use super::*;
use crate::{
    FileStore, FileStoreOptions,
    store::{
        files::{
            prepare,
            tests::{batch, copy, directory, files, stats, take},
        },
        index_record,
        starts::GroupWriter,
        writer::Job,
    },
    testing::Outbox,
};

/// Number of repetitions in each epoch of the first machine.
fn repetitions(store: &FileStore) -> BTreeMap<String, u64> {
    let epochs = stats(store).machines.remove(0).epochs;
    epochs.into_iter().map(|epoch| (epoch.epoch, epoch.repetitions)).collect()
}

fn of(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(epoch, count)| ((*epoch).to_owned(), *count)).collect()
}

fn with_ending(root: &Path, epoch: &str, ending: &str) -> PathBuf {
    let found = files(root).into_keys().find(|path| {
        path.extension().is_some_and(|it| it == ending)
            && path.file_name().unwrap().to_str().unwrap().starts_with(epoch)
    });
    found.unwrap()
}

/// Index of an epoch, as text.
fn index(root: &Path, epoch: &str) -> String {
    let bytes = fs::read(with_ending(root, epoch, "index")).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An epoch with lines at 0, 41 and 142 of a file, a filtered line between them, and a line in two
/// parts.
fn older() -> Outbox {
    let mut outbox = Outbox::new("epoch-a");
    outbox.record("g", 0, 40).record("g", 41, 50).record("g", 142, 9).event();
    outbox.part("h", 7, 1).part("h", 7, 2);
    outbox
}

#[test]
fn repeated_lines_are_noted_and_stored() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(1, 6)).unwrap();
    let mut newer = Outbox::new("epoch-b");
    // Within a line, at a filtered one, after the last one, of another file, other parts.
    newer.event().record("g", 20, 3).record("g", 92, 49).record("g", 152, 1).record("x", 0, 40);
    newer.record("h", 7, 12).part("h", 7, 3).part("g", 0, 1);
    // And lines that were there: numbers 9 to 11, 13.
    newer.record("g", 41, 50).record("g", 142, 9).part("h", 7, 2).event().record("g", 0, 40);
    take(&store, &newer.batch(1, 13)).unwrap();
    let other_machine = older().batch(1, 6).with(|header| header.machine_id = "m-2".into());
    take(&store, &other_machine).unwrap();
    let machines = stats(&store).machines;
    assert_eq!(machines[1].epochs[0].repetitions, 0);
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 4)]));
    drop(store);
    let notes = index(root.path(), "epoch-b");
    let expected =
        r#""repeated":[{"of":"epoch-a","seqs":[{"first":9,"last":11},{"first":13,"last":13}]}]"#;
    assert!(notes.contains(expected), "{notes}");
    let stored = fs::read_to_string(with_ending(root.path(), "epoch-b", "ndjson")).unwrap();
    assert_eq!(stored, newer.lines().join("\n") + "\n");
    let store = FileStore::open(root.path()).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 4)]));
}

/// Starts in an index.
fn known(path: &Path) -> Directory {
    let mut directory = Directory::new(File::open(path).unwrap());
    directory.read_appended().unwrap();
    directory
}

/// Lines were cut off by a repair, and others replaced them.
#[test]
fn rewritten_group_replaces_all_after_it() {
    let root = directory();
    let path = root.path().join("index");
    let mut bytes = Vec::new();
    for (lines_at, lines_bytes, offset) in
        [(0, 100, 0), (100, 50, 41), (150, 50, 90), (100, 80, 60)]
    {
        let mut group = GroupWriter::default();
        group.add("g", offset, 0);
        let group = group.finish(lines_at, lines_bytes).unwrap();
        bytes.extend(index_record::encode(b"{}\n", &[], &group).unwrap());
    }
    fs::write(&path, bytes).unwrap();
    let known = known(&path);
    let firsts: Vec<_> = known.generations["g"].iter().map(|block| block.first).collect();
    assert_eq!((known.lines_end, firsts), (180, vec![0, 60]));
}

/// Two users of a machine: each epoch grows, and so does the other's knowledge of it.
#[test]
fn growing_epoch_has_a_block_for_each_batch() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    let (mut first, mut second) = (Outbox::new("epoch-a"), Outbox::new("epoch-b"));
    for round in 0..10 {
        first.record("g", round, 1);
        second.record("g", round, 1);
        take(&store, &first.batch(round + 1, round + 1)).unwrap();
        take(&store, &second.batch(round + 1, round + 1)).unwrap();
    }
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 10)]));
    drop(store);
    let known = known(&with_ending(root.path(), "epoch-a", "index"));
    assert_eq!(known.generations["g"].len(), 10);
}

/// A damaged group costs the marks of its lines, and stops nothing.
#[test]
fn damaged_starts_are_as_if_their_lines_had_no_position() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(1, 3)).unwrap();
    take(&store, &older().batch(4, 6)).unwrap();
    drop(store);
    let path = with_ending(root.path(), "epoch-a", "index");
    let mut bytes = fs::read(&path).unwrap();
    let group = memchr::memmem::find(&bytes, b"str1").unwrap();
    bytes[group + 18] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = FileStore::open(root.path()).unwrap();
    let mut newer = Outbox::new("epoch-b");
    newer.record("g", 142, 9).part("h", 7, 1);
    take(&store, &newer.batch(1, 1)).unwrap();
    take(&store, &older().batch(4, 6)).unwrap();
    take(&store, &newer.batch(2, 2)).unwrap();
    assert_eq!(repetitions(&store)["epoch-b"], 1);
}

/// A kill leaves a journal whose lines are already in the files. They are written again, and count
/// once.
#[test]
fn replayed_journal_counts_nothing_twice() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(1, 4)).unwrap();
    let mut newer = Outbox::new("epoch-b");
    newer.record("g", 41, 50).record("g", 142, 9).record("g", 41, 50).record("h", 1, 1);
    take(&store, &newer.batch(1, 2)).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 2)]));
    let root = copy(root.path(), &files(root.path()));
    let store = FileStore::open(root.path()).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 2)]));
    take(&store, &newer.batch(2, 4)).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 3)]));
}

/// Lines that a careless copy lost are no longer held, so that sending them again is not a
/// repetition.
#[test]
fn lost_lines_are_not_repetitions() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(1, 6)).unwrap();
    drop(store);
    let path = with_ending(root.path(), "epoch-a", "ndjson");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..older().lines()[0].len() + 1]).unwrap();
    let store = FileStore::open(root.path()).unwrap();
    let mut newer = Outbox::new("epoch-b");
    newer.record("g", 0, 40).record("g", 41, 50);
    take(&store, &newer.batch(1, 2)).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 1)]));
}

/// A journal builds upon lost lines, so that the positions after them stay the same.
#[test]
fn lines_lost_before_a_journal_are_not_repetitions() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(1, 3)).unwrap();
    drop(store);
    let store = FileStore::open(root.path()).unwrap();
    take(&store, &older().batch(4, 6)).unwrap();
    stats(&store);
    let mut left = files(root.path());
    drop(store);
    let path = with_ending(root.path(), "epoch-a", "ndjson");
    left.get_mut(&path).unwrap().truncate(older().lines()[0].len() + 1);
    let root = copy(root.path(), &left);
    let store = FileStore::open(root.path()).unwrap();
    assert_eq!(stats(&store).machines[0].epochs[0].gaps, [Range { first: 2, last: 3 }]);
    let mut newer = Outbox::new("epoch-b");
    newer.record("g", 0, 40).record("g", 41, 50).part("h", 7, 1);
    take(&store, &newer.batch(1, 3)).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 2)]));
}

/// Both of them wait when the writer starts, so that they would share a group.
#[test]
fn same_line_in_two_epochs_at_once_is_noted_once() {
    let root = directory();
    let (jobs, writer) = prepare(root.path(), FileStoreOptions::default(), None).unwrap();
    let mut newer = Outbox::new("epoch-b");
    newer.record("g", 41, 50).event();
    let responses = [older().batch(1, 6), newer.batch(1, 1), newer.batch(2, 2)].map(|text| {
        let (responder, response) = oneshot::channel();
        jobs.try_send(Job::Store(Box::new(batch(&text)), responder)).unwrap();
        response
    });
    drop(jobs);
    writer.run();
    for response in responses {
        response.blocking_recv().unwrap().unwrap();
    }
    // The first of them was deferred, and the one after it did not overtake it.
    let notes = index(root.path(), "epoch-b");
    assert!(!notes.contains(r#""gap""#), "{notes}");
    let store = FileStore::open(root.path()).unwrap();
    assert_eq!(repetitions(&store), of(&[("epoch-a", 0), ("epoch-b", 1)]));
}

#[test]
fn least_recently_used_directories_are_evicted() {
    let root = directory();
    let store = FileStore::open(root.path()).unwrap();
    for epoch in ["epoch-a", "epoch-b", "epoch-c"] {
        let mut outbox = Outbox::new(epoch);
        outbox.record(epoch, 0, 40);
        take(&store, &outbox.batch(1, 1)).unwrap();
    }
    drop(store);
    let machines = root.path().join("machines");
    let mut repeats = Repeats { memory: 200, ..Repeats::new(machines) };
    let lines = |epoch| with_ending(root.path(), epoch, "ndjson");
    let others = ["epoch-a", "epoch-b", "epoch-c"].map(|epoch| OtherEpoch {
        epoch: epoch.to_owned(),
        stem: Stem {
            machine: lines(epoch).parent().unwrap().file_name().unwrap().to_str().unwrap().into(),
            epoch: lines(epoch).file_stem().unwrap().to_str().unwrap().into(),
        },
        lines_end: fs::metadata(lines(epoch)).unwrap().len(),
    });
    let mut outbox = Outbox::new("epoch-d");
    outbox.record("epoch-a", 0, 40).record("epoch-c", 0, 40).record("epoch-x", 0, 40);
    let batch = batch(&outbox.batch(1, 3));
    for _ in 0..2 {
        let found = repeats.find(&batch, &[0, 1, 2], &others).unwrap();
        let found: Vec<_> = found.iter().map(|it| (it.of.as_str(), it.count())).collect();
        assert_eq!(found, [("epoch-a", 1), ("epoch-c", 1)]);
        assert!(repeats.directories.len() < 3);
    }
}

const EPOCHS: [&str; 3] = ["epoch-a", "epoch-b", "epoch-c"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Compares with plain sets, with restarts.
    #[test]
    fn repeats_equal_plain_sets(
        steps in prop::collection::vec(
            (0usize..3, prop::collection::vec(("[gh]", 0u64..12, 0u32..3), 1..6), 0u8..12),
            1..20
        )
    ) {
        let root = directory();
        let mut store = FileStore::open(root.path()).unwrap();
        let mut outboxes = EPOCHS.map(Outbox::new);
        let mut held: [BTreeSet<(String, u64, u32)>; 3] = Default::default();
        let mut expected = BTreeMap::new();
        for (epoch, lines, then) in steps {
            let first = outboxes[epoch].last() + 1;
            let mut repeated = 0;
            for line in &lines {
                let (generation, offset, part) = line;
                match part {
                    0 => outboxes[epoch].record(generation, *offset, 1),
                    _ => outboxes[epoch].part(generation, *offset, *part),
                };
                let others = (0..3).filter(|other| *other != epoch);
                repeated += u64::from(others.into_iter().any(|other| held[other].contains(line)));
            }
            held[epoch].extend(lines);
            *expected.entry(EPOCHS[epoch].to_owned()).or_insert(0) += repeated;
            let text = outboxes[epoch].batch(first, outboxes[epoch].last());
            take(&store, &text).unwrap();
            if then < 2 {
                drop(store);
                store = FileStore::open(root.path()).unwrap();
            }
            prop_assert_eq!(&repetitions(&store), &expected);
        }
    }
}
