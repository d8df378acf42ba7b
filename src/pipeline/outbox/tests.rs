//! The outbox: appending, acknowledging and migrating.

mod compaction;
mod epoch_device;
mod format_document;
mod next_release;
mod renumber;
mod sinks;

use std::{ops::ControlFlow, path::Path, time::Duration};

use redb::{Database, ReadableDatabase as _};
use siem_protocol::{AgentEvent, ChainPoint, Digest};

use super::{
    block, checksum,
    store_file::builder,
    tables::{CURSORS, META, STATE, STATE_CHECKSUM},
    *,
};
use crate::{
    config::ShippingSettings,
    event::Event,
    frame::{Codec, Frame},
    pipeline::{
        accounting::{Count, Share, Totals},
        group::Group,
        group_builder::GroupBuilder,
    },
    platform::Timestamp,
    tail::GenerationId,
};

pub(super) const SINKS: [&str; 1] = ["siem"];

pub(super) struct TestStore {
    pub(super) outbox: Outbox,
    pub(super) folder: tempfile::TempDir,
}

pub(super) fn registrations(sinks: &[&str]) -> Vec<SinkRegistration> {
    sinks
        .iter()
        .map(|sink| SinkRegistration { name: (*sink).to_owned(), ..SinkRegistration::default() })
        .collect()
}

pub(super) fn open(path: &Path, sinks: &[&str]) -> Result<Outbox, OutboxError> {
    Outbox::open(path, &registrations(sinks), || "epoch-1".into())
}

pub(super) fn store() -> TestStore {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(&folder.path().join("outbox.redb"), &SINKS).unwrap();
    TestStore { outbox, folder }
}

impl TestStore {
    fn reopen(self, sinks: &[&str]) -> Self {
        let Self { outbox, folder } = self;
        drop(outbox);
        let outbox = open(&folder.path().join("outbox.redb"), sinks).unwrap();
        Self { outbox, folder }
    }
}

fn shipping(batch_size: usize) -> ShippingSettings {
    ShippingSettings { batch_size, ..ShippingSettings::default() }
}

/// Returns a group of `count` events that starts at the end of `outbox`.
pub(super) fn group(outbox: &Outbox, count: usize) -> Group {
    let mut builder = GroupBuilder::new(outbox.end(), Digest::ZERO, shipping(1000), Codec::Zstd);
    for n in 0..count {
        builder.add_event(
            &Event::info("test", serde_json::json!({ "n": n })),
            &mut [],
            Timestamp(1),
        );
    }
    builder.finish(Timestamp(1))
}

pub(super) fn commit(outbox: &Outbox, count: usize) -> Group {
    let group = group(outbox, count);
    outbox.commit(&group).unwrap();
    group
}

pub(super) fn all(outbox: &Outbox, seq: u64) -> Vec<Frame> {
    outbox.frames(seq, |_| ControlFlow::Continue(())).unwrap()
}

pub(super) fn point(group: &Group) -> ChainPoint {
    let last = &group.frames.last().unwrap().head;
    ChainPoint { seq: last.last_seq(), hash: last.after }
}

