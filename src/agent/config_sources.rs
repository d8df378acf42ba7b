//! What commands that build a pipeline begin with.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tracing::warn;

use super::managed_config as managed;
use crate::{
    cli::Failure,
    compliance::policy_file,
    config::{self, ConfigError, ConfigInputs, LoadedConfig, ManagedSettings},
    pipeline::assembly,
    platform::{Environment, Paths, SystemClock, SystemPower, identify, is_root, secure_file},
    stages::Context,
    text::causes,
};

/// Which files a command is about.
#[derive(clap::Args)]
pub(crate) struct Files {
    /// Files that are to be rolled out, as the machine's and those of its `config.d`, the lowest
    /// first; one that ends in `.json` is a managed configuration. By default what is in force.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Reads a managed configuration from a file, as the server would give it.
pub(crate) fn read_managed(path: &Path) -> Result<ManagedSettings, Failure> {
    let wrong = |error: &dyn std::error::Error| {
        Failure::failed(format!("`{}`: {}", path.display(), causes(error)))
    };
    let body = fs::read(path).map_err(|error| wrong(&error))?;
    ManagedSettings::read(&body, None).map_err(|error| wrong(&error))
}

/// Whether an agent would begin with this configuration.
pub(crate) fn would_run(loaded: &LoadedConfig, context: &Context) -> Result<(), Failure> {
    assembly::sinks(loaded, context).map_err(Failure::usage)?;
    assembly::stages(loaded, context).map_err(Failure::usage)?;
    check_switched_off(loaded, context)
}

/// Whether nothing is wrong with the stages that are switched off: a mistake may be what keeps one
/// off, and it keeps what the server manages from being taken.
pub(crate) fn check_switched_off(loaded: &LoadedConfig, context: &Context) -> Result<(), Failure> {
    match assembly::check_switched_off(loaded, context).into_iter().next() {
        None => Ok(()),
        Some(error) => Err(Failure::usage(error)),
    }
}

/// The surroundings of the process.
pub(crate) struct Surroundings {
    environment: Environment,
    paths: Paths,
}

impl Surroundings {
    /// Looks at the process's own environment.
    pub(crate) fn look() -> Result<Self, Failure> {
        let environment = Environment::from_process();
        let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
        // What the service was installed with counts in a shell too: it speaks of the same agent.
        let (environment, paths) = match secure_file::read(&paths.installed.environment) {
            Ok(text) => {
                let environment =
                    environment.with_service_variables(&paths.installed.environment, &text);
                let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
                (environment, paths)
            }
            Err(error) if error.is_absent() => (environment, paths),
            Err(error) => return Err(Failure::usage(error)),
        };
        if is_root() {
            warn!(
                code = "running_as_root",
                "running as root: the agent needs no rights but the user's own"
            );
        }
        Ok(Self { environment, paths })
    }

    /// The variables in force.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The state directory by the configuration; a wrong one says nothing about an agent that runs.
    pub(crate) fn state_dir(&self, explicit: Option<&Path>) -> PathBuf {
        self.state_dir_of(self.load_managed(explicit, None).ok().as_ref())
    }

    /// The state directory by this configuration; without one, that of the agent that ran last.
    pub(crate) fn state_dir_of(&self, loaded: Option<&LoadedConfig>) -> PathBuf {
        if let Some(loaded) = loaded {
            return loaded.settings.agent.state_dir.clone();
        }
        let found = policy_file::find(&self.paths).ok().flatten();
        found.map_or_else(|| self.paths.default_state_dir.clone(), |found| found.state_dir)
    }

    /// Where everything lies.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Where the machine's file lies.
    pub(crate) fn machine_config(&self) -> PathBuf {
        self.paths.machine_config.clone()
    }

    /// Reads files that are to be rolled out: TOML as the machine's files, with no other layer; JSON
    /// as what the server manages, over them or, without them, over this machine's own layers.
    /// Without any file, what is in force. Logs the warnings.
    pub(crate) fn load_files(
        &self,
        Files { files }: &Files,
        explicit: Option<&Path>,
    ) -> Result<LoadedConfig, Failure> {
        if files.is_empty() {
            return managed::last_in_force(self, explicit);
        }
        let is_json = |path: &&PathBuf| path.extension().is_some_and(|it| it == "json");
        let (json, toml): (Vec<_>, Vec<_>) = files.iter().partition(is_json);
        let managed = match json.as_slice() {
            [] => None,
            [one] => Some(read_managed(one)?),
            _ => {
                return Err(Failure::usage("only one managed configuration is in force at a time"));
            }
        };
        for warning in managed.iter().flat_map(|managed| &managed.warnings) {
            warn!(code = "config_warning", "{warning}");
        }
        let toml: Vec<PathBuf> = toml.into_iter().cloned().collect();
        let loaded = match toml.as_slice() {
            [] => self.load_managed(explicit, managed.as_ref()),
            files => config::load_files(files, managed.as_ref(), &self.paths),
        };
        let loaded = loaded.map_err(Failure::failed)?;
        for warning in &loaded.warnings {
            warn!(code = "config_warning", "{warning}");
        }
        Ok(loaded)
    }

    /// Reads the configuration and logs its warnings.
    pub(crate) fn load(&self, explicit: Option<&Path>) -> Result<LoadedConfig, Failure> {
        let loaded = self.load_managed(explicit, None).map_err(Failure::usage)?;
        for warning in &loaded.warnings {
            warn!(code = "config_warning", "{warning}");
        }
        Ok(loaded)
    }

    /// Reads the configuration with what the server manages on top.
    pub(crate) fn load_managed(
        &self,
        explicit: Option<&Path>,
        managed: Option<&ManagedSettings>,
    ) -> Result<LoadedConfig, ConfigError> {
        config::load(&ConfigInputs { managed, ..self.inputs(explicit) })
    }

    /// Where the local layers are read from.
    pub(crate) fn inputs<'a>(&'a self, explicit: Option<&'a Path>) -> ConfigInputs<'a> {
        let (paths, environment) = (&self.paths, &self.environment);
        ConfigInputs { paths, environment, explicit, managed: None }
    }

    /// What stages get. Without a state directory, a machine that has no id gets one for this run.
    pub(crate) fn context(
        &self,
        loaded: &LoadedConfig,
        state_dir: Option<&Path>,
        once: bool,
    ) -> Context {
        let identified = identify(state_dir);
        for warning in &identified.warnings {
            warn!(code = "identity_warning", "{warning}");
        }
        Context {
            identity: identified.identity,
            environment: self.environment.clone(),
            paths: self.paths.clone(),
            clock: Arc::new(SystemClock),
            power: Arc::new(SystemPower),
            revision: crate::siem::Revision::default(),
            state_dir: state_dir.map(Path::to_owned),
            sessions: crate::stages::Sessions::default(),
            once,
            poll_interval: loaded.settings.agent.poll_interval,
        }
    }
}
