//! Statistics about the entries held.

use std::collections::BTreeMap;

use siem_protocol::statement::DeviceState;

use super::{Catalog, Epoch, Owner};
use crate::{
    ledger::{Difference, Range},
    stats::{EpochDevice, EpochStats, MachineStats, Stats},
    trust::{Registry, policy::Mark},
};

impl Catalog {
    /// Statistics about all entries held.
    pub(in crate::store) fn stats(&self, registry: Option<&Registry>) -> Stats {
        let mut machines: BTreeMap<&str, MachineStats> = BTreeMap::new();
        for ((machine, id), epoch) in &self.epochs {
            let stats = machines.entry(machine).or_insert_with(|| {
                let clones = self.clones.get(machine).cloned().unwrap_or_default();
                MachineStats::new(&epoch.sender.identity, clones)
            });
            stats.add(epoch.stats(id, registry), &epoch.sender.identity);
        }
        let machines: Vec<_> = machines.into_values().collect();
        let epochs = machines.iter().flat_map(MachineStats::all_epochs);
        let claims = epochs.filter_map(|epoch| epoch.claims.as_ref());
        let unexplained = claims.filter(|it| it.difference == Difference::Unexplained).count();
        Stats {
            unexplained: unexplained as u64,
            level: registry.map(Registry::level),
            events: registry.map(Registry::event_counts).unwrap_or_default(),
            machines,
        }
    }
}

impl Epoch {
    fn stats(&self, id: &str, registry: Option<&Registry>) -> EpochStats {
        let mut holes: Vec<Range> = Vec::new();
        for hole in self.ledger.holes() {
            match holes.last_mut() {
                Some(range) if range.last + 1 == hole.seq => range.last = hole.seq,
                _ => holes.push(Range { first: hole.seq, last: hole.seq }),
            }
        }
        EpochStats {
            epoch: id.to_owned(),
            previous_epoch: self.sender.previous_epoch.clone(),
            user: self.sender.identity.user.clone(),
            first_seen: self.first_seen.clone(),
            last_seen: self.last_seen.clone(),
            entries: self.ledger.held(),
            bytes: self.lines_end,
            next_seq: self.ledger.next_seq(),
            begins_at: self.ledger.begins_at(),
            duplicates: self.ledger.duplicates(),
            repetitions: self.repetitions,
            conflicts: self.conflicts,
            gaps: self.ledger.gaps(),
            holes,
            breaks: self.ledger.breaks().to_vec(),
            claims: self.ledger.comparison(),
            device: self.owner.as_ref().map(|owner| self.device_stats(owner, registry)),
        }
    }

    fn device_stats(&self, owner: &Owner, registry: Option<&Registry>) -> EpochDevice {
        let identity = &self.sender.identity;
        let state = match registry.and_then(|registry| registry.device(&owner.key)) {
            // It was confirmed for another machine or user.
            Some(device)
                if device.state == DeviceState::Confirmed
                    && (device.machine != identity.machine_id || device.user != identity.user) =>
            {
                DeviceState::Unconfirmed
            }
            Some(device) => device.state,
            None if owner.mark == Mark::Confirmed => DeviceState::Confirmed,
            None => DeviceState::Unconfirmed,
        };
        EpochDevice {
            key: format!("{:.16}", owner.key),
            state,
            level: owner.level,
            adopted_at: owner.adopted_at,
            sealed: self.notes.sealed(),
        }
    }
}
