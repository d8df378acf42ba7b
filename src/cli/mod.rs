//! The command line: one file for each command.

mod audit;
mod check;
mod config;
pub(crate) mod deadletter;
mod doctor;
mod dry_run;
mod flush;
mod hooks;
mod log_level;
pub(crate) mod outbox;
mod output;
mod progress_bar;
mod run;
mod service;
mod stages;
pub(crate) mod status;
mod test;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::{output as export, progress_bar as progress};
use crate::{
    agent::{config_sources as setup, managed_config as managed},
    control::{self, store},
    logging,
    platform::memory,
    text::causes,
};

/// Ships Claude Code session logs to a SIEM, without losing a byte.
#[derive(Parser)]
#[command(name = "ai-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// A configuration file above the machine's and the user's.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Logs what the agent does in detail.
    #[arg(long, global = true)]
    debug: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Reads session files and ships them, until stopped.
    Run(run::Arguments),
    /// Makes the agent a service of the user, and starts it; brings one that is there up to date.
    Install(service::Install),
    /// Stops the service and takes away what `install` laid down; state and configuration stay.
    Uninstall(service::Uninstall),
    /// Starts the service.
    Start,
    /// Stops the service.
    Stop,
    /// Stops the service and starts it again.
    Restart,
    /// Whether the agent runs: 0 when it does, 1 when not. With `--hook`: answers Claude Code.
    Check(check::Arguments),
    /// How the agent is doing: what waits, what was delivered, what is wrong and what to do.
    Status(status::Arguments),
    /// Delivers what waits in the outbox now, and waits until it is acknowledged.
    Flush(flush::Flush),
    /// Reads the configuration again, as SIGHUP does, and says what became of it.
    Reload(flush::Reload),
    /// Changes what the agent that runs logs.
    LogLevel(log_level::Arguments),
    /// Shows, explains and checks the configuration.
    Config(config::Arguments),
    /// Goes through everything that can be wrong on this machine, and says what to do.
    Doctor(doctor::Arguments),
    /// The hooks in Claude Code's settings: installs, removes, shows them.
    Hooks(hooks::Arguments),
    /// Runs the tests that the configuration carries, or files that are to be rolled out.
    Test(test::Arguments),
    /// Entries that a receiver refused for good: lists, shows, sends again, exports, deletes.
    Deadletter(deadletter::Arguments),
    /// What waits for delivery: how much, which entries, whether they are whole.
    Outbox(outbox::Arguments),
    /// Who stopped a container: the Linux audit system's rules, and what it has logged.
    Audit(audit::Arguments),
    /// Lists the stages that a pipeline can be made of.
    Stages(stages::Arguments),
}

/// Why a command failed; decides the exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration or the surroundings are wrong: nothing was tried.
    Usage(Box<dyn std::error::Error>),
    /// It was tried and failed.
    Failed(Box<dyn std::error::Error>),
}

impl Failure {
    pub(crate) fn usage(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::Usage(error.into())
    }

    pub(crate) fn failed(error: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::Failed(error.into())
    }

    /// What it says.
    pub(crate) fn words(&self) -> String {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        causes(&**error)
    }

    /// The same, where a wrong configuration is what was looked for.
    pub(crate) fn into_failed(self) -> Self {
        let (Self::Usage(error) | Self::Failed(error)) = self;
        Self::Failed(error)
    }
}

/// The command line as it is parsed, for manuals and completions.
#[must_use]
pub fn command_line() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the command line: the whole `main` of the agent, and of an agent with stages of your own.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.
#[must_use]
pub fn main() -> ExitCode {
    memory::share_one_heap();
    // What the client calls for each prompt is not worth a parser.
    if let Some(hook) = check::plain_hook(std::env::args_os()) {
        return check::answer_hook(&hook);
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(wrong) if check::is_hook(std::env::args_os()) && wrong.exit_code() == 2 => {
            // A prompt must not be blocked because somebody has mistyped a hook.
            drop(wrong.print());
            return ExitCode::from(1);
        }
        Err(wrong) => wrong.exit(),
    };
    if let Command::Check(check) = &arguments.command
        && let Some(hook) = check.hook()
    {
        return check::answer_hook(hook);
    }
    logging::begin(arguments.debug);
    // A panic's message may quote a record.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(code = "panic", place, "a part of the agent failed");
    }));
    let result = match arguments.command {
        Command::Run(run) => run.execute(arguments.config.as_deref()),
        Command::Install(install) => install.execute(arguments.config.as_deref()),
        Command::Uninstall(uninstall) => uninstall.execute(arguments.config.as_deref()),
        Command::Start => service::Order::Start.execute(arguments.config.as_deref()),
        Command::Stop => service::Order::Stop.execute(arguments.config.as_deref()),
        Command::Restart => service::Order::Restart.execute(arguments.config.as_deref()),
        Command::Check(check) => check.execute(arguments.config.as_deref()),
        Command::Status(status) => status.execute(arguments.config.as_deref()),
        Command::Flush(flush) => flush.execute(arguments.config.as_deref()),
        Command::Reload(reload) => reload.execute(arguments.config.as_deref()),
        Command::LogLevel(level) => level.execute(arguments.config.as_deref()),
        Command::Config(config) => config.execute(arguments.config.as_deref()),
        Command::Doctor(doctor) => doctor.execute(arguments.config.as_deref()),
        Command::Hooks(hooks) => hooks.execute(),
        Command::Test(test) => test.execute(arguments.config.as_deref()),
        Command::Deadletter(letters) => letters.execute(arguments.config.as_deref()),
        Command::Outbox(outbox) => outbox.execute(arguments.config.as_deref()),
        Command::Audit(audit) => audit.execute(arguments.config.as_deref()),
        Command::Stages(stages) => stages.execute(),
    };
    let (error, code) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (error, 2),
        Err(Failure::Failed(error)) => (error, 1),
    };
    // Without anybody to tell, the exit code has to do.
    drop(writeln!(io::stderr(), "error: {}", causes(&*error)));
    ExitCode::from(code)
}

/// Writes a line to standard output. A reader that is gone ends the command without fuss.
pub(crate) fn print(text: std::fmt::Arguments<'_>) -> Result<(), Failure> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::failed(error)),
        _ => Ok(()),
    }
}
