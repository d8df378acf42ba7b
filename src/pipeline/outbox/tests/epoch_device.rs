//! The device key that the epoch belongs to.

use serde_json::json;
use siem_protocol::{
    AgentEvent,
    agent_event::{DeviceKeyReason, EpochReason, EpochStarted},
};

use super::*;

fn device(key: &str, since: u64) -> EpochDevice {
    EpochDevice { key: key.to_owned(), since: Timestamp(since) }
}

fn created(key: &str) -> AgentEvent {
    let (key, reason) = (key.to_owned(), DeviceKeyReason::Missing);
    AgentEvent::DeviceKeyCreated { key, reason, previous: None }
}

#[test]
fn assigned_key_and_its_event_survive_until_an_entry_is_stored() {
    let store = store();
    assert_eq!(store.outbox.epoch_device(), None);
    store.outbox.assign_epoch(device("a", 0), Some(created("a"))).unwrap();
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.epoch_device(), Some(device("a", 0)));
    assert_eq!(store.outbox.unreported_events(), [created("a").into()]);
    commit(&store.outbox, 0);
    assert_eq!(store.outbox.unreported_events(), [created("a").into()], "the group has no entry");
    commit(&store.outbox, 1);
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.unreported_events(), []);
    assert_eq!(store.outbox.epoch_device(), Some(device("a", 0)));
}

#[test]
fn another_key_starts_an_epoch_with_all_entries() {
    let store = store();
    store.outbox.assign_epoch(device("a", 0), None).unwrap();
    let first = commit(&store.outbox, 3);
    commit(&store.outbox, 2);
    store.outbox.acknowledge("siem", "epoch-1", point(&first)).unwrap();
    let (before, _) = entries(&all(&store.outbox, 4), point(&first).hash);
    let now = Timestamp(5);
    let start = |key: &str, epoch: &str| {
        let device = device(key, now.0);
        store.outbox.start_epoch_for_device(epoch.to_owned(), device, created(key), now)
    };
    start("b", "epoch-2").unwrap();
    let (after, chain) = entries(&all(&store.outbox, 1), Digest::ZERO);
    assert_eq!(after, before);
    assert_eq!((store.outbox.end().seq, store.outbox.end().chain), (3, chain));
    assert_eq!(store.outbox.epoch_device(), Some(device("b", 5)));
    let cursor = store.outbox.cursor("siem").unwrap();
    assert_eq!(cursor.previous_epoch.as_deref(), Some("epoch-1"));
    let events = store.outbox.unreported_events();
    assert_eq!(events[1..], [created("b").into()]);
    let Event { name, data, .. } = events[0].clone();
    assert_eq!(name, "epoch_started");
    let started: EpochStarted = serde_json::from_value(data).unwrap();
    assert_eq!((&*started.epoch, started.reason), ("epoch-2", EpochReason::DeviceKey));
    assert_eq!((started.entries, started.previous_last_seq), (Some(2), Some(5)));
    // A key may change again at once: limits are the caller's.
    start("c", "epoch-3").unwrap();
    let store = store.reopen(&SINKS);
    assert_eq!((store.outbox.epoch(), all(&store.outbox, 1).len()), ("epoch-3".to_owned(), 1));
    assert_eq!(store.outbox.unreported_events().len(), 4);
}

#[test]
fn rotated_key_is_stored_with_its_report() {
    let store = store();
    store.outbox.assign_epoch(device("a", 7), None).unwrap();
    let report = group(&store.outbox, 1);
    store.outbox.assign_epoch_with(device("b", 7), &report).unwrap();
    assert_eq!(store.outbox.end().seq, 2);
    let stale = store.outbox.assign_epoch_with(device("c", 7), &report);
    assert!(matches!(stale, Err(OutboxError::Stale { .. })));
    let store = store.reopen(&SINKS);
    assert_eq!(store.outbox.epoch_device(), Some(device("b", 7)));
}

/// An agent of release 0.1 writes the state row without these members, and ignores them.
#[test]
fn state_row_without_a_device_is_read() {
    let store = store();
    commit(&store.outbox, 2);
    let row = serde_json::to_value(&*store.outbox.state()).unwrap();
    assert_eq!((row.get("device"), row.get("unreported")), (None, None));
    let mut newer = row.clone();
    newer["device"] = json!({ "key": "a" });
    let state: rows::OutboxState = serde_json::from_value(newer).unwrap();
    assert_eq!(state.device, Some(device("a", 0)));
}
