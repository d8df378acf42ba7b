//! `[limits]`: limits on requests.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    super::{Size, Time},
    Findings,
};
use crate::Limits;

/// Limits on requests.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LimitsTable {
    /// Size of a body as sent; 64 KiB to 1 GiB.
    pub body_size: Size,
    /// Size of a decoded body; not below `body_size`, at most 1 GiB.
    pub decoded_size: Size,
    /// Memory of all bodies and batches; at least twice `decoded_size`.
    pub memory: Size,
    /// Time for which a body may arrive without a byte; 1s to 1h.
    pub body_timeout: Time,
    /// Time that a request waits for its turn and for memory; 1s to 5m.
    pub max_wait: Time,
}

impl LimitsTable {
    /// Returns the limits of a receiver.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            compressed: self.body_size.as_usize(),
            decoded: self.decoded_size.as_usize(),
            memory: self.memory.as_usize(),
            patience: self.max_wait.0,
            body_timeout: self.body_timeout.0,
            ..Limits::default()
        }
    }

    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        let (body, decoded, memory) = (self.body_size.0, self.decoded_size.0, self.memory.0);
        let is_valid = (64 << 10..=1 << 30).contains(&body);
        findings.expect("limits.body_size", is_valid, "64 KiB to 1 GiB");
        findings.expect("limits.decoded_size", decoded <= 1 << 30, "at most 1 GiB");
        if decoded < body {
            findings.add(
                &["limits.decoded_size", "limits.body_size"],
                "is below `limits.body_size`: set it to the same size or more",
            );
        }
        // One half is for bodies, the other one for decoded batches.
        if memory / 2 < decoded {
            findings.add(
                &["limits.memory", "limits.decoded_size"],
                "is less than twice `limits.decoded_size`: set it to twice that size or more",
            );
        }
        let body_timeout = self.body_timeout.0.as_secs();
        findings.expect("limits.body_timeout", (1..=3600).contains(&body_timeout), "1s to 1h");
        let max_wait = self.max_wait.0.as_secs();
        findings.expect("limits.max_wait", (1..=300).contains(&max_wait), "1s to 5m");
    }
}
