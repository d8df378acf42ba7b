//! What the agent is told: layers of TOML, the environment and the server, made into typed
//! settings. Every error names the layer, the key, and what would be right.

mod credentials;
mod error;
mod inline_tests;
mod layer;
mod locks;
mod managed;
mod merged;
mod options;
mod origin;
mod pipeline;
mod provenance;
mod read_layers;
mod schema;
mod secret;
mod settings;
mod sink;
mod template;
#[cfg(test)]
mod tests;
mod toml_text;

use std::{
    fmt,
    path::{Path, PathBuf},
};

pub use error::{ConfigError, MissingSettings, did_you_mean};
pub use inline_tests::{ExpectedOutcome, InlineTest, TestLine};
pub use locks::LockedOverride;
pub use managed::ManagedSettings;
pub use options::OptionTable;
pub use origin::{LayerOrigin, Location};
pub use pipeline::{ALWAYS_ON, BUILT_IN_FILTERS};
pub use provenance::{ConfigValue, KeyExplanation};
pub use schema::{StageSchema, schema};
pub use secret::{MASK, Secret, SecretError, is_secret_key};
pub use settings::{
    AgentSettings, LogFormat, OutboxSettings, PipelineSettings, Settings, ShippingSettings,
    StageTable,
};
pub use sink::{SINK_OPTIONS, SinkSettings, Start};
pub use template::template;
pub use toml_text::SyntaxError;

use ai_agent_stage::OptionError;

use crate::platform::{Environment, Paths};
use error::MissingSetting;
use locks::Locks;
use merged::Merged;
use pipeline::KINDS;
use read_layers::LayerSet;

/// The type of the sink that delivers to a SIEM over HTTP.
pub const HTTP_SIEM: &str = "http-siem";

/// Where a configuration is read from.
#[derive(Clone, Copy, Debug)]
pub struct ConfigInputs<'a> {
    /// Where the files lie.
    pub paths: &'a Paths,
    /// The environment variables.
    pub environment: &'a Environment,
    /// The file that the command line names; it must be there.
    pub explicit: Option<&'a Path>,
    /// What the server manages, already verified.
    pub managed: Option<&'a ManagedSettings>,
}

/// A configuration that is right.
pub struct LoadedConfig {
    /// What it says.
    pub settings: Settings,
    /// What the caller should log: one sentence each, without secrets.
    pub warnings: Vec<String>,
    /// The stages that `enabled = false` switched off.
    pub disabled: PipelineSettings,
    /// What a layer set in vain, since it is the machine's alone to set. Stands in the warnings too.
    pub locked_overrides: Vec<LockedOverride>,
    /// The tests that the layers carry.
    pub tests: Vec<InlineTest>,
    merged: Merged,
    locks: Locks,
    files: Vec<PathBuf>,
    /// Whether systemd may hand over secrets.
    has_credentials: bool,
}

/// Reads and merges all layers, lowest first: the built-in defaults, the machine's file and its
/// `config.d`, the user's file, the file of the command line, the environment, the server.
///
/// # Errors
/// The first thing that is wrong: the caller reports it, and an agent that runs keeps what it has.
pub fn load(inputs: &ConfigInputs<'_>) -> Result<LoadedConfig, ConfigError> {
    let mut warnings = Vec::new();
    let read = read_layers::read(inputs, &mut warnings)?;
    let Paths { user_config, machine_config, .. } = inputs.paths;
    let files = error::files(inputs.explicit, user_config, machine_config);
    let mut loaded = LoadedConfig::new(read, inputs.paths, files, warnings)?;
    loaded.has_credentials = credentials::are_given(inputs.environment);
    Ok(loaded)
}

/// The files that [`load`] reads, whether they are there or not; of the machine's `config.d` those
/// that are.
#[must_use]
pub fn files(inputs: &ConfigInputs<'_>) -> Vec<PathBuf> {
    let Paths { user_config, machine_config, machine_config_dir, .. } = inputs.paths;
    let mut files = vec![machine_config.clone(), user_config.clone()];
    // A directory that can't be listed is an error of loading.
    files.extend(read_layers::files_of(machine_config_dir).unwrap_or_default());
    files.extend(inputs.explicit.map(Path::to_owned));
    files
}

/// Reads files as the files of a machine that has no others, no environment and no user: what one
/// that is to be rolled out says by itself. Of several, each is above those before it.
///
/// # Errors
/// The first thing that is wrong.
pub fn load_files(
    files: &[PathBuf],
    managed: Option<&ManagedSettings>,
    paths: &Paths,
) -> Result<LoadedConfig, ConfigError> {
    let mut warnings = Vec::new();
    let read = read_layers::read_files(files, managed, &mut warnings)?;
    LoadedConfig::new(read, paths, files.to_owned(), warnings)
}