#[test]
fn sequence_numbers_continue_after_a_restart() {
    let store = store();
    assert_eq!(store.outbox.end().seq, 1);
    let first = commit(&store.outbox, 3);
    let store = store.reopen(&SINKS);
    let end = store.outbox.end();
    assert_eq!((end.seq, end.chain), (4, point(&first).hash));
    assert_eq!(end.totals.events, 3);
    let second = commit(&store.outbox, 2);
    assert_eq!(second.frames[0].head.before, point(&first).hash);
    let frames = all(&store.outbox, 1);
    assert_eq!(frames.iter().map(|frame| frame.head.first_seq).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(all(&store.outbox, 4), second.frames);
    assert_eq!(all(&store.outbox, 6), []);
}

#[test]
fn stale_group_is_refused() {
    let store = store();
    let stale = group(&store.outbox, 1);
    commit(&store.outbox, 2);
    let error = store.outbox.commit(&stale).unwrap_err();
    assert!(matches!(error, OutboxError::Stale { .. }), "{error}");
    assert_eq!(store.outbox.end().seq, 3);
}

#[test]
fn checkpoints_are_stored_with_the_entries_they_cover() {
    let store = store();
    let key = |name: &str| ("claude-sessions".to_owned(), GenerationId(name.to_owned()));
    let mut one = group(&store.outbox, 1);
    one.checkpoints.insert(key("a"), Some(b"row a".to_vec()));
    one.checkpoints.insert(key("b"), Some(b"row b".to_vec()));
    store.outbox.commit(&one).unwrap();
    let mut two = group(&store.outbox, 0);
    two.checkpoints.insert(key("a"), None);
    two.checkpoints.insert(("other".into(), GenerationId("c".into())), Some(b"row c".to_vec()));
    store.outbox.commit(&two).unwrap();

    let store = store.reopen(&SINKS);
    let mut rows = Vec::new();
    store.outbox.checkpoints("claude-sessions", |all| rows.extend(all)).unwrap();
    assert_eq!(rows, [(GenerationId("b".into()), b"row b".to_vec())]);
    let row = store.outbox.checkpoint("other", &GenerationId("c".into())).unwrap();
    assert_eq!(row.as_deref(), Some(b"row c".as_slice()));
    assert_eq!(store.outbox.checkpoint("other", &GenerationId("b".into())).unwrap(), None);
}

#[test]
fn acknowledged_entries_are_deleted_in_whole_blocks() {
    let store = store();
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 3);
    let full = store.outbox.stored_bytes();
    // In the middle of the first block: the block stays, and reading starts within it.
    let middle = ChainPoint { seq: 2, hash: Digest::of(b"middle") };
    store.outbox.acknowledge("siem", "epoch-1", middle).unwrap();
    assert_eq!(store.outbox.stored_bytes(), full);
    assert_eq!(store.outbox.cursor("siem").unwrap().acknowledged, middle);
    assert_eq!(all(&store.outbox, 3).len(), 2);

    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    assert_eq!(all(&store.outbox, 1), second.frames);
    assert!(store.outbox.stored_bytes() < full);
    store.outbox.acknowledge("siem", "epoch-1", point(&second)).unwrap();
    assert_eq!(all(&store.outbox, 1), []);
    assert_eq!(store.outbox.stored_bytes(), 0);
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.cursor("siem").unwrap().acknowledged, point(&second));
}

#[cfg(unix)]
#[test]
fn store_file_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = store();
    let metadata = std::fs::metadata(store.folder.path().join("outbox.redb")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn large_groups_are_split_into_blocks_of_limited_size() {
    let store = store();
    let mut builder =
        GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
    let large = "x".repeat(300_000);
    for _ in 0..12 {
        builder.add_event(
            &Event::info("test", serde_json::json!({ "large": large })),
            &mut [],
            Timestamp(1),
        );
    }
    let group = builder.finish(Timestamp(1));
    assert!(
        block::runs(&group.frames)
            .all(|run| block::encode(run).len() <= block::MAX_BLOCK_BYTES + 4)
    );
    assert_eq!(block::runs(&group.frames).map(<[Frame]>::len).sum::<usize>(), 12);
    store.outbox.commit(&group).unwrap();
    assert_eq!(all(&store.outbox, 1), group.frames);
    assert_eq!(all(&store.outbox, 11), group.frames[10..]);
}

#[test]
fn urgent_event_moves_the_urgent_sequence_number() {
    let store = store();
    commit(&store.outbox, 1);
    assert_eq!(store.outbox.watch().borrow().urgent_seq, 0);
    let mut builder =
        GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Zstd);
    let mut event = Event::info("test", serde_json::json!({}));
    event.severity = "high";
    builder.add_event(&event, &mut [], Timestamp(1));
    store.outbox.commit(&builder.finish(Timestamp(1))).unwrap();
    let head = *store.outbox.watch().borrow();
    assert_eq!((head.last_seq, head.urgent_seq, head.due_seq), (2, 2, 0));
    let store = store.reopen(&SINKS);
    let head = *store.outbox.watch().borrow();
    assert_eq!((head.last_seq, head.urgent_seq, head.due_seq), (2, 2, 0));
}

#[test]
fn size_of_the_last_group_is_unknown_after_opening() {
    let store = store();
    let last_group = |store: &TestStore| store.outbox.watch().borrow().last_group;
    commit(&store.outbox, 3);
    commit(&store.outbox, 2);
    store.outbox.persist_acks().unwrap();
    let group = last_group(&store);
    assert_eq!(group.after_seq, 3);
    assert!((1..4096).contains(&group.bytes), "{group:?}");
    let store = store.reopen(&SINKS);
    assert_eq!(last_group(&store), LastGroup { after_seq: 0, bytes: u64::MAX });
}

