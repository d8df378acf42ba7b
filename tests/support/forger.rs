//! A client that knows the token and the secret of the fleet, writes under any name, and has keys
//! of its own.

use serde_json::{Value, json};
use siem_protocol::{
    BatchHeader, Chain, ChainPoint, DeadLettered, Digest, Identity,
    names::{header, path},
    note::{NoteSigner as _, SigningKey},
    sign,
    statement::{Durability, Enroll, Seal, Statement as _, StoredReceipt, Verdict},
};

use super::{
    SECRET, TOKEN,
    middle::{Exchange, Reply, send},
};

/// Text in every entry of a forger.
pub(crate) const FORGED: &str = "forged-by-another-client";

/// The client.
pub(crate) struct Forger {
    to: String,
    /// Name of the receiver that it sends to.
    pub(crate) receiver: String,
    pub(crate) identity: Identity,
    pub(crate) key: SigningKey,
}

/// A batch to send.
#[derive(Clone)]
pub(crate) struct ForgedBatch {
    pub(crate) header: BatchHeader,
    lines: Vec<String>,
}

impl Forger {
    /// A client that sends to `to` as `identity`, with the device key of `seed`.
    pub(crate) fn new(to: &str, receiver: &str, identity: &Identity, seed: u8) -> Self {
        Self {
            to: to.to_owned(),
            receiver: receiver.to_owned(),
            identity: identity.clone(),
            key: SigningKey::from_seed("ai-agent-device", [seed; 32]).unwrap(),
        }
    }

    /// Enrolls its key with the token of the fleet.
    pub(crate) fn enroll(&self) -> Reply {
        self.enroll_with(TOKEN)
    }

    /// Enrolls its key with another token.
    pub(crate) fn enroll_with(&self, token: &str) -> Reply {
        let Identity { machine_id, hostname, user, os, arch, agent_version } =
            self.identity.clone();
        let enroll = Enroll {
            receiver: self.receiver.clone(),
            machine: machine_id,
            user,
            host: hostname,
            os,
            arch,
            version: agent_version,
            key: self.key.key().clone(),
            previous: None,
        };
        let enroll = enroll.sign(&[&self.key]).unwrap();
        let body = json!({ "enroll": enroll, "instance": "f", "sent_at": "2026-11-29T12:00:00Z" });
        let body = body.to_string();
        send(&self.to, &request(path::ENROLL, token, "application/json", body.as_bytes()))
    }

    /// Makes a batch of `count` entries that continues `epoch` after the number and chain value.
    pub(crate) fn batch(&self, epoch: &str, after: (u64, Digest), count: u64) -> ForgedBatch {
        let (seq, _) = after;
        self.batch_of(epoch, after, (seq + 1..=seq + count).map(forged_line).collect())
    }

    /// Makes a batch of these entries.
    pub(crate) fn batch_of(
        &self,
        epoch: &str,
        after: (u64, Digest),
        lines: Vec<String>,
    ) -> ForgedBatch {
        let ((seq, before), count) = (after, lines.len() as u64);
        let digests = lines.iter().map(|line| Digest::of(line.as_bytes()));
        let after = digests.fold(before, |chain, digest| chain.chain(digest));
        let sent_at = "2026-11-29T12:00:00.000Z".to_owned();
        let mut header = BatchHeader::new(&self.identity, epoch.into(), Digest::ZERO, sent_at);
        header.first_seq = Some(seq + 1);
        header.last_seq = Some(seq + count);
        header.count = count;
        header.chain = Some(Chain { before, after });
        ForgedBatch { header, lines }
    }

    /// Seals a batch with its key.
    pub(crate) fn seal(&self, mut batch: ForgedBatch) -> ForgedBatch {
        let header = &mut batch.header;
        header.instance = Some("f".to_owned());
        let point = ChainPoint { seq: header.last_seq.unwrap(), hash: header.chain.unwrap().after };
        let seal = Seal::of(header, Some(self.receiver.clone()), point, None);
        header.seal = Some(seal.sign(&[&self.key]).unwrap());
        batch
    }

    /// Sends a batch, signed with the secret of the fleet.
    pub(crate) fn send(&self, batch: &ForgedBatch) -> Reply {
        send(&self.to, &request(path::INGEST, TOKEN, "application/x-ndjson", &batch.body()))
    }

    /// Asks for a path with the token of the fleet.
    pub(crate) fn get(&self, path: &str) -> Reply {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: receiver\r\nAuthorization: Bearer {TOKEN}\r\n\
             Connection: close\r\n\r\n"
        );
        send(&self.to, head.as_bytes())
    }
}

impl ForgedBatch {
    /// The batch without its first line, which counts as a dead letter, or if others follow and
    /// `is_cut` is true, as one of an earlier batch. The chain is the same.
    pub(crate) fn without_first_line(mut self, is_cut: bool) -> Self {
        let line_sha256 = Digest::of(self.lines.remove(0).as_bytes());
        let header = &mut self.header;
        let seq = header.first_seq.unwrap();
        header.count -= 1;
        match &mut header.chain {
            Some(chain) if is_cut && header.count > 0 => {
                header.first_seq = Some(seq + 1);
                chain.before = chain.before.chain(line_sha256);
            }
            _ => header.dead_lettered.push(DeadLettered { seq, line_sha256 }),
        }
        self
    }