impl LoadedConfig {
    fn new(
        read: LayerSet,
        paths: &Paths,
        files: Vec<PathBuf>,
        mut warnings: Vec<String>,
    ) -> Result<Self, ConfigError> {
        let LayerSet { layers, locks, locked_overrides, tests } = read;
        let merged = Merged::new(layers);
        let tables: settings::Tables = merged.read()?;
        let (pipeline, disabled) = pipeline::resolve(&tables.pipeline, &merged, &mut warnings)?;
        pipeline::warn_of_weak_secrets(&pipeline, &merged, &mut warnings);
        let settings = tables.settings(pipeline, paths, &merged)?;
        let mut loaded = Self {
            settings,
            warnings,
            disabled,
            locked_overrides,
            tests,
            merged,
            locks,
            files,
            has_credentials: false,
        };
        loaded.resolve_secret_sources()?;
        Ok(loaded)
    }
}

impl LoadedConfig {
    /// Creates the error that names layer, file and key of a wrong option of `stage`, which is of
    /// `kind` (`filter`, `sink`, …).
    #[must_use]
    pub fn explain_error(
        &self,
        stage: &StageTable,
        kind: &str,
        error: &OptionError,
    ) -> ConfigError {
        let mut found: figment::Error = error.to_serde();
        found.path = error.path().to_vec();
        self.merged.explain_error(&[kind, &stage.name], found)
    }

    /// An error about the value at a dotted key, such as `filter.mine.type`; `problem` is a
    /// predicate that says what would be right: `is …, expected …`.
    #[must_use]
    pub fn value_error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.merged.value_error(key, problem)
    }

    /// All that the sinks of type `http-siem` can't do without and that is not given, as one error
    /// that says every way to give it.
    #[must_use]
    pub fn missing_for_delivery(&self) -> Option<ConfigError> {
        const NEEDED: [(&str, &str, &[&str]); 3] = [
            ("the endpoint", "CLAUDE_SIEM_ENDPOINT", &["endpoint"]),
            ("the token", "CLAUDE_SIEM_TOKEN", &["token", "token_file"]),
            ("the HMAC secret", "CLAUDE_SIEM_HMAC_SECRET", &["hmac_secret", "hmac_secret_file"]),
        ];
        let mut missing = Vec::new();
        for StageTable { name, options, .. } in self.http_siem_sinks() {
            let given = |key: &&str| match options.get(key).map(|value| value.as_str()) {
                Some(Some(text)) => !text.trim().is_empty(),
                Some(None) => true,
                None => false,
            };
            for (what, variable, keys) in NEEDED {
                if !keys.iter().any(given) {
                    // The variables set the table of the sink with this name.
                    let variable = (name == "siem").then_some(variable);
                    let credential = keys.iter().find_map(|key| credentials::name(name, key));
                    let credential = credential.filter(|_| self.has_credentials);
                    missing.push(MissingSetting {
                        sink: name.clone(),
                        what,
                        variable,
                        credential,
                        keys,
                    });
                }
            }
        }
        let files = self.files.clone();
        (!missing.is_empty()).then_some(ConfigError::Incomplete(MissingSettings { missing, files }))
    }

    fn http_siem_sinks(&self) -> impl Iterator<Item = &StageTable> {
        self.settings.pipeline.sinks.iter().filter(|sink| sink.stage == HTTP_SIEM)
    }

    /// Where a sink has a secret both as such and in a file, the higher layer's stays.
    fn resolve_secret_sources(&mut self) -> Result<(), ConfigError> {
        const PAIRS: [(&str, &str); 3] = [
            ("token", "token_file"),
            ("hmac_secret", "hmac_secret_file"),
            ("proxy_password", "proxy_password_file"),
        ];
        let merged = &self.merged;
        let sinks = self.settings.pipeline.sinks.iter_mut();
        for sink in sinks.filter(|sink| sink.stage == HTTP_SIEM) {
            for (plain, file) in PAIRS {
                let location = |key| sink.options.get(key).map(|value| merged.rank(value));
                let (Some(of_plain), Some(of_file)) = (location(plain), location(file)) else {
                    continue;
                };
                if of_plain == of_file {
                    let problem = format!("stands beside `{plain}`: give one of them");
                    return Err(merged.value_error(&format!("sink.{}.{file}", sink.name), problem));
                }
                sink.options.remove(if of_plain < of_file { plain } else { file });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LoadedConfig {
    /// Leaves out the merged values, which hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedConfig")
            .field("settings", &self.settings)
            .field("warnings", &self.warnings)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}
