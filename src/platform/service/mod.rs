//! The agent as a service of one user: a systemd user unit, a LaunchAgent, or a scheduled task.
//!
//! The definition (`definition`) and the commands (`calls`) are values that can be created for any
//! system on any system; only running the commands depends on the system.

mod calls;
mod definition;
mod manager_command;
mod notify;
mod restarts;
mod status;
mod supervisor_job;
mod user_service;
mod xml;

pub use manager_command::{ManagerCommand, ManagerCommandError};
pub use notify::Notify;
pub use restarts::restarts_process;
pub use status::ServiceStatus;
pub use supervisor_job::SupervisorJob;
pub use user_service::Service;
