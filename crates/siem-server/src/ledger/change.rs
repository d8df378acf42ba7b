//! Changes of an epoch by a batch.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use siem_protocol::{ChainPoint, DeadLettered, Digest};

use super::{Range, TallyChange};

/// Changes of an epoch by a batch. They are stored beside the entries, so that the ledger can be
/// rebuilt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Number of lines that are stored.
    #[serde(deserialize_with = "number", skip_serializing_if = "is_zero")]
    pub accepted: u64,
    /// Number of lines that were already stored.
    #[serde(deserialize_with = "number", skip_serializing_if = "is_zero")]
    pub duplicates: u64,
    /// Numbers covered from now on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub new: Vec<Range>,
    /// Those of `new` that were dead-lettered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holes: Vec<DeadLettered>,
    /// Numbers whose holes are filled.
    #[serde(deserialize_with = "numbers", skip_serializing_if = "Vec::is_empty")]
    pub filled: Vec<u64>,
    /// Numbers skipped when the batch arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<Range>,
    /// Breaks of the chain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<Break>,
    /// Values of the chain that the batch builds upon, for numbers that are not covered or have
    /// another value.
    #[serde(deserialize_with = "points", skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ChainPoint>,
    /// Numbers whose claimed values were confirmed.
    #[serde(deserialize_with = "numbers", skip_serializing_if = "Vec::is_empty")]
    pub settled: Vec<u64>,
    /// Start of an epoch that was unknown before.
    #[serde(deserialize_with = "point", skip_serializing_if = "Option::is_none")]
    pub begins_at: Option<ChainPoint>,
    /// Numbers whose lines are missing from a damaged store.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Range>,
    /// Changes of the counts that are compared with claims; present if `accepted` is not 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tally: Option<TallyChange>,
}

impl Change {
    /// Reports whether the batch continues what is held: it skips no number, builds upon the value
    /// of the chain that is held, and results in those that later numbers were built upon.
    #[must_use]
    pub fn continues(&self) -> bool {
        self.gap.is_none() && self.breaks.is_empty() && self.claims.is_empty()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
pub(crate) fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Largest number in a record. Sums of larger ones, which only a forged record has, could overflow.
pub(crate) const LARGEST: u64 = 1 << 56;

/// Deserializes a number up to [`LARGEST`].
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    checked(u64::deserialize(deserializer)?, |number| *number)
}

fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    checked(Vec::deserialize(deserializer)?, |all| all.iter().copied().max().unwrap_or_default())
}

fn point<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ChainPoint>, D::Error> {
    checked(Option::deserialize(deserializer)?, |it: &Option<ChainPoint>| it.map_or(0, |it| it.seq))
}

fn points<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChainPoint>, D::Error> {
    let largest = |all: &Vec<ChainPoint>| all.iter().map(|it| it.seq).max().unwrap_or_default();
    checked(Vec::deserialize(deserializer)?, largest)
}

fn checked<T, E: serde::de::Error>(value: T, largest: impl Fn(&T) -> u64) -> Result<T, E> {
    if largest(&value) > LARGEST { Err(E::custom("too large a number")) } else { Ok(value) }
}

/// A break of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Break {
    /// Number at which it was found.
    pub seq: u64,
    /// Kind of the break.
    pub kind: BreakKind,
    /// Expected value.
    pub expected: Digest,
    /// Value in the batch.
    pub found: Digest,
}

/// Kinds of breaks of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakKind {
    /// The batch builds upon another value than the one stored for the number before it.
    Before,
    /// The lines of the batch result in another value than its header names.
    After,
    /// A late batch results in another value than the one that the numbers after it were built
    /// upon.
    Join,
}

/// Result of [`Ledger::plan`](super::Ledger::plan).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Changes by the batch.
    pub change: Change,
    /// Indexes of the lines to store.
    pub store: Vec<usize>,
    /// For a redelivery: the numbers that are stored afterwards.
    pub accepted_seqs: Option<Vec<u64>>,
}

/// Reason why a batch is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Refusal<E> {
    /// A number that is covered has another chain value in the batch.
    #[error("a number that is held came with another chain value")]
    Conflict {
        /// The next number expected.
        expected_seq: u64,
    },
    /// The values of the chain could not be read.
    #[error("the chain's values could not be read")]
    Values(#[source] E),
}
