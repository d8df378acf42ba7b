//! Tests of the notifications of enrichers, and of their memory over another configuration.

use std::sync::{Mutex, PoisonError};

use serde_json::value::RawValue;

use super::*;
use crate::stages::enricher::Enricher;

/// Calls of enrichers, in order.
type Calls = Arc<Mutex<Vec<String>>>;

/// Notes each call under its name, and adds nothing.
struct Notes {
    name: &'static str,
    calls: Calls,
}

impl Notes {
    fn named(name: &'static str, calls: &Calls) -> Vec<Named<dyn Enricher>> {
        vec![("notes".into(), Box::new(Self { name, calls: Arc::clone(calls) }))]
    }

    fn note(&self, call: &str) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(format!("{} {call}", self.name));
    }
}

impl Enricher for Notes {
    fn enrich(&mut self, record: &Record<'_>) -> Option<&RawValue> {
        self.note(&String::from_utf8_lossy(record.line()));
        None
    }

    fn commit(&mut self) {
        self.note("commit");
    }

    fn rollback(&mut self) {
        self.note("rollback");
    }

    fn forget(&mut self, file: FileKey) {
        self.note(&format!("forget {}", file.0));
    }
}

/// Returns the calls since the last time.
fn take(calls: &Calls) -> Vec<String> {
    mem::take(&mut *calls.lock().unwrap())
}

#[test]
fn enrichers_are_notified_of_lost_and_stored_groups() {
    let folder = tempfile::tempdir().unwrap();
    // The group is lost when a filter fails on the second file.
    let files = [("a", ["a1"].as_slice()), ("b", ["boom"].as_slice())];
    let mut ingest = ingest(FixedFiles::new(&files), folder.path());
    let calls = Calls::default();
    ingest.stages.enrichers = Notes::named("it", &calls);
    ingest.begin();
    assert_eq!(ingest.step(), StepOutcome::Held);
    assert!(matches!(ingest.step(), StepOutcome::Read(Progress::Idle { .. })));
    // Each pipeline starts from the store.
    assert_eq!(take(&calls)[1..], ["it a1", "it rollback", "it a1", "it commit"]);
}

#[test]
fn enrichers_are_notified_of_deleted_files() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = FixedFiles::new(&[]);
    files.deleted.push(FileKey(7));
    let mut ingest = ingest(files, folder.path());
    let calls = Calls::default();
    ingest.stages.enrichers = Notes::named("it", &calls);
    ingest.begin();
    ingest.step();
    assert!(take(&calls).contains(&"it forget 7".to_owned()));
}

#[test]
fn enricher_with_unchanged_configuration_stays() {
    for (same, expected) in [(["notes"].as_slice(), "old a1"), ([].as_slice(), "new a1")] {
        let folder = tempfile::tempdir().unwrap();
        let mut ingest = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
        let calls = Calls::default();
        ingest.stages.enrichers = Notes::named("old", &calls);
        ingest.begin();
        let mut next = reconfigure::reconfiguration(Box::new(PanicsOnBoom), &[]);
        next.stages.enrichers = Notes::named("new", &calls);
        next.same_enrichers = same.iter().map(|name| (*name).to_owned()).collect();
        ingest.inbox.reconfigure(next);
        ingest.step();
        ingest.end();
        let seen = take(&calls);
        assert!(seen.contains(&expected.to_owned()), "{seen:?}");
    }
}

/// Panics on each event, and adds to each record.
struct PanicsOnEvents(Box<RawValue>);

impl Enricher for PanicsOnEvents {
    fn enrich(&mut self, _record: &Record<'_>) -> Option<&RawValue> {
        Some(&self.0)
    }

    fn enrich_event(&mut self, event: &Event) -> Option<&RawValue> {
        panic!("the enricher fails on {event:?}")
    }
}

#[test]
fn panicking_enricher_costs_events_only_its_object() {
    let folder = tempfile::tempdir().unwrap();
    let mut ingest = ingest(FixedFiles::new(&[("a", ["a1"].as_slice())]), folder.path());
    let object = RawValue::from_string("{}".to_owned()).unwrap();
    ingest.stages.enrichers = vec![("fragile".into(), Box::new(PanicsOnEvents(object)))];
    let outbox = Arc::clone(&ingest.outbox);
    ingest.run(Until::CaughtUp);
    let (records, events) = stored(&outbox);
    assert_eq!((records, events.len()), (vec!["a1".to_owned()], 3));
}
