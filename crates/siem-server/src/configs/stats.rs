//! Answers of the fleet to its managed configurations.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::{
    file::ConfigFile,
    folder::FileSet,
    resolve::{DeviceFacts, choose},
};
use crate::trust::{DeviceConfig, Registry};

/// Number of devices that are listed for a configuration and a state.
const LISTED: usize = 20;

/// State of the configuration that a device should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConfigState {
    /// It is in force.
    Applied,
    /// The device refused it.
    Refused,
    /// The device was offered it, and has not answered yet.
    Offered,
    /// The device has not asked since this is its configuration.
    NotAsked,
}

impl ConfigState {
    /// Returns the name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
            Self::Offered => "offered",
            Self::NotAsked => "not_asked",
        }
    }

    /// Returns the state of a configuration on a device.
    #[must_use]
    pub fn of(device: &DeviceConfig, hash: &Digest) -> Self {
        let is = |answer: &Option<crate::trust::ConfigAnswer>| {
            answer.as_ref().is_some_and(|answer| answer.hash == *hash)
        };
        if is(&device.in_force) {
            Self::Applied
        } else if is(&device.refused) {
            Self::Refused
        } else if is(&device.offered) {
            Self::Offered
        } else {
            Self::NotAsked
        }
    }
}

/// Managed configurations, and the answers of devices to them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigStats {
    /// The configurations that are served, ordered by name.
    pub files: Vec<ConfigFileStats>,
    /// Files that cannot be served; the content before stays in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub broken: Vec<BrokenConfig>,
    /// Number of devices for which no configuration is meant.
    pub without: u64,
}

/// A managed configuration, and the answers of the devices that should have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigFileStats {
    /// Name of the file.
    pub file: String,
    /// SHA-256 of its content.
    pub hash: Digest,
    /// Its serial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Part of the machines that it is rolled out to; all without a roll-out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u64>,
    /// True if the roll-out halted, because too many devices refuse the configuration.
    #[serde(default)]
    pub halted: bool,
    /// Number of devices that have it in force.
    pub applied: u64,
    /// Number of devices that refused it.
    pub refused: u64,
    /// Number of devices that were offered it, and have not answered.
    pub offered: u64,
    /// Number of devices that have not asked for it.
    pub not_asked: u64,
    /// The first devices that refused it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<DeviceRefusal>,
    /// The first devices that have not asked for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<DeviceName>,
}

/// Machine and user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceName {
    /// Id of the machine.
    pub machine: String,
    /// Name of the user.
    pub user: String,
}

/// Refusal of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceRefusal {
    /// Id of the machine.
    pub machine: String,
    /// Name of the user.
    pub user: String,
    /// Time at which the receiver learnt of it, RFC 3339.
    pub at: String,
    /// Reason that the agent gives.
    pub reason: String,
}

/// A file that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BrokenConfig {
    /// Name of the file.
    pub file: String,
    /// Problems, separated by `; `.
    pub reason: String,
}

/// Returns the configuration that a device should have. One that it refused is still its configuration after the
/// roll-out halted, so that the operator sees who refused it.
pub fn choose_for_device<'f>(
    set: &'f FileSet,
    device: &DeviceConfig,
    halted: &[Digest],
) -> Option<&'f Arc<ConfigFile>> {
    let facts = DeviceFacts {
        machine: device.machine.clone(),
        user: device.user.clone(),
        os: Some(device.os.clone()).filter(|os| !os.is_empty()),
        groups: device.groups.clone(),
        in_force: device.in_force.as_ref().map(|it| it.hash),
    };
    let is_refused =
        |hash: &Digest| device.refused.as_ref().is_some_and(|refused| refused.hash == *hash);
    choose(&set.files, &facts, |hash| halted.contains(hash) && !is_refused(hash))
}

impl ConfigStats {
    /// Compares the configurations with the answers of all devices. Returns `None` without files.
    #[must_use]
    pub fn of(set: &FileSet, registry: &Registry) -> Option<Self> {
        if set.is_empty() {
            return None;
        }
        let halted = registry.halted_rollouts();
        Some(Self::count(set, &halted, |show| registry.each_device_config(show)))
    }

