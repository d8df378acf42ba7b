//! Choice of the managed configuration for a device.

use std::{cmp::Reverse, sync::Arc};

use siem_protocol::{Digest, managed::Audience};

use super::{file::ConfigFile, precedence::Specificity};

/// Facts about a device and its user that determine its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Id of the machine; empty if unknown.
    pub machine: String,
    /// Name of the user.
    pub user: String,
    /// Operating system, if known.
    pub os: Option<String>,
    /// Groups of the user, if known.
    pub groups: Option<Vec<String>>,
    /// Hash of the managed configuration in force. A roll-out that halted keeps it.
    pub in_force: Option<Digest>,
}

/// Reason why a device does not get a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exclusion {
    /// The audience names other machines.
    #[error("its audience has other machines")]
    Machine,
    /// The audience names other users.
    #[error("its audience has other users")]
    User,
    /// The audience names other systems.
    #[error("its audience has other operating systems")]
    Os,
    /// The operating system is not known.
    #[error("its audience has operating systems, and that of the device is not known")]
    OsUnknown,
    /// The audience names other groups.
    #[error("its audience has other groups")]
    Groups,
    /// The groups are not known.
    #[error("its audience has groups, and those of the user are not known")]
    GroupsUnknown,
    /// The machine is not in that part of the machines.
    #[error("its audience has {percentage} % of the machines, and this one is at {bucket}")]
    Percentage {
        /// The part.
        percentage: u64,
        /// Bucket of the machine, 0 to 99.
        bucket: u64,
    },
    /// The roll-out did not reach the machine yet.
    #[error("it is rolled out to {percent} % of the machines, and this one is at {bucket}")]
    Rollout {
        /// The part.
        percent: u64,
        /// Bucket of the machine, 0 to 99.
        bucket: u64,
    },
    /// The roll-out halted before the device had it in force.
    #[error("its roll-out is halted")]
    Halted,
    /// Another file is more specific.
    #[error("the audience of `{0}` is more specific")]
    LessSpecific(String),
    /// Another file of the same specificity has a higher serial.
    #[error("`{0}` has as specific an audience and a higher serial")]
    LowerSerial(String),
    /// Another file of the same specificity and serial has an earlier name.
    #[error("`{0}` has as specific an audience and the same serial, and its name is first")]
    LaterName(String),
    /// It is served only if no other file is meant for the device.
    #[error("it is served only to devices that no other file is meant for")]
    Fallback,
}

/// Advantage of the configuration that a device gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Winner {
    /// No other file is meant for the device.
    Only,
    /// Its audience is more specific than that of any other file meant for the device.
    MostSpecific,
    /// Its serial is higher than that of the others of its specificity.
    HighestSerial,
    /// Its name is first among those of its specificity and serial.
    FirstName,
    /// No file of the folder is meant for the device.
    Fallback,
}

/// Result of [`resolve()`].
#[derive(Clone, Debug)]
pub struct Choice {
    /// The configuration that the device gets; none if none is meant for it.
    pub winner: Option<(Arc<ConfigFile>, Winner)>,
    /// The other configurations, in order of precedence.
    pub others: Vec<(Arc<ConfigFile>, Exclusion)>,
}

/// Position in the order of precedence: the greatest wins.
fn rank(file: &ConfigFile) -> (bool, Specificity, Option<u64>, Reverse<&str>) {
    (!file.is_fallback, file.specificity(), file.config.serial, Reverse(&file.name))
}

/// Chooses the configuration for a device. `is_halted` reports whether the roll-out of a
/// configuration is halted.
pub fn choose<'f>(
    files: &'f [Arc<ConfigFile>],
    device: &DeviceFacts,
    is_halted: impl Fn(&Digest) -> bool,
) -> Option<&'f Arc<ConfigFile>> {
    let is_meant = |file: &&Arc<ConfigFile>| exclusion(file, device, &is_halted).is_none();
    files.iter().filter(is_meant).max_by_key(|file| rank(file))
}

