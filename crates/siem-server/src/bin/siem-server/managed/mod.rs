//! `siem-server config` for managed configurations: their check, choice, roll-out, and going back.

mod list;
mod resolve;
mod revert;
mod rollout;

use std::{io, path::PathBuf};

use clap::{Args, Subcommand};
pub(crate) use siem_server::configs::{ConfigProblem as Problem, Severity};
use siem_server::{
    Clock as _, SystemClock,
    config::Settings,
    configs::{ConfigFolder, FolderOptions, check},
    trust::Registry,
};

use crate::{
    Data,
    config::{ConfigSource, Problems},
    failure::Failure,
    output,
};

/// Commands for managed configurations.
#[derive(Subcommand)]
pub(crate) enum Command {
    List(list::List),
    Devices(list::Devices),
    Resolve(resolve::Resolve),
    Rollout(rollout::SetRollout),
    Revert(revert::Revert),
}

impl Command {
    pub(crate) fn execute(self) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.execute(),
            Self::Devices(devices) => devices.execute(),
            Self::Resolve(resolve) => resolve.execute(),
            Self::Rollout(rollout) => rollout.execute(),
            Self::Revert(revert) => revert.execute(),
        }
    }
}

/// Returns the places of the managed configurations.
pub(crate) fn options(settings: &Settings) -> FolderOptions {
    siem_server::run::managed_configurations(settings)
}

/// Returns all problems of the managed configurations at these places.
pub(crate) fn problems(options: FolderOptions) -> Vec<Problem> {
    let set = ConfigFolder::new(options).current();
    check(&set, !set.keys.is_empty(), SystemClock.now())
}

/// Prints a problem: errors to standard error.
pub(crate) fn print(problem: &Problem, is_strict: bool) -> Result<(), Failure> {
    let Problem { file, severity, code, message } = problem;
    let text = output::plain(&format!("[{code}] {file}: {message}"));
    match severity {
        Severity::Error => output::note(&format!("error: {text}")),
        Severity::Warning if is_strict => output::note(&format!("warning: {text}")),
        Severity::Warning => output::line(&format!("warning: {text}"))?,
    }
    Ok(())
}

/// Places of the managed configurations, from the configuration of the receiver.
#[derive(Args)]
pub(crate) struct PlacesSource {
    #[command(flatten)]
    source: ConfigSource,
}

/// Places of the managed configurations.
pub(crate) struct Places {
    data: Data,
    options: FolderOptions,
}

impl PlacesSource {
    fn load(&self) -> Result<Places, Failure> {
        let loaded = self.source.load().map_err(|found| Failure::failed(Problems(found)))?;
        let data = Data { directory: loaded.settings.store.directory.clone() };
        Ok(Places { data, options: options(&loaded.settings) })
    }
}

impl Places {
    fn registry(&self) -> Result<Registry, Failure> {
        self.data.open()
    }

    fn folder(&self) -> ConfigFolder {
        ConfigFolder::new(self.options.clone())
    }

    /// Returns the path of a file in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.options.folder.clone().unwrap_or_default().join(name)
    }
}

/// Error of a name of a file.
#[derive(Debug, thiserror::Error)]
#[error("there is no valid managed configuration `{0}` (run: siem-server config list)")]
struct UnknownFile(String);

/// Error of writing a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{path}`")]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}
