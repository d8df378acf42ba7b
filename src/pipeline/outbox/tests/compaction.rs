//! Compaction: the file of the store becomes smaller.

use super::*;

/// Stores a group with an entry of 1 MiB. Returns its end.
fn commit_large(outbox: &Outbox) -> ChainPoint {
    let mut builder = GroupBuilder::new(outbox.end(), Digest::ZERO, shipping(1000), Codec::Plain);
    let event = Event::info("test", serde_json::json!({ "x": "x".repeat(1 << 20) }));
    builder.add_event(&event, &mut [], Timestamp(1));
    let group = builder.finish(Timestamp(1));
    outbox.commit(&group).unwrap();
    point(&group)
}

/// Regression: under a steady load the file kept its largest size.
#[test]
fn file_is_compacted_under_a_steady_load() {
    let store = store();
    let path = store.folder.path().join("outbox.redb");
    let size = || std::fs::metadata(&path).unwrap().len();
    let mut points = Vec::new();
    let mut fill = || {
        for _ in 0..50 {
            points.push(commit_large(&store.outbox));
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
    assert_eq!(size(), again, "the interval has not passed");
    store.outbox.shrink(Duration::from_secs(3600)).unwrap();
    assert!(size() < again / 2, "{}", size());
}

/// Regression: after an outage of the receiver the disk stayed full, although everything was
/// delivered.
#[test]
fn file_is_compacted_after_a_backlog_has_drained() {
    let store = store();
    let path = store.folder.path().join("outbox.redb");
    let size = || std::fs::metadata(&path).unwrap().len();
    let last = (0..40).map(|_| commit_large(&store.outbox)).last().unwrap();
    let full = size();
    assert!(full > 40 << 20, "{full}");
    store.outbox.acknowledge("siem", "epoch-1", last).unwrap();
    store.outbox.shrink(Duration::ZERO).unwrap();
    assert!(size() < 4 << 20, "{}", size());
    commit(&store.outbox, 3);
    let store = store.reopen(&SINKS);
    assert_eq!(all(&store.outbox, 41).iter().map(|frame| frame.head.count).sum::<u64>(), 3);
}

/// Regression: compaction failed while a batch was read, the read too, and the file kept its size.
#[test]
fn compaction_waits_for_a_snapshot_that_is_read() {
    let store = store();
    let outbox = &store.outbox;
    commit(outbox, 3);
    let snapshot = outbox.snapshot().unwrap();
    std::thread::scope(|threads| {
        let compaction = threads.spawn(|| outbox.compact());
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while outbox.database.try_read().is_ok() && !compaction.is_finished() {
            assert!(std::time::Instant::now() < deadline, "the compaction has not begun");
            std::thread::yield_now();
        }
        let read = snapshot.frames(1, |_| ControlFlow::Continue(()));
        assert_eq!(read.unwrap().iter().map(|frame| frame.head.count).sum::<u64>(), 3);
        drop(snapshot);
        compaction.join().unwrap().unwrap();
    });
    assert!(outbox.snapshot_now().is_some());
}
