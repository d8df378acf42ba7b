//! `[update]`: releases of the agent.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Releases of the agent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct UpdateTable {
    /// Folder with releases and their `manifest.json`; by default `dist` in the data directory, else beside
    /// it.
    pub dist: Option<PathBuf>,
}
