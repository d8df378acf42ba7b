//! `[store]`: the data directory.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{super::Size, Findings};

/// Data directory.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StoreTable {
    /// Directory for received records.
    pub directory: PathBuf,
    /// Free space on its disk below which the receiver is not ready.
    pub min_free: Size,
}

impl StoreTable {
    pub(in super::super) fn check(&self, findings: &mut Findings<'_>) {
        if self.directory.as_os_str().is_empty() {
            findings.add(&["store.directory"], "is empty, expected the path of a directory");
        }
    }
}