    /// The batch without its seal and its lines, which all count as dead letters. The chain is the
    /// same.
    pub(crate) fn without_lines(mut self) -> Self {
        let seqs = self.header.first_seq.unwrap()..;
        let dead = |(seq, line): (u64, String)| DeadLettered {
            seq,
            line_sha256: Digest::of(line.as_bytes()),
        };
        self.header.dead_lettered = seqs.zip(self.lines.drain(..)).map(dead).collect();
        (self.header.count, self.header.seal) = (0, None);
        self
    }

    /// The batch with a forged first line under its header.
    pub(crate) fn with_forged_line(mut self) -> Self {
        self.lines[0] = forged_line(self.header.first_seq.unwrap());
        self
    }

    fn body(&self) -> Vec<u8> {
        let mut text = serde_json::to_string(&self.header).unwrap() + "\n";
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.into_bytes()
    }
}

fn forged_line(seq: u64) -> String {
    format!(
        r#"{{"seq":{seq},"kind":"event","source":"agent","event":"canary","severity":"info","at":"2026-11-29T12:00:00.000Z","data":{{"id":"{FORGED}"}}}}"#
    )
}

/// A request with a body, signed with the secret of the fleet.
fn request(path: &str, token: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let signature = sign(SECRET.as_bytes(), body);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: receiver\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: {content_type}\r\n{}: {signature}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        header::SIGNATURE,
        body.len(),
    );
    [head.into_bytes(), body.to_vec()].concat()
}

/// What an attacker between agent and receiver makes of a batch.
impl Exchange {
    /// Header line of the batch.
    pub(crate) fn header(&self) -> BatchHeader {
        self.batch().header
    }

    /// The batch.
    pub(crate) fn batch(&self) -> ForgedBatch {
        let text = String::from_utf8(zstd::decode_all(&*self.body).unwrap()).unwrap();
        let mut lines = text.lines();
        let header = serde_json::from_str(lines.next().unwrap()).unwrap();
        ForgedBatch { header, lines: lines.map(str::to_owned).collect() }
    }

    /// An acknowledgement without a receipt.
    pub(crate) fn bare_acknowledgement(&self) -> Reply {
        self.acknowledgement(None)
    }

    /// An acknowledgement with the receipt that the receiver would give, signed by `key` and
    /// changed by `edit`.
    pub(crate) fn signed_acknowledgement(
        &self,
        key: &SigningKey,
        edit: impl FnOnce(&mut StoredReceipt),
    ) -> Reply {
        let header = self.header();
        let mut receipt = StoredReceipt {
            receiver: key.key().name().to_owned(),
            machine: header.machine_id.clone(),
            user: header.user.clone(),
            epoch: header.epoch.clone(),
            last_seq: header.last_seq.unwrap(),
            chain: header.chain.unwrap().after,
            seal: None,
            received_at: "2026-11-29T12:00:00Z".to_owned(),
            durability: Durability::Synced,
        };
        edit(&mut receipt);
        self.acknowledgement(Some(&receipt.sign(&[key]).unwrap()))
    }

    /// An acknowledgement with this receipt.
    pub(crate) fn acknowledgement(&self, receipt: Option<&str>) -> Reply {
        let header = self.header();
        let mut body =
            json!({ "last_seq": header.last_seq, "accepted": header.count, "duplicates": 0 });
        if let Some(receipt) = receipt {
            body["receipt"] = receipt.into();
        }
        Reply::new(200, body)
    }

    /// A refusal with the verdict that the receiver would give, signed by `key` and changed by
    /// `edit`.
    pub(crate) fn signed_refusal(
        &self,
        status: u16,
        kind: &str,
        key: &SigningKey,
        edit: impl FnOnce(&mut Verdict),
    ) -> Reply {
        let header = self.header();
        let mut verdict = Verdict {
            receiver: key.key().name().to_owned(),
            status,
            kind: kind.to_owned(),
            machine: header.machine_id.clone(),
            epoch: Some(header.epoch.clone()),
            body: Digest::of(&self.body),
            at: "2026-11-29T12:00:00Z".to_owned(),
            detail: None,
        };
        edit(&mut verdict);
        refusal(status, kind, Some(&verdict.sign(&[key]).unwrap()))
    }
}

/// A refusal as the receiver gives it, with this verdict.
pub(crate) fn refusal(status: u16, kind: &str, verdict: Option<&str>) -> Reply {
    let mut body = json!({ "type": kind, "title": "refused", "status": status });
    if status == 409 {
        body["expected_seq"] = 1.into();
    }
    if let Some(verdict) = verdict {
        body["verdict"] = verdict.into();
    }
    Reply::new(status, body)
}

/// The identity of the only machine in `/stats`.
pub(crate) fn identity(stats: &Value) -> Identity {
    serde_json::from_value(stats["machines"][0]["identity"].clone()).unwrap()
}
