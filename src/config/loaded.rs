//! Loading of a configuration, and the values in force with their origins.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use ai_agent_stage::OptionError;
use figment::value::Value;
use siem_protocol::{
    Digest,
    agent_event::{LayerHash, Transport},
};

use super::{
    credentials,
    error::{ConfigError, MissingSetting, MissingSettings, config_files},
    hashes::ConfigHashes,
    inline_tests::InlineTest,
    inputs::ConfigInputs,
    locks::{LockedOverride, Locks},
    managed::ManagedSettings,
    merged::Merged,
    on_error::OnError,
    options::OptionTable,
    origin::{LayerOrigin, Location},
    pipeline,
    read_layers::{self, LayerReader, LayerSet},
    settings::{self, PipelineSettings, Settings, StageTable},
    sink::{HTTP_SIEM, SECRETS, SecretOption},
    transport,
    warning::ConfigWarning,
};
use crate::platform::{CERTIFICATE_VARIABLES, Environment, PROXY_VARIABLES, Paths};

/// Valid configuration with the origin of every value.
pub struct LoadedConfig {
    /// Typed settings.
    pub settings: Settings,
    /// Warnings to log.
    pub warnings: Vec<ConfigWarning>,
    /// Stages with `enabled = false`.
    pub disabled: PipelineSettings,
    /// Values that were ignored because only the machine's file may set them. `warnings` contains
    /// them too.
    pub locked_overrides: Vec<LockedOverride>,
    /// Tests of all layers.
    pub tests: Vec<InlineTest>,
    /// Hashes of the configuration, its sections and its layers.
    pub hashes: ConfigHashes,
    pub(super) merged: Merged,
    pub(super) locks: Locks,
    /// Kinds and names of stages that were replaced by harmless ones because of an error.
    pub(super) replaced: Vec<Vec<String>>,
    /// Layers, dotted keys and texts of values that were removed because of an error.
    pub(super) removed: Vec<(LayerOrigin, String, String)>,
    /// Tables of stages that were left out, since a higher layer sets another type.
    pub(super) retyped: Vec<(Vec<String>, Location)>,
    files: Vec<PathBuf>,
    paths: Paths,
    /// True if systemd passed a credential directory.
    has_credentials: bool,
}

/// Reads and merges all layers. Each overrides those before it: the built-in defaults, systemd
/// credentials, the machine's file and its `config.d`, the user's file, the file given with
/// `--config`, the environment, the server.
///
/// # Errors
/// The first error found. The caller reports it; a running agent keeps its configuration.
pub fn load(inputs: &ConfigInputs<'_>) -> Result<LoadedConfig, ConfigError> {
    load_with(inputs, &mut LayerReader::default())
}

/// Same as [`load`], with a digest of the paths and contents of the files that were read. After an
/// error it covers the files up to the one with the error.
pub(crate) fn load_with_digest(
    inputs: &ConfigInputs<'_>,
) -> (Digest, Result<LoadedConfig, ConfigError>) {
    let mut reader = LayerReader::default();
    let loaded = load_with(inputs, &mut reader);
    (reader.digest(), loaded)
}

fn load_with(
    inputs: &ConfigInputs<'_>,
    reader: &mut LayerReader,
) -> Result<LoadedConfig, ConfigError> {
    let mut warnings = Vec::new();
    let read = read_layers::read(inputs, reader, &mut warnings, &mut OnError::Stop)?;
    let Paths { user_config, machine_config, .. } = inputs.paths;
    let files = config_files(inputs.explicit, user_config, machine_config);
    LoadedConfig::of_machine(read, inputs, files, warnings)
}

