//! The line that each batch leaves in its epoch's notes.

use serde::{Deserialize, Serialize};
use siem_protocol::{Digest, Identity};

use super::repeats::Repeated;
use crate::{
    ledger::{Change, is_zero},
    stats::CloneReport,
};

/// What a batch left behind besides its lines. The notes of an epoch, read in order, make its
/// ledger again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// When the batch came, RFC 3339.
    pub(super) at: String,
    /// Where its lines begin in the epoch's lines.
    pub(super) lines_at: u64,
    /// How many bytes they have.
    pub(super) bytes: u64,
    /// Who sent it; absent when nothing of it is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) who: Option<Who>,
    /// Signs that the store was copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) clones: Vec<CloneReport>,
    /// Lines that are held of another epoch of the machine too: what came twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) repeated: Vec<Repeated>,
    /// 1 for a batch that was refused because a number that is held came with another chain value.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) conflicts: u64,
    /// What it changes.
    pub(super) change: Change,
}

/// Who sends, and under which configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Who {
    /// The epoch's id.
    pub(super) epoch: String,
    /// The epoch before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) previous_epoch: Option<String>,
    /// The machine, user and agent.
    pub(super) identity: Identity,
    /// Hash of the configuration.
    pub(super) config_hash: Digest,
}

impl Note {
    /// The note as a line.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("names and numbers can be written as JSON");
        line.push(b'\n');
        line
    }
}
