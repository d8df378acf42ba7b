use super::{
    super::{
        META, STATE,
        database::builder,
        tests::{SINKS, Store, commit, group, point, registrations, store, store_dead_letter},
    },
    *,
};
use redb::ReadableTable as _;

use crate::{pipeline::outbox::checksum::SEAL, tail::GenerationId};

/// A row of a file at `/p/a.jsonl`, told apart by where it lies.
fn row(name: &str) -> Vec<u8> {
    format!(r#"{{"path":"/p/{name}.jsonl","offset":7,"first":{{"len":7,"hash":1}}}}"#).into_bytes()
}

/// Damages a store, and says what a new one in its place has to say.
fn recover(damage: impl FnOnce(&Path)) -> (Outbox, OpenOutcome, tempfile::TempDir) {
    let Store { outbox, folder } = store();
    let key = ("claude-sessions".to_owned(), GenerationId("a".into()));
    let mut acknowledged = group(&outbox, 3);
    acknowledged.checkpoints.insert(key.clone(), Some(row("acknowledged")));
    outbox.commit(&acknowledged).unwrap();
    outbox.back_up().unwrap();
    outbox.acknowledge("siem", "epoch-1", point(&acknowledged)).unwrap();
    outbox.back_up().unwrap();
    let mut waiting = group(&outbox, 3);
    waiting.checkpoints.insert(key, Some(row("waiting")));
    outbox.commit(&waiting).unwrap();
    outbox.back_up().unwrap();
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    damage(&path);
    let new_epoch = || "epoch-2".to_owned();
    let now = Timestamp(7);
    let (outbox, found) =
        Outbox::open_or_recover(&path, &registrations(&SINKS), new_epoch, now).unwrap();
    (outbox, found, folder)
}

fn stored_row(outbox: &Outbox) -> Option<Vec<u8>> {
    outbox.checkpoint("claude-sessions", &GenerationId("a".into())).unwrap()
}

#[test]
fn a_whole_store_is_taken_as_it_is() {
    let (outbox, found, _folder) = recover(|_| ());
    assert!(matches!(found, OpenOutcome::Intact), "{found:?}");
    assert_eq!((outbox.epoch(), stored_row(&outbox)), ("epoch-1".into(), Some(row("waiting"))));
}

/// A damaged store was deleted by hand, and every file was read from its beginning; or it was
/// opened as it was, and the agent went down with it at each start.
#[test]
fn a_damaged_store_is_moved_aside_and_files_go_on_where_they_were_acknowledged() {
    type DamageReport = fn(&mut Vec<u8>);
    let damages: [(&str, DamageReport); 4] = [
        ("garbage", |bytes| *bytes = b"this is no store".to_vec()),
        ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
        ("overwritten head", |bytes| bytes[..512].fill(0x55)),
        ("overwritten end", |bytes| {
            let end = bytes.len() - 8192;
            bytes[end..].fill(0x55);
        }),
    ];
    for (name, damage) in damages {
        let mut damaged = Vec::new();
        let (outbox, found, folder) = recover(|path| {
            damaged = fs::read(path).unwrap();
            damage(&mut damaged);
            fs::write(path, &damaged).unwrap();
        });
        let OpenOutcome::Replaced { moved_to, previous_epoch, .. } = found else {
            panic!("{name}: {found:?}")
        };
        assert_eq!(previous_epoch.as_deref(), Some("epoch-1"), "{name}");
        assert_eq!(fs::read(&moved_to).unwrap(), damaged, "{name}");
        assert_eq!(moved_to, folder.path().join("outbox.redb.damaged-7"), "{name}");
        assert_eq!(outbox.end().seq, 1, "{name}");
        assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")), "{name}");
        let cursor = outbox.cursor("siem").unwrap();
        assert_eq!(cursor.epoch, "epoch-2", "{name}");
        assert_eq!(cursor.previous_epoch.as_deref(), Some("epoch-1"), "{name}");
    }
}

#[test]
fn a_directory_in_the_stores_place_is_moved_aside() {
    let (outbox, found, _folder) = recover(|path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("precious"), "x").unwrap();
    });
    let OpenOutcome::Replaced { moved_to, .. } = found else { panic!("{found:?}") };
    assert_eq!(fs::read(moved_to.join("precious")).unwrap(), b"x");
    assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")));
}

