//! `ai-agent config`.

mod check;
mod compare;
mod explain;
mod init;
mod show;
mod siem_file;
mod values;

use std::path::Path;

use clap::{Args, Subcommand};

use super::{failure::Failure, output::print};

/// Show, explain and check the configuration
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Print the configuration in force, with all layers merged and `***` in place of secrets
    Show(show::Arguments),
    /// Show where a value comes from, what it overrides, and who may change it
    Explain(explain::Arguments),
    /// Check the configuration in force, or configuration files before a rollout
    Check(check::Arguments),
    /// Compare a configuration with the one in force, on the session logs of this machine
    Try(compare::Arguments),
    /// Print a JSON Schema of the configuration file, with all stages of this program
    Schema,
    /// Write a configuration file with every option as a comment, or one that sends to a SIEM
    Init(init::Arguments),
}

impl Arguments {
    pub(super) fn execute(&self, explicit: Option<&Path>) -> Result<(), Failure> {
        match &self.action {
            Action::Show(show) => show.execute(explicit),
            Action::Explain(explain) => explain.execute(explicit),
            Action::Check(check) => check.execute(explicit),
            Action::Try(compare) => compare.execute(explicit),
            Action::Schema => print(format_args!("{:#}", values::schema())),
            Action::Init(init) => init.execute(explicit),
        }
    }
}
