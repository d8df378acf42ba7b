//! Decision about a batch: whose entries are these?
//!
//! A pure function of the receiver's level, of what is known about the device, the machine and the
//! user, and of the epoch's owner:
//!
//! | seal | epoch | decision |
//! | --- | --- | --- |
//! | invalid | any | refused as `seal`, event `impersonation` |
//! | by a revoked or copied key | any | refused as `device-revoked` or `device-cloned` |
//! | by its owner | owned | stored; at level `enrolled` only if the key is confirmed |
//! | none, or by a key that is not confirmed | owned by another device | refused as `epoch-owned`, event `impersonation` |
//! | by a confirmed key | owned by another device | refused as `conflict`: the agent starts a new epoch; event `impersonation` if the owner is confirmed, too |
//! | none, and `allow-shared` was given | owned | refused as `conflict`: the agent starts a new epoch |
//! | none, and a key was confirmed | keyless or unknown | refused as `impersonation`, with its event |
//! | none, level `enrolled` | keyless or unknown | refused as `not-enrolled` |
//! | none | keyless or unknown | stored as `shared`, if it continues what is held |
//! | valid | unknown | begins the epoch, whose owner is the device |
//! | valid | keyless, up to its head or beyond | adopts the epoch, if it continues what is held; confirms the key, if none was and the epoch is the machine's first |
//! | valid | keyless, below its head | stored: duplicates and dead letters only |
//! | valid, of the same machine and user | owned by another device | dead letters are stored, all else is refused as `epoch-owned` |
//! | any, but for another user | keyless | dead letters are stored, all else is refused as `conflict`: the agent starts a new epoch |
//!
//! Anyone with the secrets of the fleet can begin a keyless epoch and adopt it. So only the first
//! line of epochs that is held of a machine and user confirms a key, and only one that is enrolled for
//! them; and the user of an epoch without a device never changes.
//!
//! A dead letter is stored only if it has the hash that the owner of its epoch declared, so any
//! device of the same machine and user may bring it: an agent that lost its key redelivers those of
//! its earlier epochs.
//!
//! A seal by a key that the receiver does not know counts as none. Permission by `allow-shared`
//! lowers the level to `shared` for the machine and lifts its ratchet; it never opens an epoch that
//! a device owns.

use serde::{Deserialize, Serialize};
use siem_protocol::statement::TrustLevel;

/// Facts about a batch, its sender and its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Lowest level that the receiver accepts.
    pub level: TrustLevel,
    /// An operator allowed the machine to send without a key.
    pub shared_allowed: bool,
    /// A key of this machine and user is or was confirmed.
    pub ratcheted: bool,
    /// The seal of the batch.
    pub seal: SealState,
    /// The epoch.
    pub epoch: EpochState,
}

/// Seal of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealState {
    /// There is none, or none by a key that the receiver knows.
    None,
    /// It does not belong to the batch, or its signature is wrong.
    Invalid,
    /// A device of the registry made it for this batch.
    Valid(Sealer),
}

/// Device that sealed a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealer {
    /// Standing of the key for this machine and user.
    pub standing: Standing,
    /// Two installations use the key.
    pub cloned: bool,
    /// No entry by this key is held for the machine and user, but another key of theirs is known.
    pub is_second: bool,
}

/// Standing of a device key for a machine and user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was enrolled, by anyone with a token.
    Unconfirmed,
    /// It belongs to the machine and user.
    Confirmed,
    /// It is refused for good.
    Revoked,
}

/// Epoch of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochState {
    /// Nothing of it is held.
    Unknown,
    /// No device owns it.
    Keyless(Reach),
    /// The lineage of the device that sealed the batch owns it.
    Own,
    /// Another device owns it, with a key that is or was confirmed for the machine and user.
    Foreign,
    /// Another device owns it, with a key that is not: anyone who saw the first batch of the epoch on
    /// its way may have begun it.
    ForeignUnconfirmed,
    /// Another device of the machine and user owns it, and the batch brings dead letters.
    ForeignLetters,
}

/// Numbers of a batch, compared with those that are held of its epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They end below the highest number held, or are dead letters.
    Below,
    /// They reach the highest number held, or go beyond it. The epoch, or one that it continues, is
    /// the first that is held of the machine and user, and the sealer is enrolled for these two.
    Head,
    /// As `Head`, but another epoch of the machine and user was there before, so that anyone with the
    /// secrets of the fleet may have begun this one; or the sealer is enrolled for others, about whom
    /// the epoch says nothing. It proves nothing.
    HeadOfLater,
    /// They are no dead letters, and the epoch has another user.
    OfOther,
}

/// Whose entries a batch brings, as far as the receiver can tell.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Anyone's who has the secrets of the fleet.
    Shared,
    /// Of a device that anyone with an enrollment token may have enrolled.
    Unconfirmed,
    /// Of the device that belongs to the machine and user.
    Confirmed,
}

/// Event to record besides the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The batch lacks a seal that it needs.
    Impersonation,
    /// An unconfirmed key appears beside another one.
    SecondKey,
}

