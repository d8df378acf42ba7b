//! `[secrets]`: token and HMAC secret of the fleet, in files of their own.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Files with secrets. Each has one value in a line, and optionally a second one in another line.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SecretsTable {
    /// File with the token; by default the systemd credential `token`, or the variable
    /// `CLAUDE_SIEM_TOKEN`.
    pub token_file: Option<PathBuf>,
    /// File with the HMAC secret; by default the systemd credential `hmac-secret`, or the variable
    /// `CLAUDE_SIEM_HMAC_SECRET`.
    pub hmac_secret_file: Option<PathBuf>,
}
