//! Line that each batch adds to the notes of its epoch.

use serde::{Deserialize, Serialize};
use siem_protocol::{DeadLettered, Digest, Identity, statement::TrustLevel};

use super::repeats::RepeatedLines;
use crate::{
    batch::EndedEpoch,
    fleet::Heartbeat,
    ledger::{Change, is_zero, number},
    stats::CloneReport,
    trust::{DeviceKey, policy::Mark},
};

/// Record of a batch besides its lines. Reading the notes of an epoch in order rebuilds its ledger.
///
/// Together with its lines a note stands alone: one that stores lines names their numbers, the time
/// of receipt, the sender and the device. Notes of earlier releases name the latter two only where
/// they changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Time of receipt, RFC 3339.
    pub(super) at: String,
    /// Position of its lines in the lines of the epoch.
    #[serde(deserialize_with = "number")]
    pub(super) lines_at: u64,
    /// Size of its lines in bytes.
    #[serde(deserialize_with = "number")]
    pub(super) bytes: u64,
    /// Sender; absent if nothing is stored.
    #[serde(rename = "who", default, skip_serializing_if = "Option::is_none")]
    pub(super) sender: Option<Sender>,
    /// Signs that the outbox was copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) clones: Vec<CloneReport>,
    /// Lines that another epoch of the machine also has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) repeated: Vec<RepeatedLines>,
    /// 1 for a batch that was refused because a number that is held has another chain value in it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) conflicts: u64,
    /// In the first note of an epoch: the receiver had a key then, and offered to enroll devices.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) keyed: bool,
    /// In the first note of an epoch: one more than the highest number of the machine's epochs, so
    /// that they have an order that no clock changes. 0 if a release without it wrote the note.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) order: u64,
    /// The device that owns the epoch, with its seal; absent if the epoch has none, or if nothing is
    /// stored and all is as in the notes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) device: Option<DeviceNote>,
    /// Figures of the last heartbeat among its lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) heartbeat: Option<Box<Heartbeat>>,
    /// End of the epoch before, which an event among its lines reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Box<EndedEpoch>>,
    /// Lines that were replaced by tombstones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) erased: Option<ErasureNote>,
    /// The lines of all notes before were removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) removed: bool,
    /// Position before which all lines were removed.
    #[serde(default, deserialize_with = "number", skip_serializing_if = "is_zero")]
    pub(super) removed_before: u64,
    /// Changes of the ledger.
    pub(super) change: Change,
}

/// Erasure of lines. With their hashes the chain can still be verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ErasureNote {
    /// Id of the erasure.
    pub(super) id: String,
    /// Numbers and hashes of the lines.
    pub(super) lines: Vec<DeadLettered>,
}

/// Sender and configuration of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sender {
    /// Id of the epoch.
    pub(super) epoch: String,
    /// The epoch before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous_epoch: Option<String>,
    /// The machine, user and agent.
    pub(super) identity: Identity,
    /// Hash of the configuration.
    pub(super) config_hash: Digest,
}

/// Device that owns an epoch, as of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeviceNote {
    /// Its key, which sealed the batch.
    pub(super) key: DeviceKey,
    /// Whose entries the batch brings.
    pub(super) mark: Mark,
    /// Level of the receiver at that time.
    pub(super) level: TrustLevel,
    /// Random id of the agent's run; absent if unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    /// First number after the ones that were held when the device adopted the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) adopted_at: Option<u64>,
    /// The adoption confirms the key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) confirms: bool,
    /// The seal; absent if one that is stored covers the same numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seal: Option<SealNote>,
}

/// A seal as received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealNote {
    /// Last number that it covers.
    pub(super) last_seq: u64,
    /// Text of the signed note.
    pub(super) note: String,
}

impl Note {
    /// Reports whether a batch wrote the note, and not the operator.
    pub(super) fn is_of_batch(&self) -> bool {
        self.erased.is_none() && !self.removed && self.removed_before == 0
    }

    /// Returns the seal that the note holds.
    pub(super) fn seal(&self) -> Option<&SealNote> {
        self.device.as_ref()?.seal.as_ref()
    }

    /// Formats the note as a line.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("names and numbers can be written as JSON");
        line.push(b'\n');
        line
    }
}
