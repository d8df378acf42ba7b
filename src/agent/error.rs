//! Errors of the agent.

use std::{io, path::PathBuf};

use crate::{
    config::ConfigError,
    pipeline::{
        delivery::RefusedEntries,
        fault::{CatchUpError, Fault},
        outbox::OutboxError,
    },
    platform::{LockError, PathsError, secure_file::SecretFileError},
    text::counted,
};

/// Error in the environment or the configuration: nothing was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// There is no home directory.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// The variables that the service was installed with cannot be read.
    #[error(transparent)]
    Environment(#[from] SecretFileError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Error that ended the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The configuration is wrong.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] LockError),
    /// The outbox cannot be opened.
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    /// The disk of the outbox is full.
    #[error(
        "{}: free space on its disk, or set `state_dir` under `[agent]` to another directory",
        crate::text::causes(error)
    )]
    DiskFull {
        /// Error of the outbox.
        error: OutboxError,
    },
    /// The pipeline failed too often.
    #[error("{}", gave_up(fault, *restarts, state_dir))]
    GaveUp {
        /// The last fault.
        fault: Fault,
        /// Number of restarts before it.
        restarts: usize,
        /// The state directory.
        state_dir: PathBuf,
    },
    /// With `--once`: not everything was delivered.
    #[error(transparent)]
    CatchUp(CatchUpError),
    /// With `--once`: everything was read, but receivers refused entries for good.
    #[error("{}", refused(*.0))]
    Refused(RefusedEntries),
    /// With `--once`: stopped before everything was delivered.
    #[error("interrupted: entries that were read stay in the outbox")]
    Interrupted,
    /// A thread cannot be started, or it panicked.
    #[error(transparent)]
    Thread(#[from] io::Error),
}

impl From<ConfigError> for AgentError {
    fn from(error: ConfigError) -> Self {
        Self::Setup(error.into())
    }
}

fn refused(entries: RefusedEntries) -> String {
    let RefusedEntries { dead_letters, unidentified } = entries;
    let refused = |count, where_to_look: &str| {
        let entries = counted(count, "entry", "entries");
        (count > 0).then(|| format!("receivers refused {entries} for good{where_to_look}"))
    };
    let parts = [
        refused(dead_letters, ", kept as dead letters: see `ai-agent deadletter list`"),
        refused(
            unidentified,
            " without saying which: see `entries_refused_unidentified` in the log",
        ),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn gave_up(fault: &Fault, restarts: usize, state_dir: &std::path::Path) -> String {
    let advice = match fault {
        Fault::OutboxDamaged => format!("check the disk of `{}`", state_dir.display()),
        Fault::Panicked(_) => "entries that were not acknowledged are kept".to_owned(),
    };
    match restarts {
        0 => format!("{fault}: {advice}"),
        1 => format!("{fault}, again after a restart of the pipeline: {advice}"),
        _ => format!(
            "{fault}, again after {restarts} restarts of the pipeline within an hour: {advice}"
        ),
    }
}
