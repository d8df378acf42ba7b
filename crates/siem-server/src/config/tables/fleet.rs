//! `[fleet]`: what counts as a problem of a machine.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    super::{Size, Time},
    Findings,
};
use crate::fleet::FleetThresholds;

/// What counts as a problem of a machine, in `/stats` and `siem-server fleet`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct FleetTable {
    /// Time without a batch after which a machine is quiet.
    pub quiet_after: Time,
    /// Age of a heartbeat when it is sent above which its agent is behind.
    pub behind_after: Time,
    /// Size of what waits at an agent above which it is behind.
    pub behind_size: Size,
}

impl FleetTable {
    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        let times =
            [("fleet.quiet_after", self.quiet_after), ("fleet.behind_after", self.behind_after)];
        for (key, time) in times {
            let is_valid = time.0 >= Duration::from_secs(1) && time.0.as_secs() <= 365 * 86400;
            findings.expect(key, is_valid, "1s to 365d");
        }
    }

    /// Returns the limits.
    #[must_use]
    pub fn thresholds(&self) -> FleetThresholds {
        FleetThresholds {
            quiet_after: self.quiet_after.0,
            behind_after: self.behind_after.0,
            behind_bytes: self.behind_size.0,
        }
    }
}
