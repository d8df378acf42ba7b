//! Services of the agent for the stages that it builds.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ai_agent_stage::{BuildError, LogOpener};
use siem_protocol::Identity;

use super::{
    Sessions,
    log_follower::{LogOptions, follow_log},
};
use crate::{
    platform::{Clock, Environment, Paths, Power},
    siem::Revision,
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
    /// Power supply of the machine.
    pub power: Arc<dyn Power>,
    /// Revision of the managed configuration in force.
    pub revision: Revision,
    /// State directory; `None` in a dry run.
    pub state_dir: Option<PathBuf>,
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
        let variable = |name: &str| Some((name.into(), self.environment.get(name)?.to_owned()));
        let context = ai_agent_stage::Context::new(
            self.identity.clone(),
            self.paths.home.clone(),
            Arc::clone(&self.clock),
        )
        .with_variables(self.environment.names().filter_map(variable))
        .with_once(self.once)
        .with_poll_interval(self.poll_interval)
        .with_log_follower(self.log_opener())
        .with_host(self.clone());
        match &self.state_dir {
            Some(state_dir) => context.with_state_dir(state_dir),
            None => context,
        }
    }

    fn log_opener(&self) -> LogOpener {
        let (clock, is_once, poll_interval) =
            (Arc::clone(&self.clock), self.once, self.poll_interval);
        Arc::new(move |path, max_line_bytes, waker| {
            let options = LogOptions { max_line_bytes, is_once, poll_interval };
            follow_log(path, options, Arc::clone(&clock), waker)
        })
    }

    /// Returns the agent's context of a stage that is being built.
    pub(super) fn of(context: &ai_agent_stage::Context) -> Result<&Self, BuildError> {
        context
            .host()
            .ok_or_else(|| BuildError::Unavailable { service: "the context of the agent" })
    }
}
