//! What `GET /stats` tells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{ChainPoint, Identity};

use crate::ledger::{Break, Comparison, Range};

/// What a receiver holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// How many epochs differ from what their agent claims in a way that nothing explains. Should
    /// be 0.
    #[serde(default)]
    pub unexplained: u64,
    /// The machines, ordered by id.
    pub machines: Vec<MachineStats>,
}

/// What is held of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStats {
    /// The machine as its last batch describes it.
    pub identity: Identity,
    /// When its last batch came, RFC 3339.
    pub last_seen: String,
    /// How many entries are held, of all epochs.
    pub entries: u64,
    /// How many bytes their lines have, newlines included.
    pub bytes: u64,
    /// Signs that a store was copied.
    pub clones: Vec<CloneReport>,
    /// The epochs, ordered by id.
    pub epochs: Vec<EpochStats>,
}

/// What is held of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochStats {
    /// Its id.
    pub epoch: String,
    /// The epoch that it says came before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
    /// The user as its last batch has it.
    pub user: String,
    /// When its first batch came, RFC 3339.
    pub first_seen: String,
    /// When its last batch came, RFC 3339.
    pub last_seen: String,
    /// How many entries are held.
    pub entries: u64,
    /// How many bytes their lines have, newlines included.
    pub bytes: u64,
    /// The number after the highest one covered.
    pub next_seq: u64,
    /// For a sink that was added later: the number that it begins behind, and the chain's value
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begins_at: Option<ChainPoint>,
    /// How many entries came that were held already.
    pub duplicates: u64,
    /// How many entries are held that another epoch of the machine has too: the same part of the
    /// same line of the same generation, read and sent again. The notes name them.
    #[serde(default)]
    pub repetitions: u64,
    /// How many batches were refused with status 409.
    pub conflicts: u64,
    /// Numbers that never came.
    pub gaps: Vec<Range>,
    /// Numbers that were dead-lettered and not delivered again.
    pub holes: Vec<Range>,
    /// Where the chain does not fit.
    pub breaks: Vec<Break>,
    /// What the agent claimed last, held against what is held; absent before its first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Comparison>,
}

/// A sign that a store was copied: two agents go on from one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CloneReport {
    /// What was seen.
    pub kind: CloneKind,
    /// The epoch in which it was seen.
    pub epoch: String,
    /// The other side: a hostname, or an epoch.
    pub other: String,
    /// When it was seen last, RFC 3339.
    pub last_seen: String,
    /// How often it was seen.
    pub times: u64,
}

/// What is taken for a sign that a store was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// One epoch comes from two hostnames.
    TwoHostnames,
    /// An epoch of a machine and user goes on after another one of theirs had begun.
    AlternatingEpochs,
}
