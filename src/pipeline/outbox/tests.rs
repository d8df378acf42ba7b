mod sinks;

use std::{ops::ControlFlow, time::Duration};

use redb::ReadableDatabase as _;
use siem_protocol::ChainPoint;

use super::*;
use crate::{
    config::Shipping,
    event::Event,
    frame::Codec,
    pipeline::{
        accounting::{Count, Share},
        group_builder::GroupBuilder,
    },
    platform::Timestamp,
    tail::GenerationId,
};

pub(super) const SINKS: [&str; 1] = ["siem"];

pub(super) struct Store {
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

pub(super) fn store() -> Store {
    let folder = tempfile::tempdir().unwrap();
    let outbox = open(&folder.path().join("outbox.redb"), &SINKS).unwrap();
    Store { outbox, folder }
}

impl Store {
    fn reopen(self, sinks: &[&str]) -> Self {
        let Self { outbox, folder } = self;
        drop(outbox);
        let outbox = open(&folder.path().join("outbox.redb"), sinks).unwrap();
        Self { outbox, folder }
    }
}

fn shipping(batch_size: usize) -> Shipping {
    Shipping { batch_size, ..Shipping::default() }
}

/// A group of `count` events that begins where `outbox` ends.
pub(super) fn group(outbox: &Outbox, count: usize) -> Group {
    let mut builder = GroupBuilder::new(outbox.end(), Digest::ZERO, shipping(1000), Codec::Zstd);
    for n in 0..count {
        builder.add_event(&Event::info("test", serde_json::json!({ "n": n })), Timestamp(1));
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
fn numbers_begin_at_one_and_go_on_over_a_restart() {
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
fn a_group_that_does_not_begin_at_the_end_is_refused() {
    let store = store();
    let stale = group(&store.outbox, 1);
    commit(&store.outbox, 2);
    let error = store.outbox.commit(&stale).unwrap_err();
    assert!(matches!(error, OutboxError::Stale { found: 1, expected: 3 }), "{error}");
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
fn what_is_acknowledged_leaves_whole_values() {
    let store = store();
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 3);
    let full = store.outbox.stored_bytes();
    // In the middle of the first value: it stays, and reading begins in it.
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
fn the_store_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let store = store();
    let metadata = std::fs::metadata(store.folder.path().join("outbox.redb")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn large_groups_are_cut_into_values_that_fit() {
    let store = store();
    let mut builder =
        GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
    let large = "x".repeat(300_000);
    for _ in 0..12 {
        builder
            .add_event(&Event::info("test", serde_json::json!({ "large": large })), Timestamp(1));
    }
    let group = builder.finish(Timestamp(1));
    assert!(
        block::runs(&group.frames).all(|run| block::encode(run).len() <= block::MAX_STORED + 4)
    );
    assert_eq!(block::runs(&group.frames).map(<[Frame]>::len).sum::<usize>(), 12);
    store.outbox.commit(&group).unwrap();
    assert_eq!(all(&store.outbox, 1), group.frames);
    assert_eq!(all(&store.outbox, 11), group.frames[10..]);
}

#[test]
fn an_urgent_event_moves_the_urgent_number() {
    let store = store();
    commit(&store.outbox, 1);
    assert_eq!(store.outbox.watch().borrow().urgent_seq, 0);
    let mut builder =
        GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Zstd);
    let event = Event { severity: "high", ..Event::info("test", serde_json::json!({})) };
    builder.add_event(&event, Timestamp(1));
    store.outbox.commit(&builder.finish(Timestamp(1))).unwrap();
    assert_eq!(
        *store.outbox.watch().borrow(),
        Head { last_seq: 2, urgent_seq: 2, renumbered_at: Timestamp(0) }
    );
    let store = store.reopen(&SINKS);
    assert_eq!(
        *store.outbox.watch().borrow(),
        Head { last_seq: 2, urgent_seq: 2, renumbered_at: Timestamp(0) }
    );
}

#[test]
fn dead_letters_are_named_until_they_are_passed() {
    let store = store();
    commit(&store.outbox, 5);
    store_dead_letter(&store.outbox, "epoch-1", 3);
    store_dead_letter(&store.outbox, "epoch-0", 4);
    let dead = |seq| store.outbox.dead_letters_after("siem", "epoch-1", seq).unwrap();
    assert_eq!(dead(0), [siem_protocol::DeadLettered { seq: 3, line_sha256: Digest::of(b"x") }]);
    assert_eq!(dead(3), []);
    assert_eq!(store.outbox.dead_letters_after("archive", "epoch-1", 0).unwrap(), []);
}

/// Keyed by its number alone, a dead letter was written over by that of the next epoch.
#[test]
fn dead_letters_of_two_epochs_stand_side_by_side() {
    let store = store();
    let one = store_dead_letter(&store.outbox, "epoch-1", 3);
    let other = store_dead_letter(&store.outbox, "epoch-2", 3);
    let ids = |outbox: &Outbox| {
        outbox.dead_letters().unwrap().into_iter().map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&store.outbox), [one.clone(), other.clone()]);
    store.outbox.remove_dead_letter(&one).unwrap();
    assert_eq!(ids(&store.outbox), [other]);
    assert_eq!(store.outbox.dead_letters().unwrap()[0].1.line().unwrap(), b"x");
}

#[test]
fn a_store_of_a_newer_agent_is_refused_untouched() {
    let store = store();
    commit(&store.outbox, 2);
    let Store { outbox, folder } = store;
    drop(outbox);
    let path = folder.path().join("outbox.redb");
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let newer = br#"{"schema":4,"new":1}"#.as_slice();
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert(STATE, newer).unwrap();
        meta.insert(checksum::SEAL, checksum::seal_of_state(newer).as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let error = open(&path, &["another"]).err().unwrap();
    assert!(matches!(error, OutboxError::Newer { found: 4, .. }), "{error}");
    let database = Database::open(&path).unwrap();
    let cursors = database.begin_read().unwrap().open_table(CURSORS).unwrap();
    assert!(cursors.get("siem").unwrap().is_some());
}

/// The store of an agent that could not deliver any more, with one dead letter: nothing of it may
/// be lost when a newer agent takes it over.
#[test]
fn a_store_of_schema_1_is_taken_over() {
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
    // Its totals counted otherwise: they begin anew behind what it holds.
    assert_eq!(end.totals, Totals { uncounted: 143, ..Totals::default() });
    commit(&outbox, 2);
    drop(outbox);
    let outbox = open(&path, &SINKS).unwrap();
    assert_eq!((outbox.end().seq, outbox.end().totals.entries()), (146, 145));
}

/// As it was before rows had checksums: each is under one from then on.
#[test]
fn a_store_of_schema_2_is_taken_over() {
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

/// A receiver that refuses everything got ten more dead letters after each restart.
#[test]
fn refusals_in_a_row_are_counted_over_a_restart() {
    let store = store();
    let one = commit(&store.outbox, 5);
    store_dead_letter(&store.outbox, "epoch-1", 1);
    store_dead_letter(&store.outbox, "epoch-1", 2);
    // What is new about one is no other refusal.
    store_dead_letter(&store.outbox, "epoch-1", 2);
    let store = store.reopen(&SINKS);
    let refusals = || store.outbox.cursor("siem").unwrap().refusals;
    assert_eq!(refusals(), 2);
    store.outbox.advance("siem", "epoch-1", point(&one), 2);
    assert_eq!(refusals(), 2, "a batch that only named them shows nothing");
    let now = Timestamp(10_000_000);
    store.outbox.renumber("epoch-1", "epoch-2".into(), now).unwrap();
    assert_eq!(refusals(), 2);
    let two = commit(&store.outbox, 1);
    store.outbox.acknowledge("siem", "epoch-2", point(&two)).unwrap();
    assert_eq!(refusals(), 0);
}

/// Under a steady flow the file stayed as large as it had ever been.
#[test]
fn the_file_is_smaller_though_something_is_always_under_way() {
    let store = store();
    let path = store.folder.path().join("outbox.redb");
    let size = || std::fs::metadata(&path).unwrap().len();
    let mut points = Vec::new();
    let mut fill = || {
        for _ in 0..50 {
            let mut builder =
                GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
            let large = "x".repeat(1 << 20);
            builder
                .add_event(&Event::info("test", serde_json::json!({ "x": large })), Timestamp(1));
            let one = builder.finish(Timestamp(1));
            store.outbox.commit(&one).unwrap();
            points.push(point(&one));
        }
        store.outbox.acknowledge("siem", "epoch-1", points[points.len() - 4]).unwrap();
    };
    fill();
    let full = size();
    assert!(full > 64 << 20, "{full}");
    store.outbox.shrink(Duration::ZERO).unwrap();
    assert!(size() < 16 << 20, "{}", size());
    assert_eq!(all(&store.outbox, 48).len(), 3);
    fill();
    let again = size();
    store.outbox.shrink(Duration::from_secs(3599)).unwrap();
    assert_eq!(size(), again, "nobody may wait for it all the time");
    store.outbox.shrink(Duration::from_secs(3600)).unwrap();
    assert!(size() < again / 2, "{}", size());
}

#[test]
fn the_accounts_of_files_add_up_to_the_totals_and_those_of_gone_files_are_folded() {
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

/// The disk stayed full after a weekend without a receiver, though everything was delivered.
#[test]
fn the_file_is_small_again_after_a_backlog_has_drained() {
    let store = store();
    let path = store.folder.path().join("outbox.redb");
    let size = || std::fs::metadata(&path).unwrap().len();
    let mut last = group(&store.outbox, 1);
    for _ in 0..40 {
        let mut builder =
            GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
        let large = "x".repeat(1 << 20);
        builder.add_event(&Event::info("test", serde_json::json!({ "x": large })), Timestamp(1));
        last = builder.finish(Timestamp(1));
        store.outbox.commit(&last).unwrap();
    }
    let full = size();
    assert!(full > 40 << 20, "{full}");
    store.outbox.acknowledge("siem", "epoch-1", point(&last)).unwrap();
    store.outbox.shrink(Duration::ZERO).unwrap();
    assert!(size() < 4 << 20, "{}", size());
    commit(&store.outbox, 3);
    let store = store.reopen(&SINKS);
    assert_eq!(all(&store.outbox, 41).iter().map(|frame| frame.head.count).sum::<u64>(), 3);
}

/// A store that holds much, up to its cap of 1 GiB in a full run, is checked page by page as it is
/// opened. How long that takes is printed, for whoever wants to know.
#[test]
fn a_store_with_much_in_it_opens_whole() {
    let mebibytes = std::env::var("AI_AGENT_STORE_MIB").map_or(32, |size| size.parse().unwrap());
    let store = store();
    let mut random = fastrand::Rng::with_seed(1);
    while store.outbox.stored_bytes() < mebibytes << 20 {
        let mut builder =
            GroupBuilder::new(store.outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
        for _ in 0..4 {
            let large: String = (0..240_000).map(|_| random.alphanumeric()).collect();
            builder
                .add_event(&Event::info("test", serde_json::json!({ "x": large })), Timestamp(1));
        }
        store.outbox.commit(&builder.finish(Timestamp(1))).unwrap();
    }
    let end = store.outbox.end();
    let begun = std::time::Instant::now();
    let store = store.reopen(&SINKS);
    eprintln!("opened in {:?}", begun.elapsed());
    assert_eq!(store.outbox.end(), end);
}

#[test]
fn garbage_is_an_error_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    std::fs::write(&path, b"this is no store").unwrap();
    let error = open(&path, &SINKS).err().unwrap();
    assert!(error.to_string().starts_with("cannot open the outbox"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"this is no store");
}

pub(super) fn store_dead_letter(outbox: &Outbox, epoch: &str, seq: u64) -> DeadLetterId {
    let id = DeadLetterId { sink: "siem".into(), epoch: epoch.into(), seq };
    let at = "2026-11-21T20:00:00.000Z".to_owned();
    outbox
        .store_dead_letter(&id, &DeadLetter::new(b"x", Digest::ZERO, 422, "no".into(), at))
        .unwrap();
    id
}

/// The lines of all entries, without their numbers, and the chain over them with their numbers.
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

#[test]
fn a_new_epoch_numbers_what_is_left_from_one() {
    let store = store().reopen(&["siem", "archive"]);
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 4);
    store.outbox.acknowledge("archive", "epoch-1", point(&second)).unwrap();
    let two = ChainPoint { seq: 2, hash: Digest::of(b"anything") };
    store.outbox.acknowledge("siem", "epoch-1", two).unwrap();
    // One that a header has named, one that none has.
    store_dead_letter(&store.outbox, "epoch-1", 1);
    store_dead_letter(&store.outbox, "epoch-1", 5);
    let (before, _) = entries(&all(&store.outbox, 1), Digest::ZERO);

    let now = Timestamp(10_000_000);
    let counted = store.outbox.state().totals.clone();
    let begun = store.outbox.renumber("epoch-1", "epoch-2".into(), now).unwrap();
    let (previous, epoch) = ("epoch-1".to_owned(), "epoch-2".to_owned());
    // What no heartbeat of the old epoch has said yet.
    let ended = (7, Box::new(counted));
    assert_eq!(begun, RenumberOutcome::Started { previous, epoch, entries: 5, ended });
    let store = store.reopen(&["siem", "archive"]);
    let frames = all(&store.outbox, 1);
    let (after, chain) = entries(&frames, Digest::ZERO);
    assert_eq!(after, before[2..]);
    assert_eq!(frames[0].head.first_seq, 1);
    let line = String::from_utf8(frames[0].decode().unwrap()).unwrap();
    assert!(line.starts_with(r#"{"seq":1,"kind":"event""#), "{line}");
    let end = store.outbox.end();
    assert_eq!((end.seq, end.chain, store.outbox.epoch()), (6, chain, "epoch-2".into()));

    let siem = store.outbox.cursor("siem").unwrap();
    assert_eq!((siem.acknowledged.seq, siem.base), (0, None));
    assert_eq!(siem.previous_epoch.as_deref(), Some("epoch-1"));
    // The other sink has all of them: it goes on behind them, and says where it begins.
    let archive = store.outbox.cursor("archive").unwrap();
    assert_eq!(archive.acknowledged, ChainPoint { seq: 5, hash: chain });
    assert_eq!(archive.base, Some(archive.acknowledged));
    assert_eq!(store.outbox.dead_letters_after("siem", "epoch-2", 0).unwrap(), []);
    let left = store.outbox.dead_letters().unwrap();
    assert_eq!(left.iter().map(|(id, _)| id.seq).collect::<Vec<_>>(), [1]);

    // What comes late from the epoch before moves nothing.
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    assert_eq!(store.outbox.cursor("siem").unwrap(), siem);
    let again = store.outbox.renumber("epoch-1", "epoch-3".into(), now).unwrap();
    assert_eq!(again, RenumberOutcome::AlreadyDone);
    let soon = Timestamp(now.0 + 3_599_999);
    let again = store.outbox.renumber("epoch-2", "epoch-3".into(), soon).unwrap();
    assert_eq!(again, RenumberOutcome::TooSoon);
    let later = Timestamp(now.0 + 3_600_000);
    let again = store.outbox.renumber("epoch-2", "epoch-3".into(), later).unwrap();
    assert!(matches!(again, RenumberOutcome::Started { entries: 5, .. }));
}

/// redb refuses every write on a handle that has seen an error: a disk that was full for a moment
/// would have stopped the agent until its next start.
#[test]
fn goes_on_after_an_error_of_the_disk() {
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
    // What is in the store now, it says by itself.
    assert!(outbox.cursor("siem").is_ok());
    let end = outbox.end().seq;
    commit(&outbox, 1);
    assert_eq!(outbox.end().seq, end + 1);
    let frames = all(&outbox, 1);
    assert_eq!(frames.iter().map(|frame| frame.head.count).sum::<u64>(), end);
}

/// A sync for each acknowledgement is what made a live record cost twice.
#[test]
fn an_acknowledgement_counts_at_once_and_is_stored_with_the_entries_that_come() {
    let store = store();
    let first = commit(&store.outbox, 3);
    assert!(!store.outbox.advance("siem", "epoch-1", point(&first), 0));
    assert!(store.outbox.advance("siem", "epoch-1", point(&first), 0), "the first one waits");
    assert_eq!(store.outbox.cursor("siem").unwrap().acknowledged, point(&first));
    assert!(store.outbox.stored_bytes() > 0, "nothing was written yet");
    let second = commit(&store.outbox, 2);
    assert!(store.outbox.pending_acks().is_empty());
    let only: Vec<_> = store.outbox.frames(1, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(only[0].head.first_seq, 4, "what every sink has is gone");
    assert!(!store.outbox.advance("siem", "epoch-1", point(&second), 0), "it went with entries");
    let store = store.reopen(&SINKS);
    let cursor = store.outbox.cursor("siem").unwrap();
    assert_eq!(cursor.acknowledged, point(&first), "the batch is sent again");
    store.outbox.advance("siem", "epoch-1", point(&second), 0);
    store.outbox.persist_acks().unwrap();
    assert_eq!(store.outbox.stored_bytes(), 0);
}
