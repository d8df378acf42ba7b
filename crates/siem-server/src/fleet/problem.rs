//! Problems of a row.

use std::{fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A problem of a machine's user and device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum FleetProblem {
    /// No batch arrived for `quiet_after`.
    Quiet,
    /// Batches arrive, but no heartbeat for `quiet_after`.
    NoHeartbeat,
    /// The last heartbeat was older than `behind_after` when it was sent, or more than
    /// `behind_bytes` wait at the agent.
    Behind,
    /// Numbers are missing that never arrived.
    Gap,
    /// The hash chain is broken.
    Break,
    /// The entries differ from the agent's claims, and missing numbers do not explain it.
    Unexplained,
    /// Entries were refused for good and not redelivered, according to a batch or a heartbeat.
    DeadLetter,
    /// The key of the device is not confirmed.
    Unconfirmed,
    /// The key of the device is revoked.
    Revoked,
    /// The agent refused a configuration.
    Refused,
    /// A sign that the outbox or the key was copied.
    Clone,
    /// Another host has the same machine id.
    SharedMachineId,
    /// The agent sends entries unencrypted to another machine.
    Plain,
    /// Files or directories cannot be read.
    Unreadable,
    /// The agent does not trust the answers of a receiver.
    Untrusted,
    /// The agent refused an update, could not install it, or rolled it back.
    UpdateFailed,
}

impl FleetProblem {
    /// All problems, in the order in which a row lists them.
    pub const ALL: [Self; 16] = [
        Self::Quiet,
        Self::NoHeartbeat,
        Self::Behind,
        Self::Gap,
        Self::Break,
        Self::Unexplained,
        Self::DeadLetter,
        Self::Unconfirmed,
        Self::Revoked,
        Self::Refused,
        Self::Clone,
        Self::SharedMachineId,
        Self::Plain,
        Self::Unreadable,
        Self::Untrusted,
        Self::UpdateFailed,
    ];

    /// Returns the name, as in requests and responses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::NoHeartbeat => "no_heartbeat",
            Self::Behind => "behind",
            Self::Gap => "gap",
            Self::Break => "break",
            Self::Unexplained => "unexplained",
            Self::DeadLetter => "dead_letter",
            Self::Unconfirmed => "unconfirmed",
            Self::Revoked => "revoked",
            Self::Refused => "refused",
            Self::Clone => "clone",
            Self::SharedMachineId => "shared_machine_id",
            Self::Plain => "plain",
            Self::Unreadable => "unreadable",
            Self::Untrusted => "untrusted",
            Self::UpdateFailed => "update_failed",
        }
    }
}

impl fmt::Display for FleetProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Name of no problem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a problem, expected one of {}", names())]
pub struct UnknownProblem {
    given: String,
}

fn names() -> String {
    FleetProblem::ALL.map(FleetProblem::as_str).join(", ")
}

impl FromStr for FleetProblem {
    type Err = UnknownProblem;

    fn from_str(text: &str) -> Result<Self, UnknownProblem> {
        let found = Self::ALL.into_iter().find(|problem| problem.as_str() == text);
        found.ok_or_else(|| UnknownProblem { given: text.chars().take(64).collect() })
    }
}
