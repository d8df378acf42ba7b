//! Settings of updates.

use std::time::Duration;

use config_text::Time;
use schemars::JsonSchema;
use serde::Deserialize;
use siem_protocol::{agent_event::UpdateMode, minisign::OrganisationKey};

use super::{error::ConfigError, merged::Merged, organisation_keys::parse_keys};

/// Interval between two checks by default. It is not in the built-in file, and neither are the other
/// settings: the hash of a configuration without them is the same as before.
const DEFAULT_INTERVAL: Time = Time::seconds(6 * 3600);
/// Shortest and longest interval between two checks.
const INTERVAL: [Time; 2] = [Time::seconds(5 * 60), Time::seconds(7 * 86_400)];

/// Settings of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateSettings {
    /// Action on a newer release.
    pub mode: UpdateMode,
    /// Keys of the organisation, one of which must have signed a release; at least one if releases
    /// are installed.
    pub keys: Vec<OrganisationKey>,
    /// Interval between two checks; 5 minutes to 7 days.
    pub interval: Duration,
}

/// Updates of the agent by itself.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateTable {
    /// Action on a newer release: "off", "notify" or "install"; the default is "notify" with a key,
    /// and "off" without.
    mode: Option<UpdateMode>,
    /// Public keys of minisign, one of which must have signed a release.
    #[serde(default)]
    keys: Vec<String>,
    /// Interval between two checks; 5 minutes to 7 days, 6 hours by default.
    interval: Option<Time>,
}

impl UpdateTable {
    pub(super) fn settings(&self, merged: &Merged) -> Result<UpdateSettings, ConfigError> {
        let keys = parse_keys("update.keys", &self.keys, merged)?;
        let interval = self.interval.unwrap_or(DEFAULT_INTERVAL);
        let [shortest, longest] = INTERVAL;
        if interval < shortest || interval > longest {
            let problem = format!("is {interval}, must be from {shortest} to {longest}");
            return Err(merged.value_error("update.interval", problem));
        }
        let mode = match (self.mode, keys.is_empty()) {
            (Some(UpdateMode::Install), true) => {
                let problem = "is \"install\", which needs a key that signs releases: set \
                               `update.keys`";
                return Err(merged.value_error("update.mode", problem));
            }
            (Some(mode), _) => mode,
            (None, false) => UpdateMode::Notify,
            (None, true) => UpdateMode::Off,
        };
        Ok(UpdateSettings { mode, keys, interval: interval.0 })
    }
}
