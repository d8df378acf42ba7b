//! Context of a command: the process's environment, and the configuration that it reads.

use std::path::{Path, PathBuf};

use tracing::warn;

use super::failure::Failure;
use crate::{
    agent::{
        ConfigSources,
        config_sources::log_warnings,
        managed_config,
        startable::{self, Startable},
    },
    config::{self, LoadedConfig, ManagedSettings},
    platform::{Environment, Paths, is_root},
    stages::AgentContext,
};

/// Files of a configuration to check.
#[derive(clap::Args)]
pub(super) struct ConfigFiles {
    /// Configuration files to check in place of those in force, lowest priority first, as the
    /// machine's file and its `config.d`; a file that ends in `.json` is a managed configuration
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
}

/// Context of a command.
pub(super) struct CliContext {
    pub(super) sources: ConfigSources,
}

impl CliContext {
    /// Creates the context of this process; `explicit` is the file of `--config`.
    pub(super) fn new(explicit: Option<&Path>) -> Result<Self, Failure> {
        let sources = ConfigSources::new(Environment::from_process(), explicit)?;
        Ok(Self { sources })
    }

    pub(super) fn environment(&self) -> &Environment {
        self.sources.environment()
    }

    pub(super) fn paths(&self) -> &Paths {
        self.sources.paths()
    }

    /// Returns the state directory of the agent, even if the configuration is invalid.
    pub(super) fn state_dir(&self) -> Result<PathBuf, Failure> {
        let loaded = self.sources.load_if_valid().map_err(Failure::usage)?;
        Ok(self.sources.state_dir_of(loaded.as_ref()))
    }

    /// Reads the local layers, and logs their warnings.
    pub(super) fn load(&self) -> Result<LoadedConfig, Failure> {
        let loaded = self.sources.load().map_err(Failure::usage)?;
        log_warnings(&loaded);
        Ok(loaded)
    }

    /// Reads the local layers, checks that an agent would start with them, and logs warnings.
    pub(super) fn load_startable(&self) -> Result<Startable, Failure> {
        if is_root() {
            warn!(
                code = "running_as_root",
                "running as root: the agent needs only the rights of the user"
            );
        }
        let checked = startable::check(&self.sources);
        checked.loaded.iter().for_each(log_warnings);
        checked.startable().map_err(Failure::usage)
    }

    /// Reads the configuration in force without contacting the server.
    pub(super) fn load_in_force(&self) -> Result<LoadedConfig, Failure> {
        managed_config::load_last_in_force(&self.sources).map_err(Failure::usage)
    }

    /// Reads files to check: TOML as the machine's files, without other layers; JSON
    /// as the managed configuration, on top of them or, without them, on top of this machine's own
    /// layers. Without files, reads the configuration in force.
    pub(super) fn load_files(&self, files: &ConfigFiles) -> Result<LoadedConfig, Failure> {
        let files = &files.files;
        if files.is_empty() {
            return self.load_in_force();
        }
        let is_json = |path: &&PathBuf| path.extension().is_some_and(|it| it == "json");
        let (json, toml): (Vec<_>, Vec<_>) = files.iter().partition(is_json);
        let managed = match json.as_slice() {
            [] => None,
            [one] => Some(read_managed(one)?),
            _ => return Err(Failure::usage("only one managed configuration can be in force")),
        };
        let toml: Vec<PathBuf> = toml.into_iter().cloned().collect();
        let loaded = match toml.as_slice() {
            [] => self.sources.load_with(managed.as_ref()),
            files => config::load_files(files, managed.as_ref(), self.paths()),
        };
        let loaded = loaded.map_err(Failure::failed)?;
        if let Some(managed) = managed.filter(|_| !loaded.settings.managed_keys.is_empty()) {
            managed_config::check_members(&managed.config)
                .map_err(|error| Failure::failed(error.to_string()))?;
        }
        Ok(loaded)
    }

    /// Context to build stages with, without a state directory.
    pub(super) fn stage_context(&self, loaded: &LoadedConfig) -> AgentContext {
        self.sources.stage_context(loaded, None, true)
    }
}

/// Reads a managed configuration from a file, as the server would send it.
pub(super) fn read_managed(path: &Path) -> Result<ManagedSettings, Failure> {
    startable::read_managed(path).map_err(Failure::failed)
}
