//! What commands that build a pipeline begin with.

use std::{path::Path, sync::Arc};

use siem_protocol::ManagedConfig;
use tracing::warn;

use super::Failure;
use crate::{
    config::{self, ConfigError, Inputs, Loaded},
    platform::{Environment, Paths, SystemClock, identify, is_root},
    stages::Context,
};

/// The surroundings of the process.
pub(super) struct Surroundings {
    environment: Environment,
    paths: Paths,
}

impl Surroundings {
    /// Looks at the process's own environment.
    pub(super) fn look() -> Result<Self, Failure> {
        let environment = Environment::from_process();
        let paths = Paths::from_environment(&environment).map_err(Failure::usage)?;
        if is_root() {
            warn!("running as root: the agent needs no rights but the user's own");
        }
        Ok(Self { environment, paths })
    }

    /// Reads the configuration and logs its warnings.
    pub(super) fn load(&self, explicit: Option<&Path>) -> Result<Loaded, Failure> {
        let loaded = self.load_managed(explicit, None).map_err(Failure::usage)?;
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        Ok(loaded)
    }

    /// Reads the configuration with what the server manages on top.
    pub(super) fn load_managed(
        &self,
        explicit: Option<&Path>,
        managed: Option<&ManagedConfig>,
    ) -> Result<Loaded, ConfigError> {
        let (paths, environment) = (&self.paths, &self.environment);
        config::load(&Inputs { paths, environment, explicit, managed })
    }

    /// What stages get. Without a state directory, a machine that has no id gets one for this run.
    pub(super) fn context(&self, loaded: &Loaded, state_dir: Option<&Path>, once: bool) -> Context {
        let identified = identify(state_dir);
        for warning in &identified.warnings {
            warn!("{warning}");
        }
        Context {
            identity: identified.identity,
            environment: self.environment.clone(),
            paths: self.paths.clone(),
            clock: Arc::new(SystemClock),
            revision: None,
            once,
            poll_interval: loaded.settings.agent.poll_interval,
        }
    }
}
