//! Members of events about the outbox: epochs, dead letters, shortages.

use serde::{Deserialize, Serialize};

use crate::totals::Totals;

/// Start of an epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct EpochStarted {
    /// The new epoch.
    pub epoch: String,
    /// The epoch before, `null` if there is none or it is not known.
    pub previous_epoch: Option<String>,
    /// Cause.
    pub reason: EpochReason,
    /// After a conflict or for another device key: number of entries that the new epoch starts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// After a conflict or for another device key: last number of the epoch before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_last_seq: Option<u64>,
    /// After a conflict or for another device key: totals of the epoch before, up to its last number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_totals: Option<Totals>,
}

/// Cause of a new epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EpochReason {
    /// First start of the agent.
    First,
    /// The outbox was deleted.
    OutboxMissing,
    /// The outbox was damaged and moved aside.
    Quarantine,
    /// The receiver holds other entries under the same numbers.
    Conflict,
    /// The device has another key: an epoch belongs to one key and those that it replaced in turn.
    DeviceKey,
}

/// Cause of a deletion of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PurgeReason {
    /// The oldest were deleted to make space for new ones.
    Cap,
    /// The command `ai-agent deadletter purge` deleted them.
    Command,
}

/// Identifies a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct DeadLetterId {
    /// Sink that refused the entry.
    pub sink: String,
    /// Epoch of the entry.
    pub epoch: String,
    /// Number of the entry.
    pub seq: u64,
}

/// Number of entries that a sink refused for good, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct DeadLetterTotals {
    /// Number of entries.
    pub entries: u64,
    /// Number of bytes in their lines.
    pub bytes: u64,
}

/// Resource that an outbox has too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Shortage {
    /// The outbox reached its configured size.
    Outbox,
    /// The disk is nearly full.
    Disk,
}

impl Shortage {
    /// Returns the name of the variant, as in an event.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbox => "outbox",
            Self::Disk => "disk",
        }
    }
}
