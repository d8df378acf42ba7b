//! A receiver that goes wrong in many ways, and holds a batch against the protocol.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use siem_protocol::{Digest, Entry, Kind};

use super::Fault;
use crate::stages::sink::{Batch, Delivery, DeliveryFuture, Sink};

/// What a receiver does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// It takes it.
    Good,
    /// It is not there.
    Away,
    /// It stores it, and its answer is lost.
    LosesAnswers,
    /// It wants another token.
    Unauthorized,
    /// It wants to be left alone for a while.
    Busy,
    /// It never answers.
    Hangs,
}

pub(super) const MOODS: [(Mood, &str); 5] = [
    (Mood::Away, "receiver away"),
    (Mood::LosesAnswers, "answer lost after storing"),
    (Mood::Unauthorized, "token refused"),
    (Mood::Busy, "receiver busy"),
    (Mood::Hangs, "receiver hangs"),
];

/// What it holds: lines of entries by number, in each epoch.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) mood: Mood,
    pub(super) epochs: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    /// How often an entry came that it held already.
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) refusals: u64,
    /// What a batch had wrong by itself.
    pub(super) wrong: Option<String>,
}

impl Default for Held {
    fn default() -> Self {
        Self {
            mood: Mood::Good,
            epochs: BTreeMap::new(),
            duplicates: 0,
            conflicts: 0,
            refusals: 0,
            wrong: None,
        }
    }
}

/// The agent's end of it.
pub(super) struct Line {
    pub(super) held: Arc<Mutex<Held>>,
    pub(super) fault: Fault,
    pub(super) calls: u64,
}

impl Sink for Line {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.calls += 1;
            let mood = self.held.lock().unwrap().mood;
            let reason = format!("{mood:?}");
            match mood {
                Mood::Away => return Delivery::Retry { after: None, reason },
                Mood::Unauthorized => return Delivery::Hold { after: None, reason },
                Mood::Busy => {
                    return Delivery::Retry { after: Some(Duration::from_secs(7)), reason };
                }
                Mood::Hangs => std::future::pending().await,
                Mood::Good | Mood::LosesAnswers => {}
            }
            if self.fault == Fault::AcknowledgedEarly && self.calls.is_multiple_of(5) {
                return Delivery::Acknowledged;
            }
            let mut held = self.held.lock().unwrap();
            let taken = held.take(batch);
            if mood == Mood::LosesAnswers {
                return Delivery::Retry { after: None, reason };
            }
            taken
        })
    }
}

impl Held {
    fn take(&mut self, batch: &Batch) -> Delivery {
        let header = batch.header();
        let text = batch.lines().unwrap();
        let mut lines = BTreeMap::new();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            lines.insert(Entry::parse(line).unwrap().seq, line.to_vec());
        }
        if let Err(wrong) = check(batch, &lines) {
            self.wrong.get_or_insert(wrong);
        }
        let known = self.epochs.entry(header.epoch.clone()).or_default();
        if lines.iter().any(|(seq, line)| known.get(seq).is_some_and(|known| known != line)) {
            self.conflicts += 1;
            return Delivery::Conflict { expected: None };
        }
        if lines.values().any(|line| line.windows(8).any(|window| window == b"\"poison\"")) {
            self.refusals += 1;
            return Delivery::Refused { status: 422, answer: "poison".into() };
        }
        for (seq, line) in lines {
            self.duplicates += u64::from(known.insert(seq, line).is_some());
        }
        Delivery::Acknowledged
    }
}

/// What wire.md says of a batch.
fn check(batch: &Batch, lines: &BTreeMap<u64, Vec<u8>>) -> Result<(), String> {
    let header = batch.header();
    let (first, last) = (header.first_seq.unwrap(), header.last_seq.unwrap());
    let chain = header.chain.unwrap();
    if header.count != lines.len() as u64 {
        return Err(format!("{} lines come, the header says {}", lines.len(), header.count));
    }
    let mut at = chain.before;
    for seq in first..=last {
        let dead = header.dead_lettered.iter().find(|dead| dead.seq == seq);
        let digest = match (lines.get(&seq), dead) {
            (Some(line), None) => Digest::of(line),
            (None, Some(dead)) => dead.line_sha256,
            found => return Err(format!("{seq} is a line, a dead letter, or neither: {found:?}")),
        };
        at = at.chain(digest);
    }
    if at == chain.after {
        Ok(())
    } else {
        Err(format!("the chain of {first} to {last} is broken"))
    }
}

/// A record as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) epoch: String,
    pub(super) seq: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) is_incomplete: bool,
}

/// All records, those in parts joined: a part may have come in an epoch before.
pub(super) fn records(epochs: &BTreeMap<String, BTreeMap<u64, Vec<u8>>>) -> Vec<Arrived> {
    let mut parts: BTreeMap<(String, u64, u32), Vec<u8>> = BTreeMap::new();
    let mut all = Vec::new();
    for (epoch, entries) in epochs {
        for (seq, line) in entries {
            let entry = Entry::parse(line).unwrap();
            if entry.kind == Kind::Event {
                continue;
            }
            let mut bytes = entry.content().unwrap().unwrap().into_owned();
            if let Some(part) = entry.part {
                let generation = entry.generation.clone().unwrap().into_owned();
                let key = |part| (generation.clone(), entry.offset.unwrap(), part);
                parts.insert(key(part), bytes.clone());
                if !entry.last {
                    continue;
                }
                let before: Vec<u8> =
                    (1..part).flat_map(|part| parts[&key(part)].clone()).collect();
                bytes = [before, bytes].concat();
                assert_eq!(entry.sha256, Some(Digest::of(&bytes)), "the parts do not fit");
            }
            let (epoch, seq) = (epoch.clone(), *seq);
            all.push(Arrived { epoch, seq, bytes, is_incomplete: entry.incomplete });
        }
    }
    all
}

/// The content of an entry's line.
pub(super) fn content(line: &[u8]) -> Vec<u8> {
    Entry::parse(line).unwrap().content().unwrap().unwrap_or_default().into_owned()
}
