//! `ai-agent audit`: who stopped a container, as the Linux audit system tells it.

mod install;
mod status;
mod tail;
mod tools;

use std::path::Path;

use clap::{Args, Subcommand};

use super::failure::Failure;
use crate::platform::Os;

/// Who stopped a container, as the Linux audit system tells it. Needs no server and no secrets.
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lets the kernel log every call of docker by root and by the operator. Asks for root by sudo.
    Install(install::Install),
    /// Takes the rules away again. Asks for root by sudo.
    Uninstall(install::Uninstall),
    /// Shows who ended containers, and follows: from today's start at first, later from where it
    /// stopped.
    Tail(tail::Options),
    /// Whether the rules are loaded and the log can be read. Exit code 1 when not.
    Status(status::Options),
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        if Os::CURRENT != Os::Linux {
            return Err(Failure::usage("the audit system is Linux's: there is none here"));
        }
        match &self.action {
            Action::Install(install) => install.execute(),
            Action::Uninstall(uninstall) => uninstall.execute(),
            Action::Tail(tail) => tail.execute(explicit),
            Action::Status(status) => status.execute(explicit),
        }
    }
}
