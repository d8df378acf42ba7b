//! What a batch changes about an epoch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siem_protocol::{ChainPoint, DeadLettered, Digest};

use super::{Range, TallyChange};

/// What a batch changes. Stored beside the entries, so that the ledger can be made again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// How many lines are stored.
    #[serde(skip_serializing_if = "is_zero")]
    pub accepted: u64,
    /// How many lines were there already.
    #[serde(skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Numbers covered from now on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new: Vec<Range>,
    /// Those of `new` that were dead-lettered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holes: Vec<DeadLettered>,
    /// Numbers whose holes are filled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filled: Vec<u64>,
    /// Numbers jumped over when the batch came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Range>,
    /// Where the chain does not fit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<Break>,
    /// The chain's values that the batch builds upon, where none or another is covered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ChainPoint>,
    /// Numbers whose claimed values proved right.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<u64>,
    /// Where an epoch begins that was not known before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begins_at: Option<ChainPoint>,
    /// Numbers whose lines were found missing from a damaged store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Range>,
    /// What it adds to the counts that are compared with claims; there when `accepted` is not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tally: Option<TallyChange>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A place where the chain does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Break {
    /// The number that it was noticed at.
    pub seq: u64,
    /// What does not fit.
    pub kind: BreakKind,
    /// The value that was expected there.
    pub expected: Digest,
    /// The value that came.
    pub found: Digest,
}

/// What about a chain does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakKind {
    /// A batch builds upon another value than is held of the number before it.
    Before,
    /// A batch's lines give another value than its header says.
    After,
    /// A late batch gives another value than the numbers behind it were built upon.
    Join,
}

/// What to do with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it changes.
    pub change: Change,
    /// Which of its lines to store, by index.
    pub store: Vec<usize>,
    /// For a redelivery: the numbers that are held then.
    pub accepted_seqs: Option<Vec<u64>>,
}

/// Why a batch is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Refusal<E> {
    /// A number that is covered comes with another chain value.
    #[error("a number that is held came with another chain value")]
    Conflict {
        /// The number expected next.
        expected_seq: u64,
    },
    /// The chain's values could not be read.
    #[error("the chain's values could not be read")]
    Values(#[source] E),
}
