//! Several sinks: their positions, and the entries that are kept for them.

use super::*;
use crate::config::Start;

#[test]
fn entries_are_kept_for_the_slowest_sink() {
    let store = store().reopen(&["siem", "archive"]);
    let group = commit(&store.outbox, 3);
    assert_eq!(store.outbox.slowest_sink().unwrap(), None);
    store.outbox.acknowledge("siem", "epoch-1", point(&group)).unwrap();
    assert_eq!(store.outbox.slowest_sink().unwrap().as_deref(), Some("archive"));
    assert_eq!(all(&store.outbox, 1).len(), 1);
    store.outbox.acknowledge("archive", "epoch-1", point(&group)).unwrap();
    assert_eq!(all(&store.outbox, 1), []);
}

/// Regression: leaving a sink out of the configuration by mistake deleted its unacknowledged entries
/// at the next start.
#[test]
fn orphaned_sink_keeps_its_entries_until_it_is_forgotten() {
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
    // Configured again, it continues at its old position.
    let store = store.reopen(&["siem", "archive"]);
    let cursor = store.outbox.cursor("archive").unwrap();
    assert_eq!((cursor.acknowledged, cursor.base), (point(&first), None));
    let store = store.reopen(&SINKS);

    let report = group(&store.outbox, 1);
    store.outbox.forget_sink("archive", &report).unwrap();
    assert_eq!(all(&store.outbox, 1), report.frames);
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.orphaned_sinks().unwrap(), []);
    assert_eq!(all(&store.outbox, 1), report.frames);
}

/// The old name may be forgotten before the agent has run with the new one.
#[test]
fn forgetting_the_only_sink_keeps_entries_for_the_next() {
    let store = store();
    let entries = commit(&store.outbox, 3);
    let report = group(&store.outbox, 1);
    store.outbox.forget_sink("siem", &report).unwrap();
    let store = store.reopen(&["main"]);
    assert_eq!(all(&store.outbox, 1), [entries.frames, report.frames].concat());
    assert_eq!(store.outbox.cursor("main").unwrap().acknowledged.seq, 0);
}

#[test]
fn added_sink_starts_at_the_oldest_entry_or_at_the_end() {
    let store = store();
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 2);
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    let TestStore { outbox, folder } = store;
    drop(outbox);
    let registration = |name: &str, start| SinkRegistration {
        name: name.into(),
        start,
        ..SinkRegistration::default()
    };
    let sinks = [
        registration("siem", Start::Now),
        registration("archive", Start::Oldest),
        registration("live", Start::Now),
    ];
    let path = folder.path().join("outbox.redb");
    let outbox = Outbox::open(&path, &sinks, || "epoch-1".into()).unwrap();
    for (sink, start) in [("archive", point(&first)), ("live", point(&second))] {
        let cursor = outbox.cursor(sink).unwrap();
        assert_eq!((cursor.acknowledged, cursor.base), (start, Some(start)), "{sink}");
        // Its first acknowledgement clears the base; a sink that starts at 1 never has one.
        outbox.acknowledge(sink, "epoch-1", start).unwrap();
        assert_eq!(outbox.cursor(sink).unwrap().base, None);
    }
    let siem = outbox.cursor("siem").unwrap();
    assert_eq!((siem.acknowledged, siem.base), (point(&first), None), "it had a cursor before");
    assert_eq!(all(&outbox, 1), second.frames);
}

/// Regression: the new receiver of a sink saw a gap from 1, because no base was sent to it.
#[test]
fn changed_destination_sets_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("outbox.redb");
    let open = |destination: &str| {
        let registration = SinkRegistration {
            name: "siem".into(),
            destination: Some(destination.to_owned()),
            ..SinkRegistration::default()
        };
        Outbox::open(&path, &[registration], || "epoch-1".into()).unwrap()
    };
    let outbox = open("https://one");
    let group = commit(&outbox, 3);
    outbox.acknowledge("siem", "epoch-1", point(&group)).unwrap();
    drop(outbox);
    assert_eq!(open("https://one").cursor("siem").unwrap().base, None);
    assert_eq!(open("https://two").cursor("siem").unwrap().base, Some(point(&group)));
    // The base stays until the first acknowledgement, also across restarts.
    let outbox = open("https://two");
    assert_eq!(outbox.cursor("siem").unwrap().base, Some(point(&group)));
    let next = commit(&outbox, 1);
    outbox.acknowledge("siem", "epoch-1", point(&next)).unwrap();
    assert_eq!(outbox.cursor("siem").unwrap().base, None);
}
