//! The running agent.

pub(crate) mod compliance_monitor;
pub(crate) mod config_manager;
pub(crate) mod config_sources;
pub(crate) mod config_updates;
pub(crate) mod file_watch;
pub(crate) mod managed_config;
pub(crate) mod poll_schedule;
pub(crate) mod restart_limit;
pub(crate) mod status_file;
pub(crate) mod watchdog;
