//! The command line: arguments, output and exit codes, with one file for each command.

mod audit;
mod check;
mod completions;
mod config;
mod context;
mod deadletter;
mod device;
mod doctor;
mod dry_run;
mod failure;
mod flush;
mod hook_answer;
mod hook_files;
mod hook_policy;
mod hook_status;
mod hooks;
mod log_level;
mod logs;
mod man;
mod outbox;
mod output;
mod progress_bar;
mod reload;
mod run;
mod self_test;
mod service;
mod signal_task;
mod stages;
mod start_test;
mod status;
mod support_bundle;
mod terminal;
mod test;
mod update;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::{failure::Failure, service::ServiceAction};
use crate::{
    logging::{self, Level},
    platform::{core_dumps, memory, survive_file_size_limit},
    update::entry,
    version::{self, version},
};

/// Exit codes of all commands, for their help. docs/scripts.md lists what they mean for each.
const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  the command has failed, or what it checks is not in order
  2  the arguments, the environment or the configuration are wrong";

/// Ship Claude Code session logs to a SIEM without losing a byte
#[derive(Parser)]
#[command(name = "ai-agent", version = version(), arg_required_else_help = true, after_help = EXIT_CODES)]
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
    Run(run::Arguments),
    Install(service::install::Arguments),
    Uninstall(service::uninstall::Arguments),
    /// Start the service
    Start,
    /// Stop the service
    Stop,
    /// Restart the service
    Restart,
    Check(check::Arguments),
    Status(status::Arguments),
    Flush(flush::Arguments),
    Reload(reload::Arguments),
    LogLevel(log_level::Arguments),
    Logs(logs::Arguments),
    Config(config::Arguments),
    Doctor(doctor::Arguments),
    Hooks(hooks::Arguments),
    Test(test::Arguments),
    Deadletter(deadletter::Arguments),
    Outbox(outbox::Arguments),
    Device(device::Arguments),
    Update(update::Arguments),
    Audit(audit::Arguments),
    Stages(stages::Arguments),
    SupportBundle(support_bundle::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
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
            Self::Logs(logs) => logs.execute(config),
            Self::Config(command) => command.execute(config),
            Self::Doctor(doctor) => doctor.execute(config),
            Self::Hooks(hooks) => hooks.execute(),
            Self::Test(test) => test.execute(config),
            Self::Deadletter(letters) => letters.execute(config),
            Self::Outbox(outbox) => outbox.execute(config),
            Self::Device(device) => device.execute(config),
            Self::Update(update) => update.execute(config),
            Self::Audit(audit) => audit.execute(config),
            Self::Stages(stages) => stages.execute(),
            Self::SupportBundle(bundle) => bundle.execute(config),
            Self::Completions(completions) => completions.execute(),
            Self::Man(man) => man.execute(),
        }
    }
}

impl Command {
    /// Returns true if the command only reads and answers.
    fn is_read_only(&self) -> bool {
        match self {
            Self::Check(_)
            | Self::Status(_)
            | Self::Config(_)
            | Self::Doctor(_)
            | Self::Test(_)
            | Self::Stages(_)
            | Self::Logs(_)
            | Self::SupportBundle(_)
            | Self::Completions(_)
            | Self::Man(_) => true,
            Self::Run(run) => run.is_test(),
            Self::Hooks(hooks) => hooks.is_read_only(),
            Self::Deadletter(letters) => letters.is_read_only(),
            Self::Outbox(outbox) => outbox.is_read_only(),
            Self::Device(device) => device.is_read_only(),
            Self::Update(update) => update.is_read_only(),
            Self::Audit(audit) => audit.is_read_only(),
            Self::Install(_)
            | Self::Uninstall(_)
            | Self::Start
            | Self::Stop
            | Self::Restart
            | Self::Flush(_)
            | Self::Reload(_)
            | Self::LogLevel(_) => false,
        }
    }
}

/// Returns the definition of the command line, for manuals and completions.
#[must_use]
pub fn command_line() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the command line of a program with stages of its own, and with a version of its own such as
/// `env!("CARGO_PKG_VERSION")`: updates compare it, and it is in heartbeats and in `--version`.
///
/// Exit codes as of [`main()`].
#[must_use]
pub fn main_of(version: &'static str) -> ExitCode {
    version::set(version);
    main()
}

/// Runs the command line: the whole `main` of the agent, and of an agent with stages of your own.
///
/// Exit codes: 0 success, 1 failure, 2 wrong arguments or configuration.
#[must_use]
pub fn main() -> ExitCode {
    // Before everything else that could fail: it replaces a new program that does not run.
    if let Some(exit) = entry::enter(std::env::args_os()) {
        return exit;
    }
    memory::share_one_heap();
    core_dumps::disable();
    survive_file_size_limit();
    // Claude Code runs a hook for each prompt, so it skips the argument parser.
    if let Some(hook) = hook_answer::plain_hook(std::env::args_os()) {
        return hook_answer::answer_hook(&hook);
    }
    // The previous release starts a new one with it, whatever commands the new one has.
    if let Some(test) = self_test::SelfTest::requested(std::env::args_os()) {
        return test.run();
    }
    if let Some(test) = start_test::StartTest::requested(std::env::args_os()) {
        return test.run();
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
    logging::start(match (arguments.debug, arguments.command.is_read_only()) {
        (true, _) => Level::Debug,
        // Warnings about the machine would precede the answer: `doctor`, `config check` and the start
        // of the agent report them.
        (false, true) => Level::Error,
        (false, false) => Level::Info,
    });
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
