//! A receiver that fails in many ways, and checks every batch against the protocol; and the sink
//! that delivers to it.
//!
//! The receiver decides by the real policy whose entries a batch brings, and signs what it answers.
//! The sink seals batches, and believes a response by the real rules.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use ai_agent_stage::Acknowledged;
use serde_json::{Value, json};
use siem_protocol::{
    BatchHeader, ChainPoint, Digest, Entry, Kind,
    names::problem,
    note::{NoteSigner as _, SigningKey, VerifierKey},
    statement::{Durability, Seal, Statement as _, StoredReceipt, TrustLevel, Verdict, digest},
};
use siem_server::trust::policy::{
    Decision, Denial, EpochState, Facts, Mark, SealState, Sealer, Standing, decide,
};

use super::{Defect, forger::Forger};
use crate::{
    siem::receipts::{Belief, Subject},
    stages::sink::{Batch, Delivery, DeliveryFuture, Sink},
};

/// Name of the receiver.
pub(super) const RECEIVER: &str = "siem.example.com";
/// Machine of the agent.
pub(super) const MACHINE: &str = "m";
/// User of the agent.
pub(super) const USER: &str = "u";

/// Reaction of the receiver, or of the network, to a batch.
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
    /// An attacker answers in its place, before or after it has stored the batch.
    Forged,
}

pub(super) const FAULTS: [(Behaviour, &str); 6] = [
    (Behaviour::Away, "receiver unreachable"),
    (Behaviour::LosesAnswers, "response lost after storing"),
    (Behaviour::Unauthorized, "token refused"),
    (Behaviour::Busy, "receiver busy"),
    (Behaviour::Hangs, "receiver hangs"),
    (Behaviour::Forged, "response forged"),
];

/// A batch as sent.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) header: BatchHeader,
    /// Lines by number, without newlines.
    pub(super) lines: BTreeMap<u64, Vec<u8>>,
}

impl Request {
    pub(super) fn body(&self) -> Vec<u8> {
        let mut body = serde_json::to_vec(&self.header).unwrap();
        for line in self.lines.values() {
            body.push(b'\n');
            body.extend_from_slice(line);
        }
        body
    }
}

/// A response.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    pub(super) fn acknowledgement(request: &Request, receipt: Option<&str>) -> Self {
        let header = &request.header;
        let body = json!({
            "last_seq": header.last_seq, "accepted": header.count, "duplicates": 0,
            "receipt": receipt,
        });
        Self { status: 200, body: body.to_string() }
    }

    pub(super) fn refusal((status, kind): (u16, &str), verdict: Option<&str>) -> Self {
        let body = json!({ "type": kind, "title": "", "status": status, "verdict": verdict });
        Self { status, body: body.to_string() }
    }

    /// Member of the body, if it is a text.
    pub(super) fn member(&self, name: &str) -> Option<String> {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body[name].as_str().map(str::to_owned)
    }
}

/// Stored entries, by epoch and number.
#[derive(Debug)]
pub(super) struct ReceiverState {
    pub(super) behaviour: Behaviour,
    /// Entries of the device.
    pub(super) epochs: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    /// Owners of epochs.
    owners: BTreeMap<String, VerifierKey>,
    key: SigningKey,
    /// The confirmed key of the machine and user.
    device: VerifierKey,
    /// Number of batches that were refused as impersonation.
    pub(super) repelled: u64,
    /// Number of batches that were stored apart.
    pub(super) apart: u64,
    /// Number of batches that were refused because an attacker had begun their epoch.
    pub(super) displaced: u64,
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
            owners: BTreeMap::new(),
            key: SigningKey::from_seed(RECEIVER, [9; 32]).unwrap(),
            device: device().key().clone(),
            repelled: 0,
            apart: 0,
            displaced: 0,
            duplicates: 0,
            conflicts: 0,
            refusals: 0,
            wrong: None,
        }
    }
}

/// Key of the simulated agent.
fn device() -> SigningKey {
    SigningKey::from_seed("ai-agent-device", [1; 32]).unwrap()
}

/// The sink that delivers to the receiver.
pub(super) struct SimulatedSink {
    pub(super) received: Arc<Mutex<ReceiverState>>,
    pub(super) forger: Arc<Mutex<Forger>>,
    pub(super) defect: Defect,
    pub(super) calls: u64,
    device: SigningKey,
    receiver: [VerifierKey; 1],
    /// Digest of the last receipt.
    receipt: Option<Digest>,
}

impl SimulatedSink {
    pub(super) fn new(
        received: Arc<Mutex<ReceiverState>>,
        forger: Arc<Mutex<Forger>>,
        defect: Defect,
    ) -> Self {
        let receiver = [received.lock().unwrap().key.key().clone()];
        Self { received, forger, defect, calls: 0, device: device(), receiver, receipt: None }
    }

