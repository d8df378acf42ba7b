//! Statements that the receiver signs in its answers to batches.

use std::sync::Arc;

use siem_protocol::{
    BatchHeader, Digest, names,
    note::SigningKey,
    statement::{Durability, Statement as _, StoredReceipt, Verdict},
};
use tracing::error;

use super::{Shared, ingest::SentBody, problem::Rejection};
use crate::{clock, store::HeldPoint};

/// Batch that a statement is about.
pub(super) struct BatchSubject {
    machine: String,
    user: String,
    epoch: String,
    body: SentBody,
}

impl BatchSubject {
    pub(super) fn new(header: &BatchHeader, body: SentBody) -> Self {
        Self {
            machine: header.machine_id.clone(),
            user: header.user.clone(),
            epoch: header.epoch.clone(),
            body,
        }
    }
}

impl SentBody {
    fn digest(&self) -> Option<Digest> {
        match self {
            Self::Dropped => None,
            Self::Hashed(digest) => Some(*digest),
            Self::Kept(sent) => Some(Digest::of(&sent.body)),
        }
    }
}

impl Shared {
    /// Returns the key with which the receiver signs its answers; `None` without one. Blocks for the file system.
    pub(super) fn signing_key(&self) -> Option<Arc<SigningKey>> {
        self.registry.as_ref()?.receiver_key()
    }
}

/// Returns the receipt for a stored batch, signed with the key that the receiver had when it read the batch;
/// `None` without a key.
pub(super) fn receipt(
    key: Option<&SigningKey>,
    subject: &BatchSubject,
    point: Option<HeldPoint>,
) -> Result<Option<String>, Rejection> {
    let Some((key, point)) = key.zip(point) else { return Ok(None) };
    let receipt = StoredReceipt {
        receiver: name(key),
        machine: subject.machine.clone(),
        user: subject.user.clone(),
        epoch: subject.epoch.clone(),
        last_seq: point.last_seq,
        chain: point.chain,
        seal: point.seal,
        received_at: point.received_at,
        durability: Durability::Synced,
    };
    receipt.sign(&[key]).map(Some).map_err(Rejection::Sign)
}

/// Returns the signed verdict about a refused batch; `None` if the receiver has no key.
pub(super) fn verdict(
    shared: &Shared,
    rejection: &Rejection,
    subject: &BatchSubject,
) -> Option<String> {
    let body = subject.body.digest()?;
    sign_verdict(shared, rejection, &subject.machine, Some(&subject.epoch), body)
}

/// Returns the signed statement that every entry of a batch is stored; `None` if the receiver has no
/// key. The receipt does not say so for a redelivery, since it is the one of the head of the epoch; nor
/// if it names the seal of another batch, since its chain is the same without the lines.
pub(super) fn stored(shared: &Shared, subject: &BatchSubject) -> Option<String> {
    let key = shared.registry.as_ref()?.receiver_key()?;
    sign(
        &key,
        Verdict {
            receiver: name(&key),
            status: 200,
            kind: names::verdict::STORED.to_owned(),
            machine: subject.machine.clone(),
            epoch: Some(subject.epoch.clone()),
            body: subject.body.digest()?,
            at: clock::text(shared.clock.now()),
            detail: None,
        },
    )
}

/// Returns the signed verdict about a refused request of `machine`, for `epoch` if it was a batch,
/// with a body of the hash `body`; `None` if the receiver has no key.
pub(super) fn sign_verdict(
    shared: &Shared,
    rejection: &Rejection,
    machine: &str,
    epoch: Option<&str>,
    body: Digest,
) -> Option<String> {
    let key = shared.registry.as_ref()?.receiver_key()?;
    let problem = rejection.problem();
    let verdict = Verdict {
        receiver: name(&key),
        status: problem.status,
        kind: problem.kind,
        machine: machine.to_owned(),
        epoch: epoch.map(str::to_owned),
        body,
        at: clock::text(shared.clock.now()),
        detail: problem.detail,
    };
    sign(&key, verdict)
}

/// Signs a verdict. Without one the sender keeps what it has, and asks again.
fn sign(key: &SigningKey, verdict: Verdict) -> Option<String> {
    let signed = verdict.sign(&[key]);
    signed
        .inspect_err(|error| error!(code = "verdict_not_signed", %error, "cannot sign a verdict"))
        .ok()
}

fn name(key: &SigningKey) -> String {
    use siem_protocol::note::NoteSigner as _;
    key.key().name().to_owned()
}
