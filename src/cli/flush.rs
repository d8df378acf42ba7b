//! `ai-agent flush`.

use std::{path::Path, time::Duration};

use clap::Args;

use super::{context::CliContext, failure::Failure, output::print};
use crate::{
    control::{self, Request, Response},
    text::counted,
};
use config_text::Time;

/// Additional time that the agent has to respond.
const GRACE: Duration = Duration::from_secs(10);
/// Longest value of `--within`.
const MAX_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// Deliver queued entries now, and wait until they are acknowledged
///
/// Exits 1 if that has not happened in time.
#[derive(Args)]
pub(super) struct Arguments {
    /// Time to wait, at most one day
    #[arg(long, value_name = "TIME", default_value = "30s")]
    within: Time,
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        let within = self.within.0.min(MAX_WITHIN);
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let mut flushed = 0;
        control::send_to_agent(
            &CliContext::new(explicit)?.sources,
            &Request::Flush { within_ms },
            within + GRACE,
            &mut |response| {
                if let Response::Flushed { entries } = response {
                    flushed = entries;
                }
                Ok(())
            },
        )?;
        match flushed {
            0 => print(format_args!("nothing was queued: everything is acknowledged")),
            count => {
                let entries = counted(count, "entry", "entries");
                print(format_args!("{entries} delivered and acknowledged"))
            }
        }
    }
}
