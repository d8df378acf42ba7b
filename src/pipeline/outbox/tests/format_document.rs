//! `docs/outbox-format.md` lists the tables of the store, the members of its rows, and the schema
//! versions.

use std::collections::BTreeSet;

use redb::TableHandle as _;
use serde::Serialize;

use super::{
    super::{
        rows::{CreationReport, OutboxState},
        tables::SCHEMA,
    },
    *,
};
use crate::{frame::FrameHead, pipeline::group::DroppedPart};

const PAGE: &str = include_str!("../../../../docs/outbox-format.md");

/// Returns the names in the first column of the table under a heading.
fn listed(heading: &str) -> BTreeSet<String> {
    let section = PAGE.split_once(&format!("\n{heading}\n"));
    let (_, section) = section.unwrap_or_else(|| panic!("no heading `{heading}`"));
    let section = section.split("\n#").next().unwrap();
    let names = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn members(row: &impl Serialize) -> BTreeSet<String> {
    let row = serde_json::to_value(row).unwrap();
    row.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn format_document_lists_every_table() {
    let TestStore { outbox, folder } = store();
    drop(outbox);
    let database = builder().open(folder.path().join("outbox.redb")).unwrap();
    let transaction = database.begin_read().unwrap();
    let tables: BTreeSet<String> =
        transaction.list_tables().unwrap().map(|table| table.name().to_owned()).collect();
    assert_eq!(tables, listed("## Tables"));
    let keys: BTreeSet<String> = [STATE, STATE_CHECKSUM].map(str::to_owned).into();
    let rows = transaction.open_table(META).unwrap();
    let stored = rows.range::<&str>(..).unwrap().map(|row| row.unwrap().0.value().to_owned());
    assert_eq!(stored.collect::<BTreeSet<_>>(), keys);
    assert!(keys.iter().all(|key| PAGE.contains(&format!("\"{key}\""))), "{keys:?}");
}

#[test]
fn format_document_lists_every_member() {
    let point = ChainPoint { seq: 1, hash: Digest::ZERO };
    let creation = CreationReport { previous_epoch: None, damage: None };
    let state = OutboxState {
        creation: Some(creation),
        readable_from: Some(1),
        device: Some(EpochDevice { key: String::new(), since: Timestamp(0) }),
        unreported: vec![AgentEvent::AgentStopped {}.into()],
        ..OutboxState::new(String::new())
    };
    let cursor = Cursor {
        epoch: String::new(),
        acknowledged: point,
        base: Some(point),
        previous_epoch: Some(String::new()),
        destination: Some(String::new()),
        refusals: 1,
        receipt: Some(String::new()),
        ended: vec![EndedEpoch { epoch: String::new(), acknowledged: point, receipt: None }],
    };
    let letter = DeadLetter::new(b"", Digest::ZERO, 422, String::new(), String::new());
    let part = DroppedPart { offset: 0, stage: String::new(), reason: String::new() };
    let store = store();
    let head: FrameHead = commit(&store.outbox, 1).frames[0].head.clone();
    for (heading, members) in [
        ("### Table `values`", members(&head)),
        ("### Table `dropping`", members(&part)),
        ("### Table `accounts`", members(&Share::default())),
        ("### Table `cursors`", members(&cursor)),
        ("### Table `dead_letters`", members(&letter)),
        ("### Table `meta`", members(&state)),
    ] {
        assert_eq!(listed(heading), members, "{heading}");
    }
}

#[test]
fn format_document_lists_every_schema_version() {
    let section = PAGE.split_once("\n## Schema versions\n").unwrap().1;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
    let versions: Vec<u32> = rows.filter_map(|(version, _)| version.parse().ok()).collect();
    assert_eq!(versions, (1..=SCHEMA).collect::<Vec<_>>());
}