    /// Counts the devices that `each` passes, in any order.
    fn count(
        set: &FileSet,
        halted: &[Digest],
        each: impl FnOnce(&mut dyn FnMut(&DeviceConfig)),
    ) -> Self {
        let mut stats = Self {
            files: set.files.iter().map(|file| ConfigFileStats::new(file, halted)).collect(),
            broken: set.problems.iter().map(BrokenConfig::new).collect(),
            without: 0,
        };
        each(&mut |device| {
            let file = choose_for_device(set, device, halted);
            let at = file.and_then(|file| set.files.iter().position(|it| Arc::ptr_eq(it, file)));
            match at {
                Some(at) => stats.files[at].add(device),
                None => stats.without += 1,
            }
        });
        stats
    }
}

impl BrokenConfig {
    fn new((name, problems): &(String, Vec<Arc<super::FileProblem>>)) -> Self {
        let texts: Vec<_> = problems.iter().map(|problem| problem.text()).collect();
        Self { file: name.clone(), reason: texts.join("; ") }
    }
}

impl ConfigFileStats {
    fn new(file: &Arc<ConfigFile>, halted: &[Digest]) -> Self {
        Self {
            file: file.name.clone(),
            hash: file.hash,
            serial: file.config.serial,
            percent: file.rollout.map(|rollout| rollout.percent),
            halted: file.is_rollout_broken || file.rollout.is_some() && halted.contains(&file.hash),
            applied: 0,
            refused: 0,
            offered: 0,
            not_asked: 0,
            refusals: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn add(&mut self, device: &DeviceConfig) {
        match ConfigState::of(device, &self.hash) {
            ConfigState::Applied => self.applied += 1,
            ConfigState::Offered => self.offered += 1,
            ConfigState::Refused => {
                self.refused += 1;
                let Some(refused) = &device.refused else { return };
                list(&mut self.refusals, device, |machine, user| DeviceRefusal {
                    machine,
                    user,
                    at: refused.at.clone(),
                    reason: refused.reason.clone().unwrap_or_default(),
                });
            }
            ConfigState::NotAsked => {
                self.not_asked += 1;
                list(&mut self.waiting, device, |machine, user| DeviceName { machine, user });
            }
        }
    }
}

trait Named {
    fn name(&self) -> (&str, &str);
}

impl Named for DeviceName {
    fn name(&self) -> (&str, &str) {
        (&self.machine, &self.user)
    }
}

impl Named for DeviceRefusal {
    fn name(&self) -> (&str, &str) {
        (&self.machine, &self.user)
    }
}

/// Adds a device to the first ones by machine and user.
fn list<T: Named>(
    first: &mut Vec<T>,
    device: &DeviceConfig,
    make: impl FnOnce(String, String) -> T,
) {
    let at = first.partition_point(|it| it.name() < (&device.machine, &device.user));
    if at < LISTED {
        first.truncate(LISTED - 1);
        first.insert(at, make(device.machine.clone(), device.user.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_devices_are_listed_in_any_order_of_counting() {
        let body = br#"{"version":1,"serial":1}"#.to_vec();
        let file = super::super::file::parse("a.json", false, body, None).unwrap();
        let set = FileSet { files: vec![Arc::new(file)], ..FileSet::default() };
        let device = |at: u32| {
            let mut device = DeviceConfig::default();
            device.machine = format!("m-{:03}", at * 37 % 100);
            device
        };
        let stats = ConfigStats::count(&set, &[], |show| (0..100).for_each(|at| show(&device(at))));
        let waiting: Vec<_> = stats.files[0].waiting.iter().map(|it| it.machine.clone()).collect();
        assert_eq!(stats.files[0].not_asked, 100);
        assert_eq!(waiting, (0..20).map(|at| format!("m-{at:03}")).collect::<Vec<_>>());
    }
}
