//! A receiver, and its administration: its configuration and keys, the devices that it knows, its tokens, and
//! views of what it holds.

mod access_log;
mod as_owner;
mod backup;
mod config;
mod devices;
mod entries;
mod failure;
mod fleet;
mod fleet_http;
mod health;
mod keys;
mod life;
mod line;
mod managed;
mod output;
mod serve;
mod tokens;
mod update;
mod verify;
mod who;

use std::{
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use failure::Failure;
use siem_protocol::statement::TrustLevel;
use siem_server::{
    DataFormat,
    trust::{Registry, RegistryOptions},
};

/// Receive session records from ai-agent, and administer the receiver: its keys, devices and tokens
///
/// The other commands work on the data directory of a receiver, also while it runs: it notices changes
/// with the next request.
#[derive(Parser)]
#[command(name = "siem-server", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Serve),
    Health(health::Health),
    /// Check and show the configuration, and manage those that agents receive
    #[command(subcommand)]
    Config(config::Command),
    /// Manage the keys with which the receiver signs
    #[command(subcommand)]
    Keys(keys::Command),
    /// Manage the keys of devices
    #[command(subcommand)]
    Devices(devices::Command),
    /// Manage tokens with scopes
    #[command(subcommand)]
    Tokens(tokens::Command),
    Fleet(fleet::Fleet),
    /// Manage the releases that agents update to
    #[command(subcommand)]
    Update(update::Command),
    Entries(entries::Entries),
    Line(line::Line),
    Backup(backup::Backup),
    Restore(backup::Restore),
    Verify(verify::Verify),
    Erase(life::Erase),
    /// List what was erased
    #[command(subcommand)]
    Erasures(life::Erasures),
    /// Manage legal holds: data that neither the retention nor an erasure removes
    #[command(subcommand)]
    Hold(life::HoldCommand),
    /// Remove epochs by age and size, and keep their ledgers
    #[command(subcommand)]
    Retention(life::Retention),
    AccessLog(access_log::ShowAccessLog),
}

/// Data directory, of every command.
#[derive(Args)]
struct Data {
    /// Data directory of the receiver
    #[arg(long = "data", value_name = "DIR", default_value = "siem-data")]
    directory: PathBuf,
}

impl Data {
    fn directory(&self) -> &Path {
        &self.directory
    }

    /// Opens the registry of an existing data directory.
    fn open(&self) -> Result<Registry, Failure> {
        self.check()?;
        self.open_or_create()
    }

    /// Checks that the data directory exists.
    fn check(&self) -> Result<(), Failure> {
        match std::fs::metadata(&self.directory) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Failure::usage(NotADirectory(self.directory.clone()))),
            Err(source) => Err(Failure::usage(DataError { path: self.directory.clone(), source })),
        }
    }

    /// Continues as the owner of the data directory: the receiver must be able to change the files that the
    /// command writes there.
    fn continue_as_owner(&self) -> Result<(), Failure> {
        match std::fs::metadata(&self.directory) {
            Ok(found) => as_owner::continue_as_owner(&found),
            // The command reports it.
            Err(_) => Ok(()),
        }
    }

    /// Executes this command with further arguments as the owner of the data directory; `false` if this process
    /// has the right user itself.
    fn run_as_owner(&self, further: &[&str]) -> Result<bool, Failure> {
        let found = std::fs::metadata(&self.directory).map_err(Failure::failed)?;
        as_owner::run_as_owner(&found, further)
    }

    /// Opens the registry, in a new data directory if there is none.
    fn open_or_create(&self) -> Result<Registry, Failure> {
        if let Ok(found) = std::fs::metadata(&self.directory) {
            as_owner::continue_as_owner(&found)?;
        }
        // An unconfirmed key is called as the server and the agents call it.
        let format = DataFormat::read(&self.directory).map_err(Failure::failed)?;
        let level = format.and_then(|format| format.level()).unwrap_or(TrustLevel::Shared);
        let options = RegistryOptions::new(level);
        Registry::open(&trust_directory(&self.directory), options).map_err(Failure::failed)
    }
}

fn trust_directory(data: &Path) -> PathBuf {
    data.join("trust")
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the data directory `{path}` (give it with --data DIR)")]
struct DataError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a directory (give the data directory with --data DIR)")]
struct NotADirectory(PathBuf);

/// Error of the system's random number generator.
#[derive(Debug, thiserror::Error)]
#[error("the system has no random bytes")]
struct NoRandomBytes;

/// Returns 32 bytes of the system's random number generator.
fn random() -> Result<[u8; 32], Failure> {
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Failure::failed(NoRandomBytes))?;
    Ok(bytes)
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if !matches!(command, Command::Serve(_)) {
        let log = tracing_subscriber::fmt().with_writer(io::stderr).without_time();
        log.with_ansi(io::stderr().is_terminal()).init();
    }
    let result = match command {
        Command::Serve(serve) => serve.execute(),
        Command::Health(health) => health.execute(),
        Command::Config(command) => command.execute(),
        Command::Keys(command) => command.execute(),
        Command::Devices(command) => command.execute(),
        Command::Tokens(command) => command.execute(),
        Command::Fleet(fleet) => fleet.execute(),
        Command::Update(command) => command.execute(),
        Command::Entries(entries) => entries.execute(),
        Command::Line(line) => line.execute(),
        Command::Backup(backup) => backup.execute(),
        Command::Restore(restore) => restore.execute(),
        Command::Verify(verify) => verify.execute(),
        Command::Erase(erase) => erase.execute(),
        Command::Erasures(command) => command.execute(),
        Command::Hold(command) => command.execute(),
        Command::Retention(command) => command.execute(),
        Command::AccessLog(show) => show.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
