//! Files of an earlier release, and files that were cut.

use super::*;

/// A directory that release 0.1 left when it was killed.
fn release_0_1() -> TempDir {
    let made = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/release-0.1/data");
    copy(made.as_ref(), &files(made.as_ref()))
}

#[test]
fn data_directory_of_release_0_1_is_migrated() {
    let root = release_0_1();
    let mut receiver = Receiver::over(root, TrustLevel::Shared);
    let format = fs::read_to_string(receiver.root.path().join("format")).unwrap();
    assert_eq!(format, r#"{"format":3,"migrated_from":1}"#);
    let found = stats(receiver.store());
    let [machine, gap] = found.machines.as_slice() else { panic!("{found:?}") };
    assert_eq!((machine.entries, machine.epochs[0].next_seq), (10, 11));
    assert_eq!(found.unexplained, 0);
    assert_eq!((gap.entries, &gap.epochs[0].gaps), (4, &vec![Range { first: 3, last: 4 }]));
    assert_eq!((gap.epochs[0].conflicts, &gap.epochs[0].device), (0, &None));
    // A late batch fills the gap, and the epoch goes on.
    let text = |seq| {
        format!(
            r#"{{"seq":{seq},"kind":"event","source":"agent","event":"canary","data":{{"n":{seq}}}}}"#
        )
    };
    let value = |seq: u64| {
        (1..=seq).fold(Digest::ZERO, |value, seq| value.chain(Digest::of(text(seq).as_bytes())))
    };
    let batch = |first: u64, last: u64| {
        let mut batch = BatchText::new(first, last).with(|header| {
            header.machine_id = "machine-with-a-gap".into();
            header.user = "v".into();
            header.epoch = "01930000-0000-7000-8000-0000000000aa".into();
            header.chain = Some(Chain { before: value(first - 1), after: value(last) });
        });
        for seq in first..=last {
            batch = batch.line(seq, &text(seq));
        }
        batch
    };
    assert_eq!(receiver.take(&batch(2, 5)).unwrap().receipt.accepted, 2);
    assert_eq!(receiver.take(&batch(6, 8)).unwrap().receipt.accepted, 2);
    assert_eq!(conflict(receiver.take(&batch(10, 10))), 9);
    let before = stats(receiver.store());
    let receiver = receiver.restart();
    let after = stats(receiver.store());
    assert_eq!(after.machines, before.machines);
    assert!(after.machines[1].epochs[0].gaps.is_empty());
}

/// The chain and the starts of an earlier version are derived data, and a conversion may end at any
/// time.
#[test]
fn conversion_gives_the_same_index_from_damaged_files() {
    let converted = |damage: &dyn Fn(&Path)| {
        let root = release_0_1();
        damage(root.path());
        let before = files(root.path());
        drop(FileStore::open(root.path()).unwrap());
        let mut after = files(root.path());
        after.retain(|path, _| path.starts_with(root.path().join("machines")));
        let after: BTreeMap<_, _> = after
            .into_iter()
            .map(|(path, bytes)| (path.strip_prefix(root.path()).unwrap().to_owned(), bytes))
            .collect();
        (before.len(), after)
    };
    let edit = |root: &Path, ending: &str, edit: &dyn Fn(&Path)| {
        let files = files(root).into_keys();
        let found: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|it| it == ending)).collect();
        assert_eq!(found.len(), 2);
        found.iter().for_each(|path| edit(path));
    };
    let (files, expected) = converted(&|_| ());
    let endings: BTreeSet<_> =
        expected.keys().map(|path| path.extension().unwrap().to_str().unwrap()).collect();
    assert_eq!((files, expected.len()), (9, 4));
    assert_eq!(endings, ["index", "ndjson"].into());
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    let cut = |path: &Path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    assert_eq!(converted(&|root| edit(root, "chain", &remove)).1, expected);
    assert_eq!(converted(&|root| edit(root, "chain", &cut)).1, expected);
    assert_eq!(converted(&|root| edit(root, "starts", &remove)).1, expected);
    assert_eq!(converted(&|root| edit(root, "starts", &cut)).1, expected);
    // A kill before the version was written, and after the journals were deleted.
    let again = converted(&|root| {
        migrate::convert(root).unwrap();
        edit(root, "index", &cut);
    });
    assert_eq!(again.1, expected);
    let made = expected.iter().filter(|(path, _)| path.extension() == Some("index".as_ref()));
    assert!(made.into_iter().all(|(_, bytes)| bytes.len() > 300));
}

/// State after a kill in the middle of a write: notes with seals are as whole as others.
#[test]
fn sealed_batches_survive_any_cut_of_the_index() {
    let (receiver, device) = enrolled_after(2);
    let mut receiver = receiver.restart();
    let checkpointed = files(receiver.root.path());
    let points = [(2, 4), (5, 6)]
        .map(|(first, last)| receiver.point(&BatchText::new(first, last).seal(&device)));
    let expected = receiver.machine();
    let written = files(receiver.root.path());
    let path = written.keys().find(|path| path.extension().is_some_and(|it| it == "index"));
    let path = path.unwrap();
    let mut tried = 0;
    for length in (checkpointed[path].len()..=written[path].len()).step_by(7) {
        let mut left = written.clone();
        left.get_mut(path).unwrap().truncate(length);
        let mut copied = Receiver::over(copy(receiver.root.path(), &left), TrustLevel::FirstUse);
        assert_eq!(copied.machine(), expected, "{length}");
        assert_eq!(copied.state(&device), DeviceState::Confirmed);
        for (point, (first, last)) in points.iter().zip([(1, 4), (4, 6)]) {
            assert_eq!(copied.point(&BatchText::new(first, last).seal(&device)), *point);
        }
        tried += 1;
    }
    assert!(tried > 100, "{tried}");
    assert!(!line(1).is_empty());
}
