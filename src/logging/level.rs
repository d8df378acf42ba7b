//! Log level of this process, which can change while it runs.

use std::sync::OnceLock;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, reload::Handle};

/// Minimum level of the lines that are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Failures that a person must fix.
    Error,
    /// Problems that need attention.
    Warn,
    /// Normal events.
    Info,
    /// Details of what the agent does.
    Debug,
    /// All details of the agent's own code.
    Trace,
}

impl Level {
    /// Filter of this level; libraries log warnings at most.
    pub(super) fn filter(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "ai_agent=info,warn",
            Self::Debug => "ai_agent=debug,warn",
            Self::Trace => "ai_agent=trace,warn",
        }
    }
}

/// Sets the filter if a level is given, and returns the filter in force.
type SetFilter = Box<dyn Fn(Option<Level>) -> Result<String, String> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Stores the handle that changes the filter of this process.
pub(super) fn set_handle<S: 'static>(handle: Handle<EnvFilter, S>)
where
    Handle<EnvFilter, S>: Send + Sync,
{
    let set = move |level: Option<Level>| {
        if let Some(level) = level {
            handle.reload(EnvFilter::new(level.filter())).map_err(|error| error.to_string())?;
        }
        handle.with_current(ToString::to_string).map_err(|error| error.to_string())
    };
    // Each process has one log.
    drop(SET_FILTER.set(Box::new(set)));
}

/// Sets the log level of this process, and returns the filter in force.
///
/// # Errors
/// The process has no log.
pub(crate) fn set_level(level: Level) -> Result<String, String> {
    apply(Some(level))
}

/// Returns the filter in force.
///
/// # Errors
/// The process has no log.
pub(crate) fn filter() -> Result<String, String> {
    apply(None)
}

fn apply(level: Option<Level>) -> Result<String, String> {
    let set = SET_FILTER.get().ok_or("this process has no log")?;
    set(level)
}