#[test]
fn dead_letters_after_a_cursor_are_listed() {
    let store = store();
    commit(&store.outbox, 5);
    store_letter(&store.outbox, "epoch-1", 3);
    store_letter(&store.outbox, "epoch-0", 4);
    let dead = |seq| store.outbox.dead_letters_after("siem", "epoch-1", seq).unwrap();
    assert_eq!(dead(0), [siem_protocol::DeadLettered { seq: 3, line_sha256: Digest::of(b"x") }]);
    assert_eq!(dead(3), []);
    assert_eq!(store.outbox.dead_letters_after("archive", "epoch-1", 0).unwrap(), []);
}

/// Regression: the key had no epoch, and a dead letter was overwritten by one of the next epoch.
#[test]
fn dead_letters_of_two_epochs_coexist() {
    let store = store();
    let one = store_letter(&store.outbox, "epoch-1", 3);
    let other = store_letter(&store.outbox, "epoch-2", 3);
    let ids = |outbox: &Outbox| {
        outbox.dead_letters().unwrap().into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&store.outbox), [one.clone(), other.clone()]);
    store.outbox.remove_dead_letter(&one).unwrap();
    assert_eq!(ids(&store.outbox), [other]);
    assert_eq!(store.outbox.dead_letters().unwrap()[0].1.line().unwrap(), b"x");
}

#[test]
fn newer_schema_is_refused_and_left_unchanged() {
    let store = store();
    commit(&store.outbox, 2);
    let TestStore { outbox, folder } = store;
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let newer = br#"{"schema":4,"new":1}"#.as_slice();
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert(STATE, newer).unwrap();
        meta.insert(STATE_CHECKSUM, checksum::state_checksum(newer).as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let error = open(&path, &["another"]).err().unwrap();
    assert!(matches!(error, OutboxError::Newer { found: 4, .. }), "{error}");
    let database = Database::open(&path).unwrap();
    let cursors = database.begin_read().unwrap().open_table(CURSORS).unwrap();
    assert!(cursors.get("siem").unwrap().is_some());
}

/// The file is the store of an agent whose receiver was unreachable, with one dead letter. A newer
/// agent must migrate it without loss.
#[test]
fn schema_1_store_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let stored = include_bytes!("../../../tests/stores/schema-1.redb.zst");
    std::fs::write(&path, zstd::decode_all(stored.as_slice()).unwrap()).unwrap();
    let epoch = "01a200de-5eaf-757e-8d6a-c8fe07c642ac";
    let opened =
        Outbox::open_or_recover(&path, &registrations(&SINKS), || "new".into(), Timestamp(1))
            .unwrap();
    let (outbox, found) = opened;
    assert!(matches!(found, OpenOutcome::Intact), "{found:?}");
    assert_eq!(outbox.epoch(), epoch);
    assert_eq!(outbox.cursor("siem").unwrap().acknowledged.seq, 6);
    let frames = all(&outbox, 7);
    let (lines, chain) = entries(&frames, frames[0].head.before);
    assert_eq!((lines.len(), frames[0].head.first_seq), (137, 7));
    let end = outbox.end();
    assert_eq!((end.seq, end.chain), (144, chain));
    let dead = outbox.dead_letters().unwrap();
    assert_eq!(dead.iter().map(|(id, _)| id.seq).collect::<Vec<_>>(), [4]);
    let mut files = 0;
    outbox.checkpoints("claude-sessions", |rows| files = rows.count()).unwrap();
    assert_eq!(files, 8);
    // The totals of schema 1 cannot be converted: they start again behind its entries.
    assert_eq!(end.totals, Totals { uncounted: 143, ..Totals::default() });
    commit(&outbox, 2);
    drop(outbox);
    let outbox = open(&path, &SINKS).unwrap();
    assert_eq!((outbox.end().seq, outbox.end().totals.entries()), (146, 145));
}

