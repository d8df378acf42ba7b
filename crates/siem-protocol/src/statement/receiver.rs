//! Statements that a receiver signs.

use super::{
    Opened, Statement, StatementError,
    line::{lines, words},
};
use crate::{
    Digest,
    minisign::{MinisignError, OrganisationKey},
    note::{Note, VerifierKey},
};

words! {
    /// What a receiver makes of a device key.
    pub enum DeviceState {
        /// Its entries are refused until an operator approves it, because the receiver accepts
        /// enrolled devices only.
        Pending = "pending",
        /// Its entries are stored, and shown apart from those of confirmed keys.
        Unconfirmed = "unconfirmed",
        /// The key belongs to its machine and user: see [`Confirmation`].
        Confirmed = "confirmed",
        /// Its entries are refused for good.
        Revoked = "revoked",
    }
}

words! {
    /// Lowest level of trust that a receiver accepts. The levels are ordered: a higher one is
    /// greater.
    pub enum TrustLevel {
        /// Batches without a device key, protected by the shared secrets.
        Shared = "shared",
        /// Any device key, and machines without one until a key of theirs is confirmed.
        FirstUse = "first-use",
        /// Confirmed device keys only.
        Enrolled = "enrolled",
    }
}

words! {
    /// Reason why a device key is taken to belong to its machine and user.
    pub enum Confirmation {
        /// It was enrolled with a token that is valid once, or for this machine only.
        Token = "token",
        /// An operator of the receiver approved it.
        Operator = "operator",
        /// It continued an epoch without key, with the right value of the chain.
        Continuity = "continuity",
    }
}

/// State of a device key at a receiver, in the response to an enrollment. It informs; a device acts
/// on a [`Verdict`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name of the receiver's key.
    pub receiver: String,
    /// The device key.
    pub key: VerifierKey,
    /// State of the key.
    pub state: DeviceState,
    /// Lowest level that the receiver accepts.
    pub level: TrustLevel,
    /// Reason of the confirmation, if the key was ever confirmed.
    pub confirmed_by: Option<Confirmation>,
}

lines!(Device: "device" {
    receiver = "receiver",
    key = "key",
    state = "state",
    level = "level",
    confirmed_by = "confirmed_by",
});

words! {
    /// Where entries were when their receipt was given. The values are ordered: a safer one is
    /// greater.
    pub enum Durability {
        /// On stable storage of one receiver.
        Synced = "synced",
        /// On stable storage of several receivers.
        Replicated = "replicated",
    }
}

/// Acknowledges that a receiver holds an epoch up to a number. A device that pinned the receiver's
/// key deletes entries only against one that names its own machine, epoch and chain.
///
/// It follows from what is stored alone: the same batch again gives the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredReceipt {
    /// Name of the receiver's key.
    pub receiver: String,
    /// Stable id of the machine.
    pub machine: String,
    /// Name of the user whose sessions are read.
    pub user: String,
    /// Id of the outbox that numbers the entries.
    pub epoch: String,
    /// Last number held.
    pub last_seq: u64,
    /// Value of the chain at `last_seq`, computed from the lines that are held.
    pub chain: Digest,
    /// [Digest](super::digest) of the seal that covers `last_seq`.
    pub seal: Option<Digest>,
    /// Time at which the entry `last_seq` was first stored.
    pub received_at: String,
    /// Where the entries are.
    pub durability: Durability,
}

lines!(StoredReceipt: "receipt" {
    receiver = "receiver",
    machine = "machine",
    user = "user",
    epoch = "epoch",
    last_seq = "last_seq",
    chain = "chain",
    seal = "seal",
    received_at = "received_at",
    durability = "durability",
});

/// Refuses a request for a reason that lets the device give something up: renumber after a 409, set
/// an entry aside after a 422 or 413, stop or change its key after a 403.
///
/// `body` binds it to one request. The header line of a batch names epoch, numbers, both values of
/// the chain and the time of sending, so the hash of the body pins them all: a verdict about another
/// chain, or an older one for the same entries, has another hash. A device computes `body` from the
/// bytes that it sent, and acts on `status` and `kind` of the verdict, since the status line of the
/// response is not signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Name of the receiver's key.
    pub receiver: String,
    /// The HTTP status.
    pub status: u16,
    /// The problem type: one of [`names::problem`](crate::names::problem).
    pub kind: String,
    /// Stable id of the machine, as in the request.
    pub machine: String,
    /// The epoch of the batch; none if the request was not a batch.
    pub epoch: Option<String>,
    /// SHA-256 of the request's body as sent, after compression.
    pub body: Digest,
    /// Time of the response.
    pub at: String,
    /// Explanation for people.
    pub detail: Option<String>,
}

lines!(Verdict: "verdict" {
    receiver = "receiver",
    status = "status",
    kind = "type",
    machine = "machine",
    epoch = "epoch",
    body = "body",
    at = "at",
    detail = "detail",
});

impl Verdict {
    /// Reports whether the verdict is about the request that `machine` sent to `receiver` with a
    /// body of this hash, for `epoch` if it was a batch.
    #[must_use]
    pub fn is_about(
        &self,
        receiver: &str,
        machine: &str,
        epoch: Option<&str>,
        body: Digest,
    ) -> bool {
        self.receiver == receiver
            && self.machine == machine
            && self.epoch.as_deref() == epoch
            && self.body == body
    }
}

/// Lists the keys of a receiver. Signed by one of its keys that the reader knows, which during a
/// rotation is the old one besides the new one, or after a loss by the organisation.
///
/// The text has two lines `key`: the current key, then the next one or `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyList {
    /// Name of the receiver's keys.
    pub receiver: String,
    /// Key that signs now.
    pub current: VerifierKey,
    /// Key that will replace it.
    pub next: Option<VerifierKey>,
}

lines!(KeyList: "keys" {
    receiver = "receiver",
    current = "key",
    next = "key",
});

impl KeyList {
    /// Opens a list that the organisation signed, after the loss of the receiver's key: `minisig` is
    /// the text of a detached minisign signature over the text of `note`. The note must be signed
    /// by the current key, too: its holder agrees.
    ///
    /// # Errors
    /// [`StatementError::Organisation`] if none of `keys` made `minisig`; the errors of
    /// [`Statement::open`].
    pub fn open_recovery(
        note: &str,
        minisig: &str,
        keys: &[OrganisationKey],
    ) -> Result<Opened<Self>, StatementError> {
        let parsed = Note::parse(note)?;
        let text = parsed.unverified_text();
        let mut error = MinisignError::UnknownKey;
        let signed = keys.iter().any(|key| match key.verify(text.as_bytes(), minisig) {
            Ok(_) => true,
            Err(MinisignError::UnknownKey) => false,
            Err(other) => {
                error = other;
                false
            }
        });
        if !signed {
            return Err(error.into());
        }
        let list = Self::parse(text)?;
        Self::open(note, &[list.current])
    }

    /// Returns the keys that count: the current one, and the next one if there is one.
    #[must_use]
    pub fn keys(&self) -> Vec<VerifierKey> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().cloned().collect()
    }
}
