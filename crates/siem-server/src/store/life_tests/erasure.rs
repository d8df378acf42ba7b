//! Erasures, their repetitions, and holds.

use super::*;

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
    let listed = erasures(root.path(), &keys, &[]).unwrap();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|view| view.is_signed && view.erasure.who == "operator"));
    assert_eq!(listed[0].erasure.epochs.iter().map(|it| it.seqs.len()).sum::<usize>(), 4);
    assert!(!erasures(root.path(), &[], &[]).unwrap()[0].is_signed);
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
    while erasures(root.path(), &keys, &[]).unwrap().len() < 3 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let listed = erasures(root.path(), &keys, &[]).unwrap();
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
    assert!(why.contains("hold 1 covers entry 6") && why.contains("1 entry was"), "{why}");
    assert_eq!(read_all(&store)[5], (6, line(6)));
    let keys = vec![registry(root.path()).receiver_keys_view().unwrap().current];
    let listed = erasures(root.path(), &keys, &[]).unwrap();
    assert_eq!(listed.len(), 1);
    let one = &listed[0];
    assert_eq!((one.erasure.entries, one.erasure.stopped_by_hold), (1, Some(1)));
    assert_eq!((one.is_signed, one.is_in_force), (true, false));
}

/// The disk was full when the erasure was to be listed. The list lacked it for good, as if someone had altered it,
/// and later entries of the session were not erased.
#[test]
fn erasure_that_could_not_be_listed_is_completed() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 6)).unwrap();
    let list = root.path().join("life").join("erasures.ndjson");
    fs::create_dir_all(&list).unwrap();
    let LifeResponse::Refused(why) = erase(&root, "01") else { panic!("erased, but not listed") };
    assert!(why.contains("erasure 01"), "{why}");
    assert_eq!(with_text(root.path(), SECRET), [""; 0]);
    drop(store);
    fs::remove_dir(&list).unwrap();
    assert_eq!(unlisted_erasures(root.path()).unwrap(), BTreeMap::new());
    let _store = open(&root);
    // Requests are executed by their ids.
    assert_eq!(repeat(&root, "02"), (Vec::new(), 0, 0));
    let keys = vec![registry(root.path()).receiver_keys_view().unwrap().current];
    let listed = erasures(root.path(), &keys, &[]).unwrap();
    let one = &listed[0];
    assert_eq!((listed.len(), &*one.erasure.id, one.erasure.entries), (1, "01", 2));
    assert_eq!((one.is_signed, one.is_in_force), (true, true));
    assert_eq!(unlisted_erasures(root.path()).unwrap(), BTreeMap::new());
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
        .blocking_send(crate::store::writer::Job::Locate(key, range, to))
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
        crate::store::read_lines(root.path(), |batch| {
            shown.extend_from_slice(batch.lines);
            Ok::<_, crate::store::ReadError>(())
        })
        .unwrap();
        assert_eq!(shown, erased);
        let read = located.read(&root.path().join("machines"), u64::MAX).unwrap();
        let read: Vec<_> =
            read.into_iter().flat_map(|it| [it.line, b"\n".to_vec()].concat()).collect();
        assert_eq!(read, erased);
    }
}

/// A part of a line of a flat file, in which only the record names its session.
fn part(seq: u64, offset: u64, part: u64, text: &str) -> String {
    let text = data_encoding::BASE64.encode(text.as_bytes());
    format!(
        r#"{{"seq":{seq},"kind":"record_part","source":"claude-sessions","path":"/p/agent-a1.jsonl","generation":"g9","offset":{offset},"part":{part},"read_at":"2026-11-21T20:00:01.000Z","raw_base64":"{text}"}}"#
    )
}

/// A batch of such parts.
fn parts(epoch: &str, first: u64, lines: &[String]) -> BatchText {
    let seqs = first..first + lines.len() as u64;
    let mut text = BatchText::new(first, seqs.end - 1).with(|header| header.epoch = epoch.into());
    for (seq, line) in seqs.zip(lines) {
        text = text.line(seq, line);
    }
    text.chained()
}

fn naming() -> String {
    format!(r#"","sessionId":"{SESSION}","text":""#)
}

/// Parts of a record of more than 8 MiB that do not name the session stayed, with the text.
#[test]
fn all_parts_of_an_erased_record_are_erased() {
    let root = keyed();
    let store = open(&root);
    let sent = [
        part(1, 0, 1, SECRET),
        part(2, 0, 2, &naming()),
        part(3, 0, 3, SECRET),
        part(4, 900, 1, "another record"),
    ];
    take(&store, &parts("epoch-1", 1, &sent)).unwrap();
    assert_eq!(erase(&root, "01"), done("01", 3, 1));
    let encoded = data_encoding::BASE64.encode(SECRET.as_bytes());
    assert_eq!(with_text(root.path(), &encoded), <[String; 0]>::default());
    // The last one arrives later, when no entry names the session any more.
    take(&store, &parts("epoch-2", 1, &[part(1, 0, 4, SECRET)])).unwrap();
    drop(store);
    let store = open(&root);
    hold(&root, Selector::session(SESSION).unwrap());
    take(&store, &parts("epoch-3", 1, &[part(1, 0, 5, SECRET)])).unwrap();
    let (_, _, held) = repeat(&root, "02");
    assert!(held > 0, "a hold of the session covers its parts");
    Holds::remove(root.path(), 1).unwrap().unwrap();
    repeat(&root, "03");
    stats(&store);
    assert_eq!(with_text(root.path(), &encoded), <[String; 0]>::default());
    assert_eq!(with_text(root.path(), &data_encoding::BASE64.encode(b"another record")).len(), 1);
}

/// The part that names the session arrives after the others, which were compared before.
#[test]
fn parts_that_came_before_the_naming_one_are_erased() {
    let root = keyed();
    let store = open(&root);
    take(&store, &lines("epoch-1", 1, 3)).unwrap();
    assert_eq!(erase(&root, "01"), done("01", 1, 1));
    take(&store, &parts("epoch-2", 1, &[part(1, 0, 1, SECRET)])).unwrap();
    assert_eq!(repeat(&root, "02"), (vec![], 0, 0));
    take(&store, &parts("epoch-3", 1, &[part(1, 0, 2, &naming())])).unwrap();
    assert_eq!(repeat(&root, "03"), (vec!["01-2".into()], 2, 0));
    let encoded = data_encoding::BASE64.encode(SECRET.as_bytes());
    assert_eq!(with_text(root.path(), &encoded), <[String; 0]>::default());
}
