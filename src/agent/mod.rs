//! The running agent: configuration, pipeline, restarts, and monitoring of accounts.
//!
//! An [`Agent`] holds the state directory's lock and runs until its [`AgentHandle`] stops it. It
//! neither parses arguments nor prints, so that it can run inside a test.

mod account_watch;
mod compliance_monitor;
mod config_manager;
mod config_sequence;
pub(crate) mod config_sources;
mod config_updates;
mod device_key;
pub(crate) mod error;
mod file_watch;
pub(crate) mod handle;
pub(crate) mod managed_config;
mod outbox_start;
mod policy_files;
mod poll_schedule;
mod restart_limit;
mod run;
pub(crate) mod sandbox;
mod self_update;
mod silent_places;
mod sleep_detector;
pub(crate) mod startable;
pub(crate) mod status_file;
#[cfg(test)]
mod tests;
pub(crate) mod unusable_paths;
mod update_confirm;
mod watchdog;

pub(crate) use config_sources::ConfigSources;
pub(crate) use error::{AgentError, SetupError};
pub(crate) use file_watch::ConfigFileWatch;
pub(crate) use handle::AgentHandle;
pub(crate) use run::{Agent, AgentEnd, RunMode};
pub(crate) use self_update::summary_at_start;