/// Rows of schema 2 have no checksums; opening the store adds them.
#[test]
fn schema_2_store_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let stored = include_bytes!("../../../tests/stores/schema-2.redb.zst");
    std::fs::write(&path, zstd::decode_all(stored.as_slice()).unwrap()).unwrap();
    for _ in 0..2 {
        let sinks = registrations(&["archive", "siem"]);
        let opened = Outbox::open_or_recover(&path, &sinks, || "new".into(), Timestamp(1));
        let (outbox, found) = opened.unwrap();
        assert!(matches!(found, OpenOutcome::Intact), "{found:?}");
        assert_eq!(outbox.epoch(), "01a200de-5eaf-757e-8d6a-c8fe07c642ad");
        assert_eq!(outbox.cursor("siem").unwrap().acknowledged.seq, 5);
        assert_eq!(outbox.cursor("archive").unwrap().acknowledged.seq, 10);
        let (lines, chain) =
            entries(&all(&outbox, 6), outbox.cursor("siem").unwrap().acknowledged.hash);
        assert_eq!((lines.len(), chain), (15, outbox.end().chain));
        let dead: Vec<_> = outbox.dead_letters().unwrap().iter().map(|(id, _)| id.seq).collect();
        assert_eq!(dead, [2, 4, 9]);
        let mut rows = 0;
        outbox.checkpoints("claude-sessions", |all| rows = all.count()).unwrap();
        assert_eq!((rows, outbox.dropped_parts().unwrap().len()), (11, 1));
        let mut sum = Share::default();
        outbox.accounts().unwrap().iter().for_each(|(_, share)| sum += *share);
        assert_eq!(sum, Share::from(&outbox.end().totals));
    }
}

/// Regression: a receiver that refuses everything caused ten more dead letters after each restart.
#[test]
fn consecutive_refusals_are_counted_across_restarts() {
    let store = store();
    let one = commit(&store.outbox, 5);
    store_letter(&store.outbox, "epoch-1", 1);
    store_letter(&store.outbox, "epoch-1", 2);
    // Replacing a dead letter does not count as another refusal.
    store_letter(&store.outbox, "epoch-1", 2);
    let store = store.reopen(&SINKS);
    let refusals = || store.outbox.cursor("siem").unwrap().refusals;
    assert_eq!(refusals(), 2);
    store.outbox.advance("siem", "epoch-1", point(&one), 2);
    assert_eq!(refusals(), 2, "a batch that only reports dead letters is not a delivery");
    let now = Timestamp(10_000_000);
    store.outbox.renumber("epoch-1", "epoch-2".into(), now).unwrap();
    assert_eq!(refusals(), 2);
    let two = commit(&store.outbox, 1);
    store.outbox.acknowledge("siem", "epoch-2", point(&two)).unwrap();
    assert_eq!(refusals(), 0);
}

#[test]
fn byte_accounts_add_up_to_the_totals() {
    let store = store();
    let key = |name: &str| ("claude-sessions".to_owned(), GenerationId(name.to_owned()));
    let share = |bytes| Share { shipped: Count::line(bytes), endings: 1, ..Share::default() };
    let add = |shares: &[(&str, Share)], ended: &[&str]| {
        let mut one = group(&store.outbox, 1);
        for (name, share) in shares {
            one.shares.insert(GenerationId((*name).to_owned()), *share);
            one.checkpoints.insert(key(name), Some(b"row".to_vec()));
            share.add_to(&mut one.totals);
        }
        one.checkpoints.extend(ended.iter().map(|name| (key(name), None)));
        store.outbox.commit(&one).unwrap();
    };
    add(&[("a", share(10)), ("b", share(20))], &[]);
    add(&[("a", share(5)), ("c", share(7))], &["b"]);
    add(&[("c", share(1))], &["a", "c", "never seen"]);
    add(&[("d", share(100))], &[]);
    let accounts = store.outbox.accounts().unwrap();
    let names: Vec<_> = accounts.iter().map(|(name, _)| name.as_ref().map(|n| &*n.0)).collect();
    assert_eq!(names, [None, Some("d")]);
    assert_eq!(accounts[0].1.sent(), Count { lines: 5, bytes: 48 });
    let mut sum = Share::default();
    accounts.iter().for_each(|(_, share)| sum += *share);
    assert_eq!(sum, Share::from(&store.outbox.end().totals));
}

/// Opening a store verifies every page. `AI_AGENT_STORE_MIB` sets the size; the duration is printed.
#[test]
fn large_store_opens_intact() {
    let mebibytes = std::env::var("AI_AGENT_STORE_MIB").map_or(32, |size| size.parse().unwrap());
    let store = store();
    let mut random = fastrand::Rng::with_seed(1);
    while store.outbox.stored_bytes() < mebibytes << 20 {
        let mut builder =
            GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
        for _ in 0..4 {
            let large: String = (0..240_000).map(|_| random.alphanumeric()).collect();
            builder.add_event(
                &Event::info("test", serde_json::json!({ "x": large })),
                &mut [],
                Timestamp(1),
            );
        }
        store.outbox.commit(&builder.finish(Timestamp(1))).unwrap();
    }
    let end = store.outbox.end();
    let started = std::time::Instant::now();
    let store = store.reopen(&SINKS);
    eprintln!("opened in {:?}", started.elapsed());
    assert_eq!(store.outbox.end(), end);
}

