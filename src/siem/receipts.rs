//! What a sink may believe of a response, once the receiver's key is pinned: a pure function.
//!
//! | status | statement | entries | belief |
//! | --- | --- | --- | --- |
//! | 2xx | valid receipt that names the batch's seal | any | [`Belief::Stored`] |
//! | 2xx | valid receipt, and a valid verdict that the batch is stored | any | [`Belief::Stored`] |
//! | 2xx | none, or another | any | [`Belief::Untrusted`] |
//! | 408, 425, 429, 5xx | any | any | [`Belief::Later`] |
//! | other | valid verdict 409 | any | [`Belief::Conflict`] |
//! | other | valid verdict 413, 422 | any | [`Belief::Refused`] |
//! | other | valid verdict about the device | any | [`Belief::Device`] |
//! | other | another valid verdict | any | [`Belief::Denied`] |
//! | other | wrong verdict | any | [`Belief::Untrusted`] |
//! | 413 | none | several | [`Belief::Split`] |
//! | 409, 413, 422 | none | any | [`Belief::Untrusted`] |
//! | 403 that names a revoked or cloned device | none | any | [`Belief::Untrusted`] |
//! | other | none | any | [`Belief::Denied`] |
//!
//! [`Belief::Later`] and [`Belief::Denied`] keep every entry, so they need no signature.

use siem_protocol::{
    ChainPoint, Digest, Problem, Receipt,
    agent_event::UntrustedAnswer,
    names::{self, problem},
    note::{NoteError, VerifierKey},
    statement::{Opened, Statement, StatementError, StoredReceipt, Verdict},
};

/// Subject of a batch, which a statement must name, and keys that may have signed it.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Name of the receiver.
    pub receiver: &'a str,
    /// Pinned keys.
    pub keys: &'a [VerifierKey],
    /// Stable id of the machine.
    pub machine: &'a str,
    /// Name of the user.
    pub user: &'a str,
    /// Epoch of the batch.
    pub epoch: &'a str,
    /// Point that a receipt must name: the end of the batch, or for a redelivery the sealed point.
    /// Without one no receipt is valid.
    pub point: Option<ChainPoint>,
    /// Digest of the batch's seal. A receipt that names another one was given to another sender, or
    /// for an earlier batch.
    pub seal: Option<Digest>,
    /// Body of the request as sent.
    pub body: &'a [u8],
    /// Number of entries in the batch.
    pub entries: u64,
}

/// What a response says that the sink may believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Belief {
    /// The receiver holds the batch.
    Stored {
        /// Note of the receipt.
        receipt: String,
    },
    /// The receiver holds other entries under these numbers.
    Conflict,
    /// The receiver refuses the content.
    Refused {
        /// Status of the verdict.
        status: u16,
    },
    /// The batch is too large, and has entries to split.
    Split,
    /// The receiver refuses the device.
    Device(DeviceVerdict),
    /// The receiver cannot serve the request now.
    Later,
    /// The receiver refuses the request, for a reason that is not about the entries.
    Denied,
    /// A statement is missing or wrong.
    Untrusted(UntrustedAnswer),
}

/// Reason why a receiver refuses a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceVerdict {
    /// The key was revoked.
    Revoked,
    /// Two installations use the key.
    Cloned,
    /// The key is not enrolled, or not approved.
    NotEnrolled,
    /// The epoch belongs to another device.
    EpochOwned,
    /// Another key is confirmed for machine and user.
    Impersonation,
}

impl DeviceVerdict {
    /// Returns the reason that a problem type names.
    #[must_use]
    pub fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            problem::DEVICE_REVOKED => Self::Revoked,
            problem::DEVICE_CLONED => Self::Cloned,
            problem::NOT_ENROLLED => Self::NotEnrolled,
            problem::EPOCH_OWNED => Self::EpochOwned,
            problem::IMPERSONATION => Self::Impersonation,
            _ => return None,
        })
    }
}

impl Belief {
    /// Interprets a response: see the table of the [module](self).
    #[must_use]
    pub fn of(status: u16, body: &[u8], subject: &Subject<'_>) -> Self {
        match status {
            200..=299 => match check_receipt(body, subject) {
                Ok(receipt) => Self::Stored { receipt },
                Err(problem) => Self::Untrusted(problem),
            },
            408 | 425 | 429 | 500..=599 => Self::Later,
            _ => Self::of_refusal(status, body, subject),
        }
    }

    fn of_refusal(status: u16, body: &[u8], subject: &Subject<'_>) -> Self {
        let problem: Option<Problem> = serde_json::from_slice(body).ok();
        if let Some(note) = problem.as_ref().and_then(|problem| problem.verdict.as_deref()) {
            return match check_verdict(note, subject) {
                Ok(verdict) => Self::of_verdict(&verdict),
                Err(problem) => Self::Untrusted(problem),
            };
        }
        let device = problem.and_then(|problem| DeviceVerdict::of(&problem.kind));
        match (status, device) {
            (413, _) if subject.entries > 1 => Self::Split,
            (409 | 413 | 422, _) | (403, Some(DeviceVerdict::Revoked | DeviceVerdict::Cloned)) => {
                Self::Untrusted(UntrustedAnswer::Unsigned)
            }
            _ => Self::Denied,
        }
    }

