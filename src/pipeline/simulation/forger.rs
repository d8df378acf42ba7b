//! An attacker who knows the secrets of the fleet, reads what the agent sends, answers in the
//! receiver's place, and sends batches of its own and old ones.

use siem_protocol::{
    Chain, ChainPoint, DeadLettered, Digest,
    names::problem,
    note::{NoteSigner as _, SigningKey},
    statement::{Durability, Seal, Statement as _, StoredReceipt, Verdict},
};

use super::receiver::{Answer, MACHINE, ReceiverState, Request, USER};

/// Number of requests, receipts and verdicts that it remembers.
const MEMORY: usize = 12;
/// Refusals by which an agent would give something up.
const REFUSALS: [(u16, &str); 5] = [
    (409, problem::CONFLICT),
    (413, problem::TOO_LARGE),
    (422, problem::ENTRY),
    (403, problem::DEVICE_REVOKED),
    (403, problem::DEVICE_CLONED),
];

/// The attacker.
#[derive(Debug)]
pub(super) struct Forger {
    random: fastrand::Rng,
    /// Device key of its own.
    device: SigningKey,
    /// Key with the receiver's name.
    receiver: SigningKey,
    requests: Vec<Request>,
    receipts: Vec<String>,
    verdicts: Vec<String>,
}

impl Forger {
    pub(super) fn new(random: fastrand::Rng, receiver: &str) -> Self {
        Self {
            random,
            device: SigningKey::from_seed("ai-agent-device", [66; 32]).unwrap(),
            receiver: SigningKey::from_seed(receiver, [67; 32]).unwrap(),
            requests: Vec::new(),
            receipts: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    /// Remembers a request and its response.
    pub(super) fn record(&mut self, request: &Request, answer: Option<&Answer>) {
        keep(&mut self.random, &mut self.requests, request.clone());
        let member = |name| answer.and_then(|answer| answer.member(name));
        if let Some(receipt) = member("receipt") {
            keep(&mut self.random, &mut self.receipts, receipt);
        }
        if let Some(verdict) = member("verdict") {
            keep(&mut self.random, &mut self.verdicts, verdict);
        }
    }

    /// Makes up a response.
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let refusal = REFUSALS[self.random.usize(..REFUSALS.len())];
        match self.random.u32(..6) {
            0 => Answer::acknowledgement(request, None),
            1 => Answer::acknowledgement(request, Some(&self.receipt(request))),
            2 => {
                let old = self.random.choice(&self.receipts).cloned();
                Answer::acknowledgement(request, old.as_deref())
            }
            3 => Answer::refusal(refusal, None),
            4 => Answer::refusal(refusal, Some(&self.verdict(request, refusal))),
            _ => Answer::refusal(refusal, self.random.choice(&self.verdicts).map(String::as_str)),
        }
    }

    fn receipt(&self, request: &Request) -> String {
        let header = &request.header;
        let receipt = StoredReceipt {
            receiver: self.receiver.key().name().to_owned(),
            machine: MACHINE.to_owned(),
            user: USER.to_owned(),
            epoch: header.epoch.clone(),
            last_seq: header.last_seq.unwrap(),
            chain: header.chain.unwrap().after,
            seal: None,
            received_at: header.sent_at.clone(),
            durability: Durability::Synced,
        };
        receipt.sign(&[&self.receiver]).unwrap()
    }

    fn verdict(&self, request: &Request, (status, kind): (u16, &str)) -> String {
        let verdict = Verdict {
            receiver: self.receiver.key().name().to_owned(),
            status,
            kind: kind.to_owned(),
            machine: MACHINE.to_owned(),
            epoch: Some(request.header.epoch.clone()),
            body: Digest::of(&request.body()),
            at: request.header.sent_at.clone(),
            detail: None,
        };
        verdict.sign(&[&self.receiver]).unwrap()
    }

    /// Sends a batch to the receiver. Returns what it was.
    pub(super) fn attack(&mut self, received: &mut ReceiverState) -> &'static str {
        let Some(seen) = self.random.choice(&self.requests).cloned() else {
            return "attacker waits";
        };
        let before = received.held();
        let (request, what) = match self.random.u32(..8) {
            0 => (seen, "old batch sent again"),
            1 => (continue_epoch(seen), "forged batch without a seal"),
            2 => (self.seal(continue_epoch(seen)), "forged batch with another seal"),
            3 => {
                let seal = seen.header.seal.clone();
                let mut forged = continue_epoch(seen);
                forged.header.seal = seal;
                (forged, "forged batch with a copied seal")
            }
            4 => (begin_epoch(seen), "forged epoch without a seal"),
            5 => (leave_out_first(seen), "batch whose first line is left out"),
            6 => (replace_first(seen), "batch whose first line is forged"),
            _ => (self.seal(begin_epoch(seen)), "forged epoch with a seal"),
        };
        let answer = received.receive(&request);
        let is_old = what == "old batch sent again";
        if received.held() != before && !is_old {
            received.wrong.get_or_insert(format!("{what}: its entries count as the device's"));
        }
        if is_old {
            self.record(&request, Some(&answer));
        }
        what
    }

