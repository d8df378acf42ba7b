//! `ai-agent reload`.

use std::{path::Path, time::Duration};

use clap::Args;

use super::{context::CliContext, failure::Failure, output::print};
use crate::{
    agent::handle::{ReloadOutcome, ReloadReport},
    control::{self, Request, Response},
};

/// Longest time that the agent may take, the server's answer included.
const TIMEOUT: Duration = Duration::from_secs(75);

/// Reload the configuration, the server's part included, as SIGHUP does
///
/// Exits 1 if a configuration was refused.
#[derive(Args)]
pub(super) struct Arguments {}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let mut report = None;
        let sources = CliContext::new(explicit)?.sources;
        control::send_to_agent(&sources, &Request::Reload, TIMEOUT, &mut |response| {
            if let Response::Reloaded(reloaded) = response {
                report = Some(reloaded);
            }
            Ok(())
        })?;
        report.map_or(Ok(()), |report| render(&report))
    }
}

fn render(report: &ReloadReport) -> Result<(), Failure> {
    let mut refused = Vec::new();
    let parts = [("files", Some(&report.files)), ("server", report.server.as_ref())];
    for (part, outcome) in parts {
        let text = match outcome {
            Some(ReloadOutcome::Applied) => "new configuration is in force".to_owned(),
            Some(ReloadOutcome::Unchanged) => "unchanged".to_owned(),
            Some(ReloadOutcome::Unavailable(reason)) => format!("unavailable: {reason}"),
            Some(ReloadOutcome::Refused(reason)) => {
                refused.push(format!(
                    "configuration from {part} was refused, the previous one stays in force: \
                     {reason}"
                ));
                continue;
            }
            None => "does not manage this agent".to_owned(),
        };
        print(format_args!("{part}: {text}"))?;
    }
    if refused.is_empty() { Ok(()) } else { Err(Failure::failed(refused.join("; "))) }
}
