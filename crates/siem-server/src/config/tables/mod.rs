//! Tables of the configuration, one in each file.

mod fleet;
mod http;
mod limits;
mod log;
mod managed;
mod metrics;
mod probe;
mod quotas;
mod retention;
mod secrets;
mod shutdown;
mod store;
mod tls;
mod trust;
mod update;

pub use fleet::FleetTable;
pub use http::HttpTable;
pub use limits::LimitsTable;
pub use log::{LogFormat, LogTable};
pub use managed::ManagedTable;
pub use metrics::MetricsTable;
pub use probe::ProbeTable;
pub use quotas::QuotasTable;
pub use retention::RetentionTable;
pub use secrets::SecretsTable;
pub use shutdown::ShutdownTable;
pub use store::StoreTable;
pub use tls::TlsTable;
pub use trust::TrustTable;
pub use update::UpdateTable;

use super::Findings;

/// Reads an address with a port.
fn address<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<std::net::SocketAddr, D::Error> {
    use serde::{Deserialize as _, de::Error as _};

    let text = String::deserialize(deserializer)?;
    text.trim().parse().map_err(|_| {
        let expected = "an address with a port, such as \"127.0.0.1:8080\"";
        D::Error::invalid_value(serde::de::Unexpected::Str(&text), &expected)
    })
}
