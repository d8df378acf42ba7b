//! Batches of entries, with the contents that a server must have in the end.

use std::{collections::BTreeMap, path::Path, time::Duration};

use siem_protocol::{
    BatchHeader, Digest, LineDigests,
    entry::{Content, EventLine, PartLine, PathText, RecordLine},
};
use siem_sinks::Batch;

/// Generation of the file that the records are from.
pub(crate) const GENERATION: &str = "9c41d6f0";
/// Epoch of the entries.
pub(crate) const EPOCH: &str = "01JD3Q8Z5T4X0W9V8U7S6R5P4N";
/// Path of the file that the records are from.
pub(crate) const PATH: &str = "/home/ada/.claude/projects/-work/session.jsonl";
/// Time at which the records were read.
pub(crate) const READ_AT: &str = "2026-11-21T20:00:01.250Z";

/// Consecutive entries of one sender.
pub(crate) struct Entries {
    header: BatchHeader,
    lines: Vec<u8>,
    /// Id and content of each entry, in their order.
    expected: Vec<(String, Vec<u8>)>,
    offset: u64,
    /// Members that enrichers add to each record, each with a comma in front.
    enriched: String,
}

impl Entries {
    /// Creates a batch without entries.
    pub(crate) fn new() -> Self {
        Self {
            header: header(),
            lines: Vec::new(),
            expected: Vec::new(),
            offset: 0,
            enriched: String::new(),
        }
    }

    /// Creates a batch with a record of each line.
    pub(crate) fn of<L: AsRef<[u8]>>(lines: impl IntoIterator<Item = L>) -> Self {
        let mut entries = Self::new();
        for line in lines {
            entries.record(line);
        }
        entries
    }

    /// Creates a batch with `count` small records.
    pub(crate) fn small(count: usize) -> Self {
        Self::of((0..count).map(|number| format!(r#"{{"type":"user","n":{number}}}"#)))
    }

    /// Sets members that enrichers add to the records that follow, each with a comma in front.
    pub(crate) fn enrich(&mut self, members: &str) {
        members.clone_into(&mut self.enriched);
    }

    /// Adds a record with these bytes.
    pub(crate) fn record(&mut self, line: impl AsRef<[u8]>) {
        let (line, offset) = (line.as_ref(), self.offset);
        let seq = self.start(format!("{GENERATION}:{offset}"), line.to_vec());
        let path = PathText::new(Path::new(PATH));
        let record = RecordLine {
            source: "claude-sessions",
            path: &path,
            generation: GENERATION,
            offset,
            length: line.len() as u64,
            read_at: READ_AT,
            enriched: &self.enriched,
            cut: &[],
            masked: &[],
            sha256: None,
            folded: None,
            incomplete: false,
            content: Content::of(line),
        };
        record.write(seq, &mut self.lines);
        self.end(line.len() as u64 + 1);
    }

    /// Adds a line of a file in parts, as the agent sends a line that is too large for one entry.
    pub(crate) fn record_in_parts(&mut self, parts: &[&[u8]]) {
        let (offset, whole) = (self.offset, parts.concat());
        let path = PathText::new(Path::new(PATH));
        for (index, bytes) in parts.iter().enumerate() {
            let number = u32::try_from(index).unwrap() + 1;
            let seq = self.start(format!("{GENERATION}:{offset}:{number}"), bytes.to_vec());
            let is_last = index + 1 == parts.len();
            let part = PartLine {
                source: "claude-sessions",
                path: &path,
                generation: GENERATION,
                offset,
                part: number,
                read_at: READ_AT,
                enriched: &self.enriched,
                whole: is_last.then(|| LineDigests::of(&whole, &[]).unwrap()),
                incomplete: false,
                nul_runs: &[],
                bytes,
            };
            part.write(seq, &mut self.lines);
            self.end(0);
        }
        self.offset += whole.len() as u64 + 1;
    }

    /// Adds an event of the agent. `data` is a JSON object.
    pub(crate) fn event(&mut self, name: &str, data: &str) {
        let seq = self.expected.len() as u64 + 1;
        self.start(format!("{EPOCH}:{seq}"), data.as_bytes().to_vec());
        let (source, severity, at) = ("agent", "info", READ_AT);
        EventLine { source, event: name, severity, at, enriched: "", data }
            .write(seq, &mut self.lines);
        self.end(0);
    }

    fn start(&mut self, id: String, content: Vec<u8>) -> u64 {
        self.expected.push((id, content));
        self.expected.len() as u64
    }

    fn end(&mut self, length: u64) {
        self.lines.push(b'\n');
        self.offset += length;
        let count = self.expected.len() as u64;
        (self.header.count, self.header.last_seq) = (count, Some(count));
    }

    /// Returns the batch.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { header: &self.header, lines: &self.lines, patience: None }
    }

    /// Returns the batch with more time than the sink's own timeout.
    pub(crate) fn batch_within(&self, patience: Duration) -> Batch<'_> {
        Batch { patience: Some(patience), ..self.batch() }
    }

    /// Returns the entries that remain without the first `count`, and without those `left_out`, as
    /// the agent sends them after a delivery that decided about some.
    pub(crate) fn without(&self, count: usize, left_out: &[usize]) -> Self {
        let mut rest = Self::new();
        let lines = self.lines.split_inclusive(|byte| *byte == b'\n');
        for (index, (line, expected)) in lines.zip(&self.expected).enumerate() {
            if index >= count && !left_out.contains(&index) {
                rest.lines.extend_from_slice(line);
                rest.expected.push(expected.clone());
            }
        }
        rest.header.count = rest.expected.len() as u64;
        rest
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.expected.len()
    }

    /// Returns the ids of the entries in their order.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.expected.iter().map(|(id, _)| id.clone()).collect()
    }

    /// Returns the content of each entry by its id.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        self.expected.iter().cloned().collect()
    }
}

/// Returns the header of a batch.
pub(crate) fn header() -> BatchHeader {
    serde_json::from_value(serde_json::json!({
        "kind": "batch",
        "protocol": 1,
        "epoch": EPOCH,
        "machine_id": "machine-7",
        "hostname": "laptop-7",
        "user": "ada",
        "os": "linux",
        "arch": "x86_64",
        "agent_version": "0.1.0",
        "first_seq": 1,
        "last_seq": 0,
        "count": 0,
        "config_hash": Digest::of(b"config"),
        "sent_at": "2026-11-21T20:00:05.000Z",
    }))
    .unwrap()
}

/// The expectations of this file against the code under test.
#[test]
fn entries_map_to_events_with_the_expected_ids() {
    use siem_sinks::event::{Event, TimeOf};

    let mut entries = Entries::of(super::odd_lines::odd_lines());
    entries.record_in_parts(&[b"{\"a\":", b"\xff}"]);
    entries.event("heartbeat", r#"{"n":1}"#);
    let events: Vec<_> = entries
        .batch()
        .entries()
        .map(|line| {
            let event = Event::of(line, entries.batch().header, TimeOf::Read).unwrap();
            assert_eq!(siem_sinks::event::rfc3339(event.time), "2026-11-21T20:00:01.250Z");
            (event.id.clone(), event.content.as_bytes().to_vec())
        })
        .collect();
    assert_eq!(events, entries.expected);
}
