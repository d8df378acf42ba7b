//! `[managed]`: configuration that agents receive.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration that agents receive.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ManagedTable {
    /// File with the managed configuration; by default `config.json` in the data directory.
    pub config_file: Option<PathBuf>,
    /// Folder with managed configurations for parts of the fleet; by default `configs` in the data
    /// directory.
    pub folder: Option<PathBuf>,
}
