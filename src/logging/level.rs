//! The log level of this process, and how it changes while the process runs.

use std::sync::OnceLock;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, reload::Handle};

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// What a person must mend.
    Error,
    /// What somebody should look at.
    Warn,
    /// What is worth knowing.
    Info,
    /// What the agent does, in detail.
    Debug,
    /// Everything of the agent's own.
    Trace,
}

impl Level {
    /// What is logged at it: of libraries no more than warnings.
    pub(crate) fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "ai_agent=info,warn",
            Self::Debug => "ai_agent=debug,warn",
            Self::Trace => "ai_agent=trace,warn",
        }
    }
}

/// Changes the filter, or only says what it is.
type Change = Box<dyn Fn(Option<Level>) -> Result<String, String> + Send + Sync>;

static CHANGE: OnceLock<Change> = OnceLock::new();

/// Keeps what the filter of this process's log is changed with.
pub(super) fn keep<S: 'static>(handle: Handle<EnvFilter, S>)
where
    Handle<EnvFilter, S>: Send + Sync,
{
    let change = move |level: Option<Level>| {
        if let Some(level) = level {
            handle.reload(EnvFilter::new(level.filter())).map_err(|error| error.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|error| error.to_string())
    };
    // There is one log for each process.
    drop(CHANGE.set(Box::new(change)));
}

/// Lets this process log at another level; what it logs at then.
pub(crate) fn change(level: Option<Level>) -> Result<String, String> {
    let change = CHANGE.get().ok_or("this process has no log that could be changed")?;
    change(level)
}