/// Returns the files that [`load`] reads, including those that do not exist; of `config.d` only the
/// files that exist.
#[must_use]
pub fn files(inputs: &ConfigInputs<'_>) -> Vec<PathBuf> {
    let Paths { user_config, machine_config, machine_config_dir, .. } = inputs.paths;
    let mut files = vec![machine_config.clone(), user_config.clone()];
    // Loading reports a directory that cannot be listed.
    files.extend(read_layers::files_of(machine_config_dir).unwrap_or_default());
    files.extend(inputs.explicit.map(Path::to_owned));
    files
}

/// Description, variable, and alternative keys of a setting.
type NeededSetting = (&'static str, &'static str, &'static [&'static str]);

/// Returns the settings that a sink of type `http-siem` needs, and these options lack.
fn missing_in(options: &OptionTable) -> Vec<NeededSetting> {
    const NEEDED: [NeededSetting; 3] = [
        ("the endpoint", "CLAUDE_SIEM_ENDPOINT", &["endpoint"]),
        ("the token", "CLAUDE_SIEM_TOKEN", &["token", "token_file"]),
        ("the HMAC secret", "CLAUDE_SIEM_HMAC_SECRET", &["hmac_secret", "hmac_secret_file"]),
    ];
    let is_given = |key: &&str| match options.get(key).map(|value| value.as_str()) {
        Some(Some(text)) => !text.trim().is_empty(),
        Some(None) => true,
        None => false,
    };
    NEEDED.into_iter().filter(|(_, _, keys)| !keys.iter().any(is_given)).collect()
}

/// Reads `files` as the only files of a machine, without environment and user file, to check a
/// configuration before it is rolled out. Each file overrides those before it.
///
/// # Errors
/// The first error found.
pub fn load_files(
    files: &[PathBuf],
    managed: Option<&ManagedSettings>,
    paths: &Paths,
) -> Result<LoadedConfig, ConfigError> {
    let mut warnings = Vec::new();
    let read = read_layers::read_files(files, managed, &mut warnings, &mut OnError::Stop)?;
    LoadedConfig::new(read, paths, files.to_owned(), warnings)
}

impl LoadedConfig {
    /// Builds a configuration from the layers of this machine.
    pub(super) fn of_machine(
        read: LayerSet,
        inputs: &ConfigInputs<'_>,
        files: Vec<PathBuf>,
        warnings: Vec<ConfigWarning>,
    ) -> Result<Self, ConfigError> {
        let mut loaded = Self::new(read, inputs.paths, files, warnings)?;
        loaded.has_credentials = credentials::are_given(inputs.environment);
        loaded.warn_of_ignored_variables(inputs.environment);
        Ok(loaded)
    }

    pub(super) fn new(
        read: LayerSet,
        paths: &Paths,
        files: Vec<PathBuf>,
        mut warnings: Vec<ConfigWarning>,
    ) -> Result<Self, ConfigError> {
        let LayerSet { layers, locks, locked_overrides, tests, hashes, retyped } = read;
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
            hashes: ConfigHashes::default(),
            merged,
            locks,
            replaced: Vec::new(),
            removed: Vec::new(),
            retyped,
            files,
            paths: paths.clone(),
            has_credentials: false,
        };
        loaded.hashes = loaded.hashes(hashes);
        loaded.settings.hash = loaded.hashes.whole;
        loaded.resolve_secret_sources()?;
        loaded.check_transport()?;
        Ok(loaded)
    }
}

impl LoadedConfig {
    /// Converts an option error of `stage` into one that names layer, file and key; `kind` is
    /// `source`, `filter`, `enricher` or `sink`.
    #[must_use]
    pub fn explain_error(
        &self,
        stage: &StageTable,
        kind: &str,
        error: &OptionError,
    ) -> ConfigError {
        let mut found: figment::Error = error.to_serde();
        found.path.clone_from(&error.path);
        self.merged.explain_error(&[kind, &stage.name], found)
    }