    fn seal(&self, batch: &Batch) -> Request {
        let mut header = batch.header.clone();
        let point = ChainPoint { seq: header.last_seq.unwrap(), hash: header.chain.unwrap().after };
        let seal = Seal::of(&header, Some(RECEIVER.to_owned()), point, self.receipt);
        header.seal = Some(seal.sign(&[&self.device]).unwrap());
        let text = batch.body.lines().unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| (Entry::parse(line).unwrap().seq, line.to_vec())).collect();
        Request { header, lines }
    }

    /// Returns the digest of the seal that a receipt must name.
    fn expected_seal(&self, header: &BatchHeader, answer: &Answer) -> Option<Digest> {
        match answer.member("receipt") {
            Some(receipt) if self.defect == Defect::BelievesAnySeal => {
                StoredReceipt::open(&receipt, &self.receiver).ok()?.statement.seal
            }
            _ => header.seal.as_deref().map(digest),
        }
    }

    /// Interprets a response as the real sink does.
    fn interpret(&mut self, request: &Request, answer: &Answer) -> Delivery {
        let header = &request.header;
        let (body, reason) = (request.body(), format!("{}", answer.status));
        let point = ChainPoint { seq: header.last_seq.unwrap(), hash: header.chain.unwrap().after };
        let subject = Subject {
            receiver: RECEIVER,
            keys: &self.receiver,
            machine: MACHINE,
            user: USER,
            epoch: &header.epoch,
            point: Some(point),
            seal: self.expected_seal(header, answer),
            body: &body,
            entries: header.count,
        };
        if self.defect == Defect::BelievesAnyAnswer && answer.status == 200 {
            return Delivery::Acknowledged;
        }
        match Belief::of(answer.status, answer.body.as_bytes(), &subject) {
            Belief::Stored { receipt } => {
                self.receipt = Some(digest(&receipt));
                Delivery::Acknowledged
            }
            Belief::Conflict => Delivery::Conflict { expected: None },
            Belief::Refused { status } => Delivery::Refused { status, answer: reason },
            Belief::Split => Delivery::Refused { status: 413, answer: reason },
            Belief::Later => Delivery::Retry { after: None, reason },
            Belief::Device(_) | Belief::Denied | Belief::Untrusted(_) => {
                Delivery::Hold { after: None, reason }
            }
        }
    }
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
                Behaviour::Good | Behaviour::LosesAnswers | Behaviour::Forged => {}
            }
            if self.defect == Defect::AcknowledgedEarly && self.calls.is_multiple_of(5) {
                return Delivery::Acknowledged;
            }
            let request = self.seal(batch);
            let mut forger = self.forger.lock().unwrap();
            let is_withheld = behaviour == Behaviour::Forged && self.calls.is_multiple_of(2);
            let mut received = self.received.lock().unwrap();
            if let Err(wrong) = check(&request.header, &request.lines) {
                received.wrong.get_or_insert(wrong);
            }
            if received.is_unknown(&request.header.epoch) && forger.strikes() {
                let answer = forger.take_the_place(&mut received, &request);
                drop((forger, received));
                return self.interpret(&request, &answer);
            }
            let real = (!is_withheld).then(|| received.receive(&request));
            drop(received);
            forger.record(&request, real.as_ref());
            let answer = match (behaviour, real) {
                (Behaviour::LosesAnswers, _) => return Delivery::Retry { after: None, reason },
                (Behaviour::Good, Some(real)) => real,
                _ => forger.answer(&request),
            };
            drop(forger);
            self.interpret(&request, &answer)
        })
    }

    /// The receiver drops entries that it has already.
    fn acknowledged(&self) -> Acknowledged {
        Acknowledged::Verified
    }
}

impl ReceiverState {
    /// Number of entries of the device.
    pub(super) fn held(&self) -> usize {
        self.epochs.values().map(BTreeMap::len).sum()
    }

    /// Reports whether no batch of an epoch was stored.
    fn is_unknown(&self, epoch: &str) -> bool {
        !self.owners.contains_key(epoch)
    }