#[test]
fn garbage_file_is_an_error_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    std::fs::write(&path, b"not a store").unwrap();
    let error = open(&path, &SINKS).err().unwrap();
    assert!(error.to_string().starts_with("cannot open the outbox"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"not a store");
}

pub(super) fn store_letter(outbox: &Outbox, epoch: &str, seq: u64) -> DeadLetterId {
    let id = DeadLetterId { sink: "siem".into(), epoch: epoch.into(), seq };
    let at = "2026-11-21T20:00:00.000Z".to_owned();
    outbox
        .store_dead_letter(&id, &DeadLetter::new(b"x", Digest::ZERO, 422, "no".into(), at))
        .unwrap();
    id
}

/// Returns the lines of all entries without their sequence numbers, and the chain over the lines
/// with them.
fn entries(frames: &[Frame], before: Digest) -> (Vec<String>, Digest) {
    let mut chain = before;
    let mut lines = Vec::new();
    for frame in frames {
        assert_eq!(frame.head.before, chain);
        for line in frame.decode().unwrap().split(|byte| *byte == b'\n').filter(|l| !l.is_empty()) {
            chain = chain.chain(Digest::of(line));
            let line = std::str::from_utf8(line).unwrap();
            lines.push(line.split_once(',').unwrap().1.to_owned());
        }
        assert_eq!(frame.head.after, chain);
    }
    (lines, chain)
}

/// Regression: redb refuses every write on a handle that has failed once, so a disk that was full
/// for a moment stopped the agent until its next start.
#[test]
fn commits_continue_after_a_disk_error() {
    let disk = simulated_disk::SimulatedDisk::new(1);
    let backend = disk.clone();
    let opener = move || Ok((builder().create_with_backend(backend.clone())?, None));
    let outbox =
        Outbox::open_with(Path::new("memory"), Box::new(opener), &registrations(&SINKS), || {
            "e".into()
        });
    let outbox = outbox.unwrap();
    commit(&outbox, 2);
    disk.fail(u64::MAX);
    let lost = group(&outbox, 3);
    assert!(outbox.commit(&lost).is_err());
    assert!(outbox.commit(&lost).is_err());
    disk.fail(0);
    // The reopened store shows whether the failed group is in it.
    assert!(outbox.cursor("siem").is_ok());
    let end = outbox.end().seq;
    commit(&outbox, 1);
    assert_eq!(outbox.end().seq, end + 1);
    let frames = all(&outbox, 1);
    assert_eq!(frames.iter().map(|frame| frame.head.count).sum::<u64>(), end);
}

/// Regression: each acknowledgement was synced separately, which doubled the cost of a live record.
#[test]
fn acknowledgement_is_stored_with_the_next_commit() {
    let store = store();
    let first = commit(&store.outbox, 3);
    assert!(!store.outbox.advance("siem", "epoch-1", point(&first), 0));
    assert!(
        store.outbox.advance("siem", "epoch-1", point(&first), 0),
        "an earlier acknowledgement is pending"
    );
    assert_eq!(store.outbox.cursor("siem").unwrap().acknowledged, point(&first));
    assert!(store.outbox.stored_bytes() > 0, "nothing is written yet");
    let second = commit(&store.outbox, 2);
    assert!(store.outbox.pending_acks().is_empty());
    let only: Vec<_> = store.outbox.frames(1, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(only[0].head.first_seq, 4, "acknowledged entries are deleted");
    assert!(
        !store.outbox.advance("siem", "epoch-1", point(&second), 0),
        "the commit stored the earlier one"
    );
    let store = store.reopen(&SINKS);
    let cursor = store.outbox.cursor("siem").unwrap();
    assert_eq!(cursor.acknowledged, point(&first), "the second acknowledgement was not stored");
    store.outbox.advance("siem", "epoch-1", point(&second), 0);
    store.outbox.persist_acks().unwrap();
    assert_eq!(store.outbox.stored_bytes(), 0);
}