    /// Decides whether to begin an epoch in the place of its device.
    pub(super) fn strikes(&mut self) -> bool {
        self.random.u32(..4) == 0
    }

    /// Sends the request as a batch of its own without any line: all count as dead letters, so that
    /// the chain is the same, and the receiver's response has a real receipt.
    pub(super) fn take_the_place(&self, received: &mut ReceiverState, request: &Request) -> Answer {
        let mut request = request.clone();
        let header = &mut request.header;
        let dead = std::mem::take(&mut request.lines).into_iter();
        let dead = dead.map(|(seq, line)| DeadLettered { seq, line_sha256: Digest::of(&line) });
        header.dead_lettered.extend(dead);
        header.dead_lettered.sort_by_key(|dead| dead.seq);
        header.count = 0;
        received.receive(&self.seal(request))
    }

    fn seal(&self, mut request: Request) -> Request {
        let header = &mut request.header;
        let point = ChainPoint { seq: header.last_seq.unwrap(), hash: header.chain.unwrap().after };
        let seal = Seal::of(header, Some(self.receiver.key().name().to_owned()), point, None);
        header.seal = Some(seal.sign(&[&self.device]).unwrap());
        request
    }
}

/// Adds an item, in place of any other if there are too many.
fn keep<T>(random: &mut fastrand::Rng, items: &mut Vec<T>, item: T) {
    if items.len() < MEMORY {
        items.push(item);
    } else {
        let place = random.usize(..MEMORY);
        items[place] = item;
    }
}

/// A batch that continues the epoch of the one seen, as if it were the next one.
fn continue_epoch(seen: Request) -> Request {
    let after = (seen.header.last_seq.unwrap(), seen.header.chain.unwrap().after);
    forged(seen, after)
}

/// A batch without its first line, which counts as a dead letter or as one of an earlier batch: the
/// chain is the same.
fn leave_out_first(mut request: Request) -> Request {
    let Some((seq, line)) = request.lines.pop_first() else { return request };
    let (header, line_sha256) = (&mut request.header, Digest::of(&line));
    header.count -= 1;
    match &mut header.chain {
        Some(chain) if header.first_seq == Some(seq) && header.count > 0 => {
            header.first_seq = Some(seq + 1);
            chain.before = chain.before.chain(line_sha256);
        }
        _ => {
            header.dead_lettered.push(DeadLettered { seq, line_sha256 });
            header.dead_lettered.sort_by_key(|dead| dead.seq);
        }
    }
    request
}

/// A batch with another first line under the header of the one seen.
fn replace_first(mut request: Request) -> Request {
    if let Some(mut first) = request.lines.first_entry() {
        let line = forged_line(*first.key());
        first.insert(line);
    }
    request
}

/// A batch that begins an epoch.
fn begin_epoch(mut seen: Request) -> Request {
    seen.header.epoch = "epoch-of-the-attacker".to_owned();
    forged(seen, (0, Digest::ZERO))
}

fn forged(mut request: Request, (seq, before): (u64, Digest)) -> Request {
    let next = seq + 1;
    let line = forged_line(next);
    let header = &mut request.header;
    header.first_seq = Some(next);
    header.last_seq = Some(next);
    header.count = 1;
    header.dead_lettered.clear();
    header.chain = Some(Chain { before, after: before.chain(Digest::of(&line)) });
    header.seal = None;
    request.lines = [(next, line)].into();
    request
}

fn forged_line(seq: u64) -> Vec<u8> {
    let line = format!(
        r#"{{"seq":{seq},"kind":"record","source":"claude-sessions","path":"/p","generation":"g","offset":0,"length":2,"read_at":"t","record":{{}}}}"#
    );
    line.into_bytes()
}
