//! Checks whether an agent would start with a configuration: `run` refuses what is found here, and
//! `config check` reports it.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{
    config_sources::ConfigSources,
    managed_config::{self, load_last_in_force},
    unusable_paths::UnusablePaths,
};
use crate::{
    config::{
        ConfigError, ConfigInputs, ConfigWarning, FoundErrors, LoadedConfig, ManagedSettings,
        MissingSetting, StageChecks, StageError, find_errors, find_errors_in_files,
    },
    pipeline::{
        assembly,
        validate::{TestScope, ValidationError, failed_tests},
    },
    platform::{Os, file},
    stages::AgentContext,
    text::causes,
};

/// A configuration with which an agent starts.
pub(crate) struct Startable(LoadedConfig);

/// Everything that is wrong with a configuration.
pub(crate) struct Checked {
    /// The configuration; without the values that have errors.
    pub(crate) loaded: Option<LoadedConfig>,
    /// Reasons why no agent would start with it.
    pub(crate) errors: Vec<StartError>,
    /// Warnings.
    pub(crate) warnings: Vec<ConfigWarning>,
}

/// Reason why no agent would start with a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An error in the configuration, or a test that fails.
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    /// A managed configuration from a file that cannot be used.
    #[error("{0}")]
    Managed(String),
}

/// Errors of a configuration with which no agent would start, in one text.
#[derive(Debug, thiserror::Error)]
#[error("{}", all(.0))]
pub(crate) struct NotStartable(Vec<StartError>);

fn all(errors: &[StartError]) -> String {
    let texts: Vec<String> = errors.iter().map(|error| causes(error)).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        texts => format!("the configuration has {} errors:\n  {}", texts.len(), texts.join("\n  ")),
    }
}

impl Startable {
    /// Returns the configuration.
    pub(crate) fn loaded(&self) -> &LoadedConfig {
        &self.0
    }

    /// Returns the configuration.
    pub(super) fn into_loaded(self) -> LoadedConfig {
        self.0
    }
}

impl Checked {
    /// Returns the configuration if an agent would start with it.
    ///
    /// # Errors
    /// All reasons why it would not.
    pub(crate) fn startable(self) -> Result<Startable, NotStartable> {
        match self.loaded {
            Some(loaded) if self.errors.is_empty() => Ok(Startable(loaded)),
            _ => Err(NotStartable(self.errors)),
        }
    }

    /// Returns whether an option of a source is wrong, so that it may have named other directories.
    pub(crate) fn has_wrong_sources(&self) -> bool {
        self.errors.iter().any(|error| match error {
            StartError::Invalid(ValidationError::Config(error)) => is_about(error, &["source."]),
            _ => false,
        })
    }

    fn of(found: FoundErrors) -> Self {
        let FoundErrors { loaded, errors } = found;
        let has_filters = !errors.iter().any(is_about_filters);
        let mut errors: Vec<StartError> =
            errors.into_iter().map(|error| ValidationError::from(error).into()).collect();
        // Filters in place of those with errors would have other results.
        if let Some(loaded) = loaded.as_ref().filter(|_| has_filters) {
            match failed_tests(loaded, TestScope::All) {
                Ok(failed) => errors.extend(failed.into_iter().map(StartError::from)),
                Err(error) => errors.push(ValidationError::from(error).into()),
            }
        }
        let warnings = loaded.as_ref().map(|loaded| loaded.warnings.clone()).unwrap_or_default();
        Self { loaded, errors, warnings }
    }
}

fn is_about_filters(error: &ConfigError) -> bool {
    is_about(error, &["filter.", "pipeline.filters", "stages."])
}

/// Returns whether an error is about a key with one of these prefixes, or hides a whole layer.
fn is_about(error: &ConfigError, prefixes: &[&str]) -> bool {
    match error {
        ConfigError::Read { .. } | ConfigError::Syntax { .. } => true,
        ConfigError::UnknownKey { key, .. }
        | ConfigError::Value { key, .. }
        | ConfigError::MissingKey { key, .. } => {
            prefixes.iter().any(|prefix| key.starts_with(prefix))
        }
        _ => false,
    }
}

/// Checks the local layers, as an agent does when it starts.
pub(crate) fn check(sources: &ConfigSources) -> Checked {
    Checked::of(find_errors(&sources.inputs(), &mut Stages(sources)))
}

/// Checks the local layers, and the managed configuration that the server sent last.
pub(crate) fn check_in_force(sources: &ConfigSources) -> Checked {
    let checked = check(sources);
    if !checked.errors.is_empty() {
        return checked;
    }
    match load_last_in_force(sources) {
        Ok(loaded) => {
            let warnings = loaded.warnings.clone();
            Checked { loaded: Some(loaded), errors: Vec::new(), warnings }
        }
        Err(error) => {
            let errors = vec![ValidationError::from(error).into()];
            Checked { loaded: None, errors, warnings: Vec::new() }
        }
    }
}