    fn of_verdict(verdict: &Verdict) -> Self {
        match (DeviceVerdict::of(&verdict.kind), verdict.status) {
            (Some(device), _) => Self::Device(device),
            (None, 409) => Self::Conflict,
            (None, status @ (413 | 422)) => Self::Refused { status },
            _ => Self::Denied,
        }
    }
}

/// Returns the note of a receipt for the subject.
///
/// The chain is the same if the lines count as dead letters, so that another sender who begins the
/// epoch without them gets such a receipt, too. Only the device can make its seal, and the receiver
/// compares a seal with the lines that came. If the receipt names another seal, as after a restart in
/// the middle of a delivery, the receiver says besides that the batch is stored.
fn check_receipt(body: &[u8], subject: &Subject<'_>) -> Result<String, UntrustedAnswer> {
    let Receipt { receipt, verdict, .. } =
        serde_json::from_slice(body).map_err(|_| UntrustedAnswer::Unsigned)?;
    let note = receipt.ok_or(UntrustedAnswer::Unsigned)?;
    let receipt: StoredReceipt = open(&note, subject.keys)?;
    let point = ChainPoint { seq: receipt.last_seq, hash: receipt.chain };
    let is_ours = receipt.receiver == subject.receiver
        && receipt.machine == subject.machine
        && receipt.user == subject.user
        && receipt.epoch == subject.epoch
        && Some(point) == subject.point;
    if !is_ours {
        return Err(UntrustedAnswer::OtherSubject);
    }
    let is_of_batch = receipt.seal.is_some() && receipt.seal == subject.seal;
    if !is_of_batch {
        check_stored(&verdict.ok_or(UntrustedAnswer::OtherSubject)?, subject)?;
    }
    Ok(note)
}

/// Checks that the receiver holds every entry of a redelivery. Its receipt does not say so: it is the
/// one of the head of the epoch, which an attacker may have recorded.
///
/// # Errors
/// What is wrong with the response.
pub fn check_redelivery(body: &[u8], subject: &Subject<'_>) -> Result<(), UntrustedAnswer> {
    let receipt: Option<Receipt> = serde_json::from_slice(body).ok();
    let note = receipt.and_then(|receipt| receipt.verdict).ok_or(UntrustedAnswer::Unsigned)?;
    check_stored(&note, subject)
}

/// Checks a verdict that every entry of the batch is stored.
fn check_stored(note: &str, subject: &Subject<'_>) -> Result<(), UntrustedAnswer> {
    let verdict = check_verdict(note, subject)?;
    let is_stored = (verdict.status, &*verdict.kind) == (200, names::verdict::STORED);
    if is_stored { Ok(()) } else { Err(UntrustedAnswer::OtherSubject) }
}

fn check_verdict(note: &str, subject: &Subject<'_>) -> Result<Verdict, UntrustedAnswer> {
    let verdict: Verdict = open(note, subject.keys)?;
    let Subject { receiver, machine, epoch, body, .. } = *subject;
    match verdict.is_about(receiver, machine, Some(epoch), Digest::of(body)) {
        true => Ok(verdict),
        false => Err(UntrustedAnswer::OtherSubject),
    }
}

/// Opens a statement that one of `keys` must have signed.
///
/// # Errors
/// What is wrong with the note.
pub fn open<S: Statement>(note: &str, keys: &[VerifierKey]) -> Result<S, UntrustedAnswer> {
    S::open(note, keys).map(|Opened { statement, .. }| statement).map_err(|error| untrusted(&error))
}

/// Returns what is wrong with a statement.
#[must_use]
pub fn untrusted(error: &StatementError) -> UntrustedAnswer {
    match error {
        StatementError::Note(NoteError::UnknownKey) | StatementError::NotOwned(_) => {
            UntrustedAnswer::WrongKey
        }
        StatementError::Note(NoteError::WrongSignature { .. }) => UntrustedAnswer::WrongSignature,
        // A statement of another kind, such as a receipt in place of a verdict.
        StatementError::Kind { .. } => UntrustedAnswer::OtherSubject,
        StatementError::Organisation(_) => UntrustedAnswer::WrongSignature,
        _ => UntrustedAnswer::Malformed,
    }
}

/// Describes what is wrong with a response, for people.
#[must_use]
pub fn describe(problem: UntrustedAnswer) -> &'static str {
    match problem {
        UntrustedAnswer::Unsigned => "is not signed",
        UntrustedAnswer::Malformed => "has a malformed statement",
        UntrustedAnswer::WrongKey => "is signed by a key that is not pinned",
        UntrustedAnswer::WrongSignature => "has a wrong signature",
        UntrustedAnswer::OtherSubject => {
            "is about another receiver, machine, epoch, chain, seal or request"
        }
    }
}

#[cfg(test)]
mod tests;
