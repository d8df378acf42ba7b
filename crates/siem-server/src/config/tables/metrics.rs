//! `[metrics]`: a listener for Prometheus.

use metrics_endpoint::MetricsAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};

/// Listener for Prometheus.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricsTable {
    /// Loopback address, or `unix:` and the path of a socket, on which `/metrics` is served.
    #[serde(default, deserialize_with = "local_address")]
    #[schemars(with = "Option<String>")]
    pub listen: Option<MetricsAddress>,
}

fn local_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<MetricsAddress>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.trim().parse().map(Some).map_err(|_| {
        let expected = "a loopback address with a port, such as \"127.0.0.1:9465\", or `unix:` and an \
                        absolute path";
        D::Error::invalid_value(serde::de::Unexpected::Str(&text), &expected)
    })
}
