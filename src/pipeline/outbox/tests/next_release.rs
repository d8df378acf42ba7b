//! A store that the next release has written is used by this one, and again by the next one.

use redb::TableDefinition;

use super::{
    super::tables::{SCHEMA, StoreFormat},
    *,
};

const NEXT: StoreFormat = StoreFormat { schema: SCHEMA + 1, readable_from: SCHEMA };
/// Table of the next release.
const NEW_TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("new_table");

fn path(folder: &tempfile::TempDir) -> std::path::PathBuf {
    folder.path().join("outbox.redb")
}

fn open_next(folder: &tempfile::TempDir) -> Outbox {
    Outbox::open_in_format(&path(folder), &registrations(&SINKS), NEXT).unwrap()
}

/// Reads the state row as it is stored.
fn state_row(folder: &tempfile::TempDir) -> serde_json::Value {
    let database = Database::open(path(folder)).unwrap();
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    serde_json::from_slice(meta.get(STATE).unwrap().unwrap().value()).unwrap()
}

fn acknowledge(outbox: &Outbox, last: u64) {
    let (seq, hash) = (last, outbox.end().chain);
    outbox.acknowledge("siem", &outbox.epoch(), ChainPoint { seq, hash }).unwrap();
}

/// Sequence numbers that wait for delivery.
fn waiting(outbox: &Outbox) -> (u64, u64) {
    let cursor = outbox.cursor("siem").unwrap();
    (cursor.acknowledged.seq + 1, outbox.end().seq - 1)
}

#[test]
fn store_of_the_next_release_works_before_and_after_it() {
    let TestStore { outbox, folder } = store();
    commit(&outbox, 3);
    drop(outbox);

    // The next release: it raises the schema, and adds a table and a member.
    let outbox = open_next(&folder);
    assert_eq!(waiting(&outbox), (1, 3));
    outbox
        .write("change", |transaction, state| {
            transaction.open_table(NEW_TABLE)?.insert("a", b"b".as_slice())?;
            state.other.insert("new_member".to_owned(), serde_json::json!({ "n": [1] }));
            Ok(Ok(()))
        })
        .unwrap();
    commit(&outbox, 2);
    drop(outbox);
    let row = state_row(&folder);
    assert_eq!((&row["schema"], &row["readable_from"]), (&(SCHEMA + 1).into(), &SCHEMA.into()));

    // This release is back, delivers and appends.
    let outbox = open(&path(&folder), &SINKS).unwrap();
    assert_eq!(waiting(&outbox), (1, 5));
    acknowledge(&outbox, 5);
    commit(&outbox, 4);
    assert_eq!(waiting(&outbox), (6, 9));
    drop(outbox);
    let row = state_row(&folder);
    assert_eq!((&row["schema"], &row["readable_from"]), (&(SCHEMA + 1).into(), &SCHEMA.into()));
    assert_eq!(row["new_member"], serde_json::json!({ "n": [1] }));

    // The next release again.
    let outbox = open_next(&folder);
    assert_eq!(waiting(&outbox), (6, 9));
    acknowledge(&outbox, 9);
    commit(&outbox, 1);
    assert_eq!(waiting(&outbox), (10, 10));
    drop(outbox);
    let database = Database::open(path(&folder)).unwrap();
    let table = database.begin_read().unwrap().open_table(NEW_TABLE).unwrap();
    assert_eq!(table.get("a").unwrap().unwrap().value(), b"b");
}

#[test]
fn store_that_needs_a_newer_release_is_refused() {
    let TestStore { outbox, folder } = store();
    drop(outbox);
    let newer = StoreFormat { schema: SCHEMA + 2, readable_from: SCHEMA + 1 };
    drop(Outbox::open_in_format(&path(&folder), &registrations(&SINKS), newer).unwrap());
    let before = std::fs::read(path(&folder)).unwrap();
    let error = open(&path(&folder), &SINKS).err().unwrap();
    assert!(matches!(error, OutboxError::Newer { found, .. } if found == SCHEMA + 2), "{error}");
    assert_eq!(state_row(&folder)["schema"], SCHEMA + 2);
    assert!(!before.is_empty());
    // The one in between uses it.
    let between = StoreFormat { schema: SCHEMA + 1, readable_from: SCHEMA + 1 };
    drop(Outbox::open_in_format(&path(&folder), &registrations(&SINKS), between).unwrap());
    assert_eq!(state_row(&folder)["schema"], SCHEMA + 2);
}
