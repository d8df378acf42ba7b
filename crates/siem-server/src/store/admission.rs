//! Admission of a batch: gathers the facts for the [policy](crate::trust::policy) and applies its
//! decision to the catalog.

use siem_protocol::statement::{DeviceState, TrustLevel};

use super::catalog::{Catalog, Key};
use crate::{
    batch::Batch,
    trust::{
        BatchSeal, DeviceKey, DeviceView, Event, EventKind, Registry, SenderFacts, VerifiedSeal,
        policy::{
            self, Alarm, Decision, Denial, EpochState, Facts, Mark, Reach, SealState, Sealer,
            Standing,
        },
    },
};

/// Terms on which a batch is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Admission {
    /// Refuse it if it does not continue what is held.
    pub(super) strict: bool,
    /// The device that owns the epoch, from this batch on at the latest.
    pub(super) owner: Option<AdmittedDevice>,
    /// Event, once it is stored.
    pub(super) alarm: Option<Alarm>,
    /// The receiver has a key.
    pub(super) keyed: bool,
}

/// Device that owns the epoch of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AdmittedDevice {
    pub(super) key: DeviceKey,
    pub(super) mark: Mark,
    pub(super) level: TrustLevel,
    /// The epoch had no owner, but entries.
    pub(super) adopts: bool,
    /// The adoption confirms the key.
    pub(super) confirms: bool,
    /// Another key replaced this one.
    pub(super) is_replaced: bool,
}

impl Admission {
    /// Admission of any batch, without a device.
    #[cfg(test)]
    pub(super) const fn loose() -> Self {
        Self { strict: false, owner: None, alarm: None, keyed: false }
    }
}

/// Refusal of a batch by the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) denial: Denial,
    pub(super) alarm: Option<Alarm>,
}

/// Decides whether and how a batch is stored. Without a registry, no device is known.
pub(super) fn admit(
    catalog: &Catalog,
    registry: Option<&Registry>,
    batch: &Batch,
    key: &Key,
) -> Result<Admission, Refused> {
    let seal = batch.seal.valid();
    let of = (batch.header.machine_id.as_str(), batch.header.user.as_str());
    let mut sender = registry
        .map(|registry| registry.sender_facts(of, seal.map(|seal| &seal.device)))
        .unwrap_or_default();
    let device = sender.device.take();
    let sealer = registry.zip(seal.zip(device));
    let facts = facts(catalog, registry, (&sender, sealer.as_ref()), batch, key);
    let owner = |mark, adopts, confirms| {
        sealer.as_ref().map(|(_, (seal, device))| AdmittedDevice {
            key: seal.device,
            mark,
            level: facts.level,
            adopts,
            confirms,
            is_replaced: device.next.is_some(),
        })
    };
    let keyed = registry.is_some_and(Registry::is_keyed);
    match policy::decide(&facts) {
        Decision::Store { mark, strict, alarm } => {
            // Only a batch that the owner of an epoch may send is stored loosely.
            let owner = if strict { None } else { owner(mark, false, false) };
            Ok(Admission { strict, owner, alarm, keyed })
        }
        Decision::Adopt { mark, confirms, alarm } => {
            let owner = owner(mark, true, confirms);
            Ok(Admission { strict: true, owner, alarm, keyed })
        }
        Decision::Refuse { denial, alarm } => Err(Refused { denial, alarm }),
    }
}

/// The registry, and a valid seal with its device.
type SealedBy<'a> = (&'a Registry, (&'a VerifiedSeal, DeviceView));

fn facts(
    catalog: &Catalog,
    registry: Option<&Registry>,
    (sender, sealer): (&SenderFacts, Option<&SealedBy<'_>>),
    batch: &Batch,
    key: &Key,
) -> Facts {
    let (machine, user) = (&batch.header.machine_id, &batch.header.user);
    let ratcheted = sender.has_confirmed;
    let own_device =
        sealer.is_some_and(|(_, (_, device))| device.machine == *machine && device.user == *user);
    let same = |owner: &DeviceKey| {
        sealer.is_some_and(|(registry, (seal, _))| registry.same_lineage(owner, &seal.device))
    };
    let seal = match (&batch.seal, sealer) {
        (BatchSeal::Invalid(_), _) => SealState::Invalid,
        (_, None) => SealState::None,
        (_, Some((_, (_, device)))) => {
            let standing = match device.state {
                DeviceState::Revoked => Standing::Revoked,
                DeviceState::Confirmed if own_device => Standing::Confirmed,
                _ => Standing::Unconfirmed,
            };
            let is_second = standing == Standing::Unconfirmed && {
                let owners = catalog.owners(machine, user);
                let (own, others): (Vec<_>, Vec<_>) = owners.into_iter().partition(same);
                own.is_empty() && (ratcheted || !others.is_empty())
            };
            SealState::Valid(Sealer { standing, cloned: device.cloned, is_second })
        }
    };
    Facts {
        level: registry.map_or(TrustLevel::Shared, Registry::level),
        shared_allowed: sender.is_shared_allowed,
        ratcheted,
        seal,
        epoch: epoch_state(catalog, registry, batch, key, same, own_device),
    }
}

fn epoch_state(
    catalog: &Catalog,
    registry: Option<&Registry>,
    batch: &Batch,
    key: &Key,
    same: impl Fn(&DeviceKey) -> bool,
    own_device: bool,
) -> EpochState {
    let Some(epoch) = catalog.epoch(key) else { return EpochState::Unknown };
    let of_user = epoch.user == batch.header.user;
    match epoch.owner {
        Some(owner) if same(&owner) => EpochState::Own,
        Some(_) if batch.header.redelivery && own_device && of_user => EpochState::ForeignLetters,
        Some(owner) if is_unconfirmed(registry, &owner, batch) => EpochState::ForeignUnconfirmed,
        Some(_) => EpochState::Foreign,
        None => EpochState::Keyless(match batch.covers() {
            Some(_) if !of_user => Reach::OfOther,
            Some((_, last)) if last + 1 >= epoch.next_seq => {
                if own_device && catalog.is_first_line(key) {
                    Reach::Head
                } else {
                    Reach::HeadOfLater
                }
            }
            _ => Reach::Below,
        }),
    }
}

/// Reports whether a device was never confirmed for the machine and user of a batch.
fn is_unconfirmed(registry: Option<&Registry>, owner: &DeviceKey, batch: &Batch) -> bool {
    let (machine, user) = (&batch.header.machine_id, &batch.header.user);
    registry.is_some_and(|registry| {
        // One that is unknown was evicted, which happens to unconfirmed ones only.
        registry.device(owner).is_none_or(|device| {
            device.confirmed_by.is_none() || device.machine != *machine || device.user != *user
        })
    })
}

/// Creates the event for an alarm.
pub(super) fn alarm_event(alarm: Alarm, denial: Option<Denial>, batch: &Batch) -> Event {
    let kind = match alarm {
        Alarm::Impersonation => EventKind::Impersonation,
        Alarm::SecondKey => EventKind::SecondKey,
    };
    let mut event = batch.event(kind);
    event.detail = match (&batch.seal, denial) {
        (BatchSeal::Invalid(reason), _) => Some(format!("the seal is invalid: {reason}")),
        // What the sender has to do says nothing about the cause.
        (_, Some(Denial::Renumber)) => Some(Denial::EpochOwned.to_string()),
        (_, Some(denial)) => Some(denial.to_string()),
        _ => None,
    };
    event
}
