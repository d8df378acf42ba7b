//! Erasures after a kill, with damage, and in files that a recovery left.

use super::*;

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
    let kept = line(7) + "\n" + &line(8).replace("stays", &format!("see {SESSION}")) + "\n";
    let text = line(6) + "\n" + &kept;
    fs::write(&surplus, &text).unwrap();
    fs::write(&damaged, &text).unwrap();
    let id = hold(&root, Selector::Session(SESSION.into()));
    assert_eq!(repeat(&root, "03"), (vec![], 0, 2), "held");
    Holds::remove(root.path(), id).unwrap();
    assert_eq!(repeat(&root, "04"), (vec!["01-2".into()], 0, 0));
    assert_eq!(with_text(root.path(), SECRET), <[String; 0]>::default());
    // The lines of the other session are still there.
    assert_eq!(fs::read_to_string(&surplus).unwrap(), kept);
    assert!(fs::read_to_string(&damaged).unwrap().ends_with(&kept));
    assert_eq!(repeat(&root, "05"), (vec![], 0, 0));
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
    let key = crate::store::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
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
        crate::store::journal::parts(&damaged, 0, |part| {
            frames += u32::from(matches!(part, crate::store::journal::JournalPart::Frame(..)));
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
    let key = crate::store::EpochKey { machine: "m-1".into(), epoch: "epoch-1".into() };
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
