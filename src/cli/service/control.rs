//! `ai-agent start`, `stop` and `restart`.

use std::path::Path;

use super::context::{ServiceContext, run_all, wait_until_running, wait_until_stopped, with_pid};
use crate::cli::{failure::Failure, output::print};

/// Action on an installed service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum ServiceAction {
    Start,
    Stop,
    Restart,
}

impl ServiceAction {
    pub(in crate::cli) fn execute(self, explicit: Option<&Path>) -> Result<(), Failure> {
        let context = ServiceContext::new(explicit)?;
        let ServiceContext { service, state_dir, .. } = &context;
        let status = context.status()?;
        if !status.is_installed {
            return Err(Failure::failed(
                "the service is not installed: run `ai-agent install` first",
            ));
        }
        let before = context.running_agent()?;
        if self != Self::Stop {
            context.refuse_other_agent(status.is_active, before)?;
        }
        match self {
            Self::Start if before.is_some() => {
                let pid = with_pid(before.flatten());
                return print(format_args!("ai-agent is already running{pid}"));
            }
            Self::Start => {
                context.check_startable()?;
                run_all(&service.start())?;
            }
            Self::Restart => {
                // A running agent is not stopped for one that would not start.
                context.check_startable()?;
                run_all(&service.restart())?;
            }
            Self::Stop => return stop(&context, before.is_some()),
        }
        let pid = wait_until_running(state_dir, before.flatten())?;
        print(format_args!("ai-agent is running (PID {pid})"))
    }
}

fn stop(context: &ServiceContext, is_running: bool) -> Result<(), Failure> {
    let ServiceContext { service, state_dir, .. } = context;
    let stopped = run_all(&service.stop());
    // Stopping a service that is already stopped may fail.
    if is_running {
        stopped?;
    }
    wait_until_stopped(state_dir)?;
    let until = match service.stays_stopped() {
        true => "until `ai-agent start`",
        false => "until `ai-agent start` or the next login",
    };
    print(format_args!(
        "ai-agent is stopped {until}: session logs written meanwhile are shipped then"
    ))
}
