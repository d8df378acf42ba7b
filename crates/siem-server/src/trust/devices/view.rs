//! What others see of a device.

use serde::{Deserialize, Serialize};
use siem_protocol::statement::{Confirmation, DeviceState};

use super::DeviceKey;

/// A device as the receiver knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its public key.
    pub key: DeviceKey,
    /// Stable id of the machine, as claimed by the enrollment.
    pub machine: String,
    /// Name of the user, as claimed.
    pub user: String,
    /// Name of the machine, as claimed.
    pub host: String,
    /// `linux`, `macos` or `windows`, as claimed.
    pub os: String,
    /// Processor architecture, as claimed.
    pub arch: String,
    /// Version of the agent when the key was enrolled.
    pub version: String,
    /// Time of the enrollment, RFC 3339.
    pub first_seen: String,
    /// State of the key.
    pub state: DeviceState,
    /// Reason of the confirmation, if the key was ever confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_by: Option<Confirmation>,
    /// The key before a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<DeviceKey>,
    /// The key that replaced this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<DeviceKey>,
    /// First key of its lineage.
    pub root: DeviceKey,
    /// True if two instances used the key alternately. It is refused.
    pub cloned: bool,
    /// True if the key was used for new entries although the key that replaced it is in use.
    #[serde(default)]
    pub copied: bool,
}

/// What counts for an epoch that a device owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceStanding {
    /// State of the key. One that is confirmed for another machine or user is unconfirmed here.
    pub(crate) state: DeviceState,
    /// First key of its lineage.
    pub(crate) root: DeviceKey,
    /// True if two agents have this key or another one of its lineage.
    pub(crate) cloned: bool,
}
