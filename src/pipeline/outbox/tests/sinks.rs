//! Several sinks: where each is, and what they hold.

use super::*;
use crate::config::Start;

#[test]
fn entries_wait_for_the_slowest_sink() {
    let store = store().reopen(&["siem", "archive"]);
    let group = commit(&store.outbox, 3);
    assert_eq!(store.outbox.slowest_sink().unwrap(), None);
    store.outbox.acknowledge("siem", "epoch-1", point(&group)).unwrap();
    assert_eq!(store.outbox.slowest_sink().unwrap().as_deref(), Some("archive"));
    assert_eq!(all(&store.outbox, 1).len(), 1);
    store.outbox.acknowledge("archive", "epoch-1", point(&group)).unwrap();
    assert_eq!(all(&store.outbox, 1), []);
}

/// Whoever left a sink out by mistake lost what it had not taken, at the next start.
#[test]
fn a_sink_that_is_removed_holds_what_it_has_not_taken_until_it_is_forgotten() {
    let store = store().reopen(&["siem", "archive"]);
    let first = commit(&store.outbox, 2);
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    store.outbox.acknowledge("archive", "epoch-1", point(&first)).unwrap();
    let second = commit(&store.outbox, 3);
    store.outbox.acknowledge("siem", "epoch-1", point(&second)).unwrap();
    let store = store.reopen(&SINKS).reopen(&SINKS);
    let archive = OrphanedSink { name: "archive".into(), acknowledged: 2, undelivered: 3 };
    assert_eq!(store.outbox.orphaned_sinks().unwrap(), [archive]);
    assert_eq!(all(&store.outbox, 1), second.frames);
    // Back again it goes on where it was, as if nothing had been.
    let store = store.reopen(&["siem", "archive"]);
    let cursor = store.outbox.cursor("archive").unwrap();
    assert_eq!((cursor.acknowledged, cursor.base), (point(&first), None));
    let store = store.reopen(&SINKS);

    let told = group(&store.outbox, 1);
    store.outbox.forget_sink("archive", &told).unwrap();
    assert_eq!(all(&store.outbox, 1), told.frames);
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.orphaned_sinks().unwrap(), []);
    assert_eq!(all(&store.outbox, 1), told.frames);
}

/// Somebody forgot the old name before the agent had run with the new one.
#[test]
fn forgetting_the_only_sink_keeps_everything_for_the_next() {
    let store = store();
    let entries = commit(&store.outbox, 3);
    let told = group(&store.outbox, 1);
    store.outbox.forget_sink("siem", &told).unwrap();
    let store = store.reopen(&["main"]);
    assert_eq!(all(&store.outbox, 1), [entries.frames, told.frames].concat());
    assert_eq!(store.outbox.cursor("main").unwrap().acknowledged.seq, 0);
}

#[test]
fn a_sink_that_is_added_later_begins_at_the_oldest_entry_or_now() {
    let store = store();
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 2);
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    let Store { outbox, folder } = store;
    drop(outbox);
    let register_sinks = |name: &str, start| SinkRegistration {
        name: name.into(),
        start,
        ..SinkRegistration::default()
    };
    let sinks = [
        register_sinks("siem", Start::Now),
        register_sinks("archive", Start::Oldest),
        register_sinks("live", Start::Now),
    ];
    let path = folder.path().join("outbox.redb");
    let outbox = Outbox::open(&path, &sinks, || "epoch-1".into()).unwrap();
    for (sink, begin) in [("archive", point(&first)), ("live", point(&second))] {
        let cursor = outbox.cursor(sink).unwrap();
        assert_eq!((cursor.acknowledged, cursor.base), (begin, Some(begin)), "{sink}");
        // Its first acknowledgement ends the base; a sink that begins at 1 never has one.
        outbox.acknowledge(sink, "epoch-1", begin).unwrap();
        assert_eq!(outbox.cursor(sink).unwrap().base, None);
    }
    let siem = outbox.cursor("siem").unwrap();
    assert_eq!((siem.acknowledged, siem.base), (point(&first), None), "it was there before");
    assert_eq!(all(&outbox, 1), second.frames);
}

/// A sink's new receiver saw a gap from 1 on: nobody told it where the numbers begin.
#[test]
fn a_sink_that_moves_to_another_receiver_says_where_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let open = |destination: &str| {
        let register_sinks = SinkRegistration {
            name: "siem".into(),
            destination: Some(destination.to_owned()),
            ..SinkRegistration::default()
        };
        Outbox::open(&path, &[register_sinks], || "epoch-1".into()).unwrap()
    };
    let outbox = open("https://one");
    let group = commit(&outbox, 3);
    outbox.acknowledge("siem", "epoch-1", point(&group)).unwrap();
    drop(outbox);
    assert_eq!(open("https://one").cursor("siem").unwrap().base, None);
    assert_eq!(open("https://two").cursor("siem").unwrap().base, Some(point(&group)));
    // Until its first acknowledgement, over restarts.
    let outbox = open("https://two");
    assert_eq!(outbox.cursor("siem").unwrap().base, Some(point(&group)));
    let next = commit(&outbox, 1);
    outbox.acknowledge("siem", "epoch-1", point(&next)).unwrap();
    assert_eq!(outbox.cursor("siem").unwrap().base, None);
}
