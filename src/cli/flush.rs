//! `ai-agent flush` and `ai-agent reload`: what the agent that runs is to do now.

use std::{path::Path, time::Duration};

use clap::Args;

use super::{
    Failure,
    control::{self, wire::Request},
};
use crate::units::Time;

/// So much longer than the agent itself an answer is waited for.
const GRACE: Duration = Duration::from_secs(10);
/// How long a reload may take: an answer of the server is part of it.
const RELOAD: Duration = Duration::from_secs(75);

/// Delivers what waits in the outbox now, and waits until it is acknowledged. Exit code 1 when that
/// has not happened in time.
#[derive(Args)]
pub(super) struct Flush {
    /// How long it is waited for, at most a day.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    within: Time,
}

/// Reads the configuration again and asks the server for its part, as SIGHUP does, and says what
/// became of it. Exit code 1 when something was refused.
#[derive(Args)]
pub(super) struct Reload {}

impl Flush {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let within = self.within.0.min(Duration::from_secs(24 * 3600));
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        control::ask(explicit, &Request::Flush { within_ms }, within + GRACE)
    }
}

impl Reload {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        control::ask(explicit, &Request::Reload, RELOAD)
    }
}
