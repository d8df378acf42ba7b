//! Tests of another configuration between two groups.

use super::*;
use crate::pipeline::group_life_cycle::GroupChange;

/// Drops every record.
struct DropsAll;

impl Filter for DropsAll {
    fn check(&mut self, _record: &Record<'_>) -> Verdict {
        Verdict::Drop("all")
    }
}

/// Filters of [`ingest_into`], with another first one; those that `same` names stay unchanged.
pub(super) fn reconfiguration(first: Box<dyn Filter>, same: &[&str]) -> Reconfiguration {
    let dedupe = filter::build("dedupe", &"".parse().unwrap()).unwrap();
    let filters = FilterChain::new(vec![("fragile".into(), first), ("dedupe".into(), dedupe)]);
    Reconfiguration {
        stages: RecordStages::new(filters, Vec::new()),
        same_filters: same.iter().map(|name| (*name).to_owned()).collect(),
        same_enrichers: Default::default(),
        sources: vec![("files".into(), None)],
        shipping: ShippingSettings::default(),
        config: Digest::of(b"next"),
        max_bytes: 1 << 30,
        heartbeat: Duration::from_secs(300),
        events: vec![Event::info("applied", json!({}))],
        applied: None,
    }
}

/// Returns the first entry that is stored under each configuration.
fn borders(outbox: &Outbox) -> Vec<(Digest, u64)> {
    let frames = outbox.frames(1, |_| std::ops::ControlFlow::Continue(())).unwrap();
    let mut borders: Vec<(Digest, u64)> =
        frames.iter().map(|frame| (frame.head.config, frame.head.first_seq)).collect();
    borders.dedup_by_key(|(config, _)| *config);
    borders
}

#[test]
fn records_are_stored_under_the_configuration_that_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("a", [r#"{"uuid":"u","n":1}"#, "a2"].as_slice())];
    let mut ingest = ingest(FixedFiles::new(&files), folder.path());
    let outbox = Arc::clone(&ingest.outbox);
    ingest.begin();
    ingest.step();
    let mut applied = ingest.inbox.reconfigure(reconfiguration(Box::new(DropsAll), &["dedupe"]));
    ingest.step();
    assert_eq!(applied.try_recv(), Ok(()));
    ingest.end();
    // `agent_started` and two records; then `applied`, the last heartbeat and `agent_stopped`.
    assert_eq!(borders(&outbox), [(Digest::ZERO, 1), (Digest::of(b"next"), 4)]);
    assert_eq!(stored(&outbox).1, ["agent_started", "applied", "heartbeat", "agent_stopped"]);
}

/// Otherwise each reload would ship records again that the client repeats.
#[test]
fn filter_with_unchanged_configuration_keeps_its_memory() {
    const LINE: &str = r#"{"uuid":"u","n":1}"#;
    for (same, shipped) in [(["dedupe"].as_slice(), 0), ([].as_slice(), 1)] {
        let folder = tempfile::tempdir().unwrap();
        let files = FixedFiles::new(&[("a", [LINE].as_slice())]);
        let origin = files.files[0].0.clone();
        let mut ingest = ingest(files, folder.path());
        let outbox = Arc::clone(&ingest.outbox);
        ingest.begin();
        // As if the line had been read before.
        ingest.stages.filters.check(&Record::new(&origin, 0, LINE.as_bytes()));
        ingest.stages.filters.on_group_change(GroupChange::Stored { all: true });
        ingest.inbox.reconfigure(reconfiguration(Box::new(PanicsOnBoom), same));
        ingest.step();
        ingest.end();
        assert_eq!(stored(&outbox).0.len(), shipped, "{same:?}");
    }
}

#[test]
fn held_file_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("a", ["a1"].as_slice()), ("b", ["b1", "boom", "b3"].as_slice())];
    let mut ingest = ingest(FixedFiles::new(&files), folder.path());
    let outbox = Arc::clone(&ingest.outbox);
    ingest.begin();
    assert_eq!(ingest.step(), StepOutcome::Held);
    ingest.step();
    assert_eq!(stored(&outbox).0, ["a1"]);
    struct KeepsAll;
    impl Filter for KeepsAll {
        fn check(&mut self, _record: &Record<'_>) -> Verdict {
            Verdict::Keep
        }
    }
    ingest.inbox.reconfigure(reconfiguration(Box::new(KeepsAll), &["dedupe"]));
    ingest.step();
    ingest.end();
    assert_eq!(stored(&outbox).0, ["a1", "b1", "boom", "b3"]);
}

/// If it were applied although an earlier group could not be stored, it would also judge the records
/// of that group, without a trace.
#[test]
fn reconfiguration_waits_until_the_open_group_is_stored() {
    let (file, folder) = (FaultyFile::default(), tempfile::tempdir().unwrap());
    let mut ingest = ingest_into(file.outbox(folder.path()), FixedFiles::new(&[]));
    let outbox = Arc::clone(&ingest.outbox);
    ingest.begin();
    ingest.step();
    ingest.add_event(Event::info("before", json!({})));
    let mut applied = ingest.inbox.reconfigure(reconfiguration(Box::new(DropsAll), &["dedupe"]));
    file.fail_syncs(true);
    assert!(matches!(ingest.step(), StepOutcome::NotStored { .. }));
    assert!(applied.try_recv().is_err());
    file.fail_syncs(false);
    ingest.step();
    assert_eq!(applied.try_recv(), Ok(()));
    ingest.end();
    assert_eq!(borders(&outbox).len(), 2);
    let expected = ["agent_started", "before", "applied", "heartbeat", "agent_stopped"];
    assert_eq!(stored(&outbox).1, expected);
}