/// Chooses the configuration for a device like [`choose`], and explains the choice.
pub fn resolve(
    files: &[Arc<ConfigFile>],
    device: &DeviceFacts,
    is_halted: impl Fn(&Digest) -> bool,
) -> Choice {
    let mut ordered: Vec<_> = files.iter().collect();
    ordered.sort_by_key(|file| Reverse(rank(file)));
    let Some(winner) = choose(files, device, &is_halted) else {
        let excluded = |file: &Arc<ConfigFile>| {
            let reason = exclusion(file, device, &is_halted);
            (file.clone(), reason.unwrap_or(Exclusion::Fallback))
        };
        return Choice { winner: None, others: ordered.into_iter().map(excluded).collect() };
    };
    let mut advantage = if winner.is_fallback { Winner::Fallback } else { Winner::Only };
    let mut others = Vec::new();
    for file in ordered.into_iter().filter(|file| !Arc::ptr_eq(file, winner)) {
        let reason = exclusion(file, device, &is_halted).unwrap_or_else(|| {
            let (won, reason) = compare(winner, file);
            if advantage == Winner::Only {
                advantage = won;
            }
            reason
        });
        others.push((file.clone(), reason));
    }
    Choice { winner: Some((winner.clone(), advantage)), others }
}

/// Explains why `winner` takes precedence over `other`, which is meant for the device too.
fn compare(winner: &ConfigFile, other: &ConfigFile) -> (Winner, Exclusion) {
    let name = || winner.name.clone();
    if other.is_fallback {
        (Winner::Only, Exclusion::Fallback)
    } else if winner.specificity() != other.specificity() {
        (Winner::MostSpecific, Exclusion::LessSpecific(name()))
    } else if winner.config.serial != other.config.serial {
        (Winner::HighestSerial, Exclusion::LowerSerial(name()))
    } else {
        (Winner::FirstName, Exclusion::LaterName(name()))
    }
}

/// Returns the reason why a configuration is not meant for a device. The fallback is meant for all:
/// agents check its audience.
fn exclusion(
    file: &ConfigFile,
    device: &DeviceFacts,
    is_halted: &impl Fn(&Digest) -> bool,
) -> Option<Exclusion> {
    if file.is_fallback {
        return None;
    }
    if let Some(reason) = file.audience().and_then(|audience| outside(audience, device)) {
        return Some(reason);
    }
    let rollout = file.rollout?;
    if file.is_rollout_broken || is_halted(&file.hash) {
        return (device.in_force != Some(file.hash)).then_some(Exclusion::Halted);
    }
    let percent = rollout.percent;
    (!rollout.includes(&device.machine))
        .then(|| Exclusion::Rollout { percent, bucket: Audience::bucket(&device.machine) })
}

/// Returns the reason why an audience does not include a device.
fn outside(audience: &Audience, device: &DeviceFacts) -> Option<Exclusion> {
    let lacks = |list: &Option<Vec<String>>, value: &String| {
        list.as_ref().is_some_and(|list| !list.contains(value))
    };
    if lacks(&audience.machines, &device.machine) {
        return Some(Exclusion::Machine);
    }
    if lacks(&audience.users, &device.user) {
        return Some(Exclusion::User);
    }
    match (&audience.os, &device.os) {
        (Some(_), None) => return Some(Exclusion::OsUnknown),
        (Some(list), Some(os)) if !list.contains(os) => return Some(Exclusion::Os),
        _ => {}
    }
    match (&audience.groups, &device.groups) {
        (Some(_), None) => return Some(Exclusion::GroupsUnknown),
        (Some(list), Some(groups)) if !groups.iter().any(|group| list.contains(group)) => {
            return Some(Exclusion::Groups);
        }
        _ => {}
    }
    let percentage = audience.percentage?;
    let bucket = Audience::bucket(&device.machine);
    (bucket >= percentage).then_some(Exclusion::Percentage { percentage, bucket })
}
