//! Figures of all rows, which the catalog keeps between requests for statistics.
//!
//! Each change of an epoch marks its machine, and the next request computes the figures of the marked ones
//! again. Nothing is kept, and nothing marked, before the first request: a start reads all epochs.

use std::{
    collections::BTreeSet,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Catalog, MachineEpochs};
use crate::{
    fleet::{FleetFigures, FleetThresholds},
    trust::{Standings, StandingsVersion},
};

/// Figures, once a request asked for them.
#[derive(Debug, Default)]
pub(super) struct KeptFigures(Mutex<Option<Kept>>);

#[derive(Debug)]
pub(super) struct Kept {
    figures: FleetFigures,
    /// State of the registry for which they were computed.
    version: Option<StandingsVersion>,
    /// Machines that have changed since.
    changed: BTreeSet<String>,
}

impl KeptFigures {
    /// Marks a machine whose figures have changed.
    pub(super) fn mark(&mut self, machine: &str) {
        // After a panic they may be those of another state.
        if self.0.is_poisoned() {
            self.clear();
            self.0.clear_poison();
        }
        let kept = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.as_mut().filter(|kept| !kept.changed.contains(machine)) {
            kept.changed.insert(machine.to_owned());
        }
    }

    /// Forgets all figures.
    pub(super) fn clear(&mut self) {
        *self.0.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.0.lock().unwrap_or_else(|poisoned| {
            let mut kept = poisoned.into_inner();
            // After a panic they may be those of another state.
            *kept = None;
            self.0.clear_poison();
            kept
        })
    }
}

impl Catalog {
    /// Returns the figures as of now, for thresholds and a state of the registry.
    pub(super) fn figures<'k>(
        &self,
        kept: &'k mut Option<Kept>,
        thresholds: FleetThresholds,
        version: Option<StandingsVersion>,
        standings: &Standings<'_>,
    ) -> &'k FleetFigures {
        let usable = kept
            .take()
            .filter(|kept| kept.version == version && kept.figures.is_usable(thresholds));
        let updated = match usable {
            Some(mut kept) => {
                for machine in mem::take(&mut kept.changed) {
                    let epochs: MachineEpochs<'_> = self.of_machine(&machine).collect();
                    kept.figures.set(&machine, &self.facts(&epochs, standings));
                }
                kept
            }
            None => {
                let epochs: MachineEpochs<'_> = self.all().collect();
                let machines = epochs.chunk_by(|((a, _), _), ((b, _), _)| a == b);
                let machines = machines.filter_map(|epochs| {
                    let machine = epochs.first()?.0.0.as_str();
                    Some((machine, self.facts(epochs, standings)))
                });
                let figures = FleetFigures::new(thresholds, machines);
                Kept { figures, version, changed: BTreeSet::new() }
            }
        };
        &kept.insert(updated).figures
    }
}
