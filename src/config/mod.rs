//! Configuration: built-in defaults, TOML files, the environment and the server, merged into typed
//! settings.
//!
//! Every error names the layer, the line, the key, and a value that would be accepted.

mod credentials;
mod error;
mod find_errors;
mod hashes;
mod hidden;
mod inline_tests;
mod inputs;
mod key;
mod layer;
mod loaded;
mod locks;
mod machine_policy;
mod managed;
mod merged;
mod on_error;
mod options;
mod organisation_keys;
mod origin;
mod permissions;
mod pipeline;
mod provenance;
mod read_layers;
mod redact;
mod schema;
mod secret;
mod secret_values;
mod settings;
mod sink;
mod template;
#[cfg(test)]
mod tests;
mod transport;
mod update;
mod warning;

pub use error::{ConfigError, MissingSetting, did_you_mean};
pub use find_errors::{FoundErrors, StageChecks, StageError, find_errors, find_errors_in_files};
pub use hashes::ConfigHashes;
pub use hidden::HiddenValue;
pub use inline_tests::{ExpectedOutcome, InlineTest, TestLine};
pub use inputs::ConfigInputs;
pub use key::{key_part, key_path, key_text};
pub(crate) use loaded::load_with_digest;
pub use loaded::{LoadedConfig, files, load, load_files};
pub use machine_policy::MachinePolicy;
pub use managed::ManagedSettings;
#[cfg(test)]
pub(crate) use options::OptionTable;
pub use origin::{LayerOrigin, Location};
pub use permissions::Permission;
#[cfg(feature = "internals")]
pub use pipeline::ALWAYS_ON;
pub use provenance::{ConfigValue, ShownValue};
pub use schema::{StageSchema, schema};
pub use secret::Secret;
#[cfg(test)]
pub(crate) use settings::{AgentSettings, OutboxSettings};
pub use settings::{LogFormat, PipelineSettings, Settings, ShippingSettings, StageTable};
pub use sink::{HTTP_SIEM, SINK_OPTIONS, SinkSettings, Start};
pub use template::template;
pub use update::UpdateSettings;
pub use warning::ConfigWarning;
