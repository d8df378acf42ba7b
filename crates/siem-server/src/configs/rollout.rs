//! Staged roll-out of a managed configuration, from the file `NAME.json.rollout` beside it.

use serde::{Deserialize, Serialize};
use siem_protocol::managed::Audience;

/// Staged roll-out of a managed configuration. It is no part of the configuration, so that changing it
/// needs no new signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Part of the machines that may have the configuration, 0 to 100: the same machines as those of
    /// [`Audience::percentage`].
    pub percent: u64,
    /// Part of the devices that answered, 0 to 100. If more refuse, the roll-out halts.
    #[serde(default = "default_max_refused_percent")]
    pub max_refused_percent: u64,
    /// Number of refusals below which the roll-out does not halt, at least 1.
    #[serde(default = "default_min_refused")]
    pub min_refused: u64,
}

fn default_max_refused_percent() -> u64 {
    5
}

fn default_min_refused() -> u64 {
    3
}

/// Reason why the file of a roll-out is wrong.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// It is not the JSON that is expected.
    #[error("the roll-out cannot be read")]
    Json(#[from] serde_json::Error),
    /// A value is out of range.
    #[error("`{key}` of the roll-out is {value}, expected {least} to {most}")]
    Range {
        /// The member.
        key: &'static str,
        /// Its value.
        value: u64,
        /// Minimum.
        least: u64,
        /// Maximum.
        most: u64,
    },
}

impl Rollout {
    /// Creates a roll-out to a part of the machines, with the default limits.
    #[must_use]
    pub fn new(percent: u64) -> Self {
        let (max_refused_percent, min_refused) =
            (default_max_refused_percent(), default_min_refused());
        Self { percent, max_refused_percent, min_refused }
    }

    /// Parses the content of the file.
    ///
    /// # Errors
    /// [`RolloutError`].
    pub fn parse(text: &[u8]) -> Result<Self, RolloutError> {
        let rollout: Self = serde_json::from_slice(text)?;
        rollout.check()?;
        Ok(rollout)
    }

    /// Checks the ranges of the values.
    ///
    /// # Errors
    /// [`RolloutError::Range`].
    pub fn check(&self) -> Result<(), RolloutError> {
        for (key, value, least, most) in [
            ("percent", self.percent, 0, 100),
            ("max_refused_percent", self.max_refused_percent, 0, 100),
            ("min_refused", self.min_refused, 1, u64::MAX),
        ] {
            if !(least..=most).contains(&value) {
                return Err(RolloutError::Range { key, value, least, most });
            }
        }
        Ok(())
    }

    /// Reports whether a machine may have the configuration.
    #[must_use]
    pub fn includes(&self, machine: &str) -> bool {
        Audience::bucket(machine) < self.percent
    }

    /// Reports whether so many devices refuse the configuration that the roll-out halts.
    #[must_use]
    pub fn is_exceeded(&self, applied: u64, refused: u64) -> bool {
        let answered = u128::from(applied) + u128::from(refused);
        refused >= self.min_refused
            && u128::from(refused) * 100 > u128::from(self.max_refused_percent) * answered
    }
}
