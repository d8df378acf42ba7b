//! Restart of the service after an update of its program.

use std::path::Path;

use super::context::{ServiceContext, run_all, wait_until_running};
use crate::cli::{context::CliContext, failure::Failure};

/// Returns whether `program` is that of the service of this user, which is running.
pub(in crate::cli) fn is_active_service(context: &CliContext, program: &Path) -> bool {
    let installed = &context.paths().installed.program;
    let is_its_program = installed.canonicalize().is_ok_and(|installed| installed == *program);
    is_its_program
        && super::installed_service(context)
            .ok()
            .flatten()
            .is_some_and(|service| service.is_active != Some(false))
}

/// Restarts the service, and returns the process of its agent.
pub(in crate::cli) fn restart_after_update() -> Result<u32, Failure> {
    let context = ServiceContext::new(None)?;
    let before = context.running_agent()?;
    run_all(&context.service.restart())?;
    wait_until_running(&context.state_dir, before.flatten())
}
