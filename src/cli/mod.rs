//! The command line: arguments, output and exit codes, with one file for each command.

mod audit;
mod check;
mod config;
mod context;
mod deadletter;
mod doctor;
mod dry_run;
mod failure;
mod flush;
mod hook_answer;
mod hook_files;
mod hooks;
mod log_level;
mod outbox;
mod output;
mod progress_bar;
mod reload;
mod run;
mod service;
mod stages;
mod status;
mod terminal;
mod test;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::{failure::Failure, service::ServiceAction};
use crate::{logging, platform::memory};

/// Ship Claude Code session logs to a SIEM without losing a byte
#[derive(Parser)]
#[command(name = "ai-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Extra configuration file; overrides the machine's and the user's
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log in detail
    #[arg(long, global = true)]
    debug: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Read session logs and ship them, until stopped
    Run(run::Arguments),
    /// Install the agent as a service of the user and start it, or update an installed one
    Install(service::install::Arguments),
    /// Stop the service and remove what `install` installed; state and configuration stay
    Uninstall(service::uninstall::Arguments),
    /// Start the service
    Start,
    /// Stop the service
    Stop,
    /// Restart the service
    Restart,
    /// Check whether the agent is running; with `--hook`, answer a hook of Claude Code
    Check(check::Arguments),
    /// Show what is queued and delivered, problems, and what to do about them
    Status(status::Arguments),
    /// Deliver queued entries now, and wait until they are acknowledged
    Flush(flush::Arguments),
    /// Reload the configuration, the server's part included, as SIGHUP does
    Reload(reload::Arguments),
    /// Change the log level of the running agent until it stops
    LogLevel(log_level::Arguments),
    /// Show, explain and check the configuration
    Config(config::Arguments),
    /// Check this machine for everything that can keep the agent from working
    Doctor(doctor::Arguments),
    /// Install, remove or show the hooks in Claude Code's settings
    Hooks(hooks::Arguments),
    /// Run the `[[test]]` tables of the configuration in force, or of configuration files
    Test(test::Arguments),
    /// Inspect, retry or delete entries that a receiver rejected for good
    Deadletter(deadletter::Arguments),
    /// Inspect queued entries, whether the agent is running or not
    Outbox(outbox::Arguments),
    /// Record and show which docker commands stop or remove containers, by the Linux audit system
    Audit(audit::Arguments),
    /// List all stages, or show one with its options
    Stages(stages::Arguments),
}

impl Command {
    fn execute(self, config: Option<&Path>) -> Result<(), Failure> {
        match self {
            Self::Run(run) => run.execute(config),
            Self::Install(install) => install.execute(config),
            Self::Uninstall(uninstall) => uninstall.execute(config),
            Self::Start => ServiceAction::Start.execute(config),
            Self::Stop => ServiceAction::Stop.execute(config),
            Self::Restart => ServiceAction::Restart.execute(config),
            Self::Check(check) => check.execute(config),
            Self::Status(status) => status.execute(config),
            Self::Flush(flush) => flush.execute(config),
            Self::Reload(reload) => reload.execute(config),
            Self::LogLevel(level) => level.execute(config),
            Self::Config(command) => command.execute(config),
            Self::Doctor(doctor) => doctor.execute(config),
            Self::Hooks(hooks) => hooks.execute(),
            Self::Test(test) => test.execute(config),
            Self::Deadletter(letters) => letters.execute(config),
            Self::Outbox(outbox) => outbox.execute(config),
            Self::Audit(audit) => audit.execute(config),
            Self::Stages(stages) => stages.execute(),
        }
    }
}

/// Returns the definition of the command line, for manuals and completions.
#[must_use]
pub fn command_line() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the command line: the whole `main` of the agent, and of an agent with stages of your own.
///
/// Exit codes: 0 success, 1 failure, 2 wrong arguments or configuration.
#[must_use]
pub fn main() -> ExitCode {
    memory::share_one_heap();
    // Claude Code runs a hook for each prompt, so it skips the argument parser.
    if let Some(hook) = hook_answer::plain_hook(std::env::args_os()) {
        return hook_answer::answer_hook(&hook);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if hook_answer::is_hook(std::env::args_os()) && error.exit_code() == 2 => {
            // Exit code 2 would block every prompt because of a typing error in a hook.
            drop(error.print());
            return ExitCode::from(1);
        }
        Err(error) => error.exit(),
    };
    if let Command::Check(check) = &arguments.command
        && let Some(hook) = check.hook()
    {
        return hook_answer::answer_hook(hook);
    }
    logging::start(arguments.debug);
    // Without the panic's message, which may quote a record.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(code = "panic", place, "a thread of the agent panicked");
    }));
    match arguments.command.execute(arguments.config.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // With a closed standard error, only the exit code is left.
            drop(writeln!(io::stderr(), "error: {}", failure.message()));
            ExitCode::from(failure.exit_code())
        }
    }
}