#[test]
fn a_store_that_is_gone_or_empty_begins_anew_where_files_were_acknowledged() {
    type DamageReport = fn(&Path);
    let damages: [DamageReport; 2] =
        [|path| fs::remove_file(path).unwrap(), |path| fs::write(path, "").unwrap()];
    for damage in damages {
        let (outbox, found, _folder) = recover(damage);
        let OpenOutcome::Created { previous_epoch } = found else { panic!("{found:?}") };
        assert_eq!(previous_epoch.as_deref(), Some("epoch-1"));
        assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")));
    }
}

#[test]
fn the_first_store_has_nothing_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let new_epoch = || "epoch-1".to_owned();
    let opened =
        Outbox::open_or_recover(&path, &registrations(&SINKS), new_epoch, Timestamp(1)).unwrap();
    assert!(matches!(opened.1, OpenOutcome::Created { previous_epoch: None }));
}

/// Offsets were copied only at moments when all was acknowledged: under a steady flow never.
#[test]
fn offsets_are_copied_though_there_is_always_something_under_way() {
    let store = store();
    let key = ("claude-sessions".to_owned(), GenerationId("a".into()));
    let commit = |row: &str| {
        let mut one = group(&store.outbox, 3);
        one.checkpoints.insert(key.clone(), Some(row.into()));
        store.outbox.commit(&one).unwrap();
        store.outbox.back_up().unwrap();
        one
    };
    let saved = || store.outbox.backup().load().unwrap().unwrap().rows.remove(&key);
    let first = commit("one");
    let second = commit("two");
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    let third = commit("three");
    assert_eq!(saved().as_deref(), Some(b"one".as_slice()));
    store.outbox.acknowledge("siem", "epoch-1", point(&second)).unwrap();
    commit("four");
    assert_eq!(saved().as_deref(), Some(b"one".as_slice()), "three is not acknowledged");
    store.outbox.acknowledge("siem", "epoch-1", point(&third)).unwrap();
    commit("five");
    assert_eq!(saved().as_deref(), Some(b"three".as_slice()));
}

/// A kill after the new store was made, and before its first group, left a store that nobody had
/// heard of.
#[test]
fn how_a_store_began_is_said_until_it_is_among_its_entries() {
    let (outbox, found, folder) = recover(|path| fs::write(path, b"garbage").unwrap());
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    let again = || {
        let epoch = || "epoch-3".to_owned();
        Outbox::open_or_recover(&path, &registrations(&SINKS), epoch, Timestamp(9)).unwrap()
    };
    let (outbox, still) = again();
    assert_eq!(format!("{still:?}"), format!("{found:?}"));
    assert_eq!(
        (outbox.epoch(), stored_row(&outbox)),
        ("epoch-2".into(), Some(row("acknowledged")))
    );
    commit(&outbox, 1);
    drop(outbox);
    let (_outbox, whole) = again();
    assert!(matches!(whole, OpenOutcome::Intact), "{whole:?}");
}

fn key(name: &str) -> (String, GenerationId) {
    ("claude-sessions".to_owned(), GenerationId(name.to_owned()))
}

