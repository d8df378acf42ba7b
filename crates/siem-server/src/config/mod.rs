//! Configuration of a receiver: one TOML file, overridden by the environment and by arguments.
//!
//! Each table is a file in `tables` with a struct, and a method `check` for what a type cannot say.
//! The defaults are those of `config/siem-server.toml`, which documents every key. To add a table: add the
//! struct, a field of [`Settings`], a call in `Settings::check`, and the keys in that file.

mod layer;
mod load;
mod located;
mod problem;
mod schema;
mod tables;

pub use config_text::{Size, Time};
pub use load::{Inputs, Loaded, load, load_valid_values};
pub use located::{Origin, ValueLocation};
pub use problem::ConfigProblem;
use schemars::JsonSchema;
use serde::Deserialize;
pub use tables::*;

/// The built-in configuration, with a comment for each key.
pub const DEFAULTS: &str = include_str!("../../../../config/siem-server.toml");

/// Configuration of a receiver.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Settings {
    /// Listener for agents.
    pub http: HttpTable,
    /// Listener for probes.
    pub probe: ProbeTable,
    /// Certificates.
    pub tls: TlsTable,
    /// Token and HMAC secret of the fleet.
    pub secrets: SecretsTable,
    /// Data directory.
    pub store: StoreTable,
    /// How long records are kept.
    pub retention: RetentionTable,
    /// Trust in senders.
    pub trust: TrustTable,
    /// Configuration that agents receive.
    pub managed: ManagedTable,
    /// Releases of the agent.
    pub update: UpdateTable,
    /// Limits on requests.
    pub limits: LimitsTable,
    /// What counts as a problem of a machine.
    pub fleet: FleetTable,
    /// What a token and a device may send.
    pub quotas: QuotasTable,
    /// Listener for Prometheus.
    pub metrics: MetricsTable,
    /// Stop of the receiver.
    pub shutdown: ShutdownTable,
    /// Log.
    pub log: LogTable,
}

impl Settings {
    /// Adds the problems of values that have the right types.
    fn check(&self, findings: &mut Findings<'_>) {
        self.http.check(&self.tls, findings);
        self.tls.check(findings);
        self.store.check(findings);
        self.trust.check(findings);
        self.limits.check(findings);
        self.fleet.check(findings);
        self.quotas.check(findings);
        self.log.check(findings);
    }
}

pub(crate) use load::Findings;

#[cfg(test)]
mod tests;
