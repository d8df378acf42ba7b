//! Verification of the seal of a batch, outside the thread that stores batches.

use siem_protocol::{
    Digest,
    note::{Note, NoteError, VerifierKey},
    statement::{Seal, Statement as _, StatementError},
};

use super::{DEVICE_KEY_NAME, DeviceKey, Registry};
use crate::batch::Batch;

/// Number of known keys with the same id that are tried.
const CANDIDATES: usize = 8;

/// Seal of a batch, as verified on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchSeal {
    /// There is none, or the receiver knows no devices.
    None,
    /// The receiver does not know the key, so that it cannot verify it.
    Unknown,
    /// It does not belong to the batch, or its signature is wrong.
    Invalid(&'static str),
    /// A device that the receiver knows made it for this batch.
    Valid(VerifiedSeal),
}

/// A seal whose signature is right, and whose statement agrees with the header of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSeal {
    /// The device.
    pub device: DeviceKey,
    /// Last number that the seal covers.
    pub last_seq: u64,
    /// Value of the chain at that number.
    pub chain: Digest,
}

impl BatchSeal {
    /// Verifies the seal in the header of `batch` with the keys of `registry`, and that it is the
    /// seal of these lines.
    ///
    /// The numbers and the chain of a redelivery are not compared: the store knows which it holds.
    #[must_use]
    pub fn verify(batch: &Batch, registry: &Registry) -> Self {
        Self::verify_for(batch, registry, || registry.receiver_name())
    }

    /// Like [`Self::verify`], for a receiver whose name is known.
    pub(crate) fn verify_for(
        batch: &Batch,
        registry: &Registry,
        receiver: impl FnOnce() -> Option<String>,
    ) -> Self {
        let header = &batch.header;
        let Some(text) = &header.seal else { return Self::None };
        let Ok(note) = Note::parse(text) else { return Self::Invalid("it is not a note") };
        let keys = candidates(&note, registry);
        if keys.is_empty() {
            return Self::Unknown;
        }
        let opened = match Seal::open(text, &keys) {
            Ok(opened) => opened,
            Err(StatementError::Note(NoteError::UnknownKey)) => return Self::Unknown,
            Err(StatementError::Note(_)) => return Self::Invalid("its signature is wrong"),
            Err(_) => return Self::Invalid("it is not a statement about a batch"),
        };
        let [signer] = opened.signers.as_slice() else {
            return Self::Invalid("several devices signed it");
        };
        let seal = opened.statement;
        match difference(&seal, batch, receiver()) {
            Some(difference) => Self::Invalid(difference),
            None => Self::Valid(VerifiedSeal {
                device: DeviceKey::from(signer),
                last_seq: seal.last_seq,
                chain: seal.chain,
            }),
        }
    }

    /// Returns the seal if it is valid.
    #[must_use]
    pub fn valid(&self) -> Option<&VerifiedSeal> {
        match self {
            Self::Valid(seal) => Some(seal),
            _ => None,
        }
    }

    /// Reports whether the sender has to enroll before its seals count.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::None | Self::Unknown)
    }
}

/// Returns the keys of known devices that may have signed the note.
fn candidates(note: &Note, registry: &Registry) -> Vec<VerifierKey> {
    let own = note.signatures().iter().filter(|signature| signature.name() == DEVICE_KEY_NAME);
    let devices = own.flat_map(|signature| registry.devices_by_key_id(signature.key_id()));
    devices.take(CANDIDATES).filter_map(|device| device.key.verifier().ok()).collect()
}

/// Returns what a seal says otherwise than the batch that carries it.
///
/// The chain is computed from the lines: what the header says about them is not theirs.
fn difference(seal: &Seal, batch: &Batch, receiver: Option<String>) -> Option<&'static str> {
    let header = &batch.header;
    let covers = batch.covers().is_some_and(|(_, last)| {
        last == seal.last_seq
            && batch.chain(last, last) == [seal.chain]
            && header.chain.is_some_and(|chain| chain.after == seal.chain)
    });
    // A redelivery has neither.
    let leaves_out = seal.first_seq != header.first_seq
        || seal.dead_lettered != Seal::dead_letters(&header.dead_lettered);
    let differences = [
        (seal.receiver != receiver, "it is for another receiver"),
        (seal.machine != header.machine_id, "it is for another machine"),
        (seal.user != header.user, "it is for another user"),
        (seal.epoch != header.epoch, "it is for another epoch"),
        (seal.config != header.config_hash, "it names another configuration"),
        (seal.instance != header.instance, "it is by another run of the agent"),
        (leaves_out || !header.redelivery && !covers, "it covers other entries"),
    ];
    differences.into_iter().find(|(differs, _)| *differs).map(|(_, text)| text)
}

#[cfg(test)]
mod tests;
