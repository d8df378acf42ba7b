//! `[log]`: format and level of the log.

use schemars::JsonSchema;
use serde::Deserialize;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

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

/// Reports whether a text is a level or a filter. A word that is no level would be a filter too, for a target
/// of this name: nothing else would be logged.
fn is_filter(text: &str) -> bool {
    let mut parts = text.split(',');
    let is_known =
        |part: &str| part.contains(['=', '[']) || part.trim().parse::<LevelFilter>().is_ok();
    text.parse::<EnvFilter>().is_ok() && parts.all(is_known)
}

impl LogTable {
    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        if !is_filter(&self.level) {
            findings.add(
                &["log.level"],
                "is not a level: expected \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a \
                 filter such as \"info,siem_server=debug\"",
            );
        }
    }
}
