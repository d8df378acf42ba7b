//! A new epoch in place of another: entries get new numbers, and groups of the old one are refused.

use siem_protocol::agent_event::{EpochReason, EpochStarted};

use super::*;

#[test]
fn new_epoch_renumbers_remaining_entries_from_one() {
    let store = store().reopen(&["siem", "archive"]);
    let first = commit(&store.outbox, 3);
    let second = commit(&store.outbox, 4);
    store.outbox.acknowledge("archive", "epoch-1", point(&second)).unwrap();
    let two = ChainPoint { seq: 2, hash: Digest::of(b"anything") };
    store.outbox.acknowledge("siem", "epoch-1", two).unwrap();
    // The first is reported, the second is not.
    store_letter(&store.outbox, "epoch-1", 1);
    store_letter(&store.outbox, "epoch-1", 5);
    let (before, _) = entries(&all(&store.outbox, 1), Digest::ZERO);

    let now = Timestamp(10_000_000);
    let counted = store.outbox.state().totals.clone();
    let outcome = store.outbox.renumber("epoch-1", "epoch-2".into(), now).unwrap();
    let (previous, epoch) = ("epoch-1".to_owned(), "epoch-2".to_owned());
    // Totals that no heartbeat of the old epoch has reported yet.
    let started = EpochStarted {
        epoch,
        previous_epoch: Some(previous),
        reason: EpochReason::Conflict,
        entries: Some(5),
        previous_last_seq: Some(7),
        previous_totals: Some(counted),
    };
    assert_eq!(outcome, RenumberOutcome::Started(Box::new(started.clone())));
    let store = store.reopen(&["siem", "archive"]);
    let event = AgentEvent::EpochStarted(Box::new(started)).into();
    assert_eq!(store.outbox.unreported_events(), [event], "a crash would lose the totals");
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
    // The other sink has acknowledged all entries: it continues behind them, with a base.
    let archive = store.outbox.cursor("archive").unwrap();
    assert_eq!(archive.acknowledged, ChainPoint { seq: 5, hash: chain });
    assert_eq!(archive.base, Some(archive.acknowledged));
    assert_eq!(store.outbox.dead_letters_after("siem", "epoch-2", 0).unwrap(), []);
    let left = store.outbox.dead_letters().unwrap();
    assert_eq!(left.iter().map(|(id, _)| id.seq).collect::<Vec<_>>(), [1]);

    // A late acknowledgement from the old epoch changes nothing.
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    assert_eq!(store.outbox.cursor("siem").unwrap(), siem);
    let again = store.outbox.renumber("epoch-1", "epoch-3".into(), now).unwrap();
    assert_eq!(again, RenumberOutcome::AlreadyDone);
    let soon = Timestamp(now.0 + 3_599_999);
    let again = store.outbox.renumber("epoch-2", "epoch-3".into(), soon).unwrap();
    assert_eq!(again, RenumberOutcome::TooSoon);
    let later = Timestamp(now.0 + 3_600_000);
    let again = store.outbox.renumber("epoch-2", "epoch-3".into(), later).unwrap();
    assert!(matches!(again, RenumberOutcome::Started(started) if started.entries == Some(5)));
}

/// Regression: a new epoch in which no entry is acknowledged continues at the same number. A group from
/// before was stored in it, with the totals of the epoch that had ended.
#[test]
fn group_of_the_epoch_before_is_stale() {
    let store = store();
    commit(&store.outbox, 3);
    let before = group(&store.outbox, 2);
    store.outbox.renumber("epoch-1", "epoch-2".into(), Timestamp(10_000_000)).unwrap();
    assert_eq!(store.outbox.end().seq, before.start.seq);
    let stale = store.outbox.commit(&before);
    assert!(matches!(stale, Err(OutboxError::Stale { .. })), "{stale:?}");
    assert_eq!(store.outbox.end().totals.uncounted, 3);
}

/// Otherwise its receiver would take the entries that were delivered to others for lost.
#[test]
fn sink_without_an_acknowledgement_keeps_a_base() {
    let store = store();
    let first = commit(&store.outbox, 3);
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    let store = store.reopen(&["siem", "late"]);
    let late = store.outbox.cursor("late").unwrap();
    assert_eq!(late.base, Some(late.acknowledged));
    assert!(late.acknowledged.seq > 0);
    store.outbox.renumber("epoch-1", "epoch-2".into(), Timestamp(10_000_000)).unwrap();
    let late = store.outbox.cursor("late").unwrap();
    assert_eq!(late.base, Some(ChainPoint { seq: 0, hash: Digest::ZERO }));
    assert_eq!(store.outbox.cursor("siem").unwrap().base, None);
}
