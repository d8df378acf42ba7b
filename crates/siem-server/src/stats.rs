//! Response of `GET /stats`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{ChainPoint, Identity};

use crate::ledger::{Break, Comparison, Range};

/// Entries that a receiver holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// Number of epochs whose entries differ from the agent's claims without an explanation. Should
    /// be 0.
    #[serde(default)]
    pub unexplained: u64,
    /// The machines, ordered by id.
    pub machines: Vec<MachineStats>,
}

/// Entries of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MachineStats {
    /// The machine as described by its last batch.
    pub identity: Identity,
    /// Time of its last batch, RFC 3339.
    pub last_seen: String,
    /// Number of entries in all epochs.
    pub entries: u64,
    /// Size of their lines in bytes, newlines included.
    pub bytes: u64,
    /// Signs that an outbox was copied.
    pub clones: Vec<CloneReport>,
    /// The epochs, ordered by id.
    pub epochs: Vec<EpochStats>,
}

/// Entries of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EpochStats {
    /// Id of the epoch.
    pub epoch: String,
    /// The epoch before, according to the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_epoch: Option<String>,
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
    /// Numbers that were dead-lettered and not redelivered.
    pub holes: Vec<Range>,
    /// Breaks of the chain.
    pub breaks: Vec<Break>,
    /// The agent's last claim, compared with the entries; absent before its first claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Comparison>,
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

/// Kinds of signs that an outbox was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CloneKind {
    /// Batches of one epoch name two hostnames.
    TwoHostnames,
    /// An epoch of a machine and user continues after another one of theirs started.
    AlternatingEpochs,
}
