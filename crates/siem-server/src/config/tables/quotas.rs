//! `[quotas]`: what a token and a device may send.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{super::Size, Findings};
use crate::QuotaLimits;

/// What a token and a device may send; zero is no quota.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct QuotasTable {
    /// New machines that a token may begin in an hour.
    pub machines_per_hour: u64,
    /// Size of the decoded batches that a device may send in a day; 64 MiB or more.
    pub device_size_per_day: Size,
    /// Size of the decoded batches that all senders with a token may send in a day; 64 MiB or more.
    pub token_size_per_day: Size,
}

impl QuotasTable {
    /// Returns the quotas of a receiver.
    #[must_use]
    pub fn limits(&self) -> QuotaLimits {
        QuotaLimits {
            machines_per_hour: self.machines_per_hour,
            device_bytes_per_day: self.device_size_per_day.0,
            token_bytes_per_day: self.token_size_per_day.0,
        }
    }

    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        // One batch must not use up more than a day.
        let is_valid = |size: Size| size.0 == 0 || size.0 >= 64 << 20;
        let expected = "0 for no quota, or 64 MiB or more";
        let device = is_valid(self.device_size_per_day);
        findings.expect("quotas.device_size_per_day", device, expected);
        findings.expect("quotas.token_size_per_day", is_valid(self.token_size_per_day), expected);
    }
}
