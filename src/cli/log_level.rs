//! `ai-agent log-level`: what the agent that runs logs, without a restart.

use std::{path::Path, time::Duration};

use clap::Args;

use super::Failure;
use crate::{
    control::{self, wire::Request},
    logging::Level,
};

/// How long the agent may take over it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes what the agent that runs logs, until it ends; without a level, says what that is.
#[derive(Args)]
pub(super) struct Arguments {
    /// From this level on; `info` is the one that it begins with.
    level: Option<Level>,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        control::ask(explicit, &Request::LogLevel { level: self.level }, PATIENCE)
    }
}
