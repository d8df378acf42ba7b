//! Verification of a data directory.

use std::{collections::BTreeSet, path::Path};

use serde::Serialize;

use super::{DamagedFile, damage::damage_with};
use crate::store::{DataFormat, EntryProblem, left_by_repairs, verify_epochs};

/// Most ranges of damaged entries that are named.
const NAMED: usize = 10_000;

/// Entries of an epoch with a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DamagedEntries {
    /// Id of the machine.
    pub machine: String,
    /// Id of the epoch.
    pub epoch: String,
    /// Lowest number.
    pub first: u64,
    /// Highest number.
    pub last: u64,
    /// What is wrong with them.
    pub problem: EntryProblem,
}

/// What a data directory has, as verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Number of machines.
    pub machines: u64,
    /// Number of epochs.
    pub epochs: u64,
    /// Number of entries, those that were erased included.
    pub entries: u64,
    /// Size of their lines in bytes.
    pub bytes: u64,
    /// Number of entries that were erased, and have a tombstone.
    pub erased: u64,
    /// Number of entries that are covered by seals of devices.
    pub sealed: u64,
    /// Number of numbers that never arrived, or were lost.
    pub gaps: u64,
    /// Number of damaged entries.
    pub damaged: u64,
    /// The damaged entries; of many, the first.
    pub named: Vec<DamagedEntries>,
    /// Damaged files.
    pub files: Vec<DamagedFile>,
}

impl Verification {
    /// Reports whether nothing is damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damaged == 0 && self.files.is_empty()
    }
}

/// Compares the lines of all entries in the data directory `data` with the hashes in the indexes of their epochs,
/// and these with the seals of the devices. Changes nothing; a receiver may run. What only its journal has is
/// not read: after a crash, let the receiver start first.
///
/// Who can write to the directory can replace the hashes with the lines. The seals show that, unless the devices
/// are replaced in the registry too.
#[must_use]
pub fn verify(data: &Path) -> Verification {
    let mut found = Verification::default();
    let mut machines = BTreeSet::new();
    let files = damage_with(data, &mut |owners| {
        let mut files = left_by_repairs(data)?;
        verify_epochs(data, |epoch| {
            let (machine, id) = epoch.key;
            found.epochs += 1;
            found.entries += epoch.entries;
            found.bytes += epoch.bytes;
            found.erased += epoch.erased;
            found.sealed += epoch.sealed;
            found.gaps = found.gaps.saturating_add(epoch.gaps);
            found.damaged = found.damaged.saturating_add(epoch.damaged);
            let room = NAMED.saturating_sub(found.named.len());
            found.named.extend(epoch.named.into_iter().take(room).map(|(range, problem)| {
                let (machine, epoch) = (machine.clone(), id.clone());
                DamagedEntries { machine, epoch, first: range.first, last: range.last, problem }
            }));
            files.extend(epoch.files);
            owners.extend(epoch.devices);
            machines.insert(machine);
        })?;
        Ok(files)
    });
    found.machines = machines.len() as u64;
    found.files = files;
    if !matches!(DataFormat::read(data), Ok(Some(format)) if format.is_current()) {
        let problem =
            "is missing, or of another release, which has to start once: no entry was read";
        found.files.push(DamagedFile { path: "format".into(), problem: problem.to_owned() });
    }
    found
}
