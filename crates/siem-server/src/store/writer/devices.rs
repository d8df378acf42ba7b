//! Refusals, events and receipts, which concern the devices of senders.

use std::io;

use siem_protocol::statement::Confirmation;
use tracing::{error, warn};

use super::{Responder, Writer, reply};
use crate::{
    batch::Batch,
    ledger::ChainValues as _,
    stats::{CloneKind, CloneReport},
    store::{
        HeldPoint, StoreError,
        admission::{self, Admission, Refused},
        applier::Values,
        catalog::{self, Key},
        note::Note,
    },
    trust::{DeviceKey, Event, EventKind, Registry, RegistryError, policy::Denial},
};

impl Writer {
    /// Responds to a batch that the policy refuses. Nothing is written about it but an event.
    pub(super) fn refuse(&self, refused: Refused, batch: &Batch, key: &Key, responder: Responder) {
        let Refused { denial, alarm } = refused;
        warn!(
            code = "batch_denied",
            machine = key.0,
            epoch = key.1,
            reason = %denial,
            "rejected a batch of a sender that may not send it"
        );
        self.record(alarm.map(|alarm| admission::alarm_event(alarm, Some(denial), batch)));
        let error = match denial {
            Denial::Renumber => {
                let expected_seq = self.catalog.epoch(key).map_or(1, |epoch| epoch.next_seq);
                StoreError::Conflict { expected_seq }
            }
            denial => StoreError::Denied(denial),
        };
        reply(responder, Err(error));
    }

    pub(super) fn record(&self, events: impl IntoIterator<Item = Event>) {
        let Some(registry) = &self.registry else { return };
        for event in events {
            registry.record(event);
        }
    }

    /// Returns the facts for the receipt of a batch; `None` if the receiver signs none.
    pub(super) fn point(
        &self,
        batch: &Batch,
        key: &Key,
        note: &Note,
    ) -> Result<Option<HeldPoint>, StoreError> {
        if self.registry.as_ref().is_none_or(|registry| !registry.is_keyed()) {
            return Ok(None);
        }
        let stem = catalog::stem(key);
        let failed = |error: io::Error| {
            error!(code = "notes_read_failed", machine = key.0, epoch = key.1, %error, "cannot read the notes of an epoch");
            StoreError::from_io(error)
        };
        if let Some(seal) = batch.seal.valid().filter(|_| batch.header.redelivery) {
            // The seal names a number that the device got a receipt for.
            let place = self.catalog.ledger(key).and_then(|ledger| ledger.place(seal.last_seq));
            let Some(place) = place else { return Ok(None) };
            let index = self.catalog.notes(key);
            let mut values = Values { applier: &self.applier, stem: &stem, index };
            if values.read(place, 1).map_err(failed)?.first() != Some(&seal.chain) {
                return Err(StoreError::Denied(Denial::Seal));
            }
        }
        let mut read = |range| self.applier.files([&stem])?.index(&stem, range);
        self.catalog.point(key, batch, note, &mut read).map_err(failed)
    }

    /// Observes the instance of the agent that sealed a batch with new entries; returns an error if
    /// two of them use the key, or if it was replaced and its successor is in use: a copy of the old
    /// key must not outlive a rotation.
    pub(super) fn find_clone(
        &self,
        batch: &Batch,
        key: &Key,
        admission: &Admission,
        note: &Note,
    ) -> Option<StoreError> {
        let (owner, registry) = (admission.owner?, self.registry.as_ref()?);
        if note.change.new.is_empty() {
            // Anyone can repeat a batch, with another instance.
            return None;
        }
        // A run of the agent continues after what it got a receipt for. A batch that overlaps with what
        // is held may be one of an earlier run that someone on the way held back.
        let next = self.catalog.epoch(key).map_or(1, |epoch| epoch.next_seq);
        let continues = batch.covers().is_some_and(|(first, _)| first >= next);
        let successor = owner.is_replaced.then(|| registry.successor_in_use(&owner.key)).flatten();
        let detail = match successor {
            Some(successor) => {
                if continues {
                    registry.note_copy(&owner.key);
                }
                format!("the key was replaced by `{successor}`, which is in use")
            }
            None => {
                let instance = batch.header.instance.as_ref().filter(|_| continues)?;
                let found = registry.observe_instance(&owner.key, instance)?;
                format!("instances `{}` and `{}`", found.instances[0], found.instances[1])
            }
        };
        let mut event = batch.event(EventKind::Clone);
        event.detail = Some(detail);
        self.record([event]);
        Some(StoreError::Denied(Denial::DeviceCloned))
    }

    /// Returns an event for each sign of a clone that was not seen before.
    pub(super) fn clone_events(&self, batch: &Batch, note: &Note) -> Vec<Event> {
        let machine = &batch.header.machine_id;
        let new = note.clones.iter().filter(|clone| self.catalog.is_new_clone(machine, clone));
        let event = |clone: &CloneReport| {
            let mut event = batch.event(EventKind::Clone);
            event.detail = Some(match clone.kind {
                CloneKind::TwoHostnames => format!("also from host `{}`", clone.other),
                CloneKind::AlternatingEpochs => format!("alternates with epoch `{}`", clone.other),
            });
            event
        };
        new.map(event).collect()
    }
}

/// Confirms a key that continued an epoch without a device.
pub(in crate::store) fn confirm(registry: &Registry, key: &DeviceKey) -> io::Result<()> {
    match registry.confirm(key, Confirmation::Continuity) {
        Ok(_) => Ok(()),
        Err(RegistryError::Device(error)) => {
            // It was revoked, or the registry was lost.
            warn!(code = "device_not_confirmed", device = %key, %error, "cannot confirm a device that continued an epoch");
            Ok(())
        }
        Err(error) => Err(io::Error::other(error)),
    }
}
