//! Events that a SIEM has, compared with the session files and with the numbers of entries.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use super::{
    assembly::{ServerEvent, decode},
    eventually,
    home::Home,
    session_tree::{self, SentRecord, home_with_sessions},
};

/// Text in the record that servers refuse.
pub(crate) const POISON: &str = "p0150n-of-the-test";
/// Session file with only that record.
const POISONED: &str = "-generated/2-poisoned.jsonl";

/// A home directory with sessions, and with one record that the server refuses between them.
pub(crate) fn home_with_poison() -> Home {
    let home = home_with_sessions();
    home.write(POISONED, format!("{{\"type\":\"user\",\"text\":\"{POISON}\"}}\n"));
    for file in 5..8 {
        let line = |number| format!("{{\"type\":\"user\",\"uuid\":\"{file}-{number}\"}}\n");
        home.write(&format!("-generated/{file}.jsonl"), (0..400).map(line).collect::<String>());
    }
    home
}

/// Result of a comparison without a loss.
#[derive(Debug)]
pub(crate) struct Compared {
    /// Number of records.
    pub(crate) records: usize,
    /// Number of entries: records and events of the agent.
    pub(crate) entries: usize,
    /// Number of events that are there more than once, each repetition counted.
    pub(crate) repetitions: usize,
}

/// Fails unless the SIEM has exactly the records of the session files, byte for byte, but for the one
/// with [`POISON`], and an entry for each number but that of this record. `objects` are the fields
/// with the names of ECS, and the content.
#[track_caller]
pub(crate) fn compare(home: &Home, objects: &[(Value, String)]) -> Compared {
    let text = |fields: &Value, name: &str| fields[name].as_str().unwrap_or_default().to_owned();
    let number = |fields: &Value, name: &str| fields[name].as_u64();
    let numbers: BTreeSet<u64> =
        objects.iter().map(|(fields, _)| number(fields, "event.sequence").unwrap()).collect();
    let last = *numbers.last().unwrap();
    assert_eq!(numbers.len() as u64 + 1, last, "more than the poisoned entry is missing");
    let sent = objects.iter().map(|(fields, content)| SentRecord {
        event: ServerEvent {
            id: text(fields, "event.id"),
            part: number(fields, "ai_agent.part.index").map(|index| {
                let total = number(fields, "ai_agent.part.total").unwrap();
                (text(fields, "ai_agent.part.of"), index, total)
            }),
            hash: text(fields, "event.hash"),
            content: decode(content, &text(fields, "ai_agent.encoding")),
        },
        path: text(fields, "log.file.path"),
        generation: text(fields, "ai_agent.generation"),
    });
    fs::remove_file(home.projects().join(POISONED)).unwrap();
    let (records, repetitions) = session_tree::assert_complete(home, sent.collect());
    Compared { records, entries: numbers.len(), repetitions }
}

/// Waits until `count` reports at least `least`.
#[track_caller]
pub(crate) fn wait_for_count(least: usize, mut count: impl FnMut() -> usize) {
    eventually(&format!("{least} events at the server"), || (count() >= least).then_some(()));
}
