//! Managed configurations that the receiver ever offered, `offered.ndjson`.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use siem_protocol::Digest;

use super::journal::Fold;

/// Hashes of all configurations that were offered.
#[derive(Debug, Default)]
pub(super) struct OfferedConfigs(HashSet<Digest>);

/// A line of `offered.ndjson`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct OfferedLine {
    /// Time of the first offer.
    pub(super) at: String,
    /// SHA-256 of the configuration's bytes.
    pub(super) hash: Digest,
}

impl Fold for OfferedConfigs {
    type Line = OfferedLine;

    fn apply(&mut self, line: OfferedLine) {
        self.0.insert(line.hash);
    }
}

impl OfferedConfigs {
    pub(super) fn contains(&self, hash: &Digest) -> bool {
        self.0.contains(hash)
    }
}
