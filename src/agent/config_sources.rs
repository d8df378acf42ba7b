//! Sources of the configuration on this machine: environment variables, files, and the managed
//! configuration that the server sent last.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use siem_protocol::{Digest, Identity};
use tracing::warn;

use super::error::SetupError;
use crate::{
    compliance::policy_file,
    config::{self, ConfigError, ConfigInputs, LayerOrigin, LoadedConfig, ManagedSettings},
    pipeline::assembly,
    platform::{
        Environment, Paths, Sandbox, SystemClock, SystemPower, bounded::BoundedCalls, file,
        identify, secure_file,
    },
    siem::{Device, Revision, TrustStates, device::KeyFile},
    stages::{AgentContext, Sessions},
};

/// Sources of the configuration on this machine, without their content.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSources {
    environment: Environment,
    paths: Paths,
    /// Extra configuration file; overrides the machine's and the user's.
    explicit: Option<PathBuf>,
}

impl ConfigSources {
    /// Sources for a process with these variables. Variables that the service was installed with
    /// count too, so that a command in a shell addresses the same agent.
    ///
    /// # Errors
    /// [`SetupError`] when there is no home directory, or the service's variables cannot be read.
    pub(crate) fn new(
        environment: Environment,
        explicit: Option<&Path>,
    ) -> Result<Self, SetupError> {
        let mut environment = environment;
        let mut paths = Paths::from_environment(&environment)?;
        match secure_file::read(&paths.installed.environment) {
            Ok(text) => {
                environment =
                    environment.with_service_variables(&paths.installed.environment, &text);
                paths = Paths::from_environment(&environment)?;
            }
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self { environment, paths, explicit: explicit.map(Path::to_owned) })
    }

    /// Returns the same sources with another extra configuration file.
    pub(crate) fn with_explicit(&self, explicit: &Path) -> Self {
        Self { explicit: Some(explicit.to_owned()), ..self.clone() }
    }

    /// Extra configuration file, if there is one.
    pub(crate) fn explicit(&self) -> Option<&Path> {
        self.explicit.as_deref()
    }

    /// Variables in force.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Paths of this machine and user.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Inputs of the local layers.
    pub(crate) fn inputs(&self) -> ConfigInputs<'_> {
        ConfigInputs {
            paths: &self.paths,
            environment: &self.environment,
            explicit: self.explicit.as_deref(),
            managed: None,
        }
    }

    /// Files that the local layers are read from, whether they exist or not.
    pub(crate) fn layer_files(&self) -> Vec<PathBuf> {
        config::files(&self.inputs())
    }

    /// Reads the local layers.
    ///
    /// # Errors
    /// The first mistake in them.
    pub(crate) fn load(&self) -> Result<LoadedConfig, ConfigError> {
        config::load(&self.inputs())
    }

    /// Reads the local layers for a command that also works while they are invalid: it gets `None`
    /// then.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the extra configuration file cannot be read: without it, the command
    /// would address another agent.
    pub(crate) fn load_if_valid(&self) -> Result<Option<LoadedConfig>, ConfigError> {
        match (self.load(), &self.explicit) {
            (Ok(loaded), _) => Ok(Some(loaded)),
            (Err(error @ ConfigError::Read { origin: LayerOrigin::Explicit(_), .. }), _) => {
                Err(error)
            }
            // Another layer is read first, and its mistake hides that of the file.
            (Err(_), Some(path)) => match file::read_bounded(path, file::MAX_WRITTEN_BY_HAND) {
                Ok(_) => Ok(None),
                Err(source) => {
                    Err(ConfigError::Read { origin: LayerOrigin::Explicit(path.clone()), source })
                }
            },
            (Err(_), None) => Ok(None),
        }
    }

    /// Reads the local layers with a managed configuration on top.
    ///
    /// # Errors
    /// The first mistake in any of them.
    pub(crate) fn load_with(
        &self,
        managed: Option<&ManagedSettings>,
    ) -> Result<LoadedConfig, ConfigError> {
        config::load(&ConfigInputs { managed, ..self.inputs() })
    }

    /// Same as [`load_with`](Self::load_with), with a digest of the files that were read.
    pub(crate) fn load_with_digest(
        &self,
        managed: Option<&ManagedSettings>,
    ) -> (Digest, Result<LoadedConfig, ConfigError>) {
        config::load_with_digest(&ConfigInputs { managed, ..self.inputs() })
    }

    /// Returns the state directory of this configuration; without one, that of the last agent.
    pub(crate) fn state_dir_of(&self, loaded: Option<&LoadedConfig>) -> PathBuf {
        if let Some(loaded) = loaded {
            return loaded.settings.agent.state_dir.clone();
        }
        let found = policy_file::find(&self.paths).ok().flatten();
        found.map_or_else(|| self.paths.default_state_dir.clone(), |found| found.state_dir)
    }

    /// Returns the context to build stages with. Without a state directory, a machine without an id
    /// is given one for this process only.
    pub(crate) fn stage_context(
        &self,
        loaded: &LoadedConfig,
        state_dir: Option<&Path>,
        once: bool,
    ) -> AgentContext {
        let identified = identify(state_dir);
        for warning in &identified.warnings {
            warn!(code = "identity_warning", "{warning}");
        }
        self.context(loaded, state_dir, once, identified.identity)
    }

    /// Returns a context to check whether stages can be built.
    pub(crate) fn check_context(&self, loaded: &LoadedConfig) -> AgentContext {
        self.context(loaded, None, true, identify(None).identity)
    }

    fn context(
        &self,
        loaded: &LoadedConfig,
        state_dir: Option<&Path>,
        once: bool,
        identity: Identity,
    ) -> AgentContext {
        let instance = uuid::Uuid::new_v4().simple().to_string();
        let device = match state_dir {
            Some(dir) => Device::new(KeyFile::of(dir, &identity), instance),
            None => Device::without_key(instance),
        };
        AgentContext {
            identity,
            environment: self.environment.clone(),
            paths: self.paths.clone(),
            clock: Arc::new(SystemClock),
            calls: BoundedCalls::new(Arc::new(SystemClock)),
            power: Arc::new(SystemPower),
            revision: Revision::default(),
            device,
            trust: TrustStates::default(),
            organisation_keys: loaded.settings.managed_keys.clone(),
            state_dir: state_dir.map(Path::to_owned),
            sandbox: Sandbox::default(),
            sessions: Sessions::default(),
            once,
            poll_interval: loaded.settings.agent.poll_interval,
        }
    }
}

/// Logs the warnings of a configuration.
pub(crate) fn log_warnings(loaded: &LoadedConfig) {
    for warning in &loaded.warnings {
        warn!(code = "config_warning", "{warning}");
    }
}

/// Checks the stages that are switched off. A stage may be switched off because of the mistake, and
/// the mistake would keep managed configurations from being accepted.
///
/// # Errors
/// The first mistake.
pub(crate) fn check_switched_off(
    loaded: &LoadedConfig,
    context: &AgentContext,
) -> Result<(), ConfigError> {
    assembly::check_switched_off(loaded, context).into_iter().next().map_or(Ok(()), Err)
}
