//! `ai-agent install`, `uninstall`, `start`, `stop`, `restart`: the agent as a service of the user.

mod context;
mod control;
pub(super) mod install;
mod purge;
mod step;
pub(super) mod uninstall;
mod updated;

pub(super) use context::installed_service;
pub(super) use control::ServiceAction;
pub(super) use updated::{is_active_service, restart_after_update};
