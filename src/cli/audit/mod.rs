//! `ai-agent audit`: docker commands that stop or remove containers, from the Linux audit system.

mod install;
mod status;
mod tail;
mod tools;

use std::path::Path;

use clap::{Args, Subcommand};

use super::failure::Failure;
use crate::platform::Os;

/// Record and show which docker commands stop or remove containers, by the Linux audit system
///
/// Needs no server and no secrets.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Install audit rules that record every docker command of root and of the operator (uses sudo)
    Install(install::Install),
    /// Remove the audit rules (uses sudo)
    Uninstall(install::Uninstall),
    /// Show docker commands that stop or remove containers, and follow the log
    ///
    /// Starts with today's events, and later continues where it stopped.
    Tail(tail::Options),
    /// Check that the rules are loaded and the log is readable; exits 1 if not
    Status(status::Options),
}

impl Arguments {
    /// Returns true if the command only reads and answers.
    pub(super) fn is_read_only(&self) -> bool {
        matches!(self.action, Action::Status(_) | Action::Tail(_))
    }

    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        if Os::CURRENT != Os::Linux {
            return Err(Failure::usage("the audit system exists on Linux only"));
        }
        match &self.action {
            Action::Install(install) => install.execute(),
            Action::Uninstall(uninstall) => uninstall.execute(),
            Action::Tail(tail) => tail.execute(explicit),
            Action::Status(status) => status.execute(explicit),
        }
    }
}
