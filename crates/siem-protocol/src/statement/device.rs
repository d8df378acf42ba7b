//! Statements that a device signs.

use super::{Statement, StatementError, line::lines};
use crate::{
    BatchHeader, ChainPoint, DeadLettered, Digest,
    note::{Note, VerifierKey},
};

/// Covers all entries of an epoch up to a number, through the chain. Signed by the device; travels
/// in the header line of each batch.
///
/// The chain has the hash of an entry whether its line is sent or not, and its value at one number
/// follows from that at any earlier one. So the seal also says which numbers the batch covers, and
/// which of them it sends no line for: otherwise someone on the way could leave lines out, and the
/// receipt would be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Name of the receiver's key; none if no key of the receiver was seen.
    pub receiver: Option<String>,
    /// Stable id of the machine.
    pub machine: String,
    /// Name of the user whose sessions are read.
    pub user: String,
    /// Id of the outbox that numbers the entries.
    pub epoch: String,
    /// First number of the batch; none for a redelivery.
    pub first_seq: Option<u64>,
    /// Last number covered; for a redelivery the last one of the epoch that was sent.
    pub last_seq: u64,
    /// Value of the chain at `last_seq`.
    pub chain: Digest,
    /// Digest of the dead-lettered numbers of the batch, see [`Seal::dead_letters`].
    pub dead_lettered: Option<Digest>,
    /// Hash of the configuration in force, as in the header line.
    pub config: Digest,
    /// [Digest](super::digest) of the last receipt for this epoch.
    pub receipt: Option<Digest>,
    /// Random id of the agent's run, as in the header line.
    pub instance: Option<String>,
}

lines!(Seal: "seal" {
    receiver = "receiver",
    machine = "machine",
    user = "user",
    epoch = "epoch",
    first_seq = "first_seq",
    last_seq = "last_seq",
    chain = "chain",
    dead_lettered = "dead_lettered",
    config = "config",
    receipt = "receipt",
    instance = "instance",
});

impl Seal {
    /// Creates the seal of a batch with this header, at `point`, for the receiver with this name;
    /// `receipt` is the digest of the last receipt for the epoch.
    #[must_use]
    pub fn of(
        header: &BatchHeader,
        receiver: Option<String>,
        point: ChainPoint,
        receipt: Option<Digest>,
    ) -> Self {
        Self {
            receiver,
            machine: header.machine_id.clone(),
            user: header.user.clone(),
            epoch: header.epoch.clone(),
            first_seq: header.first_seq,
            last_seq: point.seq,
            chain: point.hash,
            dead_lettered: Self::dead_letters(&header.dead_lettered),
            config: header.config_hash,
            receipt,
            instance: header.instance.clone(),
        }
    }

    /// Returns the SHA-256 of a list of dead-lettered numbers: of each the number in eight bytes,
    /// the most significant one first, and the hash of its line. None for an empty list.
    #[must_use]
    pub fn dead_letters(list: &[DeadLettered]) -> Option<Digest> {
        if list.is_empty() {
            return None;
        }
        let bytes: Vec<u8> = list
            .iter()
            .flat_map(|dead| dead.seq.to_be_bytes().into_iter().chain(*dead.line_sha256.as_bytes()))
            .collect();
        Some(Digest::of(&bytes))
    }
}

/// Presents a device key to a receiver. Signed by `key`, and by `previous` if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enroll {
    /// Name of the receiver's key.
    pub receiver: String,
    /// Stable id of the machine.
    pub machine: String,
    /// Name of the user whose sessions are read.
    pub user: String,
    /// Name of the machine.
    pub host: String,
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Semantic version of the agent.
    pub version: String,
    /// The device key.
    pub key: VerifierKey,
    /// After a rotation the key before, whose epochs `key` continues.
    pub previous: Option<VerifierKey>,
}

lines!(Enroll: "enroll" {
    receiver = "receiver",
    machine = "machine",
    user = "user",
    host = "host",
    os = "os",
    arch = "arch",
    version = "version",
    key = "key",
    previous = "previous",
});

impl Enroll {
    /// Parses an enrollment and verifies that both keys that it names signed it. That proves that
    /// the sender holds them; it proves nothing about the machine or the user.
    ///
    /// # Errors
    /// [`StatementError::NotOwned`] if one of the keys did not sign; the errors of
    /// [`Statement::open`].
    pub fn open_self_signed(note: &str) -> Result<Self, StatementError> {
        let enroll = Self::parse(Note::parse(note)?.unverified_text())?;
        let keys: Vec<_> =
            [Some(&enroll.key), enroll.previous.as_ref()].into_iter().flatten().cloned().collect();
        let opened = Self::open(note, &keys)?;
        for (line, key) in ["key", "previous"].into_iter().zip(&keys) {
            if !opened.signers.contains(key) {
                return Err(StatementError::NotOwned(line));
            }
        }
        Ok(opened.statement)
    }
}
