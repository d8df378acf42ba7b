//! Intact, missing and damaged stores at start.

use std::{fs, path::Path};

use redb::{ReadableTable as _, WriteTransaction};

use super::{
    super::{
        backup_file::BackupContents,
        checksum::protect,
        rows::DamageReport,
        salvage::salvage,
        store_file::builder,
        tables::{
            ACCOUNTS, CHECKPOINTS, CURSORS, DEAD_LETTERS, DROPPED_PARTS, META, STATE,
            STATE_CHECKSUM,
        },
        tests::{SINKS, TestStore, commit, group, point, registrations, store, store_letter},
    },
    *,
};
use crate::tail::GenerationId;

/// Returns a checkpoint row of a file; the name is part of its path.
fn row(name: &str) -> Vec<u8> {
    format!(r#"{{"path":"/p/{name}.jsonl","offset":7,"first":{{"len":7,"hash":1}}}}"#).into_bytes()
}

/// Damages a store with an acknowledged and an unacknowledged checkpoint, and opens it again.
fn recover(damage: impl FnOnce(&Path)) -> (Outbox, OpenOutcome, tempfile::TempDir) {
    let TestStore { outbox, folder } = store();
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
fn intact_store_is_opened_unchanged() {
    let (outbox, found, _folder) = recover(|_| ());
    assert!(matches!(found, OpenOutcome::Intact), "{found:?}");
    assert_eq!((outbox.epoch(), stored_row(&outbox)), ("epoch-1".into(), Some(row("waiting"))));
}

/// Regression: a damaged store had to be deleted by hand, after which every file was read from the
/// beginning; or it was opened, and the agent crashed at each start.
#[test]
fn damaged_store_is_replaced_with_acknowledged_checkpoints() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("garbage", |bytes| *bytes = b"not a store".to_vec()),
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
fn directory_at_the_store_path_is_moved_aside() {
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
fn missing_store_is_created_with_acknowledged_checkpoints() {
    type Damage = fn(&Path);
    let damages: [Damage; 2] =
        [|path| fs::remove_file(path).unwrap(), |path| fs::write(path, "").unwrap()];
    for damage in damages {
        let (outbox, found, _folder) = recover(damage);
        let OpenOutcome::Created { previous_epoch } = found else { panic!("{found:?}") };
        assert_eq!(previous_epoch.as_deref(), Some("epoch-1"));
        assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")));
    }
}

#[test]
fn first_store_has_no_previous_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let new_epoch = || "epoch-1".to_owned();
    let opened =
        Outbox::open_or_recover(&path, &registrations(&SINKS), new_epoch, Timestamp(1)).unwrap();
    assert!(matches!(opened.1, OpenOutcome::Created { previous_epoch: None }));
}

/// Regression: checkpoints were backed up only when every entry was acknowledged, which never
/// happened under a steady load.
#[test]
fn checkpoints_are_backed_up_under_a_steady_load() {
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

/// Regression: after a kill between the creation of a store and its first group, the replacement was
/// never reported.
#[test]
fn replacement_is_reported_until_an_entry_is_stored() {
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

/// Modifies a closed store.
fn change(path: &Path, change: impl FnOnce(&WriteTransaction)) {
    let database = builder().open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    change(&transaction);
    transaction.commit().unwrap();
}

/// Damages the state row only; all other rows stay readable.
fn damage_state(path: &Path) {
    change(path, |transaction| {
        transaction.open_table(META).unwrap().insert(STATE, b"{}".as_slice()).unwrap();
    });
}

fn recovered(path: &Path) -> (Outbox, OpenOutcome) {
    Outbox::open_or_recover(path, &registrations(&SINKS), || "epoch-2".into(), Timestamp(7))
        .unwrap()
}

/// Regression: a file that was created within the last minute, or while the receiver was
/// unreachable, was sent again under another generation and could not be recognised.
#[test]
fn started_generation_keeps_its_id_after_damage() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("garbage, noted beside the store", |path| fs::write(path, b"garbage").unwrap()),
        ("missing, noted beside the store", |path| fs::remove_file(path).unwrap()),
        ("read out of the damaged store", |path| {
            damage_state(path);
            fs::remove_file(path.with_file_name("checkpoints.bak")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let TestStore { outbox, folder } = store();
        let mut one = group(&outbox, 3);
        one.checkpoints.insert(key("a"), Some(row("a")));
        // This one continues where another ended, whose entries may not be acknowledged.
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
        assert_eq!(found("a".into()), tail::starting_row(&row("a")), "{name}");
        assert_eq!(found("trimmed".into()), None, "{name}");
        assert_eq!(
            outbox.cursor("siem").unwrap().previous_epoch.is_some(),
            name != "read out of the damaged store",
            "{name}"
        );
    }
}

/// Started generations are recorded at once, also while prepared rows wait for a sink.
#[test]
fn started_generation_is_recorded_until_acknowledged() {
    let store = store();
    let start = |name: &str| {
        let mut one = group(&store.outbox, 1);
        one.checkpoints.insert(key(name), Some(row(name)));
        store.outbox.commit(&one).unwrap();
        one
    };
    let first = start("a");
    store.outbox.back_up().unwrap();
    let second = start("b");
    let names = || {
        let BackupContents { rows, started, .. } = store.outbox.backup().load().unwrap().unwrap();
        let started = started.into_iter().map(|(key, _)| key.1.0).collect::<Vec<_>>();
        (rows.into_keys().map(|key| key.1.0).collect::<Vec<_>>(), started)
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

/// A file with acknowledged lines is neither skipped nor read from the beginning because another
/// generation of it has started.
#[test]
fn acknowledged_row_takes_precedence_over_a_started_one() {
    let TestStore { outbox, folder } = store();
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

/// Regression: dead letters were lost with a damaged store, unreported.
#[test]
fn dead_letters_are_rescued_from_a_damaged_store() {
    let TestStore { outbox, folder } = store();
    let one = commit(&outbox, 3);
    outbox.acknowledge("siem", "epoch-1", point(&one)).unwrap();
    commit(&outbox, 3);
    // The last one is unreported: its entry is read again.
    let ids = [1, 2, 3, 5].map(|seq| store_letter(&outbox, "epoch-1", seq));
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
    // In a file of garbage the number of lost dead letters is unknown.
    drop(outbox);
    fs::write(&path, b"garbage").unwrap();
    let (_, found) = recovered(&path);
    let OpenOutcome::Replaced { dead_letters, .. } = found else { panic!("{found:?}") };
    assert_eq!(dead_letters, RescuedDeadLetters { kept: 0, lost: None });
}

/// Regression: a changed row was misread or skipped. Each of these rows is readable except for its
/// checksum.
#[test]
fn changed_row_is_damage() {
    type Damage = fn(&WriteTransaction);
    type Use = fn(&Outbox) -> Result<(), OutboxError>;
    let damages: [(&str, Damage, Use); 6] = [
        (
            "a checkpoint",
            |transaction| {
                let key = ("claude-sessions", "a");
                let mut rows = transaction.open_table(CHECKPOINTS).unwrap();
                let changed = protect(("claude-sessions", "b"), &row("a"));
                rows.insert(key, changed.as_slice()).unwrap();
            },
            |outbox| outbox.checkpoints("claude-sessions", |rows| rows.for_each(drop)),
        ),
        (
            "a cursor",
            |transaction| {
                let mut rows = transaction.open_table(CURSORS).unwrap();
                let row = rows.get("siem").unwrap().unwrap().value()[8..].to_vec();
                rows.insert("siem", protect("archive", &row).as_slice()).unwrap();
            },
            |outbox| outbox.cursor("siem").map(drop),
        ),
        (
            "a dead letter",
            |transaction| {
                let key = ("siem", "epoch-1", 2);
                let mut rows = transaction.open_table(DEAD_LETTERS).unwrap();
                let row = rows.get(key).unwrap().unwrap().value()[8..].to_vec();
                rows.insert(key, protect(("siem", "epoch-1", 3), &row).as_slice()).unwrap();
            },
            |outbox| outbox.dead_letters_after("siem", "epoch-1", 0).map(drop),
        ),
        (
            "a byte account",
            |transaction| {
                let mut rows = transaction.open_table(ACCOUNTS).unwrap();
                rows.insert("a", protect("b", b"{}").as_slice()).unwrap();
            },
            |outbox| outbox.accounts().map(drop),
        ),
        (
            "a dropped part",
            |transaction| {
                let mut rows = transaction.open_table(DROPPED_PARTS).unwrap();
                let row = br#"{"offset":0,"stage":"dedupe","reason":"reused_uuid"}"#;
                rows.insert("a", protect("b", row).as_slice()).unwrap();
            },
            |outbox| outbox.dropped_parts().map(drop),
        ),
        (
            "the state row",
            |transaction| {
                let mut meta = transaction.open_table(META).unwrap();
                let state = meta.get(STATE).unwrap().unwrap().value().to_vec();
                let state = String::from_utf8(state).unwrap().replace("epoch-1", "epoch-3");
                meta.insert(STATE, state.as_bytes()).unwrap();
            },
            |_| Ok(()),
        ),
    ];
    for (name, damage, use_row) in damages {
        let TestStore { outbox, folder } = store();
        let mut one = group(&outbox, 3);
        one.checkpoints.insert(key("a"), Some(row("a")));
        outbox.commit(&one).unwrap();
        store_letter(&outbox, "epoch-1", 2);
        drop(outbox);
        let path = folder.path().join("outbox.redb");
        change(&path, damage);
        let opened = Outbox::open(&path, &registrations(&SINKS), || "e".into());
        let failure = match &opened {
            Ok(outbox) => use_row(outbox).unwrap_err(),
            Err(_) => opened.err().unwrap(),
        };
        assert!(failure.is_damage(), "{name}: {failure:?}");
        let message = causes(&failure);
        assert!(message.contains(name), "{name}: {message}");
    }
}

/// Regression: a flipped bit in the schema version prevented every further start.
#[test]
fn changed_schema_version_is_damage() {
    let TestStore { outbox, folder } = store();
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    change(&path, |transaction| {
        let mut meta = transaction.open_table(META).unwrap();
        assert!(meta.get(STATE_CHECKSUM).unwrap().is_some());
        let state = meta.get(STATE).unwrap().unwrap().value().to_vec();
        let state = String::from_utf8(state).unwrap().replace("\"schema\":3", "\"schema\":7");
        meta.insert(STATE, state.as_bytes()).unwrap();
    });
    assert!(matches!(recovered(&path).1, OpenOutcome::Replaced { .. }));
}

/// Regression: after a kill between moving a store aside and creating another, the store was reported
/// as missing.
#[test]
fn store_moved_aside_before_a_kill_is_reported() {
    let (outbox, found, folder) = recover(|path| {
        let moved_to = path.with_extension("redb.damaged-3");
        let dead_letters = RescuedDeadLetters::default();
        let damage =
            DamageReport { moved_to: moved_to.clone(), reason: "it is torn".into(), dead_letters };
        QuarantineNote::beside(path).write(&damage).unwrap();
        fs::rename(path, moved_to).unwrap();
    });
    let OpenOutcome::Replaced { moved_to, reason, .. } = found else { panic!("{found:?}") };
    assert_eq!(
        (&*reason, moved_to.file_name().unwrap()),
        ("it is torn", "outbox.redb.damaged-3".as_ref())
    );
    assert_eq!(stored_row(&outbox).as_deref(), Some(&*row("acknowledged")));
    commit(&outbox, 1);
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    assert!(matches!(recovered(&path).1, OpenOutcome::Intact));
    fs::remove_file(&path).unwrap();
    assert!(matches!(recovered(&path).1, OpenOutcome::Created { .. }), "the note was not deleted");
}

/// Regression: later entries were written to a file that no process could open again.
#[cfg(unix)]
#[test]
fn deleted_or_replaced_file_is_damage() {
    type Modification = fn(&Path);
    let changes: [(&str, Modification); 2] = [
        ("was deleted or moved", |path| fs::remove_file(path).unwrap()),
        ("was replaced by another", |path| {
            fs::copy(path, path.with_extension("copy")).unwrap();
            fs::rename(path.with_extension("copy"), path).unwrap();
        }),
    ];
    for (word, change) in changes {
        let TestStore { outbox, folder } = store();
        commit(&outbox, 1);
        outbox.check_file().unwrap();
        change(&folder.path().join("outbox.redb"));
        let failure = outbox.check_file().unwrap_err();
        assert!(failure.is_damage() && failure.to_string().contains(word), "{failure}");
        assert!(*outbox.watch_damage().borrow(), "{word}");
    }
}

#[test]
fn store_in_memory_has_no_file_to_check() {
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

/// Regression: `deadletter` initialised an empty store file that a kill had left behind.
#[test]
fn open_existing_does_not_initialise_an_empty_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    drop(builder().create(&path).unwrap());
    assert!(Outbox::open_existing(&path).unwrap().is_none());
    assert!(matches!(recovered(&path).1, OpenOutcome::Created { .. }));
    assert!(Outbox::open_existing(&path).unwrap().is_some());
}