    /// Decides whose entries a batch brings, stores them, and responds.
    pub(super) fn receive(&mut self, request: &Request) -> Answer {
        let header = &request.header;
        let (seal, signer) = self.verify(request);
        let epoch = match (self.owners.get(&header.epoch), &signer) {
            (None, _) => EpochState::Unknown,
            (Some(owner), Some(signer)) if owner == signer => EpochState::Own,
            (Some(owner), _) if *owner != self.device => EpochState::ForeignUnconfirmed,
            (Some(_), _) => EpochState::Foreign,
        };
        let (level, shared_allowed, ratcheted) = (TrustLevel::FirstUse, false, true);
        match decide(&Facts { level, shared_allowed, ratcheted, seal, epoch }) {
            Decision::Refuse { denial: Denial::Renumber, .. } => {
                self.displaced += 1;
                self.refuse(request, (409, problem::CONFLICT))
            }
            Decision::Refuse { .. } => {
                self.repelled += 1;
                Answer::refusal((403, problem::IMPERSONATION), None)
            }
            Decision::Store { mark: Mark::Confirmed, .. } => self.take(request),
            Decision::Store { mark: Mark::Unconfirmed, .. } => {
                self.apart += 1;
                self.owners.extend(signer.map(|signer| (header.epoch.clone(), signer)));
                self.acknowledge(request)
            }
            decision => {
                self.wrong.get_or_insert(format!("an epoch without a device: {decision:?}"));
                Answer::refusal((409, problem::CONFLICT), None)
            }
        }
    }

    /// Verifies the seal of a batch. The attacker's key is enrolled too.
    fn verify(&self, request: &Request) -> (SealState, Option<VerifierKey>) {
        let header = &request.header;
        let Some(note) = &header.seal else { return (SealState::None, None) };
        let attacker = SigningKey::from_seed("ai-agent-device", [66; 32]).unwrap();
        let keys = [self.device.clone(), attacker.key().clone()];
        let Ok(opened) = Seal::open(note, &keys) else { return (SealState::Invalid, None) };
        let seal = &opened.statement;
        let fits = seal.receiver.as_deref() == Some(RECEIVER)
            && (&seal.machine, &seal.user, &seal.epoch)
                == (&header.machine_id, &header.user, &header.epoch)
            && (seal.first_seq, Some(seal.last_seq)) == (header.first_seq, header.last_seq)
            && seal.dead_lettered == Seal::dead_letters(&header.dead_lettered)
            && header.chain.is_some_and(|chain| chain.after == seal.chain)
            && check(header, &request.lines).is_ok();
        if !fits {
            return (SealState::Invalid, None);
        }
        let signer = opened.signers[0].clone();
        let is_device = signer == self.device;
        let standing = if is_device { Standing::Confirmed } else { Standing::Unconfirmed };
        let sealer = Sealer { standing, cloned: false, is_second: !is_device };
        (SealState::Valid(sealer), Some(signer))
    }

    /// Stores a batch of the device.
    fn take(&mut self, request: &Request) -> Answer {
        let Request { header, lines } = request;
        self.owners.insert(header.epoch.clone(), self.device.clone());
        let known = self.epochs.entry(header.epoch.clone()).or_default();
        if lines.iter().any(|(seq, line)| known.get(seq).is_some_and(|known| known != line)) {
            self.conflicts += 1;
            return self.refuse(request, (409, problem::CONFLICT));
        }
        if lines.values().any(|line| line.windows(8).any(|window| window == b"\"poison\"")) {
            self.refusals += 1;
            return self.refuse(request, (422, problem::ENTRY));
        }
        for (seq, line) in lines {
            self.duplicates += u64::from(known.insert(*seq, line.clone()).is_some());
        }
        self.acknowledge(request)
    }

    fn acknowledge(&self, request: &Request) -> Answer {
        let header = &request.header;
        let receipt = StoredReceipt {
            receiver: RECEIVER.to_owned(),
            machine: header.machine_id.clone(),
            user: header.user.clone(),
            epoch: header.epoch.clone(),
            last_seq: header.last_seq.unwrap(),
            chain: header.chain.unwrap().after,
            seal: header.seal.as_deref().map(digest),
            received_at: header.sent_at.clone(),
            durability: Durability::Synced,
        };
        Answer::acknowledgement(request, Some(&receipt.sign(&[&self.key]).unwrap()))
    }

    fn refuse(&self, request: &Request, (status, kind): (u16, &str)) -> Answer {
        let verdict = Verdict {
            receiver: RECEIVER.to_owned(),
            status,
            kind: kind.to_owned(),
            machine: request.header.machine_id.clone(),
            epoch: Some(request.header.epoch.clone()),
            body: Digest::of(&request.body()),
            at: request.header.sent_at.clone(),
            detail: None,
        };
        Answer::refusal((status, kind), Some(&verdict.sign(&[&self.key]).unwrap()))
    }
}

/// Checks a batch against the protocol.
fn check(header: &BatchHeader, lines: &BTreeMap<u64, Vec<u8>>) -> Result<(), String> {
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
