//! Signs that a machine was cloned: two agents send as one.

use siem_protocol::BatchHeader;

use super::Catalog;
use crate::{
    stats::{CloneKind, CloneReport},
    store::admission::AdmittedDevice,
};

impl Catalog {
    /// Reports whether a sign of a clone was not seen before.
    pub(in crate::store) fn is_new_clone(&self, machine: &str, clone: &CloneReport) -> bool {
        !self.clones_of(machine).iter().any(|known| known.is_same(clone))
    }

    /// Returns the signs that a machine was cloned.
    pub(super) fn clones_of(&self, machine: &str) -> &[CloneReport] {
        self.clones.get(machine).map_or(&[], Vec::as_slice)
    }

    /// Returns the signs in a batch that is received at `at`.
    pub(super) fn clones_seen(
        &self,
        header: &BatchHeader,
        device: Option<&AdmittedDevice>,
        at: &str,
    ) -> Vec<CloneReport> {
        let report = |kind, other: &str| CloneReport {
            kind,
            epoch: header.epoch.clone(),
            other: other.to_owned(),
            last_seen: at.to_owned(),
            times: 1,
        };
        let mut reports = Vec::new();
        // A machine may be renamed. Of a device, the instances show whether two agents use its key.
        let other_host = self
            .hostnames
            .get(&header.epoch)
            .filter(|last| device.is_none() && **last != header.hostname);
        reports.extend(other_host.map(|last| report(CloneKind::TwoHostnames, last)));
        let device = device.map(|device| device.key);
        let lineage = self.lineages.get(&(header.machine_id.clone(), header.user.clone(), device));
        // A dead letter may be redelivered in its own epoch long after that has ended.
        let back =
            lineage.filter(|lineage| !header.redelivery && lineage.past.contains(&header.epoch));
        reports.extend(back.map(|lineage| report(CloneKind::AlternatingEpochs, &lineage.current)));
        reports
    }

    /// Counts signs of a machine.
    pub(super) fn note_clones(&mut self, machine: &str, clones: &[CloneReport]) {
        if clones.is_empty() {
            return;
        }
        let reports = self.clones.entry(machine.to_owned()).or_default();
        for clone in clones {
            match reports.iter_mut().find(|known| known.is_same(clone)) {
                Some(known) => {
                    known.times += clone.times;
                    known.last_seen.clone_from(&clone.last_seen);
                }
                None => reports.push(clone.clone()),
            }
        }
    }
}
