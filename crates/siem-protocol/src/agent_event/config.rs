//! Members of events about the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// Configuration in force, and those tried and refused last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ConfigSummary {
    /// The configuration in force.
    pub applied: Option<AppliedConfig>,
    /// The configuration that was tried last.
    pub attempted: Option<AttemptedConfig>,
    /// The configuration that was refused last, unless its origin gave a valid one since.
    pub refused: Option<RefusedConfig>,
    /// Time since the server last gave a signed response; an age, because the clock of the
    /// receiver is another one.
    pub signed_age_seconds: Option<u64>,
    /// The managed configuration in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedSummary>,
}

/// Managed configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct ManagedSummary {
    /// SHA-256 of its body, as in the headers of batches.
    pub hash: Digest,
    /// Proof of its origin.
    pub authenticated_by: ConfigProof,
    /// Its number in the sequence of the organisation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Time at which it was signed (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued: Option<String>,
    /// Time from which it is out of date (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// True if that time has passed by the clock of the machine. It stays in force.
    #[serde(default)]
    pub expired: bool,
}

/// Proof of the origin of a managed configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfigProof {
    /// A signature by a key of the organisation that the machine's file lists.
    Organisation,
    /// A signature with the secret that all agents of the fleet share.
    SharedSecret,
    /// None: the machine's file accepts unsigned answers.
    Nothing,
}

/// Transport of the sinks: that of the least protected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Entries leave the machine unencrypted.
    Plain,
    /// Entries leave the machine over TLS.
    Tls,
    /// Entries do not leave the machine.
    Local,
}

/// Configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct AppliedConfig {
    /// Hash of the configuration, as in the headers of batches.
    pub hash: Digest,
    /// Revision of its managed part; `null` without one.
    pub revision: Option<String>,
    /// Time from which it is in force (RFC 3339).
    pub at: String,
    /// Hash of each section that has a value, by the name of its table. Machines with the same hash
    /// have the same values in it, secrets excluded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sections: BTreeMap<String, Digest>,
    /// Hash of each layer, lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerHash>,
}

/// Hash of the values of one layer of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct LayerHash {
    /// The layer: `defaults`, `credential`, `machine`, `user`, `command-line`, `environment` or
    /// `managed`.
    pub layer: String,
    /// Path of its file, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Hash of its values, secrets excluded.
    pub hash: Digest,
}

/// Configuration that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct AttemptedConfig {
    /// Origin of the configuration.
    pub from: ConfigOrigin,
    /// Revision of its managed part, if that could be read.
    pub revision: Option<String>,
    /// Time of the attempt (RFC 3339).
    pub at: String,
}

/// Configuration that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct RefusedConfig {
    /// Origin of the configuration.
    pub from: ConfigOrigin,
    /// Cause, with the key.
    pub reason: String,
    /// Time of the first refusal (RFC 3339).
    pub at: String,
}

/// Origin of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfigOrigin {
    /// Files of the machine, secrets in files included.
    Files,
    /// The server.
    Server,
}

/// A key that a layer may not set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
pub struct LockedKey {
    /// The key.
    pub key: String,
    /// The layer.
    pub layer: String,
}
