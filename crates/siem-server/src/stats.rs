//! Response of `GET /stats`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{
    ChainPoint, Identity,
    statement::{DeviceState, TrustLevel},
};

use crate::{
    configs::ConfigStats,
    fleet::{FleetRow, FleetTotals},
    ledger::{Break, Comparison, Range},
    trust::EventCounts,
};

/// Entries that a receiver holds, and where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Number of epochs whose entries differ from the agent's claims without an explanation. Should
    /// be 0.
    #[serde(default)]
    pub unexplained: u64,
    /// Lowest level of trust that the receiver accepts; absent if it knows no devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub level: Option<TrustLevel>,
    /// Number of events about senders since the data directory exists.
    #[serde(default)]
    pub events: EventCounts,
    /// Totals of all rows.
    #[serde(default)]
    pub totals: FleetTotals,
    /// Totals of the rows that meet the conditions of the request, on all pages.
    #[serde(default)]
    pub matching: FleetTotals,
    /// A page of the rows, ordered by machine, user and device.
    #[serde(default)]
    pub rows: Vec<FleetRow>,
    /// Value of the parameter `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// Managed configurations, and the answers of devices to them; absent without a configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<ConfigStats>,
    /// The machines of these rows with the rows' epochs, ordered by id.
    pub machines: Vec<MachineStats>,
}

/// Entries of one machine. Those of unconfirmed devices are in `unconfirmed` only: anyone with an
/// enrollment token can send them under the machine's name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStats {
    /// The machine as described by its last batch.
    pub identity: Identity,
    /// Time of its last batch, RFC 3339; empty if there are only unconfirmed devices.
    pub last_seen: String,
    /// Number of entries in `epochs`.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// Signs that an outbox was copied.
    pub clones: Vec<CloneReport>,
    /// The epochs of confirmed devices and those without a device, ordered by id.
    pub epochs: Vec<EpochStats>,
    /// Unconfirmed and revoked devices that sent entries under the name of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<UnconfirmedDevice>,
}

/// Entries of a device that is not confirmed for its machine and user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnconfirmedDevice {
    /// First 16 digits of its key.
    pub key: String,
    /// The machine as described by the device's last batch.
    pub identity: Identity,
    /// Time of its last batch, RFC 3339.
    pub last_seen: String,
    /// Number of entries.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// The epochs that the device owns, ordered by id.
    pub epochs: Vec<EpochStats>,
}

impl MachineStats {
    pub(crate) fn new(identity: &Identity, clones: Vec<CloneReport>) -> Self {
        Self {
            identity: identity.clone(),
            last_seen: String::new(),
            entries: 0,
            bytes: 0,
            clones,
            epochs: Vec::new(),
            unconfirmed: Vec::new(),
        }
    }

    /// Adds an epoch, and that its last batch came from `identity`.
    pub(crate) fn add(&mut self, epoch: EpochStats, identity: &Identity) {
        let unconfirmed = epoch.device.as_ref().filter(|device| !device.is_confirmed());
        let Some(key) = unconfirmed.map(|device| device.key.clone()) else {
            if self.last_seen < epoch.last_seen {
                self.last_seen.clone_from(&epoch.last_seen);
                if self.identity != *identity {
                    self.identity = identity.clone();
                }
            }
            self.entries += epoch.entries;
            self.bytes += epoch.bytes;
            self.epochs.push(epoch);
            return;
        };
        let at = self.unconfirmed.iter().position(|device| device.key == key);
        let at = at.unwrap_or_else(|| {
            self.unconfirmed.push(UnconfirmedDevice::new(key, identity));
            self.unconfirmed.len() - 1
        });
        self.unconfirmed[at].add(epoch, identity);
    }

    /// Returns the epochs of all devices.
    pub fn all_epochs(&self) -> impl Iterator<Item = &EpochStats> {
        self.epochs.iter().chain(self.unconfirmed.iter().flat_map(|device| &device.epochs))
    }
}

impl UnconfirmedDevice {
    fn new(key: String, identity: &Identity) -> Self {
        Self {
            key,
            identity: identity.clone(),
            last_seen: String::new(),
            entries: 0,
            bytes: 0,
            epochs: Vec::new(),
        }
    }

    fn add(&mut self, epoch: EpochStats, identity: &Identity) {
        if self.last_seen < epoch.last_seen {
            self.last_seen.clone_from(&epoch.last_seen);
            if self.identity != *identity {
                self.identity = identity.clone();
            }
        }
        self.entries += epoch.entries;
        self.bytes += epoch.bytes;
        self.epochs.push(epoch);
    }
}

/// Entries of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochStats {
    /// Id of the epoch.
    pub epoch: String,
    /// The epoch before, according to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
    /// True for the epoch of its row whose entries arrived last.
    #[serde(default)]
    pub current: bool,
    /// The user, according to the last batch.
    pub user: String,
    /// Time of the first batch, RFC 3339.
    pub first_seen: String,
    /// Time of the last batch, RFC 3339.
    pub last_seen: String,
    /// Number of entries.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// The number after the highest one covered.
    pub next_seq: u64,
    /// For a sink that was added later: the number before its first one, and the value of the chain
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_at: Option<ChainPoint>,
    /// Number of entries that arrived again.
    pub duplicates: u64,
    /// Number of entries that another epoch of the machine also has: the same part of the same line
    /// of the same generation, read and sent again. The notes list them.
    #[serde(default)]
    pub repetitions: u64,
    /// Number of batches rejected with status 409.
    pub conflicts: u64,
    /// Numbers that never arrived.
    pub gaps: Vec<Range>,
    /// Numbers of the epoch before that the agent had delivered when that ended, and that are not held: the
    /// receiver was restored from an older backup. They count as missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_before: Option<Range>,
    /// Numbers that were dead-lettered and not redelivered.
    pub holes: Vec<Range>,
    /// Breaks of the chain.
    pub breaks: Vec<Break>,
    /// The agent's last claim, compared with the entries; absent before its first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Comparison>,
    /// The device that owns the epoch; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<EpochDevice>,
}

/// Device that owns an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochDevice {
    /// First 16 digits of its key.
    pub key: String,
    /// State of the key.
    #[schemars(with = "String")]
    pub state: DeviceState,
    /// Level of the receiver when it stored the last batch.
    #[schemars(with = "String")]
    pub level: TrustLevel,
    /// First number after those that were held without a device; absent if the device began the
    /// epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_at: Option<u64>,
    /// Highest number that a stored seal covers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<u64>,
}

impl EpochDevice {
    fn is_confirmed(&self) -> bool {
        self.state == DeviceState::Confirmed
    }
}

/// A sign that an outbox was copied, so that two agents continue it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloneReport {
    /// Kind of the sign.
    pub kind: CloneKind,
    /// The epoch in which it was found.
    pub epoch: String,
    /// The other side: a hostname or an epoch.
    pub other: String,
    /// Time of its last occurrence, RFC 3339.
    pub last_seen: String,
    /// Number of occurrences.
    pub times: u64,
}

impl CloneReport {
    /// Reports whether two reports differ in time and number only.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.kind, &self.epoch, &self.other) == (other.kind, &other.epoch, &other.other)
    }
}

/// Kinds of signs that an outbox was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// Batches of one epoch name two hostnames.
    TwoHostnames,
    /// An epoch of a machine and user continues after another one of theirs started.
    AlternatingEpochs,
}