/// Reason to refuse a batch. Nothing of it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The seal is invalid.
    #[error("the seal does not belong to the batch, or its signature is wrong")]
    Seal,
    /// Another device owns the epoch.
    #[error("the epoch belongs to a device that did not seal the batch")]
    EpochOwned,
    /// The machine and user have a confirmed key, which did not seal the batch.
    #[error("the machine and user have a confirmed device key, and the batch has no seal")]
    Impersonation,
    /// The level requires a confirmed key.
    #[error("this receiver accepts batches of confirmed devices only")]
    NotEnrolled,
    /// The key was revoked.
    #[error("the device key was revoked")]
    DeviceRevoked,
    /// Two installations use the key.
    #[error("two installations use the device key")]
    DeviceCloned,
    /// The sender is legitimate, but has to start a new epoch.
    #[error("the entries need a new epoch")]
    Renumber,
}

/// Decision about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Store it. The sealer of an unknown epoch becomes its owner.
    Store {
        /// Mark of the entries.
        mark: Mark,
        /// Refuse it if it does not continue what is held.
        strict: bool,
        /// Event, once it is stored.
        alarm: Option<Alarm>,
    },
    /// Store it if it continues what is held; the sealer is the owner of the epoch from now on.
    Adopt {
        /// Mark of the entries.
        mark: Mark,
        /// Continuity confirms the key.
        confirms: bool,
        /// Event, once it is stored.
        alarm: Option<Alarm>,
    },
    /// Refuse it.
    Refuse {
        /// Reason.
        denial: Denial,
        /// Event.
        alarm: Option<Alarm>,
    },
}

impl Decision {
    const fn refuse(denial: Denial) -> Self {
        Self::Refuse { denial, alarm: None }
    }

    const fn repel(denial: Denial) -> Self {
        Self::Refuse { denial, alarm: Some(Alarm::Impersonation) }
    }
}

/// Decides about a batch.
#[must_use]
pub fn decide(facts: &Facts) -> Decision {
    match facts.seal {
        SealState::Invalid => Decision::repel(Denial::Seal),
        SealState::None => decide_keyless(facts),
        SealState::Valid(sealer) => match sealer.standing {
            Standing::Revoked => Decision::refuse(Denial::DeviceRevoked),
            _ if sealer.cloned => Decision::refuse(Denial::DeviceCloned),
            standing => decide_sealed(facts, sealer, standing == Standing::Confirmed),
        },
    }
}

fn decide_keyless(facts: &Facts) -> Decision {
    match facts.epoch {
        EpochState::Own
        | EpochState::Foreign
        | EpochState::ForeignUnconfirmed
        | EpochState::ForeignLetters => match facts.shared_allowed {
            true => Decision::refuse(Denial::Renumber),
            false => Decision::repel(Denial::EpochOwned),
        },
        EpochState::Unknown | EpochState::Keyless(_) => {
            if facts.ratcheted && !facts.shared_allowed {
                Decision::repel(Denial::Impersonation)
            } else if facts.requires_confirmed() {
                Decision::refuse(Denial::NotEnrolled)
            } else if facts.epoch == EpochState::Keyless(Reach::OfOther) {
                Decision::refuse(Denial::Renumber)
            } else {
                Decision::Store { mark: Mark::Shared, strict: true, alarm: None }
            }
        }
    }
}

fn decide_sealed(facts: &Facts, sealer: Sealer, confirmed: bool) -> Decision {
    let mark = if confirmed { Mark::Confirmed } else { Mark::Unconfirmed };
    let alarm = (sealer.is_second && !confirmed).then_some(Alarm::SecondKey);
    let denied = !confirmed && facts.requires_confirmed();
    match facts.epoch {
        // Otherwise the machine would be silent for good, although it is known which key is real.
        EpochState::ForeignUnconfirmed if confirmed => Decision::refuse(Denial::Renumber),
        // Both are: the receiver may have lost the rotation from one to the other with a restoration.
        EpochState::Foreign if confirmed => Decision::repel(Denial::Renumber),
        EpochState::Foreign | EpochState::ForeignUnconfirmed => Decision::repel(Denial::EpochOwned),
        // Once a key is confirmed, the epochs of its machine are no longer keyless: continuity
        // proves nothing about an older one.
        EpochState::Keyless(Reach::Head) if !confirmed && !facts.ratcheted => {
            Decision::Adopt { mark: Mark::Confirmed, confirms: true, alarm: None }
        }
        _ if denied => Decision::refuse(Denial::NotEnrolled),
        EpochState::Keyless(Reach::Head | Reach::HeadOfLater) => {
            Decision::Adopt { mark, confirms: false, alarm }
        }
        EpochState::Keyless(Reach::OfOther) => Decision::refuse(Denial::Renumber),
        EpochState::Keyless(Reach::Below) | EpochState::ForeignLetters => {
            Decision::Store { mark, strict: true, alarm: None }
        }
        EpochState::Unknown | EpochState::Own => Decision::Store { mark, strict: false, alarm },
    }
}

impl Facts {
    fn requires_confirmed(&self) -> bool {
        self.level == TrustLevel::Enrolled && !self.shared_allowed
    }
}

#[cfg(test)]
mod tests;
