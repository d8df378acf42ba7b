//! Services of the agent for the stages that it builds.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ai_agent_stage::{BuildError, ContextParts, LogOpener, Source, Waker};
use siem_protocol::{Identity, minisign::OrganisationKey};

use super::{
    Sessions,
    log_follower::{LogOptions, follow_log},
};
use crate::{
    platform::{Clock, Environment, Paths, Power, Sandbox, bounded::BoundedCalls},
    siem::{Device, Revision, TrustStates},
};

/// Services of the agent for the stages that it builds. Stages of other crates see the part that
/// [`ai_agent_stage::Context`] has; built-in stages see all of it.
#[derive(Clone)]
pub struct AgentContext {
    /// Identity of the agent.
    pub identity: Identity,
    /// Environment variables of the user.
    pub environment: Environment,
    /// Paths of this user.
    pub paths: Paths,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Runner of calls of file systems that may never return.
    pub calls: BoundedCalls,
    /// Power supply of the machine.
    pub power: Arc<dyn Power>,
    /// Revision of the managed configuration in force.
    pub revision: Revision,
    /// Key of this device.
    pub device: Device,
    /// State of this device at its receivers.
    pub trust: TrustStates,
    /// Keys of the organisation, which may replace the key of a receiver after its loss.
    pub organisation_keys: Vec<OrganisationKey>,
    /// State directory; `None` in a dry run.
    pub state_dir: Option<PathBuf>,
    /// What this process may write.
    pub sandbox: Sandbox,
    /// Session state shared by sources.
    pub sessions: Sessions,
    /// True if everything is read once, so that no source needs to watch for changes.
    pub once: bool,
    /// Longest time between two full sweeps.
    pub poll_interval: Duration,
}

impl AgentContext {
    /// Creates the context with which stages are built.
    #[must_use]
    pub fn for_stages(&self) -> ai_agent_stage::Context {
        let services = Arc::new(self.clone());
        let parts = ContextParts {
            identity: self.identity.clone(),
            home: self.paths.home.clone(),
            clock: Arc::clone(&self.clock),
            is_once: self.once,
            log_opener: Some(services.clone()),
            host: Some(services),
        };
        parts.into()
    }

    /// Returns the agent's context of a stage that is being built.
    pub(super) fn of(context: &ai_agent_stage::Context) -> Result<&Self, BuildError> {
        context.host().ok_or(BuildError::Unavailable { service: "the context of the agent" })
    }
}

impl LogOpener for AgentContext {
    fn open(&self, path: &Path, max_line_bytes: u64, waker: Waker) -> Box<dyn Source> {
        let (is_once, poll_interval) = (self.once, self.poll_interval);
        let options = LogOptions { max_line_bytes, is_once, poll_interval };
        follow_log(path, options, Arc::clone(&self.clock), waker, Some(&self.calls))
    }
}
