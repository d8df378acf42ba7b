//! Rows and totals of the fleet, as in responses.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::statement::{DeviceState, TrustLevel};

use super::{FleetProblem, Heartbeat};

/// A device of a machine and user, or the user's agent without a device key. Machine, user, host,
/// system and version are claims of its last batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetRow {
    /// Id of the machine.
    pub machine: String,
    /// Name of the user.
    pub user: String,
    /// Name of the machine. Two hosts with one machine id are two rows.
    pub host: String,
    /// `linux`, `macos` or `windows`.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Version of the agent.
    pub agent_version: String,
    /// First 16 digits of the device's key; absent if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// State of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub device_state: Option<DeviceState>,
    /// Level of the receiver when it stored the last batch of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub level: Option<TrustLevel>,
    /// Current epoch: the one whose entries arrived last.
    pub epoch: String,
    /// Number of its epochs.
    pub epochs: u64,
    /// Time of the first batch, RFC 3339.
    pub first_seen: String,
    /// Time of the last batch, RFC 3339.
    pub last_seen: String,
    /// Number of entries held.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// Number of entries that never arrived.
    pub missing: u64,
    /// Number of entries that were dead-lettered and not redelivered.
    pub holes: u64,
    /// Number of breaks of the chain.
    pub breaks: u64,
    /// Set if another host has the same machine id.
    pub shared_machine_id: bool,
    /// Set if a later row of the same machine, user and host replaced this one, for example because
    /// the device has a new key. It is neither quiet nor behind.
    pub replaced: bool,
    /// The last heartbeat of the current epoch, or of the last one that has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// The problems, in the documented order.
    pub problems: Vec<FleetProblem>,
}

/// Sums over rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetTotals {
    /// Number of rows.
    pub rows: u64,
    /// Number of machine ids.
    pub machines: u64,
    /// Number of epochs.
    pub epochs: u64,
    /// Number of entries.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// Number of entries that never arrived.
    pub missing: u64,
    /// Number of rows without a problem.
    pub healthy: u64,
    /// Number of rows with each problem that occurs.
    pub problems: BTreeMap<FleetProblem, u64>,
    /// Number of rows with each version of the agent, without those that were replaced. After 100 versions,
    /// the rows with others are under `other`: senders choose the names.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
}
