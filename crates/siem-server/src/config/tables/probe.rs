//! `[probe]`: a listener for probes of a service manager or load balancer.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

/// Listener for probes.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ProbeTable {
    /// Address on which `/healthz` and `/readyz` are served without TLS, and nothing else.
    #[serde(default, deserialize_with = "optional_address")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<SocketAddr>,
}

fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    super::address(deserializer).map(Some)
}