/// Checks the local layers and the managed configuration as [`check_in_force`], and the paths that they
/// name on this machine.
pub(crate) fn check_with_paths(sources: &ConfigSources) -> Checked {
    let mut checked = check_in_force(sources);
    if let Some(loaded) = &checked.loaded {
        let UnusablePaths { errors, warnings } = UnusablePaths::of(loaded, sources.paths());
        checked.errors.extend(errors.into_iter().map(|error| ValidationError::from(error).into()));
        checked.warnings.extend(warnings);
    }
    checked
}

/// Checks files before they are rolled out: TOML as the only files of a machine; JSON as the managed
/// configuration on top of them or, without them, of this machine's own layers. What depends on another
/// machine is a warning: a file that does not exist here, and a setting that another layer may have.
pub(crate) fn check_files(sources: &ConfigSources, files: &[PathBuf]) -> Checked {
    let is_json = |path: &&PathBuf| path.extension().is_some_and(|it| it == "json");
    let (json, toml): (Vec<_>, Vec<_>) = files.iter().partition(is_json);
    let mut managed_errors = Vec::new();
    let managed = match json.as_slice() {
        [] => None,
        [one] => read_managed(one).map_err(|error| managed_errors.push(error)).ok(),
        _ => {
            managed_errors.push("only one managed configuration can be in force".to_owned());
            None
        }
    };
    let toml: Vec<PathBuf> = toml.into_iter().cloned().collect();
    let found = match toml.as_slice() {
        [] => {
            let inputs = ConfigInputs { managed: managed.as_ref(), ..sources.inputs() };
            find_errors(&inputs, &mut Stages(sources))
        }
        files => {
            let stages = &mut Stages(sources);
            find_errors_in_files(files, managed.as_ref(), sources.paths(), stages)
        }
    };
    let mut checked = Checked::of(found);
    if let (Some(managed), Some(loaded)) = (&managed, &checked.loaded)
        && !loaded.settings.managed_keys.is_empty()
        && let Err(error) = managed_config::check_members(&managed.config)
    {
        managed_errors.push(error.to_string());
    }
    checked.errors.extend(managed_errors.into_iter().map(StartError::Managed));
    checked.warnings.extend(managed.into_iter().flat_map(|managed| managed.warnings));
    checked.tolerate_other_machine(sources);
    checked
}

/// Reads a managed configuration from a file, as the server would send it.
///
/// # Errors
/// The reason, with the path.
pub(crate) fn read_managed(path: &Path) -> Result<ManagedSettings, String> {
    let wrong = |error: &dyn std::error::Error| format!("`{}`: {}", path.display(), causes(error));
    let body =
        file::read_bounded(path, file::MAX_WRITTEN_BY_HAND).map_err(|error| wrong(&error))?;
    ManagedSettings::read(&body, None).map_err(|error| wrong(&error))
}

impl Checked {
    /// Makes warnings of the errors that may not be errors on the machine that gets the files.
    fn tolerate_other_machine(&mut self, sources: &ConfigSources) {
        for error in std::mem::take(&mut self.errors) {
            let warnings = self.as_warnings(&error, sources);
            if warnings.is_empty() {
                self.errors.push(error);
            }
            self.warnings.extend(warnings);
        }
    }

    /// Returns the warnings that take the place of an error; none if it stays one.
    fn as_warnings(&self, error: &StartError, sources: &ConfigSources) -> Vec<ConfigWarning> {
        let StartError::Invalid(ValidationError::Config(error)) = error else { return Vec::new() };
        match error {
            ConfigError::Incomplete(missing) => {
                let warning = |missing: &MissingSetting| {
                    let message = format!("not in these files: {missing}");
                    ConfigWarning::new("setting_missing", message).about_key(missing.key())
                };
                missing.settings().map(warning).collect()
            }
            ConfigError::Value { key, location, .. } if key.ends_with("_file") => {
                let text = self.loaded.as_ref().and_then(|loaded| loaded.text_in(location, key));
                let file = text.map(|text| sources.paths().expand(Path::new(&text)));
                let is_absent = file
                    .filter(|file| Os::is_absolute_on_any(file.as_os_str()))
                    .is_some_and(|file| {
                        let found = std::fs::symlink_metadata(file);
                        found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
                    });
                let warning =
                    is_absent.then(|| ConfigWarning::new("file_missing", error.to_string()));
                let about = |it: ConfigWarning| it.about(key.clone(), location.clone());
                warning.map(about).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Builds the stages of a configuration as an agent does.
struct Stages<'a>(&'a ConfigSources);

impl StageChecks for Stages<'_> {
    fn errors(&mut self, loaded: &LoadedConfig) -> Vec<StageError> {
        let context: AgentContext = self.0.check_context(loaded);
        assembly::problems(loaded, &context)
    }
}
