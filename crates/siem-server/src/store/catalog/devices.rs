//! Devices that own epochs, and the facts for their receipts.

use std::io;

use siem_protocol::statement;

use super::{Catalog, Key};
use crate::{
    batch::Batch,
    ledger::{Change, Range},
    store::{
        HeldPoint,
        admission::AdmittedDevice,
        note::{DeviceNote, Note, SealNote},
        note_index::ReadIndex,
    },
    trust::{DeviceKey, EpochOwner},
};

/// Maximum length of an `instance` that is noted, in bytes.
const INSTANCE: usize = 128;

impl Catalog {
    /// Returns the note about the device that owns the epoch; none if nothing is stored and nothing is
    /// new about it.
    pub(super) fn device_note(
        &self,
        device: AdmittedDevice,
        batch: &Batch,
        key: &Key,
        change: &Change,
        next_seq: u64,
    ) -> Option<DeviceNote> {
        let known = self.epochs.get(key);
        let owner = known.and_then(|epoch| epoch.owner.as_ref());
        let instance = batch.header.instance.as_ref().filter(|instance| {
            instance.len() <= INSTANCE
                && owner.and_then(|owner| owner.instance.as_ref()) != Some(instance)
        });
        // The seal of a redelivery covers what is held already.
        let seal = batch.seal.valid().filter(|seal| {
            let is_sealed = known.is_some_and(|epoch| epoch.notes.is_sealed(seal.last_seq));
            !batch.header.redelivery && (!change.new.is_empty() || !is_sealed)
        });
        let seal = seal.zip(batch.header.seal.as_ref());
        let seal =
            seal.map(|(seal, note)| SealNote { last_seq: seal.last_seq, note: note.clone() });
        let is_known = owner.is_some_and(|owner| {
            (owner.key, owner.mark, owner.level) == (device.key, device.mark, device.level)
        });
        if change.accepted == 0 && is_known && instance.is_none() && seal.is_none() {
            return None;
        }
        Some(DeviceNote {
            key: device.key,
            mark: device.mark,
            level: device.level,
            instance: instance.cloned(),
            adopted_at: device.adopts.then_some(next_seq),
            confirms: device.confirms,
            seal,
        })
    }

    /// Returns the facts for the receipt of a batch: those about the last number that it covers, or
    /// for a redelivery, about the number that its seal names, with whose value the chain must agree.
    /// `None` if a redelivery names no number that is held.
    pub(in crate::store) fn point(
        &self,
        key: &Key,
        batch: &Batch,
        note: &Note,
        read: &mut ReadIndex<'_>,
    ) -> io::Result<Option<HeldPoint>> {
        let covered = batch.covers().map(|(_, last)| (last, batch.chain(last, last)[0]));
        let sealed = batch.seal.valid().map(|seal| (seal.last_seq, seal.chain));
        let Some((last_seq, chain)) = covered.or(sealed) else { return Ok(None) };
        let epoch = self.epochs.get(key);
        if let Some(point) = epoch.and_then(|epoch| epoch.point.as_ref()) {
            let own = note.seal().is_some_and(|seal| seal.last_seq >= last_seq);
            if point.last_seq == last_seq && (point.seal.is_some() || !own) {
                return Ok(Some(point.clone()));
            }
        }
        let notes = self.notes(key);
        let brings = |new: &Range| (new.first..=new.last).contains(&last_seq);
        let received_at = match note.change.new.iter().any(brings) {
            true => Some(note.at.clone()),
            false => notes.received_at(last_seq, read)?,
        };
        let seal = match notes.is_sealed(last_seq) {
            true => notes.seal_of(last_seq, read)?,
            false => {
                let own = note.seal().filter(|seal| seal.last_seq >= last_seq);
                own.map(|seal| statement::digest(&seal.note))
            }
        };
        Ok(received_at.map(|received_at| HeldPoint { last_seq, chain, seal, received_at }))
    }

    /// Returns the keys of the devices that own epochs of a machine and user.
    pub(in crate::store) fn owners(&self, machine: &str, user: &str) -> Vec<DeviceKey> {
        let epochs = self.of_machine(machine).map(|(_, epoch)| epoch);
        let epochs = epochs.filter(|epoch| epoch.identity.user == user);
        epochs.filter_map(|epoch| Some(epoch.owner.as_ref()?.key)).collect()
    }

    /// Reports whether an epoch is the first that is held of its machine and user, or names it as
    /// the one before, maybe through others. The latter is a claim, so it counts only for epochs
    /// that began before the receiver had a key, when it gained no sender anything.
    pub(in crate::store) fn is_first_line(&self, key: &Key) -> bool {
        let Some(epoch) = self.epochs.get(key) else { return false };
        let user = &epoch.identity.user;
        let own = self.of_machine(&key.0).filter(|(_, other)| other.first.user == *user);
        let own: Vec<_> = own.collect();
        let Some((first, oldest)) = own.iter().min_by_key(|(_, epoch)| epoch.began()) else {
            return false;
        };
        if own.iter().filter(|(_, epoch)| epoch.began() == oldest.began()).count() > 1 {
            // Nothing shows which one was first.
            return false;
        }
        let mut current = key.1.clone();
        // A sender can claim a circle.
        for _ in 0..self.epochs.len() {
            if current == first.1 {
                return true;
            }
            let epoch = self.epochs.get(&(key.0.clone(), current)).filter(|epoch| !epoch.keyed);
            let Some(before) = epoch.and_then(|epoch| epoch.previous_epoch.clone()) else {
                return false;
            };
            current = before;
        }
        false
    }

    /// Returns the keys of all devices that own epochs.
    pub(in crate::store) fn all_owners(&self) -> impl Iterator<Item = DeviceKey> {
        self.epochs.values().filter_map(|epoch| Some(epoch.owner.as_ref()?.key))
    }

    /// Returns the devices that own epochs, each with machine and user of the epoch.
    pub(in crate::store) fn epoch_owners(&self) -> Vec<EpochOwner> {
        let owned = self.epochs.iter().filter_map(|((machine, _), epoch)| {
            let user = epoch.identity.user.clone();
            Some((epoch.owner.as_ref()?.key, machine.clone(), user))
        });
        owned.collect()
    }

    /// Returns the keys that the adoption of an epoch confirms.
    pub(in crate::store) fn confirmed_by_continuity(&self) -> Vec<DeviceKey> {
        let owners = self.epochs.values().filter_map(|epoch| epoch.owner.as_ref());
        owners.filter(|owner| owner.confirms).map(|owner| owner.key).collect()
    }

    /// Returns the key whose confirmation follows from the epoch's adoption.
    pub(in crate::store) fn confirms(&self, key: &Key) -> Option<DeviceKey> {
        let owner = self.epochs.get(key)?.owner.as_ref()?;
        owner.confirms.then_some(owner.key)
    }
}