/// Changes a store that is closed.
fn change(path: &Path, change: impl FnOnce(&WriteTransaction)) {
    let database = builder().open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

/// Damages the state alone: what else is in the store can be read.
fn damage_state(path: &Path) {
    change(path, |transaction| {
        transaction.open_table(META).unwrap().insert(STATE, b"{}".as_slice()).unwrap();
    });
}

fn recovered(path: &Path) -> (Outbox, OpenOutcome) {
    Outbox::open_or_recover(path, &registrations(&SINKS), || "epoch-2".into(), Timestamp(7))
        .unwrap()
}

/// A file that began within the last minute, or while the receiver was away, came again under
/// another generation, and nobody could say that it had come before.
#[test]
fn a_generation_that_began_keeps_its_id_though_nothing_of_it_is_acknowledged() {
    type DamageReport = fn(&Path);
    let damages: [(&str, DamageReport); 3] = [
        ("garbage, noted beside the store", |path| fs::write(path, b"garbage").unwrap()),
        ("gone, noted beside the store", |path| fs::remove_file(path).unwrap()),
        ("read out of the damaged store", |path| {
            damage_state(path);
            fs::remove_file(path.with_file_name("checkpoints.bak")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let Store { outbox, folder } = store();
        let mut one = group(&outbox, 3);
        one.checkpoints.insert(key("a"), Some(row("a")));
        // It goes on where another ended: what lies before may not be acknowledged.
        let trimmed =
            String::from_utf8(row("trimmed")).unwrap().replace("{\"path", "{\"start\":5,\"path");
        one.checkpoints.insert(key("trimmed"), Some(trimmed.into_bytes()));
        outbox.commit(&one).unwrap();
        drop(outbox);
        let path = folder.path().join("outbox.redb");
        damage(&path);
        let (outbox, _) = recovered(&path);
        let found = |name| outbox.checkpoint("claude-sessions", &GenerationId(name)).unwrap();
        assert!(found("a".into()).is_some(), "{name}");
        assert_eq!(found("a".into()), tail::beginning(&row("a")), "{name}");
        assert_eq!(found("trimmed".into()), None, "{name}");
        assert_eq!(
            outbox.cursor("siem").unwrap().previous_epoch.is_some(),
            name != "read out of the damaged store",
            "{name}"
        );
    }
}

/// What began is noted at once, also while all rows lie beside the file and wait for a sink.
#[test]
fn what_began_is_noted_until_it_is_acknowledged() {
    let store = store();
    let begin = |name: &str| {
        let mut one = group(&store.outbox, 1);
        one.checkpoints.insert(key(name), Some(row(name)));
        store.outbox.commit(&one).unwrap();
        one
    };
    let first = begin("a");
    store.outbox.back_up().unwrap();
    let second = begin("b");
    let names = || {
        let BackupContents { rows, begun, .. } = store.outbox.backup().load().unwrap().unwrap();
        let begun = begun.into_iter().map(|(key, _)| key.1.0).collect::<Vec<_>>();
        (rows.into_keys().map(|key| key.1.0).collect::<Vec<_>>(), begun)
    };
    assert_eq!(names(), (vec![], vec!["b".into(), "a".into()]));
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    store.outbox.back_up().unwrap();
    assert_eq!(names(), (vec!["a".into()], vec!["b".into()]));
    store.outbox.acknowledge("siem", "epoch-1", point(&second)).unwrap();
    store.outbox.back_up().unwrap();
    let mut end = group(&store.outbox, 0);
    end.checkpoints.insert(key("a"), None);
    store.outbox.commit(&end).unwrap();
    store.outbox.back_up().unwrap();
    assert_eq!(names(), (vec!["b".into()], vec![]));
}

/// A file whose lines up to 7 are acknowledged is not skipped, nor read from its beginning, because
/// another generation of it has begun.
#[test]
fn an_acknowledged_row_counts_more_than_a_generation_that_began_in_its_file() {
    let Store { outbox, folder } = store();
    let mut one = group(&outbox, 1);
    one.checkpoints.insert(key("z"), Some(row("a")));
    outbox.commit(&one).unwrap();
    outbox.acknowledge("siem", "epoch-1", point(&one)).unwrap();
    outbox.back_up().unwrap();
    let mut two = group(&outbox, 1);
    two.checkpoints.insert(key("z"), None);
    two.checkpoints.insert(key("a"), Some(row("a")));
    outbox.commit(&two).unwrap();
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    fs::write(&path, b"garbage").unwrap();
    let (outbox, _) = recovered(&path);
    let mut rows = Vec::new();
    outbox.checkpoints("claude-sessions", |all| rows.extend(all)).unwrap();
    assert_eq!(rows, [(GenerationId("z".into()), row("a"))]);
}

/// They went down with the store, without a word.
#[test]
fn dead_letters_of_a_damaged_store_are_in_the_next_and_those_that_are_lost_are_counted() {
    let Store { outbox, folder } = store();
    let one = commit(&outbox, 3);
    outbox.acknowledge("siem", "epoch-1", point(&one)).unwrap();
    commit(&outbox, 3);
    // The last has been named by no header: its entry is read again.
    let ids = [1, 2, 3, 5].map(|seq| store_dead_letter(&outbox, "epoch-1", seq));
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    damage_state(&path);
    change(&path, |transaction| {
        let mut letters = transaction.open_table(DEAD_LETTERS).unwrap();
        letters.insert(("siem", "epoch-1", 2), b"12345678{}".as_slice()).unwrap();
    });
    let (outbox, found) = recovered(&path);
    let OpenOutcome::Replaced { moved_to, dead_letters, .. } = found else { panic!("{found:?}") };
    assert_eq!(dead_letters, RescuedDeadLetters { kept: 2, lost: Some(1) });
    let left: Vec<_> = outbox.dead_letters().unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(left, [ids[0].clone(), ids[2].clone()]);
    let aside = fs::read(&moved_to).unwrap();
    assert_eq!(salvage(&moved_to).letters.len(), 2);
    assert!(fs::read(&moved_to).unwrap() == aside, "what was moved aside was changed");
    // Garbage holds nobody knows what.
    drop(outbox);
    fs::write(&path, b"garbage").unwrap();
    let (_, found) = recovered(&path);
    let OpenOutcome::Replaced { dead_letters, .. } = found else { panic!("{found:?}") };
    assert_eq!(dead_letters, RescuedDeadLetters { kept: 0, lost: None });
}

/// A row that had rotted was read as another, or was left out, and its file began anew. Each of
/// these could be read, but for its checksum.
#[test]
fn a_row_that_rots_is_damage() {
    type DamageReport = fn(&WriteTransaction);
    type Use = fn(&Outbox) -> Result<(), OutboxError>;
    let damages: [(&str, DamageReport, Use); 6] = [
        (
            "a checkpoint",
            |transaction| {
                let key = ("claude-sessions", "a");
                let mut rows = transaction.open_table(CHECKPOINTS).unwrap();
                let rotten = seal(("claude-sessions", "b"), &row("a"));
                rows.insert(key, rotten.as_slice()).unwrap();
            },
            |outbox| outbox.checkpoints("claude-sessions", |rows| rows.for_each(drop)),
        ),
        (
            "a cursor",
            |transaction| {
                let mut rows = transaction.open_table(CURSORS).unwrap();
                let row = rows.get("siem").unwrap().unwrap().value()[8..].to_vec();
                rows.insert("siem", seal("archive", &row).as_slice()).unwrap();
            },
            |outbox| outbox.cursor("siem").map(drop),
        ),
        (
            "a dead letter",
            |transaction| {
                let key = ("siem", "epoch-1", 2);
                let mut rows = transaction.open_table(DEAD_LETTERS).unwrap();
                let row = rows.get(key).unwrap().unwrap().value()[8..].to_vec();
                rows.insert(key, seal(("siem", "epoch-1", 3), &row).as_slice()).unwrap();
            },
            |outbox| outbox.dead_letters_after("siem", "epoch-1", 0).map(drop),
        ),
        (
            "an account",
            |transaction| {
                let mut rows = transaction.open_table(super::super::ACCOUNTS).unwrap();
                rows.insert("a", seal("b", b"{}").as_slice()).unwrap();
            },
            |outbox| outbox.accounts().map(drop),
        ),
        (
            "a line that is dropped",
            |transaction| {
                let mut rows = transaction.open_table(super::super::DROPPED_PARTS).unwrap();
                let row = br#"{"offset":0,"stage":"dedupe","reason":"reused_uuid"}"#;
                rows.insert("a", seal("b", row).as_slice()).unwrap();
            },
            |outbox| outbox.dropped_parts().map(drop),
        ),
        (
            "its state",
            |transaction| {
                let mut meta = transaction.open_table(META).unwrap();
                let state = meta.get(STATE).unwrap().unwrap().value().to_vec();
                let state = String::from_utf8(state).unwrap().replace("epoch-1", "epoch-3");
                meta.insert(STATE, state.as_bytes()).unwrap();
            },
            |_| Ok(()),
        ),
    ];
    for (name, damage, look) in damages {
        let Store { outbox, folder } = store();
        let mut one = group(&outbox, 3);
        one.checkpoints.insert(key("a"), Some(row("a")));
        outbox.commit(&one).unwrap();
        store_dead_letter(&outbox, "epoch-1", 2);
        drop(outbox);
        let path = folder.path().join("outbox.redb");
        change(&path, damage);
        let opened = Outbox::open(&path, &registrations(&SINKS), || "e".into());
        let failure = match &opened {
            Ok(outbox) => look(outbox).unwrap_err(),
            Err(_) => opened.err().unwrap(),
        };
        assert!(failure.is_damage(), "{name}: {failure:?}");
        let words = crate::text::causes(&failure);
        assert!(words.contains(name), "{name}: {words}");
    }
}

/// A bit that flipped in the number of the schema kept the agent from ever starting again.
#[test]
fn a_schema_that_rots_is_damage_and_not_a_newer_agent() {
    let Store { outbox, folder } = store();
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    change(&path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        assert!(meta.get(SEAL).unwrap().is_some());
        let state = meta.get(STATE).unwrap().unwrap().value().to_vec();
        let state = String::from_utf8(state).unwrap().replace("\"schema\":3", "\"schema\":7");
        meta.insert(STATE, state.as_bytes()).unwrap();
    });
    assert!(matches!(recovered(&path).1, OpenOutcome::Replaced { .. }));
}

/// A kill between the two said that the outbox was missing.
#[test]
fn a_store_that_was_moved_aside_before_a_kill_is_said_to_be_damaged() {
    let (outbox, found, folder) = recover(|path| {
        let moved_to = path.with_extension("redb.damaged-3");
        let dead_letters = RescuedDeadLetters::default();
        let damage =
            DamageReport { moved_to: moved_to.clone(), reason: "it rots".into(), dead_letters };
        QuarantineNote::beside(path).write(&damage).unwrap();
        fs::rename(path, moved_to).unwrap();
    });
    let OpenOutcome::Replaced { moved_to, reason, .. } = found else { panic!("{found:?}") };
    assert_eq!(
        (&*reason, moved_to.file_name().unwrap()),
        ("it rots", "outbox.redb.damaged-3".as_ref())
    );
    assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")));
    commit(&outbox, 1);
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    assert!(matches!(recovered(&path).1, OpenOutcome::Intact));
    fs::remove_file(&path).unwrap();
    assert!(matches!(recovered(&path).1, OpenOutcome::Created { .. }), "the note was still there");
}

/// Everything that came after it was written to a file that nobody could ever open again.
#[cfg(unix)]
#[test]
fn a_store_whose_file_is_deleted_or_replaced_is_done_with() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 2] = [
        ("it was deleted or moved", |path| fs::remove_file(path).unwrap()),
        ("another lies in its place", |path| {
            fs::copy(path, path.with_extension("copy")).unwrap();
            fs::rename(path.with_extension("copy"), path).unwrap();
        }),
    ];
    for (word, change) in changes {
        let Store { outbox, folder } = store();
        commit(&outbox, 1);
        outbox.check_file().unwrap();
        change(&folder.path().join("outbox.redb"));
        let failure = outbox.check_file().unwrap_err();
        assert!(failure.is_damage() && failure.to_string().contains(word), "{failure}");
        assert!(*outbox.watch_damage().borrow(), "{word}");
    }
}

#[test]
fn a_store_in_memory_is_never_missed() {
    let opener = || {
        let memory = redb::backends::InMemoryBackend::new();
        Ok((builder().create_with_backend(memory)?, None))
    };
    let outbox =
        Outbox::open_with(Path::new("memory"), Box::new(opener), &registrations(&SINKS), || {
            "e".into()
        });
    outbox.unwrap().check_file().unwrap();
}

/// `deadletter` made an outbox of a file that a kill had left without one.
#[test]
fn to_look_at_a_file_without_an_outbox_begins_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    drop(builder().create(&path).unwrap());
    assert!(Outbox::open_existing(&path).unwrap().is_none());
    assert!(matches!(recovered(&path).1, OpenOutcome::Created { .. }));
    assert!(Outbox::open_existing(&path).unwrap().is_some());
}
