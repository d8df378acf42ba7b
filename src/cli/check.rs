//! `ai-agent check`: arguments, and the check whether the agent is running.

use std::path::Path;

use clap::Args;

use super::{
    context::CliContext,
    failure::Failure,
    hook_answer,
    output::print,
    status::{
        collect::{Depth, collect},
        report::Level,
    },
};
use crate::platform::{LockRole, StateLock};

/// Check whether the agent is running; with `--hook`, answer a hook of Claude Code
///
/// Exits 0 if the agent is running, 1 if not.
#[derive(Args)]
pub(super) struct Arguments {
    /// Answer the Claude Code hook of this name: `SessionStart` or `UserPromptSubmit`
    #[arg(long, value_name = "EVENT")]
    hook: Option<String>,
    /// With `--hook`: explain the response instead of sending it. Reads no input and reports nothing
    #[arg(long, requires = "hook")]
    explain: bool,
    /// Also fail if the agent is running but stalled
    #[arg(long, conflicts_with = "hook")]
    strict: bool,
}

impl Arguments {
    /// Name of the hook to answer.
    pub(super) fn hook(&self) -> Option<&str> {
        self.hook.as_deref().filter(|_| !self.explain)
    }

    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        match &self.hook {
            Some(name) => hook_answer::explain(name),
            None if self.strict => is_healthy(explicit),
            None => is_running(explicit),
        }
    }
}

fn is_running(explicit: Option<&Path>) -> Result<(), Failure> {
    let state_dir = CliContext::new(explicit)?.state_dir()?;
    let shown = state_dir.display();
    match StateLock::current_holder(&state_dir).map_err(Failure::failed)? {
        Some(holder) if holder.role == LockRole::Command => Err(Failure::failed(format!(
            "ai-agent is not running: a command{holder} is using `{shown}`"
        ))),
        Some(holder) => print(format_args!("ai-agent is running{holder}")),
        None => {
            Err(Failure::failed(format!("ai-agent is not running: no process holds `{shown}`")))
        }
    }
}

fn is_healthy(explicit: Option<&Path>) -> Result<(), Failure> {
    let report = collect(&CliContext::new(explicit)?, Depth::Files)?;
    let failing = report.problems.iter().filter(|problem| problem.level == Level::Failing);
    let failing: Vec<String> =
        failing.map(|problem| format!("{} ({})", problem.what, problem.remedy)).collect();
    if !failing.is_empty() {
        return Err(Failure::failed(failing.join("; ")));
    }
    let pid = report.pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default();
    print(format_args!("ai-agent is running{pid} and making progress"))
}