    /// Creates an error about the value at a dotted key, such as `filter.mine.type`. `problem` is a
    /// predicate that describes the accepted values: `is …, expected …`.
    #[must_use]
    pub fn value_error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        self.merged.value_error(key, problem)
    }

    /// Returns the text of a dotted key, and the location of its value, or of the nearest table above
    /// it that exists.
    #[must_use]
    pub fn locate(&self, key: &str) -> (String, Location) {
        self.merged.locate(key)
    }

    /// Returns an error that lists every missing setting of the sinks of type `http-siem`, with
    /// every way to set it.
    #[must_use]
    pub fn missing_for_delivery(&self) -> Option<ConfigError> {
        let mut missing = Vec::new();
        for StageTable { name, options, .. } in self.http_siem_sinks() {
            for (what, variable, keys) in missing_in(options) {
                // The variables set the table of the sink with this name.
                let variable = (name == "siem").then_some(variable);
                let credential = keys.iter().find_map(|key| credentials::name(name, key));
                let credential = credential.filter(|_| self.has_credentials);
                let sink = name.clone();
                missing.push(MissingSetting { sink, what, variable, credential, keys });
            }
        }
        let files = self.files.clone();
        (!missing.is_empty()).then_some(ConfigError::Incomplete(MissingSettings { missing, files }))
    }

    /// Returns a sink with any value in place of each setting that
    /// [`missing_for_delivery`](Self::missing_for_delivery) reports, so that the others can be checked.
    #[must_use]
    pub fn with_placeholders(&self, sink: &StageTable) -> StageTable {
        let mut sink = sink.clone();
        if sink.stage == HTTP_SIEM {
            for (_, _, keys) in missing_in(&sink.options) {
                sink.options.set(keys[0], "http://localhost");
            }
        }
        sink
    }

    /// Returns the text at a dotted key in the layer of `location`, from before it was removed because
    /// of an error.
    #[must_use]
    pub fn text_in(&self, location: &Location, key: &str) -> Option<String> {
        self.removed.iter().find_map(|(origin, path, text)| {
            (*origin == location.origin && path == key).then(|| text.clone())
        })
    }

    /// Returns the transport of the least protected sink.
    #[must_use]
    pub fn transport(&self) -> Transport {
        transport::transport(&self.settings.pipeline.sinks, &self.paths)
    }

    /// Returns the names of the sinks that send unencrypted to another machine.
    pub fn plain_sinks(&self) -> impl Iterator<Item = &str> {
        let sinks = self.settings.pipeline.sinks.iter();
        sinks
            .filter(|sink| transport::plain_option(sink, &self.paths).is_some())
            .map(|sink| &*sink.name)
    }

    /// Warns of each sink that sends unencrypted to another machine.
    ///
    /// # Errors
    /// There is such a sink, and the configuration requires TLS.
    fn check_transport(&mut self) -> Result<(), ConfigError> {
        let reason = self.reason_for_tls();
        for sink in &self.settings.pipeline.sinks {
            let Some(key) = transport::plain_option(sink, &self.paths) else { continue };
            if let Some(reason) = reason {
                let problem =
                    format!("leads to another machine without encryption, but {reason}: use TLS");
                return Err(self.merged.value_error(&format!("sink.{}.{key}", sink.name), problem));
            }
            let message = format!(
                "sink `{}` sends unencrypted to another machine (`{key}`): others on the network can \
                 read the entries and the token; use TLS",
                sink.name
            );
            let (key, location) = self.merged.locate(&format!("sink.{}.{key}", sink.name));
            let warning = ConfigWarning::new(ConfigWarning::TRANSPORT_PLAIN, message);
            self.warnings.push(warning.about(key, location));
        }
        Ok(())
    }

    /// Returns why an unencrypted sink is an error; `None` if it is only a warning.
    fn reason_for_tls(&self) -> Option<&'static str> {
        let has_receiver_keys = |sink: &StageTable| {
            let keys = sink.options.get("receiver_keys").and_then(Value::as_array);
            keys.is_some_and(|keys| !keys.is_empty())
        };
        if self.settings.agent.require_tls {
            return Some("`agent.require_tls` is true");
        }
        if !self.settings.managed_keys.is_empty() {
            return Some("`managed.keys` are configured");
        }
        let mut sinks = self.settings.pipeline.sinks.iter();
        sinks.any(has_receiver_keys).then_some("`receiver_keys` are configured")
    }

    /// Returns the environment variables that do not count for a sink, since the machine's file locks
    /// the option that they replace.
    #[must_use]
    pub fn ignored_variables(&self, sink: &str) -> Vec<&'static str> {
        let is_locked = |option: &str| {
            self.locks.covers(&["sink".to_owned(), sink.to_owned(), option.to_owned()])
        };
        let groups: [(_, &[&'static str]); 2] =
            [("proxy", &PROXY_VARIABLES), ("ca_file", &CERTIFICATE_VARIABLES)];
        let locked = groups.into_iter().filter(|(option, _)| is_locked(option));
        locked.flat_map(|(_, variables)| variables).copied().collect()
    }

    fn warn_of_ignored_variables(&mut self, environment: &Environment) {
        let sinks = self.settings.pipeline.sinks.iter();
        for sink in sinks.filter(|sink| !matches!(&*sink.stage, "file" | "stdout")) {
            for name in self.ignored_variables(&sink.name) {
                if environment.get(name).is_some() {
                    let option = if PROXY_VARIABLES.contains(&name) { "proxy" } else { "ca_file" };
                    let message = format!(
                        "the environment variable `{name}` has no effect on sink `{}`: the machine's \
                         file locks `sink.{}.{option}`",
                        sink.name, sink.name
                    );
                    let key = format!("sink.{}.{option}", sink.name);
                    let location = LayerOrigin::Environment(name).into();
                    let warning = ConfigWarning::new("variable_without_effect", message);
                    self.warnings.push(warning.about(key, location));
                }
            }
        }
    }

    /// Returns whether a sink asks a server for a managed configuration.
    pub(super) fn has_server(&self) -> bool {
        self.http_siem_sinks().next().is_some()
    }

    fn hashes(&self, layers: Vec<LayerHash>) -> ConfigHashes {
        let is_listed = |kind: &str, name: &str| self.type_of_stage(kind, name).is_some();
        let is_credential = |value: &Value| {
            let layer = self.merged.layers.get(self.merged.rank(value));
            layer.is_some_and(|layer| matches!(layer.origin, LayerOrigin::Credential(_)))
        };
        ConfigHashes::of(&self.merged.root, layers, is_listed, is_credential)
    }

    fn http_siem_sinks(&self) -> impl Iterator<Item = &StageTable> {
        self.settings.pipeline.sinks.iter().filter(|sink| sink.stage == HTTP_SIEM)
    }

    /// Keeps one source of each secret: the value or the file, whichever is set in the later layer.
    fn resolve_secret_sources(&mut self) -> Result<(), ConfigError> {
        let merged = &self.merged;
        for sink in &mut self.settings.pipeline.sinks {
            for SecretOption { value: plain, file, .. } in SECRETS {
                let location = |key| sink.options.get(key).map(|value| merged.rank(value));
                let (Some(of_plain), Some(of_file)) = (location(plain), location(file)) else {
                    continue;
                };
                if of_plain == of_file {
                    let problem =
                        format!("conflicts with `{plain}` in the same layer: set only one of them");
                    return Err(merged.value_error(&format!("sink.{}.{file}", sink.name), problem));
                }
                sink.options.remove(if of_plain < of_file { plain } else { file });
            }
        }
        Ok(())
    }
}

impl fmt::Debug for LoadedConfig {
    /// Omits the merged values, which contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedConfig")
            .field("settings", &self.settings)
            .field("warnings", &self.warnings)
            .field("disabled", &self.disabled)
            .finish_non_exhaustive()
    }
}
