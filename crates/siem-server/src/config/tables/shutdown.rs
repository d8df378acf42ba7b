//! `[shutdown]`: stop of the receiver.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::Time;

/// Stop of the receiver.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ShutdownTable {
    /// Time between SIGTERM, from which on `/readyz` returns 503, and the end of new connections.
    pub delay: Time,
    /// Time that running requests may take after that.
    pub grace: Time,
}
