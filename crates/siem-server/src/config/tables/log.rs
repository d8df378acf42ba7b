//! `[log]`: format and level of the log.

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

use super::Findings;

/// Log.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LogTable {
    /// Format of a line.
    pub format: LogFormat,
    /// Lowest level that is logged, or a filter such as `info,siem_server=debug`. `RUST_LOG` overrides it.
    pub level: String,
}

/// Format of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl LogTable {
    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        if self.level.parse::<EnvFilter>().is_err() {
            findings.add(
                &["log.level"],
                "is not a level: expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a \
                 filter such as \"info,siem_server=debug\"",
            );
        }
    }
}
