//! `ai-agent log-level`.

use std::{path::Path, time::Duration};

use clap::Args;

use super::{context::CliContext, failure::Failure, output::print};
use crate::{
    control::{self, Request, Response},
    logging::Level,
};

/// Longest time that the agent may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Change the log level of the running agent until it stops
///
/// Without a level, print the current one.
#[derive(Args)]
pub(super) struct Arguments {
    /// Minimum level to log; the agent starts with `info`
    level: Option<Level>,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut in_force = String::new();
        let request = Request::LogLevel { level: self.level };
        let sources = CliContext::new(explicit)?.sources;
        control::send_to_agent(&sources, &request, TIMEOUT, &mut |response| {
            if let Response::LogFilter { filter } = response {
                in_force = filter;
            }
            Ok(())
        })?;
        match self.level {
            Some(_) => print(format_args!("the agent logs `{in_force}` until it stops")),
            None => print(format_args!("{in_force}")),
        }
    }
}
