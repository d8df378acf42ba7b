//! Status report, as printed by `status --json`. The members are listed in `docs/status.md`.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{control::status::AgentStatus, platform::service::ServiceStatus};

/// Version of the report; a change when a member is removed or changes its meaning.
const VERSION: u32 = 1;

/// Status of the agent, its service and its hooks.
#[derive(Debug, Default)]
pub(in crate::cli) struct StatusReport {
    pub(super) at: String,
    pub(super) state_dir: String,
    pub(in crate::cli) state: State,
    /// Process that holds the state directory.
    pub(in crate::cli) pid: Option<u32>,
    /// True if that process is a command that uses the outbox of a stopped agent.
    pub(super) is_busy: bool,
    /// Reason why the agent does not respond.
    pub(super) silence: Option<String>,
    /// Problems that need attention.
    pub(in crate::cli) problems: Vec<Problem>,
    /// Status of the agent; if none is running, only the parts that are available without it.
    pub(in crate::cli) status: AgentStatus,
    pub(super) hooks: Vec<HookStatus>,
    /// Service of this user, if one is installed.
    pub(super) service: Option<ServiceStatus>,
}

impl StatusReport {
    /// Returns the report as `--json` prints it.
    pub(in crate::cli) fn json(&self) -> Value {
        let Self { status, .. } = self;
        json!({
            "version": VERSION,
            "at": self.at,
            "state": self.state,
            "state_dir": self.state_dir,
            "pid": self.pid,
            "problems": self.problems,
            "agent": (self.state == State::Running).then_some(&status.agent),
            "outbox": status.outbox,
            "outbox_error": status.outbox_error,
            "sinks": status.sinks,
            "reading": status.reading,
            "config": status.config,
            "compliance": status.compliance,
            "device": status.device,
            "update": status.update,
            "hanging": status.hanging,
            "hooks": self.hooks,
            "service": self.service,
        })
    }
}

/// State of the agent's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum State {
    /// An agent is running and responds.
    Running,
    /// A process holds the state directory and does not respond.
    Silent,
    /// No agent is running.
    #[default]
    Stopped,
}

/// Problem that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct Problem {
    pub(in crate::cli) level: Level,
    /// The problem.
    pub(in crate::cli) what: String,
    /// Remedy.
    #[serde(rename = "do")]
    pub(in crate::cli) remedy: String,
}

/// Level of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum Level {
    /// The agent does not do its work; `check --strict` fails.
    Failing,
    /// The agent does its work, and a person should look.
    Warning,
}

/// Hook of ai-agent in a settings file of Claude Code.
#[derive(Debug, Serialize)]
pub(super) struct HookStatus {
    pub(super) name: String,
    pub(super) path: String,
    /// Reason why the hook is not active; `None` when it is.
    #[serde(rename = "trouble")]
    pub(super) problem: Option<String>,
}
