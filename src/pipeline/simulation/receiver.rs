//! A receiver that fails in many ways, and checks every batch against the protocol.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ai_agent_stage::Acknowledged;
use siem_protocol::{Digest, Entry, Kind};

use super::Defect;
use crate::stages::sink::{Batch, Delivery, DeliveryFuture, Sink};

/// Reaction of the receiver to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// Accepts it.
    Good,
    /// Is unreachable.
    Away,
    /// Stores it, but the response is lost.
    LosesAnswers,
    /// Rejects the token.
    Unauthorized,
    /// Requests a delay.
    Busy,
    /// Never responds.
    Hangs,
}

pub(super) const FAULTS: [(Behaviour, &str); 5] = [
    (Behaviour::Away, "receiver unreachable"),
    (Behaviour::LosesAnswers, "response lost after storing"),
    (Behaviour::Unauthorized, "token refused"),
    (Behaviour::Busy, "receiver busy"),
    (Behaviour::Hangs, "receiver hangs"),
];

/// Stored entries, by epoch and number.
#[derive(Debug)]
pub(super) struct ReceiverState {
    pub(super) behaviour: Behaviour,
    pub(super) epochs: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    /// Number of entries that arrived again.
    pub(super) duplicates: u64,
    pub(super) conflicts: u64,
    pub(super) refusals: u64,
    /// First violation of the protocol in a batch.
    pub(super) wrong: Option<String>,
}

impl Default for ReceiverState {
    fn default() -> Self {
        Self {
            behaviour: Behaviour::Good,
            epochs: BTreeMap::new(),
            duplicates: 0,
            conflicts: 0,
            refusals: 0,
            wrong: None,
        }
    }
}

/// The sink that delivers to the receiver.
pub(super) struct SimulatedSink {
    pub(super) received: Arc<Mutex<ReceiverState>>,
    pub(super) defect: Defect,
    pub(super) calls: u64,
}

impl Sink for SimulatedSink {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliveryFuture<'a> {
        Box::pin(async move {
            self.calls += 1;
            let behaviour = self.received.lock().unwrap().behaviour;
            let reason = format!("{behaviour:?}");
            match behaviour {
                Behaviour::Away => return Delivery::Retry { after: None, reason },
                Behaviour::Unauthorized => return Delivery::Hold { after: None, reason },
                Behaviour::Busy => {
                    return Delivery::Retry { after: Some(Duration::from_secs(7)), reason };
                }
                Behaviour::Hangs => std::future::pending().await,
                Behaviour::Good | Behaviour::LosesAnswers => {}
            }
            if self.defect == Defect::AcknowledgedEarly && self.calls.is_multiple_of(5) {
                return Delivery::Acknowledged;
            }
            let mut received = self.received.lock().unwrap();
            let taken = received.take(batch);
            if behaviour == Behaviour::LosesAnswers {
                return Delivery::Retry { after: None, reason };
            }
            taken
        })
    }

    /// The receiver drops entries that it has already.
    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Verified
    }
}

impl ReceiverState {
    fn take(&mut self, batch: &Batch) -> Delivery {
        let header = &batch.header;
        let text = batch.body.lines().unwrap();
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

/// Checks a batch against the protocol.
fn check(batch: &Batch, lines: &BTreeMap<u64, Vec<u8>>) -> Result<(), String> {
    let header = &batch.header;
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

/// A record that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    pub(super) epoch: String,
    pub(super) seq: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) is_incomplete: bool,
}

/// Returns all records, with parts joined: a part may have arrived in an earlier epoch.
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

/// Returns the content of an entry.
pub(super) fn content(line: &[u8]) -> Vec<u8> {
    Entry::parse(line).unwrap().content().unwrap().unwrap_or_default().into_owned()
}
