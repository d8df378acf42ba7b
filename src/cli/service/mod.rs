//! `ai-agent install`, `uninstall`, `start`, `stop`, `restart`: the agent as a service of the user.

mod context;
mod control;
pub(super) mod install;
mod purge;
mod step;
pub(super) mod uninstall;

pub(super) use context::installed_service;
pub(super) use control::ServiceAction;
